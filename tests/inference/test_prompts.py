"""Prompts of a codec that keeps the loudness of its segments beside the codes."""

import dataclasses
import gzip
import json

import soundfile
import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.streaming import Encoded
from rvqlm.data.index import manifest_path
from rvqlm.data.scales import stored_scales
from rvqlm.inference.prompts import from_audio

INFO = CodecInfo("loud", "0" * 16, 8000, 80, 1, 4, segment=(10, 720))


class Loud(Codec):
    """All codes are 1; the scale of a segment is its largest sample."""

    default_scale = 0.5

    def __init__(self):
        super().__init__(INFO)

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    decode = encode

    def encode_blocks(self, blocks, step):
        audio = torch.cat(list(blocks), 1)
        frames = self.info.num_frames(audio.shape[1])
        starts = range(0, self.info.num_scales(frames) * 720, 720)
        scales = [float(audio[:, at : at + 800].max()) for at in starts]
        yield Encoded(torch.ones(frames, 1, dtype=torch.int64), torch.tensor(scales))


def test_prompts_keep_their_scales(tmp_path):
    ramp = torch.arange(4000.0) / 8000
    soundfile.write(tmp_path / "a.wav", ramp.numpy(), 8000, subtype="FLOAT")
    codec = Loud()
    for frames, count in ((10, 1), (25, 3)):
        (prompt,) = from_audio([str(tmp_path / "a.wav")], codec, frames)
        assert len(prompt.codes) == frames and len(prompt.scales) == count
        # loudest at the end of each segment: what follows the prompt is not encoded
        assert prompt.scales[-1] * 8000 == INFO.num_samples(frames) - 1


def test_what_follows_a_prompt_is_as_loud_as_its_end():
    codec = Loud()
    assert codec.scales_for(35, torch.tensor([0.1, 0.3])).tolist() == [
        *torch.tensor([0.1, 0.3, 0.3, 0.3]).tolist()
    ]
    assert codec.scales_for(11).tolist() == [0.5, 0.5]
    assert codec.scales_for(10, torch.tensor([0.25, 0.5])).tolist() == [0.25]
    assert codec.scales_for(0).tolist() == []
    codec.info = dataclasses.replace(INFO, segment=None)
    assert codec.scales_for(35) is None


def test_stored_scales_are_read_for_codecs_that_have_them(tmp_path):
    cuts = [{"id": i, "custom": {"scales": [0.1, 0.7]}} for i in "ab"] + [{"id": "c"}]
    path = manifest_path(tmp_path, "dev")
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    found = stored_scales(tmp_path, "dev", INFO, {"b", "c"})
    assert list(found) == ["b"] and found["b"].equal(torch.tensor([0.1, 0.7]))
    plain = dataclasses.replace(INFO, segment=None)
    assert stored_scales(tmp_path, "dev", plain, {"b"}) == {}
