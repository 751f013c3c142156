"""What is stored is what encoding the audio cut again gives, through every option."""

import json

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from tiny_codecs import encodec_segments, fill_codebooks
from tokenize_fixtures import RATE, Peaks, config, contents, lines

from rvqlm.audio.load import load_cut, load_file
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BLOCK_SAMPLES
from rvqlm.codecs.chunking import encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError
from rvqlm.tokenizing import encode as token_encode
from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing import workers as token_workers

pytestmark = pytest.mark.usefixtures("peaks")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files of several rates, channels and formats, with silence at both ends; one is long."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for i, (name, rate, channels, seconds) in enumerate([
        ("a.wav", 8000, 1, 1.0), ("b.flac", 44100, 2, 1.3), ("c.mp3", 22050, 2, 0.9),
        ("d.ogg", 48000, 1, 1.0), ("e.wav", 192000, 2, 0.6), ("f.wav", 16000, 2, 30.0),
        ("g.wav", 11025, 1, 0.05), ("h.wav", 8000, 1, 0.7), ("i.wav", 8000, 2, 0.0002),
    ]):  # fmt: skip
        sound = rng.normal(0, 0.02 * (i + 1), (max(1, int(rate * seconds)), channels))
        gap = np.zeros((int(rate * 0.11), channels))
        if name not in ("g.wav", "i.wav"):
            sound = np.concatenate([gap, sound, gap])
        soundfile.write(folder / name, sound.clip(-1, 1), rate)
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"mono": "right"},
        {"loudness": -23.0},
        {"trim_silence": True},
        {"trim_silence": True, "trim_dbfs": -40.0, "loudness": -30.0, "mono": "left"},
        {"codec": "stereo"},
        {"codec": "stereo", "loudness": -20.0, "trim_silence": True},
        {"batch_size": 4},
        {"batch_size": 3, "trim_silence": True, "jobs": 2},
        {"chunk_seconds": 0.07, "jobs": 2},
    ],
    ids=str,
)
def test_stored_equals_reencoded(mixed, tmp_path, flags):
    out = tmp_path / "out"
    tokenize.tokenize(config(mixed, out, **flags))
    codec = Peaks(channels=2 if "codec" in flags else 1)
    again = AudioConfig(mono=flags.get("mono", "average"))
    cuts = list(CutSet.from_file(out / "cuts.jsonl.gz"))
    audio_cuts = CutSet.from_file(out / "audio_cuts.jsonl.gz")
    assert len(cuts) == 9 and json.loads((out / "tokens.json").read_text())["skipped"] == 0
    for cut, audio_cut in zip(cuts, audio_cuts):
        assert cut.id == audio_cut.id
        audio = load_cut(audio_cut, RATE, codec.info.channels, again)
        assert cut.custom["num_samples"] == audio.shape[1]
        codes, _ = codec.encode(torch.from_numpy(audio)[None])
        assert np.array_equal(codes[0].numpy(), cut.load_features()), cut.id
        assert "ends_recording" not in cut.custom or cut.custom["ends_recording"] is True
        if "trim_silence" in flags and cut.id == "h":
            assert audio_cut.start > 0 and audio_cut.duration < 0.75
        if "loudness" in flags and cut.id == "f":
            assert audio_cut.recording.transforms


def test_settings_change_the_tokens_and_are_recorded(mixed, tmp_path):
    """No flag is without effect."""
    plain = tmp_path / "plain"
    tokenize.tokenize(config(mixed, plain))
    tokens = {"plain": [c.load_features().tolist() for c in _cuts(plain)]}
    for name, flags, recorded in (
        ("mono", {"mono": "left"}, {"mono": "left"}),
        ("loudness", {"loudness": -16.0}, {"loudness": -16.0}),
        ("trim", {"trim_silence": True}, {"trim_dbfs": -50.0}),
        ("level", {"trim_silence": True, "trim_dbfs": -26.0}, {"trim_dbfs": -26.0}),
    ):
        out = tmp_path / name
        tokenize.tokenize(config(mixed, out, **flags))
        made = [c.load_features().tolist() for c in _cuts(out)]
        assert made not in tokens.values()
        tokens[name] = made
        side = json.loads((out / "tokens.json").read_text())
        defaults = {"mono": "average", "stereo": "duplicate", "loudness": None, "trim_dbfs": None}
        assert side["audio"] == {**defaults, **recorded}
        (key, value), *_ = recorded.items()
        with pytest.raises(UserError, match=f"{key.replace('_', '-')} {value!r} against"):
            tokenize.tokenize(config(mixed, out))
    assert json.loads((plain / "tokens.json").read_text())["compute_dtype"] == "float32"
    with pytest.raises(UserError, match="dtype 'float32' against 'bfloat16'"):
        tokenize.tokenize(config(mixed, plain, dtype="bfloat16"))
    skipped = tmp_path / "refused"
    tokenize.tokenize(config(mixed, skipped, codec="stereo", stereo="refuse"))
    reasons = [s["reason"] for s in lines(skipped / "skipped.jsonl")]
    assert reasons == ["1 channels where 2 are wanted"] * 4


