"""Copies of other speed, tempo and pitch: their signals against librosa, and their manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.supervision import AlignmentItem

from rvqlm.audio.augment import changes, copy_path
from rvqlm.audio.augment_signal import change, stretch
from rvqlm.audio.config import AugmentConfig
from rvqlm.audio.cuts import read_cuts
from rvqlm.audio.load import load_cut
from rvqlm.audio.parts import recording_cut
from rvqlm.bin.audio import main
from rvqlm.data.splits import SplitConfig, group, is_augmented, split_by_group


def pieces(audio, rng, n=5):
    return np.split(audio, np.sort(rng.integers(0, audio.shape[1] + 1, n)), axis=1)


def joined(blocks):
    return np.concatenate(list(blocks), axis=1)


@pytest.mark.filterwarnings("ignore:n_fft=")
@pytest.mark.parametrize(
    "samples, rate",
    [
        *((1, 0.5), (1, 2.0), (700, 0.9), (700, 1.1), (4000, 0.5), (4000, 2 ** (-1 / 6))),
        *((50000, 0.9), (50000, 1.1), (50000, 2.0)),
    ],
)
def test_stretching_equals_librosa(samples, rate):
    rng = np.random.default_rng(samples)
    audio = rng.uniform(-0.5, 0.5, (2, samples))
    for n_fft, hop in ((2048, 512), (512, 100)):
        expected = librosa.effects.time_stretch(audio, rate=rate, n_fft=n_fft, hop_length=hop)
        ours = joined(stretch(pieces(audio, rng), rate, n_fft, hop))
        assert ours.shape == expected.shape
        assert np.allclose(ours, expected, atol=1e-6) or samples == 1


def test_pitch_equals_librosa():
    rng = np.random.default_rng(0)
    audio = rng.uniform(-0.5, 0.5, (1, 30000))
    for steps in (-2, 2, 0.5):
        expected = librosa.effects.pitch_shift(
            audio, sr=16000, n_steps=steps, n_fft=2048, hop_length=512
        )
        ours = joined(
            change(pieces(audio, rng), 16000, semitones=steps, n_fft=2048, hop_length=512)
        )
        assert ours.dtype == np.float32 and ours.shape == expected.shape
        # librosa resamples what it has cut already, we cut last: the ends differ
        assert np.allclose(ours[:, 500:-500], expected[:, 500:-500], atol=1e-5)


def frequency(audio, rate):
    """Of a tone: by the phase that advances between two windows in its middle."""
    middle, step = audio.shape[1] // 2, 64
    window = np.hanning(4096)
    spectra = [np.fft.rfft(audio[0, middle + d : middle + d + 4096] * window) for d in (0, step)]
    peak = int(np.abs(spectra[0]).argmax())
    expected = 2 * np.pi * peak * step / 4096
    turn = np.angle(spectra[1][peak] / spectra[0][peak]) - expected
    turn -= 2 * np.pi * round(turn / (2 * np.pi))
    return (expected + turn) / step * rate / (2 * np.pi)


@pytest.mark.parametrize(
    "speed, tempo, semitones",
    [(0.9, 1, 0), (1.1, 1, 0), (1, 0.9, 0), (1, 1.1, 0), (1, 1, -2), (1, 1, 2), (1.1, 0.9, 3)],
)
def test_a_tone_changes_in_frequency_and_length(speed, tempo, semitones):
    rate, hz = 22050, 440.0
    tone = 0.5 * np.sin(2 * np.pi * hz * np.arange(2 * rate) / rate)[None]
    out = joined(change([tone], rate, speed, tempo, semitones, 2048, 512))
    assert out.shape[1] == round(2 * rate / (speed * tempo))
    assert frequency(out, rate) == pytest.approx(hz * speed * 2 ** (semitones / 12), rel=1e-4)
    inner = out[0, 3000:-3000]
    # magnitudes are interpolated across the phases of a window: a tenth is lost, as in librosa
    level = np.sqrt((inner**2).mean()) / 0.5 * 2**0.5
    assert level == pytest.approx(1, rel=0.01 if tempo == 2 ** (semitones / 12) else 0.12)


def test_blocks_change_nothing():
    rng = np.random.default_rng(1)
    audio = rng.uniform(-0.5, 0.5, (2, 40000)).astype(np.float32)
    one = joined(change([audio], 16000, 1.1, 0.9, 2, 1024, 256))
    many = joined(change(pieces(audio, rng, 50), 16000, 1.1, 0.9, 2, 1024, 256))
    assert np.allclose(one, many, atol=1e-6)


def test_what_is_made_of_a_cut():
    flags = {"speeds": (0.9,), "tempos": (0.9, 1.1), "semitones": (-2.0, 2.0)}
    names = [c.name for c in changes(AugmentConfig("", "", "", **flags))]
    assert names == ["-speed0.9", "-tempo0.9", "-tempo1.1", "-pitch-2", "-pitch+2"]
    every = changes(AugmentConfig("", "", "", **flags, combine="product"))
    assert len(every) == 2 * 3 * 3 - 1 == len({c.name for c in every})
    assert every[-1].name == "-speed0.9-tempo1.1-pitch+2" and every[-1].voice == "-speed0.9-pitch+2"
    assert every[-1].factor == pytest.approx(0.99)


RATE = 16000


def track(tmp_path, name, seconds=1.0, level=0.3, channels=1):
    rng = np.random.default_rng(len(name))
    path = tmp_path / f"{name.replace('/', '_')}.wav"
    audio = rng.uniform(-level, level, (round(seconds * RATE), channels))
    soundfile.write(path, audio, RATE, subtype="FLOAT")
    cut = recording_cut(Recording.from_file(path, recording_id=name))
    cut.supervisions = [
        SupervisionSegment(
            f"{name}-s", name, 0.2, seconds - 0.2, cut.channel, "two words", speaker="anna",
            alignment={"word": [AlignmentItem("two", 0.2, 0.3), AlignmentItem("words", 0.5, 0.4)]},
        )
    ]  # fmt: skip
    return cut


@pytest.fixture
def corpus(tmp_path):
    half = track(tmp_path, "half", 2.0)
    cuts = [
        track(tmp_path, "sub/a b", channels=2),
        half.truncate(offset=0.5, duration=1.0).with_id("half-0.5"),
        track(tmp_path, "gone"),
        track(tmp_path, "loud", level=1.0),
    ]
    cuts[1].custom = {"group": "album", "note": "kept"}
    (tmp_path / "gone.wav").unlink()
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path


def augment(corpus, out, *flags, audio="copies"):
    words = ["--input", str(corpus / "cuts.jsonl.gz"), "--out", str(corpus / out)]
    words += ["--audio-dir", str(corpus / audio), "--n-fft", "1024", "--hop-length", "256"]
    assert main(["augment", *words, "--jobs", "1", *flags]) == 0
    return {c.id: c for c in read_cuts(str(corpus / out))}


FLAGS = ["--speeds", "0.9", "--tempos", "1.25", "--semitones", "-2", "2"]


def test_a_manifest_of_copies(corpus, capsys):
    cuts = augment(corpus, "out.jsonl.gz", *FLAGS)
    said = capsys.readouterr()
    names = ["", "-speed0.9", "-tempo1.25", "-pitch-2", "-pitch+2"]
    assert list(cuts) == [i + n for i in ("sub/a b", "half-0.5", "loud") for n in names]
    assert "15 cuts" in said.out and "12 copies in" in said.out and "gone" in said.err
    originals = {c.id: c for c in read_cuts(str(corpus / "cuts.jsonl.gz"))}
    for id, cut in cuts.items():
        audio = cut.load_audio()
        assert np.array_equal(load_cut(cut, RATE, cut.num_channels), audio)
        if id in originals:
            assert np.array_equal(audio, originals[id].load_audio())
            assert "augmented_from" not in cut.custom
            continue
        original = originals[cut.custom["augmented_from"]]
        kind = id.removeprefix(original.id)
        factor = {"-speed0.9": 0.9, "-tempo1.25": 1.25}.get(kind, 1)
        assert audio.shape == (original.num_channels, round(original.num_samples / factor))
        assert cut.num_samples == audio.shape[1] and cut.channel == original.channel
        (mine,), (theirs,) = cut.supervisions, original.supervisions
        assert mine.text == theirs.text and mine.recording_id == cut.recording.id == id
        assert mine.speaker == ("anna" if kind == "-tempo1.25" else "anna" + kind)
        assert (mine.start, mine.end) == pytest.approx(
            (theirs.start / factor, theirs.end / factor), abs=2 / RATE
        )
        words = [(w.symbol, w.start) for w in mine.alignment["word"]]
        expected = [(w.symbol, w.start / factor) for w in theirs.alignment["word"]]
        assert [w for w, _ in words] == [w for w, _ in expected]
        assert np.allclose([s for _, s in words], [s for _, s in expected], atol=2 / RATE)
    assert cuts["half-0.5"].custom["group"] == cuts["half-0.5-pitch-2"].custom["group"] == "album"
    assert cuts["half-0.5-pitch-2"].custom["note"] == "kept"
    assert cuts["sub/a b"].custom["group"] == cuts["sub/a b-speed0.9"].custom["group"] == "sub/a b"


def test_samples_are_those_of_the_change_and_are_not_clipped(corpus, capsys):
    cuts = augment(corpus, "out.jsonl.gz", *FLAGS)
    assert "stored at a lower level" in capsys.readouterr().out
    source = cuts["loud"].load_audio()
    for kind, how in {"-speed0.9": (0.9, 1, 0), "-pitch+2": (1, 1, 2)}.items():
        expected = joined(change([source], RATE, *how, 1024, 256))
        assert np.abs(expected).max() > 1
        assert np.allclose(cuts["loud" + kind].load_audio(), expected, atol=1e-6)


def test_made_again_only_where_something_changed(corpus):
    first = augment(corpus, "out.jsonl.gz", *FLAGS)
    files = sorted((corpus / "copies").rglob("*.flac"))
    assert len(files) == 12 and not list((corpus / "copies").rglob("*.tmp"))
    content = {f: f.read_bytes() for f in files}

    def made():
        """Names of the files that the next run makes."""
        for f in files:
            os.utime(f, ns=(10**18, 10**18))
        for f in corpus.glob("*.wav"):
            if f.stat().st_mtime_ns != 2 * 10**18:
                os.utime(f, ns=(10**17, 10**17))
        yield
        yield {f.name for f in files if f.stat().st_mtime_ns != 10**18}

    def run(*flags, before=lambda: None):
        stamps = made()
        next(stamps)
        before()
        cuts = augment(corpus, "out.jsonl.gz", *FLAGS, *flags)
        return cuts, next(stamps)

    assert run() == (first, set())
    assert run("--jobs", "2")[1] == set()
    half = corpus / "copies/half-0.5-tempo1.25.flac"

    def crash():  # what one of the machine may leave
        half.unlink()
        half.touch()

    assert run(before=crash)[1] == {half.name}
    assert content == {f: f.read_bytes() for f in files}
    vocoder = {f.name for f in files if "speed" not in f.name}
    assert run("--n-fft", "2048")[1] == vocoder
    assert run("--n-fft", "2048")[1] == set()
    newer = corpus / "loud.wav"
    changed = run("--n-fft", "2048", before=lambda: os.utime(newer, ns=(2 * 10**18,) * 2))[1]
    assert changed == {f.name for f in files if f.name.startswith("loud")}


def test_product_without_originals_and_with_processes(corpus):
    words = ["--tempos", "0.9", "1.1", "--semitones", "2", "--combine", "product"]
    words += ["--no-keep-original"]
    one = augment(corpus, "a.jsonl.gz", *words)
    assert len(one) == 3 * 5 and all(is_augmented(c.to_dict()) for c in one.values())
    two = augment(corpus, "b.jsonl.gz", *words, "--jobs", "2", audio="other")
    assert list(one) == list(two)
    for a, b in zip(one.values(), two.values()):
        paths = [Path(c.recording.sources[0].source) for c in (a, b)]
        assert paths[0] != paths[1] and paths[0].read_bytes() == paths[1].read_bytes()


def test_copies_stay_with_their_originals(corpus):
    cuts = [c.to_dict() for c in augment(corpus, "out.jsonl.gz", *FLAGS).values()]
    for seed in range(5):
        result = split_by_group(cuts, SplitConfig(Path(), 1, 1, by="recording", seed=seed))
        held = {group(c) for c, s in zip(cuts, result.split) if s != 0}
        assert len(held) == 2 and result.dropped == 8
        assert {group(c) for c, s in zip(cuts, result.split) if s == 0}.isdisjoint(held)


def test_pairs_of_tracks_give_pairs_of_copies(tmp_path):
    names = {}
    for stem in ("lead", "backing"):
        (tmp_path / stem).mkdir()
        cuts = [track(tmp_path / stem, "x", 1.0), track(tmp_path / stem, "y", 0.7)]
        CutSet.from_cuts(cuts).to_file(tmp_path / stem / "cuts.jsonl.gz")
        names[stem] = {
            i: c.duration for i, c in augment(tmp_path / stem, "out.jsonl.gz", *FLAGS).items()
        }
    assert names["lead"] == names["backing"]


def test_channels_are_counted_anew(tmp_path):
    cut = track(tmp_path, "many", channels=3)
    parts = [
        cut.with_channels([0, 2]).with_id("pair"),
        cut.with_channels([1]).with_id("one"),
    ]
    parts[0].supervisions[0].channel = 2
    CutSet.from_cuts(parts).to_file(tmp_path / "cuts.jsonl.gz")
    cuts = augment(tmp_path, "out.jsonl.gz", "--speeds", "2")
    pair, one = cuts["pair-speed2"], cuts["one-speed2"]
    assert pair.channel == [0, 1] and pair.supervisions[0].channel == 1
    assert one.load_audio().shape[0] == 1 and pair.load_audio().shape == (2, 8000)


def test_names_of_files():
    assert str(copy_path("d", "a/b c-speed2")) == "d/a/b c-speed2.flac"
    odd = ["/a", "_/a", "a/../b", "a/_/b", "a//b", "x" * 300, "x" * 301, "a\0b", "a_b"]
    paths = [copy_path("d", name) for name in odd]
    assert len(set(paths)) == len(odd)
    for path in paths:
        assert path.parts[0] == "d" and ".." not in path.parts
        assert all(len(part) < 255 for part in path.parts)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "give --speeds, --tempos or --semitones"),
        (["--speeds", "1"], "--speeds 1: give values from 0.25 to 4 but 1"),
        (["--tempos", "9"], "--tempos 9: give values"),
        (["--semitones", "0"], "--semitones 0: give values from -24 to 24 but 0"),
        (["--speeds", "2", "2.0"], "--speeds: a value is given twice"),
        (["--speeds", "2", "--hop-length", "1025"], "--hop-length 1025: give 1 to a quarter"),
        (["--speeds", "2", "--n-fft", "63"], "--n-fft 63: give an even number"),
        (["--speeds", "2", "--audio-dir", "/dev/null/x"], "--audio-dir /dev/null/x: Not a dir"),
    ],
)
def test_mistakes(corpus, capsys, flags, message):
    words = ["--input", str(corpus / "cuts.jsonl.gz"), "--out", str(corpus / "o.jsonl.gz")]
    words += [] if "--audio-dir" in flags else ["--audio-dir", str(corpus / "copies")]
    assert main(["augment", *words, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm audio augment: error: ") and error.count("\n") == 1
    assert message in error and not (corpus / "o.jsonl.gz").exists()


def test_equal_ids_are_refused(tmp_path, capsys):
    cut = track(tmp_path, "a")
    (tmp_path / "cuts.jsonl").write_text(
        json.dumps(cut.to_dict()) + "\n" + json.dumps(cut.to_dict())
    )
    words = ["--input", str(tmp_path / "cuts.jsonl"), "--out", str(tmp_path / "o.jsonl.gz")]
    assert main(["augment", *words, "--audio-dir", str(tmp_path / "c"), "--speeds", "2"]) == 2
    assert "two cuts, copies included, would have the id 'a'" in capsys.readouterr().err


def test_lists_of_skipped_items_survive_each_other(corpus, capsys):
    """Each manifest has its own: activity and augment write into one folder in every example."""
    shape = ["--min-window-seconds", "0.5", "--rms-frame-seconds", "0.2", "--jobs", "1"]
    source, windows = corpus / "cuts.jsonl.gz", corpus / "windows.jsonl.gz"
    assert main(["activity", "--input", str(source), "--out", str(windows), *shape]) == 0
    listed = (corpus / "windows_skipped.jsonl").read_text()
    assert '"gone"' in listed
    words = ["--input", str(windows), "--out", str(corpus / "all.jsonl.gz"), "--jobs", "1"]
    assert main(["augment", *words, "--audio-dir", str(corpus / "c"), "--speeds", "0.9"]) == 0
    assert (corpus / "windows_skipped.jsonl").read_text() == listed
    assert (corpus / "all_skipped.jsonl").read_text() == ""


def test_a_copy_never_takes_the_id_of_another_cut(tmp_path, capsys):
    cuts = [track(tmp_path, "a"), track(tmp_path, "a-speed0.9")]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    words = ["--input", str(tmp_path / "cuts.jsonl.gz"), "--out", str(tmp_path / "o.jsonl.gz")]
    words += ["--audio-dir", str(tmp_path / "c"), "--speeds", "0.9", "--jobs", "1"]
    assert main(["augment", *words]) == 2
    assert "two cuts, copies included, would have the id 'a-speed0.9'" in capsys.readouterr().err


def test_channels_that_cancel_are_named(tmp_path, capsys):
    cut = track(tmp_path, "a")
    audio = cut.load_audio()[0]
    soundfile.write(tmp_path / "a.wav", np.stack([audio, -audio], axis=1), RATE, subtype="FLOAT")
    cuts = [recording_cut(Recording.from_file(tmp_path / "a.wav"))]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    augment(tmp_path, "o.jsonl.gz", "--speeds", "0.9")
    said = capsys.readouterr().err
    assert "1 cut to be skipped by rvqlm tokenize: its channels are in opposite phase" in said


def test_damage_of_an_original_stays_listed_when_its_copies_are_there(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 9000), 16000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:-2000])
    recording = Recording("r", Recording.from_file(tmp_path / "a.wav").sources, 16000, 9000, 9 / 16)
    cut = recording_cut(recording)
    manifest, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    manifest.write_text(json.dumps(cut.to_dict()) + "\n")
    flags = ["augment", "--input", str(manifest), "--out", str(out), "--speeds", "1.1"]
    listed = []
    for _ in range(3):
        assert main([*flags, "--audio-dir", str(tmp_path / "copies"), "--jobs", "1"]) == 0
        listed.append((tmp_path / "out_warned.jsonl").read_text())
    (line,) = map(json.loads, listed[0].splitlines())
    assert line["id"] == "r" and "8000 samples, its manifest says 9000" in line["reason"]
    assert listed[0] == listed[1] == listed[2]  # read once, then taken from the list
