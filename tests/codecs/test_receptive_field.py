"""What is derived from layers against what changes: a change further away than the reach never
reaches a frame, one within it does."""

import pytest
import torch
import transformers
from tiny_codecs import dac, noise

from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.pretrained import from_model
from rvqlm.codecs.receptive_field import layers_of, reach, reach_in_samples


def seanet(ratios, **config):
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        num_filters=2, hidden_size=8, upsampling_ratios=list(ratios), **config
    )
    model = transformers.EncodecModel(config).eval()
    return model, model.encoder.layers, model.decoder.layers


# published geometries with a few channels: strides, kernels and dilations are what counts
SEANETS = {
    "24khz": ((8, 5, 4, 2), {}),
    "32khz": ((8, 5, 4, 4), {"use_causal_conv": False, "use_conv_shortcut": False}),
}
ENCODERS = {"dac-44khz": (2, 4, 8, 8), "dac-16khz": (2, 4, 5, 8), "odd": (3, 5)}


def touched(network, x, at, width):
    """The range of outputs that change when `width` inputs from `at` on do."""
    changed = x.clone()
    changed[..., at : at + width] += 3.0
    with torch.no_grad():
        differs = (network(x) != network(changed)).any(1)[0].nonzero()[:, 0]
    return int(differs.min()), int(differs.max())


@pytest.mark.parametrize("name", ENCODERS)
def test_dac_reach_is_what_changes(name):
    torch.manual_seed(0)
    ratios = ENCODERS[name]
    hop = int(torch.tensor(ratios).prod())
    model = dac(ratios).double().eval()
    width = model.decoder.conv1.in_channels
    _check(model.encoder, noise(1, 1, 41 * hop).double(), hop, 1, 20)
    _check(model.decoder, noise(1, width, 41).double(), 1, hop, 20)


@pytest.mark.parametrize("name", SEANETS)
def test_seanet_reach_is_what_changes(name):
    ratios, config = SEANETS[name]
    model, encoder, decoder = seanet(ratios, **config)
    model.double()
    hop = int(torch.tensor(ratios).prod())
    at = next(i for i, layer in enumerate(encoder) if hasattr(layer, "lstm"))
    _check(torch.nn.Sequential(*encoder[:at]), noise(1, 1, 21 * hop).double(), hop, 1, 10)
    _check(torch.nn.Sequential(*encoder[at + 1 :]), noise(1, 32, 41).double(), 1, 1, 20)
    at = next(i for i, layer in enumerate(decoder) if hasattr(layer, "lstm"))
    _check(torch.nn.Sequential(*decoder[:at]), noise(1, 8, 41).double(), 1, 1, 20)
    _check(torch.nn.Sequential(*decoder[at + 1 :]), noise(1, 32, 21).double(), 1, hop, 10)


def _check(network, x, per_in, per_out, unit):
    """`unit` is the one that changes: those that depend on it lie at most `reach` around it."""
    layers = layers_of(network)
    before, after = reach(layers, per_in, per_out)
    first, last = touched(network, x, unit * per_in, per_in)
    assert first // per_out == unit - after and last // per_out == unit + before
    exact = reach_in_samples(layers, per_in, per_out)
    for samples, there in ((exact[0], True), (exact[0] + 1, False)):  # tight to the sample
        y = x.clone()
        y[..., unit * per_in - samples] += 3.0
        with torch.no_grad():
            a, b = network(x), network(y)
        a, b = (z[..., unit * per_out : (unit + 1) * per_out] for z in (a, b))
        assert a.equal(b) != there


def test_contexts_of_the_published_geometries():
    for ratios, rate, context in (((2, 4, 8, 8), 44100, 8), ((2, 4, 5, 8), 24000, 8)):
        model = dac(ratios)
        codec = from_model(model, f"{rate}")
        assert codec.context_frames == context
    assert reach_in_samples(layers_of(dac((2, 4, 8, 8)).encoder), 512, 1) == (3733, 3733)


@pytest.mark.parametrize("ratios", [(2, 4, 8, 8), (2, 4, 5, 8), (3, 5)])
def test_dac_chunks_equal_whole(ratios):
    torch.manual_seed(0)
    codec = from_model(dac(ratios), "tiny")
    codec.set_dtype(torch.float64)  # what differs now is no rounding
    hop, rate = codec.info.hop, codec.info.sampling_rate
    audio = noise(1, 100 * hop + 5)
    whole, _ = codec.encode(audio[None])
    sound = codec.decode(whole)[0]
    chunk = 20.5 * hop / rate
    assert codec.frames_in(chunk) == 20
    assert (encode_whole(codec, audio, chunk).codes == whole[0]).all()
    assert torch.allclose(decode_long(codec, whole[0], chunk), sound, atol=1e-6)
    codec.decode_context_frames //= 2
    assert not torch.allclose(decode_long(codec, whole[0], chunk), sound, atol=1e-6)
    codec.context_frames = 0
    assert not encode_whole(codec, audio, chunk).codes.equal(whole[0])
