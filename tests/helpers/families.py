"""Every family x pattern x condition at toy size: what the tests of all of them run over."""

from __future__ import annotations

import torch

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.base import TokenModel
from rvqlm.models.factory import build_model

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)
CONDITIONS = {
    "text": ConditionInfo("text", (9,), rate=1.7),
    "midi": ConditionInfo("midi", (5, 4, 6, 3, 7, 2), rate=2.3),
    "source": ConditionInfo.of_codes("source", INFO),
    "prompt": ConditionInfo.of_codes("prompt", INFO),
}
SMALL = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2}
ENCODER = {"fusion": "cross", "num_encoder_layers": 1}

AUTOREGRESSIVE = {
    "delay": ("codec-lm", {}),
    "delay-custom": ("codec-lm", {"delays": (0, 2, 2)}),
    "parallel": ("codec-lm", {"pattern": "parallel"}),
    "flatten": ("codec-lm", {"pattern": "flatten"}),
    "coarse-first": ("codec-lm", {"pattern": "coarse_first"}),
    "depth": ("codec-lm", {"pattern": "parallel", "head": "depth"}),
    "mlp": ("codec-lm", {"head": "mlp", "input_side": "weighted"}),
    "mlp-shared": ("codec-lm", {"head": "mlp", "shared_head": True, "input_side": "attention"}),
    "linear-shared": ("codec-lm", {"shared_head": True, "pattern": "flatten"}),
    "post-norm": ("codec-lm", {"norm_first": False, "activation": "relu"}),
    "text": ("codec-lm", {"conditions": ("text",)}),
    "text-cross": ("codec-lm", {"conditions": ("text",), **ENCODER}),
    "text-flatten": ("codec-lm", {"conditions": ("text",), "pattern": "flatten"}),
    "text-coarse": ("codec-lm", {"conditions": ("text",), "pattern": "coarse_first"}),
    "text-depth": (
        "codec-lm",
        {"conditions": ("text",), "pattern": "parallel", "head": "depth", "fusion": "cross"},
    ),
    "text-spread": ("codec-lm", {"conditions": ("text",), "fusion": "spread"}),
    "source-spread": (
        "codec-lm",
        {"conditions": ("source", "prompt"), "fusion": "spread", "num_encoder_layers": 1},
    ),
    "source-cross": ("codec-lm", {"conditions": ("source",), **ENCODER}),
    "midi": ("codec-lm", {"conditions": ("midi",), "num_encoder_layers": 1}),
    "text-prompt": ("codec-lm", {"conditions": ("text", "prompt")}),
    "text-prompt-cross": ("codec-lm", {"conditions": ("text", "prompt"), **ENCODER}),
}
OTHERS = {
    "valle": ("valle", {}),
    "valle-text": ("valle", {"conditions": ("text",)}),
    "valle-text-spread": ("valle", {"conditions": ("text",), "fusion": "spread"}),
    "valle-midi-cross": ("valle", {"conditions": ("midi",), **ENCODER}),
    "masked": ("masked", {}),
    "masked-frame": ("masked", {"masking": "frame"}),
    "masked-text": ("masked", {"conditions": ("text",)}),
    "masked-text-spread": (
        "masked",
        {"conditions": ("text",), "fusion": "spread", "num_encoder_layers": 1},
    ),
    "masked-text-prompt-cross": ("masked", {"conditions": ("text", "prompt"), **ENCODER}),
}
ALL = AUTOREGRESSIVE | OTHERS


def make(case: str, shake: bool = True, **changes) -> TokenModel:
    """The model of a case; shaken, since heads and residual branches start at zero."""
    name, config = ALL[case]
    torch.manual_seed(0)
    model = build_model(name, {**SMALL, **config, **changes}, INFO, CONDITIONS)
    if shake:
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model


def random_items(lengths, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n, K), generator=generator) for n in lengths]


def random_conditions(model, lengths, seed=0) -> dict[str, list[torch.Tensor | None]]:
    """For items of so many frames: a source as long as the item, other kinds of any length, one
    item without its last kind where there are several."""
    generator = torch.Generator().manual_seed(100 + seed)
    found: dict[str, list[torch.Tensor | None]] = {}
    for kind, info in model.conditions.items():
        found[kind] = []
        for n in lengths:
            steps = n if kind == "source" else int(torch.randint(1, 6, (), generator=generator))
            fields = [torch.randint(size, (steps,), generator=generator) for size in info.sizes]
            found[kind].append(torch.stack(fields, 1))
    if len(found) > 1 and len(lengths) > 1:
        found[kind][1] = None
    return found


def random_batch(model, lengths, seed=0, prompt_lengths=None, ends=None) -> Batch:
    items, heard = random_items(lengths, seed), random_conditions(model, lengths, seed)
    return Batch.from_codes(items, ends, heard, prompt_lengths)


def single(batch: Batch, i: int) -> Batch:
    """Item i of a batch, alone."""
    n = int(batch.lengths[i])
    heard = {}
    for kind, padded in batch.conditions.items():
        if length := int(padded.lengths[i]):
            heard[kind] = [padded.values[i, :length]]
    prompts = None if batch.prompt_lengths is None else [int(batch.prompt_lengths[i])]
    alone = Batch.from_codes([batch.codes[i, :n]], [bool(batch.ends[i])], heard, prompts)
    alone.index = batch.index[i : i + 1]
    return alone
