"""Small codecs of transformers with random weights that behave like trained ones.

Random weights make tiny latents; codebooks are filled and scaled so that all levels use many codes
and a wrong code is an error of the adapter, not of chance.
"""

import torch
import transformers


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
        num_hidden_layers=2,
        sliding_window=12,
        layer_scale_initial_scale=1.0,  # as small as it is when new, attention changes no code
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        upsample_groups=16,
        upsampling_ratios=[4, 2],
        sampling_rate=8000,
    )
    return transformers.MimiModel(config)


def encodec_segments(**kwargs):
    """Of the kind of 48 kHz: stereo, 100 frames every 760 samples of 800, one scale each."""
    config = {
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 0.1,
        "overlap": 0.05,
        "norm_type": "time_group_norm",
    }
    return encodec(causal=False, **(config | kwargs))


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


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3