def test_how_the_work_is_done_changes_nothing(mixed, tmp_path):
    tokenize.tokenize(config(mixed, tmp_path / "a"))
    for i, flags in enumerate(({"batch_size": 2}, {"batch_size": 50}, {"chunk_seconds": 1.0},
                               {"per_file": "no"})):  # fmt: skip
        tokenize.tokenize(config(mixed, tmp_path / str(i), **flags))
        assert contents(tmp_path / str(i)) == contents(tmp_path / "a")


def test_a_directory_of_before_these_settings(mixed, tmp_path):
    out = tmp_path / "out"
    tokenize.tokenize(config(mixed, out))
    side = json.loads((out / "tokens.json").read_text())
    side["input"]["mono"] = side["audio"]["mono"]
    for name in ("audio", "compute_dtype", "pcm_bytes"):
        side.pop(name)
    side.pop("checksum")
    (out / "tokens.json").write_text(json.dumps(side))
    assert tokenize.tokenize(config(mixed, out)).num_cuts == 9
    with pytest.raises(UserError, match="mono 'average' against 'left'"):
        tokenize.tokenize(config(mixed, out, mono="left"))


def test_audio_is_never_held_whole(mixed, tmp_path, monkeypatch):
    """Of half a minute, the codec sees blocks only, and in chunks of the wanted length."""
    seen, lengths = [], []

    class Watching(Peaks):
        def encode(self, audio, lengths_=None):
            lengths.append(audio.shape[2])
            return super().encode(audio, lengths_)

    real = token_encode.encode_stream

    def encode_stream(codec, blocks, chunk_seconds):
        def watched():
            for block in blocks:
                seen.append(block.shape[1])
                yield block

        return real(codec, watched(), chunk_seconds)

    monkeypatch.setattr(token_encode, "encode_stream", encode_stream)
    monkeypatch.setattr(tokenize, "load_codec", lambda *args: Watching())
    tokenize.tokenize(config(mixed / "f.wav", tmp_path / "out", chunk_seconds=2.0))
    assert sum(seen) == int(30.22 * RATE) and max(seen) < BLOCK_SAMPLES
    assert sum(lengths) >= 30.22 * RATE and max(lengths) <= 3 * RATE


def test_scales_of_segments_are_kept(mixed, tmp_path, monkeypatch):
    """With a codec of the kind of EnCodec 48 kHz."""
    torch.manual_seed(0)
    folder = tmp_path / "codec"
    model = fill_codebooks(encodec_segments(), torch.randn(1, 2, 4000))
    model.save_pretrained(folder)
    for module in (tokenize, token_workers):
        monkeypatch.setattr(module, "load_codec", load_codec)
    codec = load_codec(folder)
    assert codec.info.segment is not None
    for batch_size in (1, 4):
        out = tmp_path / str(batch_size)
        tokenize.tokenize(config(mixed / "[a-d].*", out, codec=str(folder), batch_size=batch_size))
        audio_cuts = CutSet.from_file(out / "audio_cuts.jsonl.gz")
        for cut, audio_cut in zip(_cuts(out), audio_cuts):
            audio = load_cut(audio_cut, codec.info.sampling_rate, codec.info.channels)
            codes, scales = encode_whole(codec, torch.from_numpy(audio))
            assert len(scales) == len(cut.custom["scales"]) > 1
            assert torch.tensor(cut.custom["scales"]).equal(scales) or batch_size > 1
            assert np.allclose(cut.custom["scales"], scales.numpy(), rtol=1e-5)
            same = codes.numpy() == cut.load_features()
            assert same.all() if batch_size == 1 else same.mean() > 0.99


def test_a_prompt_is_encoded_like_its_file(mixed, tmp_path, monkeypatch):
    from rvqlm.inference.prompts import from_audio

    for module in (tokenize, token_workers):
        monkeypatch.setattr(module, "load_codec", load_codec)
    tokenize.tokenize(config(mixed / "c.mp3", tmp_path / "out"))
    codec = load_codec("spectral")
    stored = next(iter(_cuts(tmp_path / "out"))).load_features()
    prompt = from_audio([str(mixed / "c.mp3")], codec, 10_000)[0]
    assert np.array_equal(prompt.codes.numpy(), stored)
    short = from_audio([str(mixed / "c.mp3")], codec, 20)[0]
    assert short.codes.shape == (20, codec.info.num_codebooks)
    audio = load_file(mixed / "c.mp3", 16000)[:, : 20 * codec.info.hop]
    assert short.codes.equal(codec.encode(torch.from_numpy(audio)[None])[0][0])


def _cuts(out):
    return CutSet.from_file(out / "cuts.jsonl.gz")
