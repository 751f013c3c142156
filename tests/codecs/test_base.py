import dataclasses
import json

import pytest
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec, fingerprint
from rvqlm.errors import UserError


class Mean(Codec):
    """One codebook: the mean of a frame in steps of 1/10."""

    def __init__(self, hop=4):
        super().__init__(CodecInfo("mean", "0" * 16, 100, hop, 1, 32))
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def encode(self, audio, lengths=None):
        audio, frames = self.pad_to_hop(audio, lengths)
        means = audio.unflatten(2, (-1, self.info.hop)).mean(3)
        return (means * self.scale).round().long().transpose(1, 2), frames

    def decode(self, codes):
        self.check_codes(codes)
        return (codes / self.scale).transpose(1, 2).repeat_interleave(self.info.hop, 2)


def test_last_frame_is_completed_with_silence_and_lengths_are_masked():
    codec, audio = Mean(), torch.ones(2, 1, 10)
    codes, frames = codec.encode(audio, torch.tensor([10, 5]))
    assert frames.tolist() == [3, 2] and codes.shape == (2, 3, 1)
    assert codes[0, :, 0].tolist() == [10, 10, 5]  # 2 of 4 samples
    assert codes[1, :2, 0].tolist() == [10, 2]  # 1 of 4: what lies behind its end changes nothing
    assert codec.info.num_frames(8) == 2 and codec.info.num_frames(9) == 3
    assert codec.decode(codes).shape == (2, 1, 12)


@pytest.mark.parametrize(
    "shape, lengths",
    [((1, 2, 8), None), ((1, 8), None), ((1, 1, 0), None), ((1, 1, 8), [9]), ((1, 1, 8), [0])],
)
def test_wrong_audio_is_refused(shape, lengths):
    with pytest.raises(ValueError):
        Mean().encode(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))


@pytest.mark.parametrize("codes", [[[32]], [[-1]], [[0, 0]]])
def test_wrong_codes_are_refused(codes):
    with pytest.raises(ValueError):
        Mean().decode(torch.tensor([codes]))


def test_frames_of_a_segmented_codec():
    """Against the segments laid out one by one: those of EnCodec 48 kHz and a tiny one."""
    for hop, frames, stride in ((320, 150, 47520), (4, 5, 18)):
        codec = Mean(hop)
        codec.info = dataclasses.replace(codec.info, segment=(frames, stride))
        size = frames * hop
        sweep = range(1, 4 * size) if hop == 4 else range(1, 4 * size, 37)
        for samples in (*sweep, size, size + 1, size + stride, size + stride + 1):
            offset, layout = 0, []
            while offset + size < samples:
                layout.append(frames)
                offset += stride
            layout.append(-(-(samples - offset) // hop))
            T = codec.info.num_frames(samples)
            assert sum(layout) == T and len(layout) == -(-T // frames), samples
            held = codec.info.num_samples(T)
            assert held == offset + layout[-1] * hop and samples <= held < samples + hop
        assert codec.info.num_frames(0) == codec.info.num_samples(0) == 0


def test_codecs_stay_in_inference_mode():
    codec = Mean()
    assert codec.train().training is False and torch.nn.Sequential(codec).train()[0] is codec
    assert codec.training is False
    assert codec.device == torch.device("cpu")


def test_fingerprint_is_of_names_values_shapes_types_and_config():
    state = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    base = fingerprint({"hop": 4}, state)
    assert len(base) == 16 and base == fingerprint({"hop": 4}, dict(reversed(state.items())))
    assert base == fingerprint({"hop": 4}, {**state, "a": torch.arange(8.0)[::2] / 2})
    others = [
        ({"hop": 5}, state),
        ({"hop": 4}, {**state, "a": torch.arange(4.0) + 1e-6}),
        ({"hop": 4}, {**state, "a": torch.arange(4.0).double()}),
        ({"hop": 4}, {**state, "a": torch.arange(4.0).view(2, 2)}),
        ({"hop": 4}, {"a": state["a"], "c": state["b"]}),
        ({"hop": 4}, {**state, "a": torch.arange(4.0).bfloat16()}),
    ]
    assert len({base, *(fingerprint(*o) for o in others)}) == len(others) + 1


def test_descriptions_with_and_without_segments():
    plain = CodecInfo("a", "0" * 16, 48000, 320, 16, 1024, 2)
    old = {k: v for k, v in plain.to_dict().items() if k != "segment"}
    assert CodecInfo.from_dict(old) == plain and plain.frame_rate == 150
    cut = dataclasses.replace(plain, segment=(150, 47520))
    assert float(cut.frame_rate) == pytest.approx(151.51515)
    back = CodecInfo.from_dict(json.loads(json.dumps(cut.to_dict())))
    assert back == cut and hash(back) == hash(cut)
    back.require_same(cut, "x", "y")
    with pytest.raises(UserError, match=r"segment None against \(150, 47520\)"):
        plain.require_same(cut, "x", "y")
