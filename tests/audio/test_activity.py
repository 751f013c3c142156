"""Activity windows: against a plain reading of the definition, and as a manifest."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from rvqlm.audio.activity import active_windows, frame_rms
from rvqlm.audio.cuts import read_cuts
from rvqlm.audio.parts import recording_cut
from rvqlm.bin.audio import main


def naive_rms(audio, frame, stride):
    before = (frame - stride) // 2
    out = []
    for k in range(audio.shape[1] // stride):
        total = 0.0
        for n in range(k * stride - before, k * stride - before + frame):
            if 0 <= n < audio.shape[1]:
                total += (audio[:, n] ** 2).mean()
        out.append((total / frame) ** 0.5)
    return np.array(out)


@pytest.mark.parametrize("frame, stride", [(50, 7), (7, 7), (64, 1), (500, 20), (9, 4)])
def test_rms_is_that_of_the_definition_however_the_blocks_lie(frame, stride):
    rng = np.random.default_rng(frame)
    for samples in (0, 1, stride, 333):
        audio = rng.uniform(-1, 1, (2, samples))
        expected = naive_rms(audio, frame, stride)
        for pieces in (1, 2, 40):
            cuts = np.sort(rng.integers(0, samples + 1, pieces))
            rms = frame_rms(np.split(audio, cuts, axis=1), frame, stride)
            assert rms.shape == expected.shape and np.allclose(rms, expected, atol=1e-9)
    assert frame_rms([], frame, stride).shape == (0,)


def naive_windows(active, shortest):
    windows, first = [], None
    for k, on in enumerate([*active, False]):
        if on and first is None:
            first = k
        if not on and first is not None:
            if k - first >= shortest:
                windows.append((first, k))
            first = None
    return windows


def test_windows_are_maximal_runs():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 50, 200):
        for _ in range(20):
            rms = rng.uniform(0, 1, length).round(1)  # 0.5 itself occurs: it is active
            shortest = int(rng.integers(1, 5))
            assert active_windows(rms, 0.5, shortest) == naive_windows(rms >= 0.5, shortest)


@pytest.mark.parametrize(
    "length, shortest, longest, expected",
    [
        (10, 2, 4, [(0, 3), (3, 6), (6, 10)]),
        (8, 2, 4, [(0, 4), (4, 8)]),
        (4, 2, 4, [(0, 4)]),
        (5, 3, 4, [(0, 4)]),  # no two pieces of at least 3
        (11, 4, 5, [(0, 5), (5, 10)]),
    ],
)
def test_long_windows_are_divided(length, shortest, longest, expected):
    assert active_windows(np.ones(length), 0.5, shortest, longest) == expected


RATE = 8000


def track(tmp_path, name, parts, rate=RATE, channels=1):
    """A recording of (seconds, level) parts, with a supervision for each part."""
    rng = np.random.default_rng(1)
    audio = [rng.choice([-1.0, 1.0], (round(s * rate), channels)) * level for s, level in parts]
    path = tmp_path / f"{name}.wav"
    soundfile.write(path, np.concatenate(audio), rate, subtype="FLOAT")
    cut = recording_cut(Recording.from_file(path, recording_id=name))
    start = 0.0
    for n, (seconds, _) in enumerate(parts):
        cut.supervisions.append(
            SupervisionSegment(f"{name}-s{n}", name, start, seconds, cut.channel, f"text {n}",
                               speaker="anna")
        )  # fmt: skip
        start += seconds
    return cut


def save(path, cuts):
    CutSet.from_cuts(cuts).to_file(path)
    return str(path)


FLAGS = ["--rms-threshold", "0.3", "--min-window-seconds", "1", "--rms-frame-seconds", "0.2",
         "--rms-stride-seconds", "0.1", "--jobs", "1"]  # fmt: skip


def activity(source, out, *flags):
    assert main(["activity", "--input", source, "--out", str(out), *FLAGS, *flags]) == 0
    return list(read_cuts(str(out)))


def test_a_manifest_of_windows(tmp_path, capsys):
    parts = [(1, 0), (2, 0.5), (1, 0.01), (0.5, 0.5), (0.5, 0), (3, 0.5)]
    song = track(tmp_path, "song", parts)
    song.custom = {"group": "album"}
    stereo = track(tmp_path, "stereo", [(1.5, 0.5), (1, 0)], channels=2)
    silent = track(tmp_path, "silent", [(2, 0)])
    gone = track(tmp_path, "gone", [(2, 0.5)])
    (tmp_path / "gone.wav").unlink()
    source = save(tmp_path / "cuts.jsonl.gz", [song, stereo, silent, gone])
    cuts = activity(source, tmp_path / "out.jsonl.gz")
    said = capsys.readouterr()
    assert [c.id for c in cuts] == ["song-1.000", "song-5.000", "stereo-0.000"]
    assert [(c.start, c.duration) for c in cuts] == [(1, 2), (5, 3), (0, 1.5)]
    assert np.array_equal(cuts[1].load_audio(), song.load_audio()[:, 5 * RATE :])
    assert [c.custom["group"] for c in cuts] == ["album", "album", "stereo"]
    assert [s.text for s in cuts[0].supervisions] == ["text 1"]
    assert cuts[0].supervisions[0].start == 0 and cuts[0].supervisions[0].duration == 2
    assert "3 cuts" in said.out and "1 recording without an active stretch" in said.out
    skipped = [json.loads(s) for s in (tmp_path / "out_skipped.jsonl").read_text().splitlines()]
    assert [(s["id"], s["reason"]) for s in skipped] == [
        ("silent", "never active for 1 s"),
        ("gone", "no such file"),
    ]
    again = activity(source, tmp_path / "again.jsonl.gz", "--jobs", "2")
    assert [c.id for c in again] == [c.id for c in cuts]
    assert (tmp_path / "again.jsonl.gz").read_bytes() == (tmp_path / "out.jsonl.gz").read_bytes()


def test_cut_supervisions_keep_the_speaker_and_lose_the_text(tmp_path):
    cut = track(tmp_path, "a", [(1, 0), (4, 0.5)])
    cut.supervisions = [SupervisionSegment("s", "a", 0.5, 4.5, 0, "all of it", speaker="anna")]
    source = save(tmp_path / "cuts.jsonl.gz", [cut])
    first, second = activity(source, tmp_path / "out.jsonl.gz", "--max-window-seconds", "2")
    for part in (first, second):
        (kept,) = part.supervisions
        assert (kept.text, kept.speaker, kept.start, kept.duration) == (None, "anna", 0, 2)
    assert first.supervisions[0].id != second.supervisions[0].id


def test_text_is_kept_where_only_silence_is_lost(tmp_path):
    """A transcript of a whole file outlives the loss of its quiet ends, but not that of a word."""
    quiet_ends = track(tmp_path, "a", [(1, 0), (2, 0.5), (1, 0)])
    a_word_more = track(tmp_path, "b", [(0.5, 0.5), (1, 0), (2, 0.5), (1, 0)])
    for cut in (quiet_ends, a_word_more):
        whole = SupervisionSegment("s", cut.id, 0, cut.duration, 0, "all of it", speaker="anna")
        cut.supervisions = [whole]
    source = save(tmp_path / "cuts.jsonl.gz", [quiet_ends, a_word_more])
    first, second = activity(source, tmp_path / "out.jsonl.gz")
    (kept,), (lost,) = first.supervisions, second.supervisions
    assert (kept.text, kept.start, kept.duration) == ("all of it", 0, 2)
    assert (lost.text, lost.speaker, lost.duration) == (None, "anna", 2)


def test_windows_of_windows_lie_in_their_cut(tmp_path):
    cut = track(tmp_path, "a", [(1, 0), (4, 0.5), (1, 0)]).truncate(offset=2.5).with_id("later")
    (part,) = activity(save(tmp_path / "cuts.jsonl.gz", [cut]), tmp_path / "out.jsonl.gz")
    assert (part.id, part.start, part.duration) == ("later-0.000", 2.5, 2.5)


def test_the_reference_decides(tmp_path, capsys):
    """Lead and backing are cut alike, whatever their rates and the order of their manifests."""
    pattern = {"x": [(1, 0), (2, 0.5), (1, 0)], "y": [(1.5, 0.5), (2, 0)], "z": [(2, 0.5)]}
    lead = [track(tmp_path, n, p) for n, p in pattern.items()]
    (tmp_path / "b").mkdir()
    backing = [
        track(tmp_path / "b", n, [(sum(s for s, _ in p), 0.9)], 11025) for n, p in pattern.items()
    ]
    backings = save(tmp_path / "back.jsonl.gz", backing[::-1])
    leads = save(tmp_path / "lead.jsonl.gz", lead)
    of_lead = activity(leads, tmp_path / "l.jsonl.gz")
    of_backing = activity(backings, tmp_path / "b.jsonl.gz", "--reference", leads)
    assert [c.id for c in of_lead] == ["x-1.000", "y-0.000", "z-0.000"]
    same_windows(of_lead, of_backing)
    assert {c.sampling_rate for c in of_backing} == {11025}
    assert "skipped" not in capsys.readouterr().err


def same_windows(ours, theirs):
    expected = {c.id: (c.start, c.duration) for c in theirs}
    assert {c.id for c in ours} == set(expected)
    for cut in ours:  # to within a sample of its own rate
        assert (cut.start, cut.duration) == pytest.approx(expected[cut.id], abs=1 / 11025)


def test_of_two_tracks_the_longer_ends_with_the_shorter(tmp_path, capsys):
    """Neither is left out for its length, and windows beyond the end of one are in none of both."""
    (tmp_path / "b").mkdir()
    lead = [
        track(tmp_path, "long", [(4, 0.5)]),
        track(tmp_path, "short", [(2, 0.5)]),
        track(tmp_path, "beyond", [(2, 0.5), (2, 0), (2, 0.5)]),
        track(tmp_path, "alone", [(2, 0.5)]),
    ]
    backing = [
        track(tmp_path / "b", "short", [(3, 0.5)], 11025),
        track(tmp_path / "b", "lone", [(2, 0.5)], 11025),
        track(tmp_path / "b", "long", [(2.95, 0.5)], 11025),
        track(tmp_path / "b", "beyond", [(3, 0.5)], 11025),
    ]
    leads, backings = save(tmp_path / "l.jsonl.gz", lead), save(tmp_path / "b.jsonl.gz", backing)
    of_lead = activity(leads, tmp_path / "lead.jsonl.gz", "--partner", backings)
    said = capsys.readouterr().err
    assert "2 cuts longer than their partner, ended with it: long, beyond\n" in said
    of_backing = activity(backings, tmp_path / "backing.jsonl.gz", "--reference", leads)
    assert "1 cut longer than their reference, ended with it: short\n" in capsys.readouterr().err
    assert [(c.id, round(c.duration, 3)) for c in of_lead] == [
        ("long-0.000", 2.9), ("short-0.000", 2.0), ("beyond-0.000", 2.0),
    ]  # fmt: skip
    same_windows(of_lead, of_backing)
    for name, lone, flag in ("lead", "alone", "partner"), ("backing", "lone", "reference"):
        (skipped,) = (tmp_path / f"{name}_skipped.jsonl").read_text().splitlines()
        assert json.loads(skipped)["reason"] == f"--{flag} has no cut {lone!r}"


def test_channels_that_cancel_are_active_but_named(tmp_path, capsys):
    cut = track(tmp_path, "a", [(2, 0.5)])
    audio = cut.load_audio()[0]
    soundfile.write(tmp_path / "b.wav", np.stack([audio, -audio], axis=1), RATE, subtype="FLOAT")
    against = recording_cut(Recording.from_file(tmp_path / "b.wav"))
    activity(save(tmp_path / "cuts.jsonl.gz", [cut, against]), tmp_path / "o.jsonl.gz")
    said = capsys.readouterr().err
    assert "1 cut to be skipped by rvqlm tokenize: its channels" in said and said.endswith(": b\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--rms-threshold", "0"], "--rms-threshold 0: give a level"),
        (["--rms-frame-seconds", "0.05"], "--rms-frame-seconds is shorter"),
        (["--min-window-seconds", "0"], "--min-window-seconds is shorter"),
        (["--max-window-seconds", "0.5"], "--max-window-seconds is shorter"),
        (["--rms-stride-seconds", "0"], "--rms-stride-seconds 0 is below"),
        (["--reference", "x.jsonl"], "--reference x.jsonl not found"),
        (["--partner", "x.jsonl"], "--partner x.jsonl not found"),
    ],
)
def test_mistakes(tmp_path, capsys, flags, message):
    source = save(tmp_path / "cuts.jsonl.gz", [track(tmp_path, "a", [(2, 0.5)])])
    words = ["--input", source, "--out", str(tmp_path / "o.jsonl.gz"), *FLAGS, *flags]
    assert main(["activity", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm audio activity: error: ") and error.count("\n") == 1
    assert message in error
