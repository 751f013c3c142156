"""Codecs with an LSTM or a transformer in their middle: pieces with carried state give what the
whole recording gives, in memory that does not grow with it."""

import pytest
import torch
import transformers
from tiny_codecs import encodec, encodec_segments, fill_codebooks, mimi, noise

from rvqlm.codecs.chunking import decode_long, encode_many, encode_whole
from rvqlm.codecs.mimi import Attention
from rvqlm.codecs.pretrained import from_model


def encodec_24khz():
    """The published strides and kernels, few channels."""
    return _published((8, 5, 4, 2))


def encodec_32khz():
    return _published((8, 5, 4, 4), use_causal_conv=False, use_conv_shortcut=False)


def _published(ratios, **kwargs):
    config = transformers.EncodecConfig(
        num_filters=2, hidden_size=8, codebook_size=16, target_bandwidths=[6.0],
        upsampling_ratios=list(ratios), **kwargs,
    )  # fmt: skip
    return transformers.EncodecModel(config)


MODELS = {
    "tiny": encodec,
    "tiny-noncausal": lambda: encodec(causal=False),
    "24khz": encodec_24khz,
    "32khz": encodec_32khz,
    "mimi": mimi,
}


@pytest.fixture(params=MODELS)
def codec(request):
    torch.manual_seed(0)
    model = fill_codebooks(MODELS[request.param](), torch.randn(1, 1, 16000)).eval()
    # what differs between chunks and the whole is then an error, and no rounding
    return from_model(model, request.param).set_dtype(torch.float64)


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 20, 61])
def test_chunks_equal_whole(codec, frames):
    hop, rate = codec.info.hop, codec.info.sampling_rate
    for samples in (1, hop, 5 * hop + 1, 100 * hop, 101 * hop - 1):
        audio = noise(1, samples)
        whole, _ = codec.encode(audio[None])
        chunk = (frames + 0.5) * hop / rate
        assert encode_whole(codec, audio, chunk).codes.equal(whole[0])
        sound = decode_long(codec, whole[0], chunk)
        assert torch.allclose(sound, codec.decode(whole)[0], atol=1e-5)
    assert codec.bounded_memory
    assert encode_many(codec, [audio], chunk)[0].codes.equal(whole[0])


def test_the_state_matters(codec):
    """Pieces that each begin anew are wrong, also far behind their beginning."""
    size = 25 * codec.info.hop
    audio = noise(1, 4 * size)
    whole, _ = codec.encode(audio[None])
    apart = torch.cat([codec.encode(piece[None])[0] for piece in audio.split(size, 1)], 1)
    wrong = (apart != whole).float().mean((0, 2))
    assert wrong[:20].sum() == 0 and wrong[25:].mean() > 0.02
    sound = codec.decode(whole)[0]
    apart = torch.cat([codec.decode(c)[0] for c in whole.split(25, 1)], 1)
    assert not torch.allclose(apart[:, 2 * size :], sound[:, 2 * size :], atol=1e-3)


@pytest.mark.parametrize("coarse", [1, 3])
def test_fewer_levels(coarse):
    for make in (encodec, mimi):
        torch.manual_seed(0)
        model = fill_codebooks(make(), torch.randn(1, 1, 4000))
        codec = from_model(model, "few", coarse).set_dtype(torch.float64)
        audio = noise(1, 60 * codec.info.hop)
        whole = codec.encode(audio[None])[0][0]
        assert whole.shape[1] == coarse and encode_whole(codec, audio, 0.02).codes.equal(whole)
        sound = decode_long(codec, whole[:, :1], 0.02)
        assert torch.allclose(sound, codec.decode(whole[None, :, :1])[0], atol=1e-5)


def _largest(codec, chunks):
    """The most numbers that enter any layer while encoding, and while decoding."""
    largest = [0]

    def look(module, args):
        largest[0] = max([largest[0], *(x.numel() for x in args if isinstance(x, torch.Tensor))])

    hooks = [m.register_forward_pre_hook(look) for m in codec.modules()]
    codes = encode_whole(codec, noise(codec.info.channels, chunks * 1600), 0.2)
    encoding, largest[0] = largest[0], 0
    decode_long(codec, codes.codes, 0.2, codes.scales)
    for hook in hooks:
        hook.remove()
    return encoding, largest[0]


@pytest.mark.parametrize("make", [encodec, lambda: encodec(causal=False), mimi, encodec_segments])
def test_memory_is_flat(make):
    """Sizes, not bytes: nothing larger reaches a layer for a recording ten times as long."""
    torch.manual_seed(0)
    codec = from_model(make(), "tiny")
    short, long = _largest(codec, 8), _largest(codec, 80)
    assert short == long
    assert max(long) < 0.2 * 1.6 * codec.info.sampling_rate * 16


def test_keys_and_values_are_forgotten():
    torch.manual_seed(0)
    codec = from_model(mimi(), "mimi")
    transformer = codec.model.encoder.encoder_transformer
    attention = Attention(transformer)
    with codec.inference():
        for _ in range(20):
            attention(torch.randn(1, codec.model.config.hidden_size, 4), False)
    sizes = {layer.keys.shape[2] for layer in attention.cache.layers}
    assert sizes == {codec.model.config.sliding_window - 1}
