"""Gains in manifests: what lhotse loads, what rvqlm loads, and how loud it then is."""

from __future__ import annotations

import json

import numpy as np
import pyloudnorm
import pytest
import soundfile
from lhotse import CutSet, Recording
from lhotse.cut import MonoCut

from rvqlm.audio.cuts import in_order, read_cuts
from rvqlm.audio.items import Outside
from rvqlm.audio.load import load_cut
from rvqlm.audio.parts import cut_blocks, recording_cut
from rvqlm.audio.prepare import AudioConfig
from rvqlm.bin.audio import main


def noise(seconds, level, rate=16000, channels=1, seed=0):
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(seed).uniform(-level, level, shape)


@pytest.fixture
def corpus(tmp_path):
    """Three recordings (loud, soft stereo, spiky), a silent one, a broken one; two windows each."""
    sounds = {
        "loud": (noise(3, 0.5), 16000),
        "soft": (noise(2.5, 0.01, 44100, 2), 44100),
        "spiky": (noise(2, 0.002), 16000),
        "silent": (np.zeros((16000, 1)), 16000),
    }
    sounds["spiky"][0][5000] = 0.9
    cuts = []
    for name, (audio, rate) in sounds.items():
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, audio, rate, subtype="FLOAT")
        cut = recording_cut(Recording.from_file(path, recording_id=name))
        half = cut.duration / 2
        cuts += [cut.truncate(duration=half).with_id(f"{name}-0")]
        cuts += [cut.truncate(offset=half).with_id(f"{name}-1")]
    (tmp_path / "broken.wav").write_bytes(b"nothing of the kind")
    broken = Recording.from_file(tmp_path / "loud.wav", recording_id="broken")
    broken.sources[0].source = str(tmp_path / "broken.wav")
    cuts.insert(3, recording_cut(broken))
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path


def loudness(corpus, out, *flags):
    words = ["--input", str(corpus / "cuts.jsonl.gz"), "--out", str(corpus / out), *flags]
    assert main(["loudness", *words]) == 0
    return {c.id: c for c in read_cuts(str(corpus / out))}


def level_of(cut, channels=1, **config):
    """Loudness in LUFS of what a codec hears of a cut."""
    heard = load_cut(cut, cut.sampling_rate, channels, AudioConfig(**config))
    return pyloudnorm.Meter(cut.sampling_rate).integrated_loudness(heard.T.astype(np.float64))


def test_recordings_reach_the_target_and_their_windows_one_gain(corpus, capsys):
    cuts = loudness(corpus, "a.jsonl.gz", "--target-lufs", "-30", "--jobs", "1")
    said = capsys.readouterr()
    for name in ("loud", "soft"):
        cut = recording_cut(cuts[f"{name}-0"].recording)
        assert level_of(cut) == pytest.approx(-30, abs=1e-4)
        assert cuts[f"{name}-0"].recording == cuts[f"{name}-1"].recording
    spiky = recording_cut(cuts["spiky-0"].recording).load_audio()
    assert np.abs(spiky).max() == pytest.approx(10 ** (-1 / 20), abs=1e-6)
    assert not cuts["silent-0"].recording.transforms
    assert "broken" not in cuts and len(cuts) == 8
    skipped = [json.loads(s) for s in (corpus / "a_skipped.jsonl").read_text().splitlines()]
    assert [s["id"] for s in skipped] == ["broken"] and "broken.wav" in said.err
    assert "3 recordings brought to -30 LUFS" in said.out
    assert "1 of them stay below" in said.out and "1 silent" in said.out
    higher = loudness(corpus, "b.jsonl.gz", "--target-lufs", "-30", "--peak-dbfs", "0")
    spiky = recording_cut(higher["spiky-0"].recording).load_audio()
    assert np.abs(spiky).max() == pytest.approx(1.0, abs=1e-6)


