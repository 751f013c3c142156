"""NeMo's codecs with a stand-in for NeMo; NeMo itself is in ``tools/test.sh --nemo``."""

import contextlib
import socket
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from rvqlm.codecs.cards import CODECS_ENV
from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.nemo_codec import NemoCodec
from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError

HOP, K, LEVELS = 8, 2, 5


class AudioCodecModel(nn.Module):
    """Its interface, and layers that pad by reflection as NeMo's do: 2 frames are too short."""

    restored: list = []

    def __init__(self, far=3, output_sample_rate=8000):
        super().__init__()
        self.sample_rate, self.samples_per_frame = 8000, HOP
        self.output_sample_rate = output_sample_rate
        self.num_codebooks, self.codebook_size = K, LEVELS**2
        self.cfg = {"audio_encoder": {"far": far}, "vector_quantizer": {"levels": [5, 5]}}
        torch.manual_seed(0)
        reflect = {"padding_mode": "reflect"}
        self.audio_encoder = nn.Sequential(
            nn.Conv1d(1, 6, 5, padding=2, **reflect), nn.LeakyReLU(),
            nn.Conv1d(6, 8, HOP, stride=HOP),
            nn.Conv1d(8, 2 * K, 2 * far + 1, padding=far, **reflect),
        )  # fmt: skip
        self.audio_decoder = nn.Sequential(
            nn.Conv1d(2 * K, 6, 5, padding=2, **reflect), nn.LeakyReLU(),
            nn.ConvTranspose1d(6, 1, HOP, stride=HOP), nn.Hardtanh(),
        )  # fmt: skip
        self.discriminator = nn.Linear(1, 1)

    def encode_audio(self, audio, audio_len):
        assert audio.ndim == 2 and audio_len.shape == (len(audio),)
        missing = -audio.shape[1] % HOP
        latents = self.audio_encoder(functional.pad(audio, (0, missing))[:, None])
        return latents, -(-audio_len // HOP)

    def encode(self, audio, audio_len):
        latents, lengths = self.encode_audio(audio, audio_len)
        cells = (latents * 20).round().clamp(-2, 2).long() + 2  # (B, 2 K, T)
        return cells[:, 0::2] * LEVELS + cells[:, 1::2], lengths

    def decode_audio(self, inputs, input_len):
        return self.audio_decoder(inputs)[:, 0], input_len * HOP

    def decode(self, tokens, tokens_len):
        assert tokens.dtype == torch.int64 and tokens_len.tolist() == [tokens.shape[2]] * len(
            tokens
        )
        cells = torch.stack((tokens // LEVELS, tokens % LEVELS), 2).flatten(1, 2)
        return self.decode_audio((cells - 2).float() / 4, tokens_len)

    @classmethod
    def restore_from(cls, path, return_config=False, override_config_path=None, map_location=None):
        cls.restored.append((str(path), override_config_path))
        if return_config:
            return {"discriminator": "large", "use_scl_loss": True}
        return cls()

    @classmethod
    def from_pretrained(cls, name, map_location=None):
        if name != "known":
            raise FileNotFoundError(f"{name} is no model of NeMo's")
        return cls()


@pytest.fixture(autouse=True)
def nemo(monkeypatch):
    module = types.ModuleType("nemo.collections.tts.models")
    module.AudioCodecModel = AudioCodecModel
    omegaconf = types.ModuleType("omegaconf")
    omegaconf.open_dict = lambda config: contextlib.nullcontext()
    for name in ("nemo", "nemo.collections", "nemo.collections.tts"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "omegaconf", omegaconf)
    monkeypatch.setattr(AudioCodecModel, "restored", [])
    monkeypatch.delenv(CODECS_ENV, raising=False)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.5


def test_codes_and_audio_are_the_model_s():
    model = AudioCodecModel().eval()
    codec = NemoCodec(AudioCodecModel(), "x")
    audio = noise(2, 1, 20 * HOP - 3)
    with torch.no_grad():
        tokens, lengths = model.encode(audio[:, 0], torch.tensor([20 * HOP - 3] * 2))
        sound, _ = model.decode(tokens, lengths)
    codes, frames = codec.encode(audio)
    assert codes.equal(tokens.transpose(1, 2)) and frames.tolist() == [20, 20]
    assert codes.unique().numel() > 10
    assert codec.decode(codes).equal(sound[:, None])


def test_reach_is_what_the_layers_hear():
    for far in (3, 7):
        codec = NemoCodec(AudioCodecModel(far), "x")
        assert (codec.context_frames, codec.decode_context_frames) == (far + 1, 2)
    audio = noise(1, 300 * HOP + 5)
    whole, _ = codec.encode(audio[None])
    assert encode_whole(codec, audio, 0.03).codes.equal(whole[0])
    assert torch.allclose(decode_long(codec, whole[0], 0.03), codec.decode(whole)[0], atol=1e-6)
    codec.context_frames = 3
    assert not encode_whole(codec, audio, 0.03).codes.equal(whole[0])


def test_a_layer_that_depends_on_everything_has_no_reach():
    class Loud(AudioCodecModel):
        def encode_audio(self, audio, audio_len):
            latents, lengths = super().encode_audio(audio, audio_len)
            return latents - latents.mean(2, keepdim=True), lengths

    codec = NemoCodec(Loud(), "x")
    assert codec.context_frames is None and codec.decode_context_frames == 2


def test_recordings_too_short_to_reflect():
    codec = NemoCodec(AudioCodecModel(), "x")
    assert codec.shortest == 4  # reflection by three needs four
    lengths = torch.tensor([1, 2 * HOP, 3 * HOP + 1, 40])
    audio = noise(4, 1, 40)
    codes, frames = codec.encode(audio, lengths)
    assert frames.tolist() == [1, 2, 4, 5]
    for i, n in enumerate(lengths.tolist()):
        alone, _ = codec.encode(audio[i : i + 1, :, :n])
        assert alone[0].equal(codes[i, : frames[i]])
        assert codec.decode(alone).shape == (1, 1, int(frames[i]) * HOP)
    silence = torch.zeros(1, 1, 4 * HOP)
    silence[..., :1] = audio[:1, :, :1]
    assert codes[0, :1].equal(codec.encode(silence)[0][0, :1])


def test_all_groups_are_needed():
    with pytest.raises(UserError, match=r"--num-codebooks 1: the 2 codebooks .* parallel groups"):
        NemoCodec(AudioCodecModel(), "x", 1)
    codec = NemoCodec(AudioCodecModel(), "x", 2)
    with pytest.raises(ValueError, match=r"all 2 codebooks"):
        codec.decode(torch.zeros(1, 8, 1, dtype=torch.int64))
    with pytest.raises(UserError, match=r"codecs that change the rate"):
        NemoCodec(AudioCodecModel(output_sample_rate=16000), "x")


def test_fingerprint():
    one, other = AudioCodecModel(), AudioCodecModel()
    before = NemoCodec(one, "x").info.fingerprint
    with torch.no_grad():
        other.discriminator.bias.add_(1)
    assert NemoCodec(other, "y").info.fingerprint == before
    with torch.no_grad():
        other.audio_decoder[0].bias.add_(1)
    assert NemoCodec(other, "y").info.fingerprint != before
    other = AudioCodecModel()
    other.cfg["vector_quantizer"]["levels"] = [5, 6]
    assert NemoCodec(other, "y").info.fingerprint != before


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    file = tmp_path / "audio-codec-44khz.nemo"
    file.write_bytes(b"")
    assert load_codec(file).info.name == str(file)
    (config_of, none), (path, config) = AudioCodecModel.restored
    assert config_of == path == str(file) and none is None
    # neither discriminators nor networks from the web
    assert config == {"discriminator": None, "use_scl_loss": False, "use_slm_loss": False}
    monkeypatch.setenv(CODECS_ENV, str(tmp_path))
    assert load_codec("nvidia/audio-codec-44khz").info.name == "nvidia/audio-codec-44khz"
    assert load_codec("nemo:known").info.name == "nemo:known"
    with pytest.raises(UserError, match=r"NeMo cannot load unknown: unknown is no model"):
        load_codec("nemo:unknown")
    with pytest.raises(UserError, match=r"codec nowhere/x\.nemo: no such file"):
        load_codec("nowhere/x.nemo")


def test_offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError) as e:
        load_codec("nvidia/audio-codec-99khz")
    for part in ("audio-codec-99khz.nemo", "huggingface.co/nvidia/audio-codec-99khz", "--codec"):
        assert part in str(e.value)
