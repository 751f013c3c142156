import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long, encode_long

HOP = 4


class Window(Codec):
    """Codes and audio are sums over `reach` frames to either side, in exact integers."""

    def __init__(self, reach=2, channels=1):
        super().__init__(CodecInfo("window", "0" * 16, 100, HOP, 2, 1 << 20, channels))
        self.reach, self.calls = reach, []

    def _sums(self, x):  # (B, T) -> (B, T)
        kernel = torch.arange(1.0, 2 * self.reach + 2)[None, None]  # asymmetric
        return torch.nn.functional.conv1d(x[:, None], kernel, padding=self.reach)[:, 0]

    def encode(self, audio, lengths=None):
        audio, frames = self.pad_to_hop(audio, lengths)
        self.calls.append(audio.shape[2] // HOP)
        sums = self._sums(audio.sum(1).unflatten(1, (-1, HOP)).sum(2)).long()
        return torch.stack([sums, sums * 2 + 1], 2), frames

    def decode(self, codes):
        self.calls.append(codes.shape[1])
        sums = self._sums(codes.sum(2).float())[:, None].expand(-1, self.info.channels, -1)
        return sums.repeat_interleave(HOP, 2)


@pytest.mark.parametrize("samples", [1, HOP, 37 * HOP, 37 * HOP + 1, 399])
@pytest.mark.parametrize("seconds", [0.01, 0.2, 0.5, 100.0])
def test_chunks_equal_whole(samples, seconds):
    codec = Window(channels=2)
    codec.context_frames = codec.decode_context_frames = codec.reach
    audio = torch.randint(0, 9, (2, samples), generator=torch.Generator().manual_seed(0)).float()
    whole, _ = codec.encode(audio[None])
    assert encode_long(codec, audio, seconds).equal(whole[0])
    audible = codec.decode(whole)[0]
    assert decode_long(codec, whole[0].to(torch.int32), seconds).equal(audible)


def test_context_is_needed_and_memory_is_flat():
    codec, audio = Window(), torch.ones(1, 100 * HOP)
    codec.context_frames = codec.reach
    whole = encode_long(codec, audio, 100)
    codec.calls.clear()
    encode_long(codec, audio, 10 * HOP / 100)
    assert len(codec.calls) == 10 and max(codec.calls) == 10 + 2 * codec.reach
    codec.context_frames = codec.reach - 1
    assert not encode_long(codec, audio, 10 * HOP / 100).equal(whole)


def test_a_codec_without_finite_context_gets_the_file_whole():
    codec = Window()
    codes = encode_long(codec, torch.ones(1, 100 * HOP), 0.1)
    decode_long(codec, codes, 0.1)
    assert codec.calls == [100, 100]


def test_nothing_and_nonsense():
    codec = Window()
    assert decode_long(codec, torch.zeros(0, 2, dtype=torch.int16)).shape == (1, 0)
    with pytest.raises(ValueError, match="positive"):
        encode_long(codec, torch.ones(1, 8), 0)


def test_chunks_are_equal_and_none_is_tiny():
    codec = Window()
    codec.context_frames = 0
    for frames, sizes in ((10, [10]), (14, [14]), (16, [8, 8]), (31, [10, 10, 11])):
        codec.calls.clear()
        encode_long(codec, torch.ones(1, frames * HOP), 10 * HOP / 100)
        assert codec.calls == sizes
