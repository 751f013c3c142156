"""NeMo itself against `nemo_codec`, with random weights in the layout of nvidia/audio-codec-44khz.

Run by ``tools/test.sh --nemo`` in an environment where NeMo imports; not collected otherwise.
"""

import pytest
import torch
from nemo.collections.tts.models import AudioCodecModel
from omegaconf import OmegaConf
from packages_common import noise

from rvqlm.codecs.cards import CODECS_ENV
from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.errors import UserError

MODULES = "nemo.collections.tts.modules.audio_codec_modules"
LOSSES = "nemo.collections.tts.losses.audio_codec_loss"


def config(width, parts=("MultiPeriodDiscriminator",)):
    """The settings of NeMo's examples/tts/conf/audio_codec/audio_codec_44100.yaml that make the
    codec."""
    return OmegaConf.create(
        {
            "sample_rate": 44100,
            "samples_per_frame": 512,
            "commit_loss_scale": 0.0,
            "loss_resolutions": [[512, 128, 512]],
            "mel_loss_dims": [80],
            "audio_encoder": {
                "_target_": f"{MODULES}.HiFiGANEncoder",
                "down_sample_rates": [2, 4, 8, 8],
                "encoded_dim": 32,
                "base_channels": width,
                "activation": "lrelu",
            },
            "audio_decoder": {
                "_target_": f"{MODULES}.HiFiGANDecoder",
                "up_sample_rates": [8, 8, 4, 2],
                "input_dim": 32,
                "base_channels": 16 * width,
                "activation": "half_snake",
                "output_activation": "clamp",
            },
            "vector_quantizer": {
                "_target_": f"{MODULES}.GroupFiniteScalarQuantizer",
                "num_groups": 8,
                "num_levels_per_group": [8, 5, 5, 5],
            },
            "discriminator": {
                "_target_": f"{MODULES}.Discriminator",
                "discriminators": [{"_target_": f"{MODULES}.{part}"} for part in parts],
            },
            "generator_loss": {"_target_": f"{LOSSES}.GeneratorSquaredLoss"},
            "discriminator_loss": {"_target_": f"{LOSSES}.DiscriminatorSquaredLoss"},
        }
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = AudioCodecModel(cfg=config(8)).eval()
    with torch.no_grad():  # latents as wide as the quantizer's cells
        last = model.audio_encoder.post_conv.conv
        probe = noise(1, 1, 60 * 512)[0]
        latents, _ = model.encode_audio(audio=probe, audio_len=torch.tensor([60 * 512]))
        gain = 1.5 / latents.std(2)[0]
        last.parametrizations.weight.original0.mul_(gain[:, None, None])
        last.bias.copy_((last.bias - latents.mean(2)[0]) * gain)
    path = tmp_path_factory.mktemp("nemo") / "audio-codec-44khz.nemo"
    model.save_to(str(path))
    return model, path


def original(model, audio):
    with torch.no_grad():
        lengths = torch.full((len(audio),), audio.shape[2])
        tokens, _ = model.encode(audio=audio[:, 0], audio_len=lengths)
        sound, _ = model.decode(tokens=tokens, tokens_len=torch.tensor([tokens.shape[2]] * 2))
    return tokens, sound


def test_codes_and_audio(saved):
    model, path = saved
    codec = load_codec(path)
    info = codec.info
    assert (info.num_codebooks, info.codebook_size, info.sampling_rate, info.hop) == (
        8, 1000, 44100, 512,
    )  # fmt: skip
    assert codec.model.discriminator is None and info.name == str(path)
    for samples in (40 * 512, 40 * 512 + 9):
        audio = noise(2, 1, samples)
        tokens, sound = original(model, audio)
        codes, lengths = codec.encode(audio)
        assert lengths.tolist() == [tokens.shape[2]] * 2
        assert codes.equal(tokens.transpose(1, 2).long())
        assert codec.decode(codes)[:, 0].equal(sound)
        assert codes.unique().numel() > 60


def test_chunks(saved):
    codec = load_codec(saved[1])
    assert 5 < codec.context_frames < 20 and 5 < codec.decode_context_frames < 30
    audio = noise(1, 1, 300 * 512 + 33)
    whole, _ = codec.encode(audio)
    differing = (encode_whole(codec, audio[0], 0.6).codes != whole[0]).float().mean()
    assert differing < 0.001
    assert torch.allclose(decode_long(codec, whole[0], 0.6), codec.decode(whole)[0], atol=1e-5)
    codec.context_frames = codec.context_frames // 2
    assert (encode_whole(codec, audio[0], 0.6).codes != whole[0]).float().mean() > differing


def test_batches_and_short_recordings(saved):
    codec = load_codec(saved[1])
    audio, lengths = noise(4, 1, 9000), torch.tensor([9000, 1, 513, 8704])
    codes, frames = codec.encode(audio, lengths)
    assert frames.tolist() == [18, 1, 2, 17] and codec.shortest == 4
    for i, n in enumerate(lengths.tolist()):
        alone, _ = codec.encode(audio[i : i + 1, :, :n])
        assert alone[0].equal(codes[i, : frames[i]])
        assert codec.decode(alone).shape == (1, 1, int(frames[i]) * 512)


def test_names(saved, monkeypatch, tmp_path):
    _, path = saved
    codec = load_codec(f"nemo:{path}")
    monkeypatch.setenv(CODECS_ENV, str(path.parent))
    by_name = load_codec("nvidia/audio-codec-44khz")
    assert by_name.info.name == "nvidia/audio-codec-44khz"
    assert by_name.info.fingerprint == codec.info.fingerprint
    with pytest.raises(UserError, match=r"--num-codebooks 4.*parallel groups"):
        load_codec(path, num_codebooks=4)
    (tmp_path / "bad.nemo").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"NeMo cannot load .*bad\.nemo"):
        load_codec(tmp_path / "bad.nemo")


def test_the_fingerprint_follows_the_codec_and_nothing_else(saved, tmp_path):
    model, path = saved
    before = load_codec(path).info.fingerprint
    with torch.no_grad():
        next(model.discriminator.parameters()).add_(1)
    model.save_to(str(tmp_path / "a.nemo"))
    assert load_codec(tmp_path / "a.nemo").info.fingerprint == before
    bias = model.audio_decoder.post_conv.conv.bias
    with torch.no_grad():
        bias.add_(0.1)
    model.save_to(str(tmp_path / "b.nemo"))
    with torch.no_grad():
        bias.sub_(0.1)
    assert load_codec(tmp_path / "b.nemo").info.fingerprint != before


def test_full_width(tmp_path):
    torch.manual_seed(0)
    AudioCodecModel(cfg=config(48)).save_to(str(tmp_path / "full.nemo"))
    codec = load_codec(tmp_path / "full.nemo")
    codes, _ = codec.encode(noise(1, 1, 22050))
    assert codes.shape == (1, 44, 8) and codec.decode(codes).shape == (1, 1, 44 * 512)
