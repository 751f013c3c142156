"""Small randomly initialised checkpoints, saved to disk and loaded again.

Random weights make tiny latents; codebooks are filled and scaled so that all levels use many codes
and a wrong code is an error of the adapter, not of chance.
"""

import pytest
import torch
import transformers

from rvqlm.codecs.chunking import decode_long, encode_long
from rvqlm.codecs.registry import load_codec
from rvqlm.codecs.transformers_codec import TransformersCodec
from rvqlm.errors import UserError


def dac(ratios=(2, 4), codebooks=3):
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=16,
        downsampling_ratios=list(ratios),
        n_codebooks=codebooks,
        codebook_size=32,
        codebook_dim=4,
        sampling_rate=8000,
    )
    model = transformers.DacModel(config)
    for module in model.modules():  # the default init vanishes with depth
        if isinstance(module, torch.nn.Conv1d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model


def encodec(causal=True, bandwidths=(3.0, 24.0), **kwargs):
    config = transformers.EncodecConfig(
        num_filters=4,
        hidden_size=8,
        codebook_size=16,
        upsampling_ratios=[4, 2],
        sampling_rate=8000,
        target_bandwidths=list(bandwidths),
        use_causal_conv=causal,
        **kwargs,
    )
    return transformers.EncodecModel(config)


def mimi(levels=4):
    config = transformers.MimiConfig(
        hidden_size=16,
        num_filters=4,
        codebook_size=16,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=levels,
        num_hidden_layers=1,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        upsample_groups=16,
        upsampling_ratios=[4, 2],
        sampling_rate=8000,
    )
    return transformers.MimiModel(config)


MODELS = {
    "dac": dac,
    "dac-odd": lambda: dac((3, 5)),
    "encodec": encodec,
    "encodec-noncausal": lambda: encodec(causal=False),
    "mimi": mimi,
}


def fill_codebooks(model, audio):
    """Give a model codebooks of the size of its own latents; they are all zero when new."""
    if model.config.model_type == "dac":  # its codebooks are drawn at random anyway
        return model
    with torch.no_grad():
        latents = model.encoder(audio)
    latents = (latents if isinstance(latents, torch.Tensor) else latents.latents)[0].T  # (T, D)
    spread = float((latents - latents.mean(0)).std())
    for name, buffer in model.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            buffer.copy_(torch.randn(buffer.shape) * spread)
            if name == "quantizer.layers.0.codebook.embed":
                buffer.copy_(latents[torch.randperm(len(latents))[: len(buffer)]])
    return model


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp(request.param)
    fill_codebooks(MODELS[request.param](), torch.randn(1, 1, 4000)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def codec(folder):
    return load_codec(folder)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def test_shapes_ranges_and_names(codec, folder):
    info = codec.info
    assert info.name == str(folder) and info.channels == 1
    assert info.hop == {"dac": 8, "dac-odd": 15, "mimi": 16}.get(folder.name[:-1], 8)
    for samples in (1, info.hop, info.hop + 1, 10 * info.hop, 777):
        codes, lengths = codec.encode(noise(2, 1, samples))
        T = -(-samples // info.hop)
        assert codes.shape == (2, T, info.num_codebooks) and codes.dtype == torch.int64
        assert lengths.tolist() == [T, T]
        audio = codec.decode(codes)
        assert audio.shape == (2, 1, T * info.hop) and audio.dtype == torch.float32
        assert audio.isfinite().all()
    codes, _ = codec.encode(noise(1, 1, 4000))
    assert int(codes.min()) >= 0 and int(codes.max()) < info.codebook_size
    assert all(codes[..., k].unique().numel() >= 6 for k in range(info.num_codebooks))


def test_equals_the_model_itself(codec, folder):
    """On whole frames the adapter adds nothing and loses nothing."""
    audio = noise(1, 1, 40 * codec.info.hop)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    kind = model.config.model_type
    with torch.no_grad():
        if kind == "encodec":
            expected = model.encode(audio, bandwidth=24.0).audio_codes[0]
            heard = model.decode(expected[None], [None]).audio_values
        else:
            expected = model.encode(audio).audio_codes
            heard = model.decode(audio_codes=expected).audio_values.view(1, 1, -1)
    codes, _ = codec.encode(audio)
    K = codec.info.num_codebooks
    assert codes.equal(expected.transpose(1, 2)[..., :K])
    if expected.shape[1] == K:
        size = heard.shape[2]
        assert torch.allclose(codec.decode(codes)[..., :size], heard, atol=1e-6)


def test_batch_equals_single(codec):
    """Items keep their codes whatever they are batched with: zeros past their end are not heard."""
    lengths = torch.tensor([800, 333, 1, 340])
    audio = noise(4, 1, 800)
    batch, frames = codec.encode(audio, lengths)
    different = total = 0
    for i, n in enumerate(lengths.tolist()):
        single, _ = codec.encode(audio[i : i + 1, :, :n])
        different += int((batch[i, : frames[i]] != single[0]).sum())
        total += single.numel()
    assert different <= 0.003 * total  # rounding may flip a code; 2-6 % differ if zeros are heard


def test_fewer_codebooks_are_the_coarse_ones(codec, folder):
    audio = noise(1, 1, 900)
    all_levels, _ = codec.encode(audio)
    for K in (1, codec.info.num_codebooks - 1):
        few = load_codec(folder, num_codebooks=K)
        assert few.info.num_codebooks == K and few.info.fingerprint == codec.info.fingerprint
        codes, _ = few.encode(audio)
        assert codes.equal(all_levels[..., :K])
        assert few.decode(codes).shape == codec.decode(codes).shape
    with pytest.raises(UserError, match=r"--num-codebooks 99.* codebooks; choose 1 to"):
        load_codec(folder, num_codebooks=99)
    with pytest.raises(UserError, match=r"--num-codebooks 0"):
        load_codec(folder, num_codebooks=0)


def test_repeatable_and_without_gradients(codec):
    audio = noise(1, 1, 500).requires_grad_()
    first = codec.train().encode(audio)[0]
    with torch.autocast("cpu", torch.bfloat16):  # bf16 would change codes
        second = codec.encode(audio)[0]
    assert first.equal(second) and not codec.decode(first).requires_grad


def test_fingerprint_follows_the_weights(codec, folder, tmp_path):
    assert load_codec(folder).info == codec.info
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith("decoder")).mul_(1.001)
    model.save_pretrained(tmp_path)
    assert load_codec(tmp_path).info.fingerprint != codec.info.fingerprint


def test_finite_context_is_exact_and_tight(codec, folder):
    if "dac" not in folder.name:
        assert codec.context_frames is None and codec.decode_context_frames is None
        return
    audio = noise(1, 60 * codec.info.hop * 3 + 5)
    whole, _ = codec.encode(audio[None])
    chunk = 20 * codec.info.hop / codec.info.sampling_rate
    assert (encode_long(codec, audio, chunk) == whole[0]).all()
    assert torch.allclose(decode_long(codec, whole[0], chunk), codec.decode(whole)[0], atol=1e-5)
    # what lies further away than the context says is not heard; what is derived is not lavish
    T, t = whole.shape[1], 90
    for sign in (-1, 1):
        for distance, heard in ((codec.context_frames + 1, False), (codec.context_frames, True)):
            frame = t + sign * distance
            touched = audio.clone()
            touched[:, frame * codec.info.hop : (frame + 1) * codec.info.hop] += 3.0
            latent = _latent(codec, audio)[..., t], _latent(codec, touched)[..., t]
            assert frame < T
            if not heard:
                assert latent[0].equal(latent[1])
            elif sign < 0:  # the longer side
                assert not latent[0].equal(latent[1])
    less = codec.decode_context_frames
    codec.decode_context_frames = less // 2
    try:
        spoilt = decode_long(codec, whole[0], chunk)
    finally:
        codec.decode_context_frames = less
    assert not torch.allclose(spoilt, codec.decode(whole)[0], atol=1e-5)


def _latent(codec, audio):
    with torch.no_grad():
        hop = codec.info.hop
        return codec.model.encoder(audio[None, :, : audio.shape[1] // hop * hop])


def test_dac_contexts_of_the_published_geometries():
    published = dac((2, 4, 8, 8))
    codec = TransformersCodec.from_model(published, "44khz")
    assert codec.context_frames == 8


def test_usual_number_of_codebooks(tmp_path):
    for model in (mimi(12), encodec(bandwidths=(48.0,))):
        codec = TransformersCodec.from_model(model, "many")
        assert codec.available_codebooks == 12 and codec.info.num_codebooks == 8
        assert TransformersCodec.from_model(model, "m", 12).info.num_codebooks == 12


def test_encodec_with_scales_is_refused():
    for kwargs in ({"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}):
        with pytest.raises(UserError, match=r"48 kHz.*not supported yet.*use facebook/encodec_24"):
            TransformersCodec.from_model(encodec(**kwargs), "facebook/encodec_48khz")


class Foreign(torch.nn.Module):
    """A tokenizer class without an adapter of its own."""

    def __init__(self, frames=8, **config):
        super().__init__()
        config = {"model_type": "foreign", "num_quantizers": 2, "hop_length": 4, **config}
        self.config = transformers.PretrainedConfig(
            sampling_rate=100, codebook_size=10, **{k: v for k, v in config.items() if v}
        )
        self.config.model_type = "foreign"
        self.frames = frames

    def encode(self, audio):
        codes = torch.zeros(len(audio), 2, audio.shape[2] // 4, dtype=torch.int64)
        return transformers.utils.ModelOutput(audio_codes=codes[..., : self.frames])

    def decode(self, audio_codes):
        audio = torch.zeros(len(audio_codes), 1, audio_codes.shape[2] * 4)
        return transformers.utils.ModelOutput(audio_values=audio)


def test_other_classes_work_if_they_fit_and_say_why_not():
    codec = TransformersCodec.from_model(Foreign(), "x")
    assert codec.encode(torch.zeros(1, 1, 30))[0].shape == (1, 8, 2)
    with pytest.raises(UserError, match=r"codec x: .*'foreign' models have another interface"):
        TransformersCodec.from_model(Foreign(frames=7), "x")
    with pytest.raises(UserError, match=r"configuration has no hop_length"):
        TransformersCodec.from_model(Foreign(hop_length=None), "x")
