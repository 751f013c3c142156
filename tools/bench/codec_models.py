"""Codecs of the published sizes with random weights that behave like trained ones, and audio.

Speed, memory and the exactness of chunks depend on sizes, strides and kernels; weights that nobody
needs to download serve for all of that. Convolutions keep their signal, and codebooks are
as spread as the latents and their residuals, so that codes vary and hang on what it computes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from rvqlm.codecs.base import Codec
from rvqlm.codecs.pretrained import from_model
from rvqlm.codecs.transformers_codec import TransformersCodec
from rvqlm.errors import UserError

_DAC = transformers.DacConfig
_ENCODEC = transformers.EncodecConfig
# fmt: off
_CONFIGS = {
    "dac-44khz": (_DAC, {"sampling_rate": 44100}),
    "dac-24khz": (_DAC, {"sampling_rate": 24000, "downsampling_ratios": [2, 4, 5, 8],
                         "n_codebooks": 32}),
    "dac-16khz": (_DAC, {"sampling_rate": 16000, "downsampling_ratios": [2, 4, 5, 8],
                         "n_codebooks": 12}),
    "encodec-24khz": (_ENCODEC, {}),
    "encodec-32khz": (_ENCODEC, {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4],
                                 "num_filters": 64, "codebook_size": 2048,
                                 "target_bandwidths": [2.2], "use_causal_conv": False,
                                 "use_conv_shortcut": False}),
    "encodec-48khz": (_ENCODEC, {"sampling_rate": 48000, "audio_channels": 2, "normalize": True,
                                 "chunk_length_s": 1.0, "overlap": 0.01,
                                 "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
                                 "norm_type": "time_group_norm", "use_causal_conv": False}),
    "mimi": (transformers.MimiConfig, {}),
}
# codebooks in use x their size, Hz, hop: DESIGN's table of what is published
GEOMETRY = {
    "dac-44khz": (9, 1024, 44100, 512), "dac-24khz": (32, 1024, 24000, 320),
    "dac-16khz": (12, 1024, 16000, 320), "encodec-24khz": (8, 1024, 24000, 320),
    "encodec-32khz": (4, 2048, 32000, 640), "encodec-48khz": (16, 1024, 48000, 320),
    "mimi": (8, 2048, 24000, 1920),
}
_NARROW = {
    "dac": {"encoder_hidden_size": 4, "decoder_hidden_size": 32},
    "encodec": {"num_filters": 2, "hidden_size": 16},
    "mimi": {"num_filters": 2, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32,
             "num_attention_heads": 2, "num_key_value_heads": 2, "upsample_groups": 32,
             "codebook_dim": 16, "vector_quantization_hidden_dimension": 16},
}
# fmt: on


def build(name: str, narrow: bool = False, seed: int = 0) -> TransformersCodec:
    """A codec of `GEOMETRY` with random weights; `narrow`: with few channels, for tests."""
    if name not in _CONFIGS:
        raise UserError(f"--codecs {name}: choose from {', '.join(_CONFIGS)}")
    torch.manual_seed(seed)
    kind, values = _CONFIGS[name]
    config = kind(**(values | (_NARROW[kind.model_type] if narrow else {})))
    model = getattr(transformers, kind.__name__.replace("Config", "Model"))(config).eval()
    for module in model.modules():
        if kind is _DAC and isinstance(module, nn.Conv1d):  # when new, the signal dies out
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.uniform_(module.bias, -0.05, 0.05)  # else silence has no codes
        if type(module).__name__ == "MimiLayerScale":  # 0.01 when new: attention changes nothing
            nn.init.constant_(module.scale, 0.3)
    codec = from_model(model, name)
    fill_codebooks(codec)
    return codec


@torch.no_grad()
def fill_codebooks(codec: TransformersCodec) -> None:
    """Draw codebooks, which are all zero when new, level by level (EnCodec and Mimi)."""
    model, info = codec.model, codec.info
    if model.config.model_type == "dac":
        return
    audio = signal(info.channels, info.sampling_rate, 12.0, seed=5)
    found = []
    for piece in audio.split(info.sampling_rate, 1):
        latents = model.encoder(piece[None])
        found.append(latents if isinstance(latents, Tensor) else latents.latents)
    latents = torch.cat(found, 2)
    # random layers give a mean beside which all else drowns when distances are rounded
    mean = latents.mean((0, 2))
    if model.config.model_type == "encodec":
        model.encoder.layers[-1].conv.bias -= mean
        latents = latents - mean[:, None]
    else:  # no bias there: what points along the mean goes
        along = torch.outer(mean, mean) / mean.dot(mean)
        weight = model.encoder.downsample.conv.weight
        weight -= torch.einsum("oi,ijk->ojk", along, weight)
        latents = latents - torch.einsum("oi,bit->bot", along, latents)
    for rvq in [m for m in model.quantizer.modules() if hasattr(m, "layers")]:
        projection = getattr(rvq, "input_proj", None)
        rest = (latents if projection is None else projection(latents))[0].T  # (T, D)
        for layer in rvq.layers:
            book = layer.codebook
            target = book.embed_sum if hasattr(book, "embed_sum") else book.embed
            # as spread as what they stand for, at every level: no two entries are near each other
            target.copy_(0.5 * rest.std(0) * torch.randn_like(target))
            if hasattr(book, "_embed"):
                book._embed = None
            rest = rest - target[torch.cdist(rest, target).argmin(1)]


def signal(channels: int, rate: int, seconds: float, seed: int = 0) -> Tensor:
    """(C, S): gliding harmonics and bursts of noise with pauses, different in every channel."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    made = []
    for _ in range(channels):
        a, b, c = rng.uniform(0.3, 1.5, 3)
        pitch = 150 + 70 * np.sin(2 * math.pi * a * t + seed)
        phase = 2 * math.pi * np.cumsum(pitch) / rate
        voice = sum(np.sin(h * phase) / h for h in range(1, 16))
        gate = np.clip(2 * np.sin(2 * math.pi * b * t) + 0.8, 0, 1)
        noise = rng.standard_normal(len(t)) * (np.sin(2 * math.pi * (c + 1) * t) > 0.4)
        # a floor as recordings have it: frames of digital silence are all one and fall together
        made.append(0.12 * voice * gate + 0.04 * noise + 1e-3 * rng.standard_normal(len(t)))
    return torch.from_numpy(np.stack(made)).float()


def geometry(codec: Codec) -> tuple[int, int, int, int]:
    info = codec.info
    return info.num_codebooks, info.codebook_size, info.sampling_rate, info.hop
