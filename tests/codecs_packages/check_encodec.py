"""encodec itself against every way in which its weight files are loaded here.

Run by ``tools/test.sh --codecs`` in an environment where the package imports; not collected
otherwise. Random weights, the published sizes; equal means bit for bit.
"""

import encodec
import pytest
import torch
from packages_common import backends, noise

from rvqlm.codecs.chunking import decode_long, encode_whole


def filled(model):
    """Codebooks drawn from the latents and their residuals; those of a new model are zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        residual = model.encoder(noise(1, model.channels, 2100 * int(model.encoder.hop_length)))[
            0
        ].T
    for layer in model.quantizer.vq.layers:
        book = layer._codebook
        book.embed.copy_(residual[torch.randperm(len(residual))[: len(book.embed)]] * 1.01)
        book.embed_avg.copy_(book.embed)
        book.inited.fill_(1)
        residual = residual - book.embed[torch.cdist(residual, book.embed).argmin(1)]
    return model.eval()


def model_at(rate):
    torch.manual_seed(0)
    make = {
        24000: encodec.EncodecModel.encodec_model_24khz,
        48000: encodec.EncodecModel.encodec_model_48khz,
    }[rate]
    return filled(make(pretrained=False))


def file_of(model, folder, name):
    torch.save(model.state_dict(), folder / name)
    return folder / name


@pytest.mark.parametrize("bandwidth, levels", [(1.5, 2), (6.0, 8), (24.0, 32)])
def test_24khz(bandwidth, levels, tmp_path):
    model = model_at(24000)
    path = file_of(model, tmp_path, "encodec_24khz-d7cc33bc.th")
    model.set_target_bandwidth(bandwidth)
    for codec in backends(path, "encodec", tmp_path / "hf", levels).values():
        for samples in (320, 24000):
            audio = noise(2, 1, samples)
            with torch.no_grad():
                ((codes, scale),) = model.encode(audio)
                sound = model.decode([(codes, scale)])
            ours, _ = codec.encode(audio)
            assert codes.shape[1] == levels and scale is None
            assert ours.equal(codes.transpose(1, 2))
            assert codec.decode(ours).equal(sound)
        assert codes.unique().numel() > 60


def test_24khz_incomplete_last_frame(tmp_path):
    """Here the last frame is completed with zeros; the package does it layer by layer."""
    model = model_at(24000)
    path = file_of(model, tmp_path, "encodec_24khz-d7cc33bc.th")
    model.set_target_bandwidth(6.0)
    audio = noise(1, 1, 24000 - 77)
    with torch.no_grad():
        ((codes, _),) = model.encode(torch.nn.functional.pad(audio, (0, 77)))
    for codec in backends(path, "encodec", tmp_path / "hf").values():
        assert codec.encode(audio)[0].equal(codes.transpose(1, 2))


@pytest.mark.parametrize("bandwidth, levels", [(3.0, 2), (24.0, 16)])
def test_48khz(bandwidth, levels, tmp_path):
    """Codes, scales and overlap-add of several segments, the last one short."""
    model = model_at(48000)
    path = file_of(model, tmp_path, "encodec_48khz-7e698e3e.th")
    model.set_target_bandwidth(bandwidth)
    for samples in (320, 48000, 47520 * 2 + 320 * 9):
        audio = noise(1, 2, samples)
        with torch.no_grad():
            frames = model.encode(audio)
            if samples == 48000:  # the package's second segment: 480 samples that the first holds
                assert len(frames) == 2
                frames = frames[:1]
            sound = model.decode(frames)
        codes = torch.cat([c for c, _ in frames], -1).transpose(1, 2)
        scales = torch.cat([s[:, 0] for _, s in frames])
        for name, codec in backends(path, "encodec", tmp_path / "hf", levels).items():
            ours, lengths, loud = codec.encode_with_scales(audio)
            assert lengths.item() == codec.info.num_frames(samples) == codes.shape[1], name
            assert ours.equal(codes), name
            assert loud[0].equal(scales), name
            assert codec.decode(ours, loud).equal(sound), name
            whole = encode_whole(codec, audio[0])
            assert whole.codes.equal(codes[0]) and whole.scales.equal(scales), name
            long = decode_long(codec, whole.codes, scales=whole.scales)
            assert long.equal(sound[0]), name


def test_layers_of_musicgen(tmp_path):
    """The 32 kHz codec's layers built of the package's modules; its settings as audiocraft has
    them."""
    torch.manual_seed(0)
    layers = {
        "channels": 1, "dimension": 128, "n_filters": 64, "ratios": [8, 5, 4, 4], "causal": False,
        "true_skip": True, "lstm": 2,
    }  # fmt: skip
    model = encodec.EncodecModel(
        encodec.modules.SEANetEncoder(**layers), encodec.modules.SEANetDecoder(**layers),
        encodec.quantization.ResidualVectorQuantizer(dimension=128, n_q=4, bins=2048),
        target_bandwidths=[2.2], sample_rate=32000, channels=1,
    )  # fmt: skip
    filled(model)
    settings = """
sample_rate: 32000
channels: 1
compression_model: encodec
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: '${sample_rate}', causal: false}
seanet: {causal: '${encodec.causal}', pad_mode: reflect, dilation_base: 2, norm: weight_norm}
"""
    content = {"best_state": model.state_dict(), "xp.cfg": settings, "exported": True}
    torch.save(content, tmp_path / "compression_state_dict.bin")
    audio = noise(1, 1, 640 * 40)
    with torch.no_grad():
        ((codes, scale),) = model.encode(audio)
        sound = model.decode([(codes, scale)])
    path = tmp_path / "compression_state_dict.bin"
    for codec in backends(path, "encodec", tmp_path / "hf").values():
        assert (codec.info.num_codebooks, codec.info.codebook_size) == (4, 2048)
        ours, _ = codec.encode(audio)
        assert ours.equal(codes.transpose(1, 2)) and codec.decode(ours).equal(sound)
