"""A masked model at toy size, and what its tests feed it."""

from __future__ import annotations

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.masked import Masked, MaskedConfig

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)
TEXT = {"text": ConditionInfo("text", (9,), rate=2.0)}


def make(shake=True, infos=TEXT, **changes):
    torch.manual_seed(0)
    shape = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2, **changes}
    model = Masked(MaskedConfig(**shape), INFO, infos)
    if shake:  # heads and residual branches start at zero
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model


def random_items(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n, K), generator=generator) for n in lengths]


def texts_for(lengths, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {"text": [torch.randint(9, (n // 2 + 1, 1), generator=generator) for n in lengths]}
