"""Tokens to wav: equal to the codec's own decoding, cut to the true length, one piece at a time."""

import weakref

import numpy as np
import pytest
import soundfile
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long
from rvqlm.errors import UserError
from rvqlm.exchange import wav as exchange_wav
from rvqlm.exchange.items import TokenItem
from rvqlm.exchange.wav import decode_to_wav, write_wav


class Steps(Codec):
    """Two channels whose samples say which frame and how many levels they came from."""

    decode_context_frames = 0

    def __init__(self, segment=None):
        super().__init__(CodecInfo("steps", "0" * 16, 8000, 10, 3, 500, 2, segment))

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    def decode(self, codes):
        self.check_codes(codes)
        value = codes[:, :, 0] / 499 * 2.5 - 1.25  # beyond full scale at both ends
        levels = torch.full_like(value, codes.shape[2] / 4)
        return torch.stack((value, levels), 1).repeat_interleave(10, 2)


def ramp(frames=500):
    return np.repeat(np.arange(frames, dtype=np.uint16)[:, None], 3, 1)


@pytest.mark.parametrize(
    "subtype, bits, step",
    [("pcm16", "PCM_16", 2**-15), ("pcm24", "PCM_24", 2**-23), ("float", "FLOAT", 0)],
)
def test_samples(tmp_path, subtype, bits, step):
    codec, codes = Steps(), ramp()
    path = tmp_path / "a b" / "é.wav"
    item = TokenItem("x", codes, custom={"num_samples": 4993})
    assert decode_to_wav(codec, item, path, subtype, chunk_seconds=0.1) == 4993 / 8000
    about = soundfile.info(path)
    assert (about.subtype, about.channels, about.samplerate) == (bits, 2, 8000)
    audio, _ = soundfile.read(path, dtype="float32")
    want = decode_long(codec, torch.from_numpy(codes.astype(np.int64)))[:, :4993].T.numpy()
    if subtype != "float":
        assert np.abs(want).max() > 1.2
        want = want.clip(-1, 1)  # never wrapped round
    assert np.abs(audio - want).max() <= step
    assert [p.name for p in path.parent.iterdir()] == ["é.wav"]


def test_coarse_levels(tmp_path):
    item = TokenItem("x", ramp(20))
    decode_to_wav(Steps(), item, tmp_path / "a.wav", "float", num_codebooks=1)
    audio, _ = soundfile.read(tmp_path / "a.wav")
    assert (audio[:, 1] == 0.25).all() and len(audio) == 200


def test_scales_reach_the_codec(tmp_path, monkeypatch):
    given = []

    def stream(codec, codes, chunk_seconds, scales=None):
        given.append(scales)
        yield torch.zeros(2, 200)

    monkeypatch.setattr(exchange_wav, "decode_stream", stream)
    scales = [float(np.float32(0.1)), 3.5]
    item = TokenItem("x", ramp(20), custom={"scales": scales})
    decode_to_wav(Steps(), item, tmp_path / "a.wav")
    assert given[0].dtype == torch.float32 and given[0].tolist() == scales


def test_scales_of_a_codec_without_any(tmp_path):
    item = TokenItem("x", ramp(20), custom={"scales": [1.0]})
    with pytest.raises(UserError, match="x: steps has no scales"):
        decode_to_wav(Steps(), item, tmp_path / "a.wav")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames, samples", [(0, 0), (1, 1), (5, 0)])
def test_short_ones(tmp_path, frames, samples):
    item = TokenItem("x", ramp(frames), custom={"num_samples": samples})
    assert decode_to_wav(Steps(), item, tmp_path / "a.wav") == samples / 8000
    assert soundfile.info(tmp_path / "a.wav").frames == samples


def test_pieces_are_let_go(tmp_path):
    """No piece is alive when the next but one is asked for: memory does not grow with length."""
    alive: list[weakref.ref] = []

    def pieces():
        for _ in range(50):
            piece = torch.zeros(1, 100)
            alive.append(weakref.ref(piece))
            yield piece
            del piece
            assert sum(ref() is not None for ref in alive) <= 1

    assert write_wav(tmp_path / "a.wav", pieces(), 8000, 1, 5000) == 5000


def test_decoding_stops_at_the_true_length(tmp_path):
    def pieces():
        yield torch.zeros(1, 100)
        yield torch.zeros(1, 100)
        raise AssertionError("decoded what is not kept")

    assert write_wav(tmp_path / "a.wav", pieces(), 8000, 1, 150) == 150


def test_a_failure_leaves_the_old_file(tmp_path):
    (tmp_path / "a.wav").write_text("old")

    def pieces():
        yield torch.zeros(1, 100)
        raise ValueError("broken")

    with pytest.raises(ValueError):
        write_wav(tmp_path / "a.wav", pieces(), 8000, 1, 150)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_beyond_what_wav_holds(tmp_path):
    """A true length of 4 GiB and more makes RF64, whatever comes in the end."""
    write_wav(tmp_path / "a.wav", [torch.zeros(1, 10)], 8000, 1, 1 << 31)
    assert soundfile.info(tmp_path / "a.wav").format == "RF64"
    write_wav(tmp_path / "b.wav", [torch.zeros(1, 10)], 8000, 1, 1 << 30)
    assert soundfile.info(tmp_path / "b.wav").format == "WAV"


@pytest.mark.parametrize(
    "item, message",
    [
        (TokenItem("x", ramp()[:, :2]), "codes of codec steps are integers .T, 3."),
        (TokenItem("x", ramp(501)), "x: codes from 0 to 500, codec steps has 500"),
        (TokenItem("x", ramp(), token_rate=50.0), "50 frames per second, codec steps has 800"),
        (TokenItem("x", ramp(0), token_rate=float("nan")), "nan frames per second"),
    ],
)
def test_tokens_of_another_codec(item, message):
    with pytest.raises(UserError, match=message):
        item.require_made_by(Steps().info)
    TokenItem("x", ramp(), token_rate=801.0).require_made_by(Steps().info)
