"""descript-audio-codec itself against every way in which its weight files are loaded here.

Run by ``tools/test.sh --codecs`` in an environment where the package imports; not collected
otherwise. Random weights, real geometries; equal means bit for bit.
"""

import dac
import pytest
import torch
from packages_common import backends, noise

from rvqlm.codecs.chunking import decode_long, encode_whole

# fmt: off
GEOMETRIES = {
    "16khz": {"encoder_rates": [2, 4, 5, 8], "n_codebooks": 12, "sample_rate": 16000},
    "24khz": {"encoder_rates": [2, 4, 5, 8], "n_codebooks": 32, "sample_rate": 24000},
    "44khz": {"encoder_rates": [2, 4, 8, 8], "n_codebooks": 9, "sample_rate": 44100},
    "16kbps": {"encoder_rates": [2, 4, 8, 8], "n_codebooks": 18, "sample_rate": 44100,
               "latent_dim": 96},
}
# fmt: on


def model_of(kwargs, small=True):
    torch.manual_seed(0)
    if small:
        kwargs = {"encoder_dim": 8, "decoder_dim": 96, **kwargs}
    model = dac.DAC(decoder_rates=kwargs["encoder_rates"][::-1], **kwargs).eval()
    for name, tensor in model.named_parameters():
        if name.endswith("alpha"):
            torch.nn.init.uniform_(tensor, 0.5, 2.0)
        if name.endswith("weight_g"):  # g = |v| when new; here g is its own
            tensor.data *= torch.rand_like(tensor) + 0.7
    return model


def original(model, audio, K):
    with torch.no_grad():
        padded = model.preprocess(audio, model.sample_rate)
        codes = model.encode(padded, n_quantizers=K)[1]
        return codes, model.decode(model.quantizer.from_codes(codes)[0])


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("levels", [None, 3])
def test_codes_and_audio(name, levels, tmp_path):
    model = model_of(GEOMETRIES[name])
    path = tmp_path / "weights.pth"
    model.save(path, package=False)
    hop = model.hop_length
    for codec in backends(path, "dac", tmp_path / "hf", levels).values():
        K = codec.info.num_codebooks
        for samples in (1, hop, 30 * hop, 30 * hop + 7):
            audio = noise(2, 1, samples)
            codes, sound = original(model, audio, K)
            ours, _ = codec.encode(audio)
            assert ours.equal(codes.transpose(1, 2))
            decoded = codec.decode(ours)
            same = decoded[..., : sound.shape[2]]
            # one frame: torch sees two layouts in a tensor of one step and may take another kernel
            assert same.equal(sound) or (samples <= hop and torch.allclose(same, sound, atol=2e-6))
            assert (
                decoded.shape[2] == ours.shape[1] * hop and not decoded[..., sound.shape[2] :].any()
            )
        assert codes.unique().numel() > 50


def test_full_size_44khz(tmp_path):
    model = model_of(GEOMETRIES["44khz"], small=False)
    assert sum(p.numel() for p in model.parameters()) > 76e6
    path = tmp_path / "weights_44khz_8kbps_0.0.1.pth"
    model.save(path, package=False)
    audio = noise(1, 1, 44100)
    codes, sound = original(model, audio, 9)
    assert codes.unique().numel() > 100
    for codec in backends(path, "dac", tmp_path / "hf").values():
        ours, _ = codec.encode(audio)
        assert ours.equal(codes.transpose(1, 2)) and codec.decode(ours).equal(sound)


def test_a_fine_tuned_model_saved_by_the_package_loads(tmp_path):
    """`save_to_folder` writes weights.pth and package.pth; the first is the one to give."""
    from rvqlm.codecs.registry import load_codec
    from rvqlm.errors import UserError

    model = model_of(GEOMETRIES["44khz"])
    folder = model.save_to_folder(tmp_path)
    audio = noise(1, 1, 5000)
    codes, _ = original(model, audio, 9)
    assert load_codec(folder / "weights.pth").encode(audio)[0].equal(codes.transpose(1, 2))
    with pytest.raises(UserError, match=r"torch\.package"):
        load_codec(folder / "package.pth")


def test_the_package_in_chunks(tmp_path):
    model = model_of(GEOMETRIES["44khz"])
    path = tmp_path / "weights.pth"
    model.save(path, package=False)
    codec = backends(path, "dac", tmp_path / "hf")["package"]
    audio = noise(1, 1, 60 * 512 + 100)
    codes, sound = original(model, audio, 9)
    ours = encode_whole(codec, audio[0], 0.2).codes
    assert ours.equal(codes[0].T)
    assert torch.allclose(decode_long(codec, ours, 0.2), sound[0], atol=1e-5)
