"""Notes of MIDI files: against a plain reader over mido's messages, and what is refused."""

from __future__ import annotations

import random
import tracemalloc

import mido
import numpy as np
import pytest
from midi_files import note_events, performance, reference_notes, save, write_midi

from rvqlm.errors import UserError
from rvqlm.frontends.midi_file import read_midi

END = b"\0\xff\x2f\0"
ONE = b"\0\x90\x3c\x50\x83\x60\x80\x3c\x40"  # half a second at 480 ticks a beat


def header(kind=0, tracks=1, division=480, more=b""):
    numbers = b"".join(n.to_bytes(2, "big") for n in (kind, tracks, division))
    return b"MThd" + (6 + len(more)).to_bytes(4, "big") + numbers + more


def track(events, size=None):
    return b"MTrk" + (len(events) if size is None else size).to_bytes(4, "big") + events


def same_notes(path):
    """Compare with the reference; the notes."""
    notes, expected = read_midi(path).notes, np.array(reference_notes(path))
    got = np.stack(notes, 1)
    assert got.shape == expected.shape
    # times are kept in whole 0.1 ms
    np.testing.assert_allclose(got[:, 0], expected[:, 0], atol=5.1e-5)
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], atol=1e-7)
    return notes


@pytest.fixture
def read(tmp_path):
    def read(data: bytes):
        (tmp_path / "a.mid").write_bytes(data)
        return read_midi(tmp_path / "a.mid")

    return read


def rows(score):
    return [tuple(round(float(v), 4) for v in note) for note in zip(*score.notes)]


def random_tracks(rng: random.Random, count: int) -> list[list[tuple]]:
    """Everything at once: overlapping keys, releases that are missing or of nothing, pedals and
    all notes off on several channels and ports, several tempos at a tick, drums."""
    tracks = []
    for _ in range(count):
        events, tick = [], 0
        if rng.random() < 0.3:
            events.append((0, mido.MetaMessage("midi_port", port=rng.randrange(2))))
        for _ in range(60):
            tick += rng.choice((0, 0, 1, 7, 120, 480, 3000))
            channel, key = rng.choice((0, 0, 0, 1, 9)), rng.randrange(60, 66)
            values = {"channel": channel, "note": key}
            control = {"channel": channel, "control": rng.choice((64, 64, 64, 64, 66, 121, 123))}
            message = rng.choices(
                (
                    mido.Message("note_on", velocity=rng.randrange(128), **values),
                    mido.Message("note_off", **values),
                    mido.Message("control_change", value=rng.choice((0, 63, 64, 127)), **control),
                    mido.MetaMessage("set_tempo", tempo=rng.randrange(1, 2_000_000)),
                    mido.Message("program_change", channel=channel, program=key),
                    mido.Message("sysex", data=(1, 2, 3)),
                    mido.MetaMessage("lyrics", text="la"),
                ),
                (8, 5, 4, 3, 1, 1, 1),
            )[0]
            events.append((tick, message))
        events.append((tick + rng.choice((0, 500)), mido.MetaMessage("end_of_track")))
        tracks.append(events)
    return tracks


@pytest.mark.parametrize("division", [1, 96, 480, 32767, "24", "25", "29", "30"])
def test_against_mido(tmp_path, division):
    if isinstance(division, str):  # minus the frames a second, 40 ticks each
        division = (-int(division) << 8 | 40) if division != "29" else -29 << 8 | 100
    found = []
    for seed in range(25):
        rng = random.Random(seed)
        kind = seed % 3
        tracks = random_tracks(rng, 3 if kind == 1 else 1)
        save(tmp_path / "a.mid", tracks, kind, division)
        found.append(same_notes(tmp_path / "a.mid"))
    assert sum((notes.pedal > 0).sum() for notes in found) > 100
    assert sum((notes.pedal == 0).sum() for notes in found) > 50


def test_a_performance_on_every_kind_of_file(tmp_path):
    notes, pedal = performance(3, 20, 80)
    messages = [
        (round(t * 1000), mido.Message("control_change", control=64, value=v)) for t, v in pedal
    ]
    messages += note_events(notes)
    first = None
    for kind in (0, 1, 2):
        save(tmp_path / "a.mid", [messages], kind)
        got = same_notes(tmp_path / "a.mid")
        first = first or got
        assert all(map(np.array_equal, got, first))
    save(tmp_path / "b.mid", [messages, messages], 2)
    with pytest.raises(UserError, match=r"b.mid: 2 independent sequences \(type 2\).* type 0 or 1"):
        read_midi(tmp_path / "b.mid")


def test_the_last_tempo_at_a_tick_counts(tmp_path):
    """Thirty changes of tempo, another one before each at its tick."""
    tempos = []
    for n in range(30):
        for tempo in (123_456, 300_000 + 20_000 * n):
            tempos.append((480 * n, mido.MetaMessage("set_tempo", tempo=tempo)))
    played = [(t, m) for t, m in note_events([(0.48 * n, 0.24, 60, 64) for n in range(31)])]
    save(tmp_path / "a.mid", [tempos, played], division=480)
    notes = same_notes(tmp_path / "a.mid")
    expected = np.concatenate([[0], np.cumsum(0.3 + 0.02 * np.arange(30))])
    np.testing.assert_allclose(notes.time, expected, atol=5e-5)