def test_the_target_is_reached_in_what_the_codec_hears(tmp_path, capsys):
    """Equal channels add up in stereo and not in their average, so that what is measured matters;
    channels that cancel are nothing to be heard, and said to be."""
    one, two = noise(2, 0.1, seed=1), noise(2, 0.2, seed=2)
    sounds = {"mono": one, "equal": np.tile(one, 2), "left": np.hstack([one, 0 * one])}
    sounds |= {"wide": np.hstack([one, two]), "six": noise(2, 0.1, channels=6, seed=3)}
    sounds["against"] = np.hstack([one, -0.99 * one])
    cuts = []
    for name, audio in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, 16000, subtype="FLOAT")
        cuts.append(recording_cut(Recording.from_file(tmp_path / f"{name}.wav")))
    wide = cuts[3].recording  # a cut of each channel of it, as of a telephone call
    cuts += [MonoCut(f"wide-{c}", 0, 2, c, recording=wide) for c in (0, 1)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")

    def check(out, left_out, channels=1, *flags, **config):
        flags = ["--target-lufs", "-30", "--channels", str(channels), *flags, "--jobs", "1"]
        made = loudness(tmp_path, out, *flags)
        assert {c.id for c in cuts} - set(made) == left_out
        for cut in made.values():
            assert level_of(cut, channels, **config) == pytest.approx(-30, abs=1e-4)
        return capsys.readouterr().err

    assert "against.wav: its channels are in opposite phase" in check("average.jsonl", {"against"})
    check("left.jsonl", set(), 1, "--mono", "left", mono="left")
    check("stereo.jsonl", {"six"}, 2)  # as in rvqlm tokenize, which refuses six


def test_lhotse_and_rvqlm_load_the_same_samples(corpus):
    cuts = loudness(corpus, "a.jsonl.gz", "--target-lufs", "-20", "--jobs", "1")
    for cut in cuts.values():
        theirs = cut.load_audio()
        blocks = np.concatenate(list(cut_blocks(cut)), axis=1)
        assert blocks.dtype == np.float32 and np.array_equal(blocks, theirs)
        ours = load_cut(cut, cut.sampling_rate, cut.num_channels)
        assert np.array_equal(ours, theirs)
    again = loudness(corpus, "b.jsonl.gz", "--target-lufs", "-20", "--jobs", "2")
    assert again == cuts
    assert (corpus / "a.jsonl.gz").read_bytes() == (corpus / "b.jsonl.gz").read_bytes()


def test_twice_is_one_gain(corpus):
    words = ["--target-lufs", "-40", "--jobs", "1"]
    loudness(corpus, "a.jsonl.gz", *words)
    second = ["--input", str(corpus / "a.jsonl.gz"), "--out", str(corpus / "b.jsonl.gz")]
    assert main(["loudness", *second, "--target-lufs", "-25", "--jobs", "1"]) == 0
    direct = loudness(corpus, "c.jsonl.gz", "--target-lufs", "-25", "--jobs", "1")
    for cut in read_cuts(str(corpus / "b.jsonl.gz")):
        factors = [t.factor for t in cut.recording.transforms or ()]
        assert factors == pytest.approx(
            [t.factor for t in direct[cut.id].recording.transforms or ()]
        )


def test_over_cuts_measures_only_what_they_cover(tmp_path):
    audio = np.concatenate([noise(2, 0.1), noise(2, 0.5), noise(2, 0.05)])
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    recording = Recording.from_file(tmp_path / "a.wav", recording_id="a")
    parts = [MonoCut(f"c{n}", s, d, 0, recording=recording) for n, (s, d) in
             enumerate([(4.5, 1.5), (0.0, 1.0), (0.5, 1.0), (4.0, 1.0)])]  # fmt: skip
    CutSet.from_cuts(parts).to_file(tmp_path / "cuts.jsonl.gz")
    for over, stretches in {"cuts": [(0, 1.5), (4, 6)], "recording": [(0, 6)]}.items():
        cuts = loudness(tmp_path, "o.jsonl.gz", "--target-lufs", "-40", "--over", over)
        power = []
        for start, end in stretches:
            meter = pyloudnorm.Meter(16000)
            meter.integrated_loudness(audio[start * 16000 : int(end * 16000)].astype(np.float64))
            power += [10 ** ((level + 0.691) / 10) for level in meter.blockwise_loudness]
        power = np.array(power)
        expected = -0.691 + 10 * np.log10(power[power > power.mean() / 10].mean())
        factors = {c.recording.transforms[0].factor for c in cuts.values()}
        assert 20 * np.log10(factors.pop()) == pytest.approx(-40 - expected, abs=1e-4)
        assert not factors


def test_other_transforms_and_sources_go_through_lhotse(corpus):
    cut = recording_cut(Recording.from_file(corpus / "loud.wav", recording_id="x"))
    louder = cut.normalize_loudness(-30)
    assert np.array_equal(np.concatenate(list(cut_blocks(louder)), 1), louder.load_audio())
    command = Recording.from_file(corpus / "loud.wav", recording_id="y")
    command.sources[0].type = "command"
    command.sources[0].source = f"cat {corpus / 'loud.wav'}"
    assert np.array_equal(
        np.concatenate(list(cut_blocks(recording_cut(command), Outside(allow_commands=True))), 1),
        cut.load_audio(),
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--input", "nowhere.jsonl.gz"], "--input nowhere.jsonl.gz not found"),
        (["--input", "README.md"], "give a manifest of cuts"),
        (["--target-lufs", "23"], "--target-lufs 23: give a level between -70 and 0"),
        (["--jobs", "-1"], "--jobs -1 must be 0"),
        (["--out", "x.txt"], "--out x.txt: the name must end in .jsonl.gz"),
    ],
)
def test_mistakes(corpus, capsys, flags, message):
    given = {"--input": str(corpus / "cuts.jsonl.gz"), "--out": str(corpus / "o.jsonl.gz")}
    given |= {"--target-lufs": "-23", flags[0]: flags[1]}
    assert main(["loudness", *(word for pair in given.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rvqlm audio loudness: error: ") and error.count("\n") == 1
    assert message in error and not list(corpus.glob("*.tmp"))


def test_a_flag_without_effect_is_refused(corpus, capsys):
    words = ["--input", str(corpus / "cuts.jsonl.gz"), "--out", str(corpus / "o.jsonl.gz")]
    flags = ["--target-lufs", "-23", "--channels", "2", "--mono", "left"]
    assert main(["loudness", *words, *flags]) == 2
    assert "--mono does nothing with --channels 2" in capsys.readouterr().err


def test_input_and_output_must_differ(corpus, capsys):
    before = (corpus / "cuts.jsonl.gz").read_bytes()
    words = ["--input", str(corpus / "cuts.jsonl.gz"), "--out", str(corpus / "cuts.jsonl.gz")]
    assert main(["loudness", *words, "--target-lufs", "-23"]) == 2
    assert "is the input" in capsys.readouterr().err
    assert (corpus / "cuts.jsonl.gz").read_bytes() == before


def test_nothing_usable_leaves_the_reasons_and_no_manifest(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(1, 0.1), 16000)
    cut = recording_cut(Recording.from_file(tmp_path / "a.wav", recording_id="a"))
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    (tmp_path / "a.wav").unlink()
    words = ["--input", str(tmp_path / "cuts.jsonl.gz"), "--out", str(tmp_path / "o.jsonl.gz")]
    assert main(["loudness", *words, "--target-lufs", "-23", "--jobs", "1"]) == 2
    assert "no cut is left, 1 item skipped; the first, a: no such file" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl.gz").exists() and not list(tmp_path.glob("*.tmp"))
    assert "no such file" in (tmp_path / "o_skipped.jsonl").read_text()


def test_results_come_in_order():
    items = list(range(40))
    assert [r for _, r in in_order(abs, items, 3)] == items
