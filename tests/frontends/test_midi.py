"""Notes as tokens: against a naive reference, and back again."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import mido
import numpy as np
import pytest
from midi_files import performance, write_midi

from rvqlm.condition_info import MIDI_FIELDS, ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd, MidiSettings
from rvqlm.frontends.midi_file import Notes, read_midi

CHORD = [(0.5, 0.4, 60, 64), (0.5, 0.4, 64, 80), (0.503, 1.2, 55, 127), (22.1, 0.1, 60, 1)]


def naive_bin(seconds: float) -> int:
    return min(127, round(20 * math.log(1 + seconds / 0.05)))


def naive_tokens(notes, pedal) -> list[list[int]]:
    """The table of the module's docstring, one note after another."""
    out, before = [], 0.0
    last = max([t + d for t, d, _, _ in notes] + [t for t, _ in pedal])
    for time, duration, pitch, velocity in sorted(notes, key=lambda n: (n[0], n[2])):
        release = time + duration
        down, up = False, last
        for at, value in pedal:
            if at <= release:
                down = value >= 64
            elif value < 64:
                up = at
                break
        sounding = naive_bin(up - release) if down else 0
        position = int(time / 0.02 + 1e-9) % 1024
        onset = naive_bin(time - before)
        out.append([pitch, velocity // 2, naive_bin(duration), onset, position, sounding])
        before = time
    return out


@pytest.fixture
def front_end():
    return MidiFrontEnd()


@pytest.mark.parametrize("seed", range(4))
def test_against_a_naive_reference(tmp_path, front_end, seed):
    notes, pedal = performance(seed, 60, 300)
    write_midi(tmp_path / "a.mid", notes, pedal)
    got = front_end.encode(tmp_path / "a.mid")
    expected = np.array(naive_tokens(notes, pedal))
    assert got.dtype == np.int32 and got.shape == (300, 6)
    for field in (0, 1, 4):
        np.testing.assert_array_equal(got[:, field], expected[:, field], err_msg=MIDI_FIELDS[field])
    for field in (2, 3, 5):  # a value on the edge between two bins may fall on either side
        off = abs(got[:, field] - expected[:, field])
        assert off.max() <= 1 and (off > 0).mean() < 0.02, MIDI_FIELDS[field]
    assert (expected[:, 5] > 0).any() and (expected[:, 5] == 0).any()
    assert ((got >= 0) & (got < front_end.info(1).sizes)).all()


def test_known_tokens(tmp_path, front_end):
    write_midi(tmp_path / "a.mid", CHORD, [(0.6, 64), (1.4, 63), (1.6, 127), (2.0, 0)])
    drummed = tmp_path / "b.mid"
    write_midi(drummed, CHORD, [(0.6, 64), (1.4, 63), (1.6, 127), (2.0, 0)], [(1, 1, 36, 90)])
    expected = [
        # pitch, velocity, held 0.4 / 1.2 / 0.1 s, since the note before, 0.5 s / 20 ms, pedal
        [60, 32, 44, 48, 25, 48],  # released at 0.9, pedal down to 1.4
        [64, 40, 44, 0, 25, 48],
        [55, 63, 64, 1, 25, 39],  # released at 1.703, pedal up at 2.0
        [60, 0, 22, 121, 1105 - 1024, 0],
    ]
    assert front_end.encode(tmp_path / "a.mid").tolist() == expected
    assert front_end.encode(drummed).tolist() == expected


def test_pedal_that_is_never_lifted_lasts_to_the_end(tmp_path):
    write_midi(tmp_path / "a.mid", [(0, 1, 60, 9), (2, 3, 61, 9)], [(0.5, 100)])
    np.testing.assert_allclose(read_midi(tmp_path / "a.mid").notes.pedal, [4, 0], atol=1e-5)
    write_midi(tmp_path / "a.mid", [(0, 1, 60, 9), (2, 3, 61, 9)], [(1.5, 100), (9, 0)])
    np.testing.assert_allclose(read_midi(tmp_path / "a.mid").notes.pedal, [0, 4], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_round_trip_within_the_bins(tmp_path, front_end, seed):
    notes, pedal = performance(seed + 10, 150, 400, pedals=40)
    gap = [(t + 25 * (t > 80), d, p, v) for t, d, p, v in notes]  # a rest beyond all positions
    write_midi(tmp_path / "a.mid", gap, [(t + 25 * (t > 80), v) for t, v in pedal])
    tokens = front_end.encode(tmp_path / "a.mid")
    true, back = read_midi(tmp_path / "a.mid").notes, front_end.notes(tokens)
    assert abs(back.time - true.time).max() <= 0.02  # errors do not add up over 175 s
    assert (np.floor(back.time / 0.02) % 1024 == tokens[:, 4]).all()
    np.testing.assert_array_equal(back.pitch, true.pitch)
    assert abs(back.velocity - true.velocity).max() <= 1
    for name in ("duration", "pedal"):
        longest = 0.05 * math.expm1(127 / 20)  # 28.6 s
        a, b = getattr(back, name), np.minimum(getattr(true, name), longest)
        # half a bin: a fortieth of the value and the unit
        assert (abs(np.log((a + 0.05) / (b + 0.05))) <= 1 / 40 + 1e-4).all()

    (tmp_path / "b.mid").write_bytes(front_end.decode(tokens))
    again = front_end.encode(tmp_path / "b.mid")
    # notes that a step made simultaneous are in the order of their pitches now
    tokens = tokens[np.lexsort((tokens[:, 0], np.round(back.time, 3)))]
    np.testing.assert_array_equal(again[:, :2], tokens[:, :2])
    np.testing.assert_array_equal(again[:, 4], tokens[:, 4])
    assert (abs(again - tokens)[:, 2] <= 1).mean() > 0.98  # but where a key is struck again
    held = tokens[:, 5] > 8  # 25 ms; shorter spans round away in milliseconds
    assert (again[held, 5] > 0).mean() > 0.98 and (again[tokens[:, 5] == 0, 5] == 0).mean() > 0.98
    assert (abs(again - tokens)[held, 5] <= 2).mean() > 0.95


def test_keys_struck_again_end_before(tmp_path, front_end):
    tokens = front_end.tokens(
        Notes(
            *(
                np.array(c)
                for c in ([0.0, 0.51, 0.51], [0.52, 1, 1], [60, 60, 62], [9] * 3, [0] * 3)
            )
        )
    )
    (tmp_path / "a.mid").write_bytes(front_end.decode(tokens))
    notes = read_midi(tmp_path / "a.mid").notes
    first, second = np.flatnonzero(notes.pitch == 60)
    assert notes.time[first] + notes.duration[first] < notes.time[second]
    assert notes.duration[second] == pytest.approx(1, rel=0.03)


def test_parts_of_a_recording(tmp_path, front_end):
    notes, pedal = performance(3, 30, 200)
    write_midi(tmp_path / "a.mid", notes, pedal)
    whole = read_midi(tmp_path / "a.mid").notes
    part = whole.between(10.0, 20.0, sounding=False)
    inside = [n for n in sorted(notes, key=lambda n: (n[0], n[2])) if 10 <= n[0] < 20]
    np.testing.assert_allclose(part.time, [n[0] - 10 for n in inside], atol=1e-5)
    assert part.pitch.tolist() == [n[2] for n in inside]
    tokens = front_end.tokens(part)
    assert tokens[0, 3] == naive_bin(inside[0][0] - 10)
    assert front_end.tokens(whole.between(40, 50)).shape == (0, 6)
    few = MidiFrontEnd(MidiSettings(max_notes=7))
    np.testing.assert_array_equal(few.encode(tmp_path / "a.mid"), front_end.tokens(whole)[:7])


def test_what_sounds_from_before(tmp_path, front_end):
    """A key that is held, one that the pedal lets sound, and one that was struck again under it."""
    notes = [
        (0, 3, 60, 64),
        (0.5, 0.5, 64, 80),
        (0.5, 0.5, 67, 90),
        (1.5, 0.2, 67, 96),
        (3, 1, 72, 9),
    ]
    write_midi(tmp_path / "a.mid", notes, [(0.9, 127), (4.5, 0)])
    part = read_midi(tmp_path / "a.mid").notes.between(2, 4)
    tokens = front_end.tokens(part)
    assert tokens.tolist() == [
        # pitch, velocity, left of the key's hold, age, sounds from before, left of the pedal
        [60, 32, naive_bin(1), naive_bin(2), 1024, naive_bin(1.5)],
        [64, 40, 0, naive_bin(1.5), 1024, naive_bin(2.5)],
        [67, 48, 0, naive_bin(0.5), 1024, naive_bin(2.5)],
        [72, 4, naive_bin(1), naive_bin(1), 50, naive_bin(0.5)],
    ]
    back = front_end.notes(tokens)
    np.testing.assert_allclose(back.time, [-2, -1.5, -0.5, 1], atol=0.06)
    np.testing.assert_allclose(back.duration, [3, 1.5, 0.5, 1], atol=0.1)
    (tmp_path / "b.mid").write_bytes(front_end.decode(tokens))
    again = read_midi(tmp_path / "b.mid").notes
    assert again.pitch.tolist() == [60, 64, 67, 72] and again.time[:3].tolist() == [0, 0, 0]


def test_models_of_the_first_version_get_the_notes_that_begin(tmp_path):
    front_end = MidiFrontEnd(version=1)
    info = ConditionInfo.from_dict(json.loads(json.dumps(front_end.info(4.0).to_dict())))
    assert info.sizes[4] == 1024 and info.settings["version"] == 1
    assert not MidiFrontEnd.from_info(info).sounding


def test_settings_change_the_tokens(tmp_path, front_end):
    notes, pedal = performance(3, 30, 100)
    write_midi(tmp_path / "a.mid", notes, pedal)
    default = front_end.encode(tmp_path / "a.mid")
    changes = {
        "velocity_bins": (32, 1), "position_step": (0.05, 4), "positions": (100, 4),
        "seconds_bins": (40, 2), "seconds_unit": (0.2, 2), "seconds_steps": (10.0, 2),
    }  # fmt: skip
    for name, (value, field) in changes.items():
        other = MidiFrontEnd(replace(MidiSettings(), **{name: value}))
        tokens = other.encode(tmp_path / "a.mid")
        assert (tokens[:, field] != default[:, field]).mean() > 0.3, name
        assert (tokens < other.info(1).sizes).all(), name
    back = MidiFrontEnd(MidiSettings(velocity_bins=128)).notes(default[:0])
    assert len(back.time) == 0
    one = MidiFrontEnd(MidiSettings(velocity_bins=128))
    assert one.notes(one.encode(tmp_path / "a.mid")).velocity.tolist() == [
        n[3] for n in sorted(notes, key=lambda n: (n[0], n[2]))
    ]


def test_a_checkpoint_alone_rebuilds_it(tmp_path):
    settings = MidiSettings(32, 0.05, 300, 64, 0.1, 12.0, 9)
    front_end = MidiFrontEnd(settings)
    info = front_end.info(rate=7.5)
    assert info.sizes == (128, 32, 64, 64, 301, 64) and info.rate == 7.5
    loaded = ConditionInfo.from_dict(json.loads(json.dumps(info.to_dict())))
    again = MidiFrontEnd.from_info(loaded)
    assert again.settings == settings and again.info(7.5) == info
    write_midi(tmp_path / "a.mid", *performance(1, 10, 30))
    a, b = (f.encode(tmp_path / "a.mid") for f in (front_end, again))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"positions": 512}, r"sizes .* its bins make .*513"),
        ({"version": 3}, "version 3"),
        ({"fields": ["pitch"]}, r"fields \['pitch'\]"),
        ({"seconds_unit": -1.0}, "--seconds-unit -1.0 is not a number from 0.001 to 1"),
        ({"velocity_bins": "64"}, "--velocity-bins '64' is not a number"),
        ({"more": 1}, "'more'"),
    ],
)
def test_changed_descriptions_are_refused(change, message):
    info = MidiFrontEnd().info(1.0)
    with pytest.raises(UserError, match=message):
        MidiFrontEnd.from_info(replace(info, settings={**info.settings, **change}))
    with pytest.raises(UserError, match="this version knows"):
        MidiFrontEnd.from_info(ConditionInfo("text", (3,)))
    with pytest.raises(UserError, match="description of notes with"):
        settings = {k: v for k, v in info.settings.items() if k != "max_notes"}
        MidiFrontEnd.from_info(replace(info, settings=settings))


def test_all_problems_of_the_settings_at_once():
    with pytest.raises(
        UserError, match=r"--position-step nan .*; --positions 1 .*; --max-notes -1"
    ):
        MidiFrontEnd(MidiSettings(position_step=math.nan, positions=1, max_notes=-1))


def test_tokens_that_are_none(front_end):
    for tokens, message in (
        (np.zeros((2, 5), int), "expected whole numbers"),
        (np.zeros((2, 6)), "expected whole numbers"),
        (np.array([[0] * 6, [0, 64, 0, 0, 0, 0]]), "note 1: velocity 64 is not below 64"),
        (np.array([[0, 0, 0, 0, -1, 0]]), "note 0: position -1"),
    ):
        with pytest.raises(UserError, match=message):
            front_end.notes(tokens)
    empty = mido.MidiFile(file=io.BytesIO(front_end.decode(np.zeros((0, 6), int))))
    assert [m.type for m in empty.tracks[0]] == ["set_tempo", "end_of_track"]