def test_no_error_adds_up_over_days(tmp_path):
    tempo = mido.MetaMessage("set_tempo", tempo=333_333)
    messages = [(0, tempo)]
    messages += [(7 * n, tempo) for n in range(1, 20_000)]
    last = 7 * 20_000 + 200_000_000
    messages += [(last, mido.Message("note_on", note=60)), (last + 9, mido.Message("note_off"))]
    save(tmp_path / "a.mid", [messages], division=480)
    time = read_midi(tmp_path / "a.mid").notes.time[0]
    assert time == round(last * 333_333 / 480e6, 4)  # 39 hours


def test_pedal_in_the_order_of_the_file(read):
    down, up = b"\0\xb0\x40\x7f", b"\0\xb0\x40\0"
    press = down + b"\0\x90\x3c\x50"
    release = b"\x83\x60\x80\x3c\x40"
    later = b"\x83\x60\xb0\x40\0"
    for events, seconds in (
        (press + release + up + down + later, 0),  # lifted at the tick of the release
        (press + release + later, 0.5),
        (b"\0\x90\x3c\x50" + release + down + later, 0),  # too late
        (b"\0\x90\x3c\x50\x83\x60\xb0\x40\x7f\0\x80\x3c\x40" + later, 0.5),
        (press + release + later.replace(b"\xb0", b"\xb1"), 0.5),  # another channel: to the end
        (press + release + later.replace(b"\x40\0", b"\x79\0") + b"\x83\x60" + down[1:], 0.5),
        (press.replace(b"\xb0", b"\xb1") + release + later, 0),
    ):
        assert rows(read(header() + track(events + END))) == [(0, 0.5, 60, 80, seconds)]


def test_notes_without_a_release(read):
    score = read(
        header() + track(b"\0\x90\x3c\x50\x83\x60\x90\x40\x50\x83\x60\x80\x40\0\x87\x40" + END[1:])
    )
    assert rows(score) == [(0, 2, 60, 80, 0), (0.5, 0.5, 64, 80, 0)]
    assert score.describe() == "notes without a release, ended with their track: 1"
    # but "all notes off" is one, of its channel
    off = b"\0\x90\x3c\x50\0\x91\x3d\x50\x83\x60\xb0\x7b\0\x83\x60\x81\x3d\0\x83\x60"
    score = read(header() + track(off + END[1:]))
    assert rows(score) == [(0, 0.5, 60, 80, 0), (0, 1, 61, 80, 0)] and not score.remarks


def test_repeated_keys_end_in_their_order(read):
    events = b"\0\x90\x3c\x50" + b"\x83\x60\x3c\x40" + b"\x83\x60\x3c\0" * 2 + b"\0\x3c\0"
    assert rows(read(header() + track(events + END))) == [(0, 1, 60, 80, 0), (0.5, 1, 60, 64, 0)]


def test_tracks_have_keys_of_their_own_and_share_the_pedal(read):
    pedal = b"\0\xb0\x40\x7f\x87\x40\xb0\x40\0"
    score = read(header(1, 3) + track(pedal + END) + track(ONE + END) + track(ONE + END))
    assert rows(score) == [(0, 0.5, 60, 80, 0.5)] * 2
    port = b"\0\xff\x21\x01\x01"
    score = read(header(1, 3) + track(pedal + END) + track(port + ONE + END) + track(ONE + END))
    assert [row[4] for row in rows(score)] == [0, 0.5]


@pytest.mark.parametrize(
    "data",
    [
        header(more=b"\0" * 4) + track(ONE + END),
        header() + b"XFIH" + (3).to_bytes(4, "big") + b"abc" + track(ONE + END),
        header() + track(ONE + END) + b"XFKM" + (99).to_bytes(4, "big"),
        header() + track(ONE + b"\0\xff\x59\x02\x55\x07" + END),  # no key that there is
        header() + track(b"\0\xf0\x03\1\2\xf7\0\xf7\x01\1" + ONE + END),
        header() + track(b"\0\xff\x51\x03\7\xa1\x20" + ONE + END + b"junk after its end"),
        header() + track(b"\0\x90\x3c\x50\0\xff\x01\x01a\x83\x60\x3c\0" + END),  # running status
        header(division=0xE728) + track(b"\0\x90\x3c\x50\x83\x74\x80\x3c\x40" + END),
    ],
)
def test_unusual_files(read, data):
    assert rows(read(data)) == [(0, 0.5, 60, 80, 0)]
    assert not read(data).remarks
    for odd in (b"", b"LIST" + (3).to_bytes(4, "little") + b"abc\0"):  # in a RIFF file
        body = b"RMID" + odd + b"data" + len(data).to_bytes(4, "little") + data
        assert rows(read(b"RIFF" + len(body).to_bytes(4, "little") + body)) == rows(read(data))


