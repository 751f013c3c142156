import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long, encode_many, encode_stream, encode_whole
from rvqlm.codecs.streaming import windows

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


def noise(*shape, seed=0):
    return torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("samples", [1, HOP, 37 * HOP, 37 * HOP + 1, 399])
@pytest.mark.parametrize("seconds", [0.01, 0.2, 0.5, 100.0])
def test_chunks_equal_whole(samples, seconds):
    codec = Window(channels=2)
    codec.context_frames = codec.decode_context_frames = codec.reach
    audio = noise(2, samples)
    whole, _ = codec.encode(audio[None])
    assert encode_whole(codec, audio, seconds).codes.equal(whole[0])
    audible = codec.decode(whole)[0]
    assert decode_long(codec, whole[0].to(torch.int32), seconds).equal(audible)


def test_context_is_needed_and_memory_is_flat():
    codec, audio = Window(), torch.ones(1, 100 * HOP)
    codec.context_frames = codec.reach
    whole = encode_whole(codec, audio, 100).codes
    codec.calls.clear()
    encode_whole(codec, audio, 10 * HOP / 100)
    assert len(codec.calls) == 10 and max(codec.calls) == 10 + 2 * codec.reach
    codec.context_frames = codec.reach - 1
    assert not encode_whole(codec, audio, 10 * HOP / 100).codes.equal(whole)


def test_a_codec_without_finite_context_gets_the_file_whole():
    codec = Window()
    codes = encode_whole(codec, torch.ones(1, 100 * HOP), 0.1).codes
    decode_long(codec, codes, 0.1)
    assert codec.calls == [100, 100]


def test_nothing_and_nonsense():
    codec = Window()
    assert decode_long(codec, torch.zeros(0, 2, dtype=torch.int16)).shape == (1, 0)
    with pytest.raises(ValueError, match="positive"):
        encode_whole(codec, torch.ones(1, 8), 0)


def test_no_chunk_is_tiny():
    codec = Window()
    codec.context_frames = 0
    for frames, sizes in ((10, [10]), (15, [15]), (16, [10, 6]), (31, [10, 10, 11])):
        codec.calls.clear()
        encode_whole(codec, torch.ones(1, frames * HOP), 10 * HOP / 100)
        assert codec.calls == sizes


@pytest.mark.parametrize("context", [0, 2, None])
def test_how_a_stream_is_cut_into_blocks_changes_nothing(context):
    codec = Window(reach=context or 0)
    codec.context_frames = context
    audio = noise(1, 45 * HOP + 3)
    whole = codec.encode(audio[None])[0][0]
    for size in (1, 7, 40, 1000):
        codec.calls.clear()
        parts = list(encode_stream(codec, audio.split(size, 1), 10 * HOP / 100))
        assert torch.cat([p.codes for p in parts]).equal(whole)
        assert all(p.scales is None for p in parts)
        assert codec.calls == ([46] if context is None else _window_sizes(46, context, 10))
    assert list(encode_stream(codec, [], 0.4)) == []
    assert list(encode_stream(codec, [audio[:, :0]], 0.4)) == []


def _window_sizes(frames, context, step):
    return [right - left for _, _, left, right in windows(frames, context, context, step)]


def test_windows_cover_all_frames_once():
    for frames in range(60):
        for before, after, step in ((0, 0, 5), (3, 0, 5), (2, 7, 5), (9, 9, 5)):
            parts = list(windows(frames, before, after, step))
            assert [t for first, end, _, _ in parts for t in range(first, end)] == [*range(frames)]
            for first, end, left, right in parts:
                assert 0 <= left == max(0, first - before) and right == min(frames, end + after)


def test_pieces_of_many_recordings_are_encoded_together():
    codec = Window(channels=2)
    codec.context_frames = codec.reach
    frames = [95, 1, 33, 95, 14, 15, 16, 40]
    recordings = [noise(2, n * HOP - (n % 3), seed=n) for n in frames]
    seconds = 10 * HOP / 100
    many = encode_many(codec, recordings, seconds)
    calls = len(codec.calls)
    single = [encode_whole(codec, audio, seconds).codes for audio in recordings]
    assert all(a.codes.equal(b) for a, b in zip(many, single, strict=True))
    assert calls < (len(codec.calls) - calls) / 2
    codec.calls.clear()
    encode_many(codec, recordings, seconds, batch_seconds=0.01)
    assert len(codec.calls) > calls  # one by one
    codec.context_frames = None
    assert encode_many(codec, recordings[:2], seconds)[0].codes.equal(single[0])
    assert encode_many(codec, [], seconds) == []


def test_scales_for_a_codec_without_any_are_refused():
    with pytest.raises(ValueError, match="window has no scales"):
        decode_long(Window(), torch.zeros(3, 2, dtype=torch.int64), scales=torch.ones(1))