def test_time_passes_before_events_of_every_kind(read):
    for event in (b"\xff\x08\x01a", b"\xff\x60\0", b"\xf0\x01\xf7", b"\xe0\0\x40", b"\xc0\1"):
        assert rows(read(header() + track(b"\x83\x60" + event + ONE + END)))[0][0] == 0.5


def test_what_is_odd_is_said(read):
    zero = b"\0\xff\x51\x03\0\0\0"
    score = read(header(1, 1) + track(zero + ONE + b"\0\x99\x24\x50") + track(zero + END))
    assert rows(score) == [(0, 0.5, 60, 80, 0)]
    assert score.describe() == (
        "tracks beyond the number in its header: 1, tempos of 0 ignored: 2, drum notes left out: 1"
        ", tracks without a mark of their end: 1"
    )


def test_what_is_refused(read, tmp_path):
    with pytest.raises(UserError, match=r"none.mid: No such file"):
        read_midi(tmp_path / "none.mid")
    with pytest.raises(UserError, match="Is a directory"):
        read_midi(tmp_path)
    good = header() + track(ONE + END)
    for data, message in (
        (b"", "not a MIDI file"),
        (b"RIFF....WAVE", "not a MIDI file"),
        (b"RIFF....RMID", "a RIFF file without data"),
        (b"RIFF....RMIDdata\0\0\0\0MTrk", "do not begin with MThd"),
        (good[:10], "cut off in its header"),
        (good[:14], "0 of 1 tracks"),
        (good[:-3], "track 1 of 1 is cut off"),
        (header(1, 2) + track(ONE + END), "1 of 2 tracks"),
        (header(3) + track(ONE + END), "type 3"),
        (header(division=0) + track(ONE + END), "a division of 0 ticks"),
        (header(division=0xE628) + track(ONE + END), "division of 26 frames a second, 40 ticks"),
        (header(division=0xE700) + track(ONE + END), "division of 25 frames a second, 0 ticks"),
        (header() + track(ONE[:-1]), "track 1 is cut off"),
        (header() + track(ONE + END, 8) + b"XXXX", "track 1 is cut off"),
        (header() + track(b"\0\x3c\x50"), "data without a status in track 1"),
        (header() + track(b"\0\xf8" + ONE), "status 0xf8 in track 1"),
        (header() + track(b"\0\x90\x3c\x90" + END), "data bytes above 127 in track 1"),
        (header() + track(b"\0\xff\x51\x01\x07" + END), "a tempo of less than three bytes"),
        (header() + track(b"\xff\xff\xff\xff\0" + ONE), "a number of more than four bytes"),
        (header() + track(b"\0\xff\x01\xff\xff\xff\x7f"), "track 1 is cut off"),
        (header() + track(END), "no notes in this MIDI file; give"),
        (header() + track(b"\0\x99\x24\x50" + END), r"no notes .* \(drum notes left out: 1\)"),
        (b"MThd" + bytes(9 << 20), "more than 8 MiB"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            read(data)
        assert "\n" not in str(raised.value) and "a.mid: " in str(raised.value)


def test_random_damage_is_an_error_or_notes(tmp_path, read):
    """A fixed budget of files with bytes changed, left out or doubled."""
    write_midi(tmp_path / "good.mid", *performance(1, 10, 30))
    good, rng = (tmp_path / "good.mid").read_bytes(), random.Random(0)
    errors = 0
    for n in range(250):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(60 if n % 2 else len(data))
            size = rng.choice((1, 1, 1, 4, 40))
            how = rng.randrange(3)
            data[at : at + size] = (
                rng.randbytes(size), b"", data[at : at + size] * 2
            )[how]  # fmt: skip
        try:
            notes = read(bytes(data)).notes
        except UserError as e:
            errors += 1
            assert "\n" not in str(e)
        else:
            assert len(notes.time) and (np.diff(notes.time) >= 0).all()
            assert all(np.isfinite(c).all() and (c >= 0).all() for c in notes)
            assert (notes.pitch < 128).all() and (notes.velocity < 128).all()
    assert 60 < errors < 245


def test_a_large_file_takes_bounded_memory_and_time(read):
    """Keys that are never released, each another one; then one key struck and released at once."""
    each = b"".join(
        bytes([0, 0x90 | n >> 7 & 7, n & 127, 64]) for n in range(4_000)
    )  # fmt: skip
    struck = b"\0\x90\x3c\x40" + b"\0\x3c\x40" * 5_000 + b"\0\x80\x3c\0" + b"\0\x3c\0" * 5_000
    far = b"\xff\xff\xff\x7f\x90\x3c\x40" * 200
    for events, count in ((each, 4_000), (struck, 5_001), (far, 200)):
        data = header() + track(events + END)
        tracemalloc.start()
        score = read(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(score.notes.time) == count and peak < 300 * len(data) + (9 << 20)
