"""Every family x pattern x condition at toy size: what the tests of all of them run over."""

from __future__ import annotations

from dataclasses import replace

import torch

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.base import TokenModel
from rvqlm.models.factory import build_model
from rvqlm.modules.durations import times_of
from rvqlm.patterns import PATTERNS

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


def codec_lm(**config) -> tuple[str, dict]:
    return "codec-lm", config


TEXT, BOTH = {"conditions": ("text",)}, {"conditions": ("text", "prompt")}
AUTOREGRESSIVE = {
    **{name.replace("_", "-"): codec_lm(pattern=name) for name in PATTERNS},
    "delay-custom": codec_lm(delays=(0, 2, 2)),
    "depth": codec_lm(pattern="parallel", head="depth"),
    "mlp": codec_lm(head="mlp", input_side="weighted"),
    "mlp-shared": codec_lm(head="mlp", shared_head=True, input_side="attention"),
    "linear-shared": codec_lm(shared_head=True, pattern="flatten"),
    "post-norm": codec_lm(norm_first=False, activation="relu"),
    "text": codec_lm(**TEXT),
    "text-cross": codec_lm(**TEXT, **ENCODER),
    "text-flatten": codec_lm(**TEXT, pattern="flatten"),
    "text-coarse": codec_lm(**TEXT, pattern="coarse_first"),
    "text-depth": codec_lm(**TEXT, pattern="parallel", head="depth", fusion="cross"),
    "text-spread": codec_lm(**TEXT, fusion="spread"),
    "source-spread": codec_lm(
        conditions=("source", "prompt"), fusion="spread", num_encoder_layers=1
    ),
    "source-cross": codec_lm(conditions=("source",), **ENCODER),
    "source-cross-time": codec_lm(conditions=("source",), **ENCODER, cross_by_time=True),
    "midi": codec_lm(conditions=("midi",), num_encoder_layers=1),
    "text-prompt": codec_lm(**BOTH),
    "text-prompt-cross": codec_lm(**BOTH, **ENCODER),
}
OTHERS = {
    "valle": ("valle", {}),
    "valle-text": ("valle", TEXT),
    "valle-text-spread": ("valle", {**TEXT, "fusion": "spread"}),
    "valle-midi-cross": ("valle", {"conditions": ("midi",), **ENCODER}),
    "masked": ("masked", {}),
    "masked-frame": ("masked", {"masking": "frame"}),
    "masked-both-ways": ("masked", {"ar_share": 0.3, "head": "residual"}),
    "masked-text": ("masked", TEXT),
    "masked-text-spread": ("masked", {**TEXT, "fusion": "spread", "num_encoder_layers": 1}),
    "masked-text-prompt-cross": ("masked", {**BOTH, **ENCODER}),
}
ALL = AUTOREGRESSIVE | OTHERS
"""Plain cases, one feature each: their golden losses say what trained weights mean."""

PAIRWISE = {
    **{name.replace("_", "-"): codec_lm(pattern=name) for name in PATTERNS},
    "custom-midi-cross": codec_lm(
        delays=(0, 2, 2), conditions=("midi",), head="mlp", input_side="weighted", **ENCODER
    ),
    "parallel-text-spread": codec_lm(
        pattern="parallel", **TEXT, fusion="spread", head="mlp", shared_head=True,
        input_side="attention",
    ),
    "depth-text-cross": codec_lm(
        pattern="parallel", head="depth", **TEXT, fusion="cross", cross_by_time=True
    ),
    "flatten-prompt-cross": codec_lm(pattern="flatten", shared_head=True, **BOTH, **ENCODER),
    "coarse-source-spread": codec_lm(
        pattern="coarse_first", conditions=("source", "prompt"), fusion="spread",
        num_encoder_layers=1, input_side="weighted", head="mlp",
    ),
    "coarse-text": codec_lm(pattern="coarse_first", **TEXT, shared_head=True),
    "flatten-residual": codec_lm(pattern="flatten", head="residual"),
    "delay-prompt": codec_lm(**BOTH, num_encoder_layers=1, norm_first=False, activation="relu"),
    "valle": ("valle", {}),
    "valle-midi-cross": ("valle", {"conditions": ("midi",), **ENCODER}),
    "masked-frame-spread": (
        "masked", {"masking": "frame", **TEXT, "fusion": "spread", "num_encoder_layers": 1},
    ),
    "masked-prompt-cross": ("masked", {"masking": "coarse_first", **BOTH, **ENCODER}),
    "masked": ("masked", {}),
    "both-ways-spread": ("masked", {**BOTH, "fusion": "spread", "ar_share": 0.3}),
    "aligned-delay-spread": codec_lm(**BOTH, fusion="spread", aligned=True),
    "aligned-flatten-cross": codec_lm(pattern="flatten", **TEXT, **ENCODER, aligned=True),
    "aligned-coarse-spread": codec_lm(
        pattern="coarse_first", **TEXT, fusion="spread", num_encoder_layers=1, aligned=True
    ),
    "aligned-valle-spread": (
        "valle", {**TEXT, "fusion": "spread", "prepend_bos": True, "aligned": True}
    ),
    "aligned-masked-spread": ("masked", {**TEXT, "fusion": "spread", "aligned": True}),
}  # fmt: skip
"""Features in combination: what must hold for all of them is tested on these."""


def make(case: str, shake: bool = True, **changes) -> TokenModel:
    """The model of a case; shaken, since heads and residual branches start at zero."""
    name, config = (ALL | PAIRWISE)[case]
    config = {**SMALL, **config, **changes}
    text = replace(CONDITIONS["text"], aligned=config.pop("aligned", False))
    torch.manual_seed(0)
    model = build_model(name, config, INFO, {**CONDITIONS, "text": text})
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
    items, given = random_items(lengths, seed), random_conditions(model, lengths, seed)
    batch = Batch.from_codes(items, ends, given, prompt_lengths)
    if model.duration_head is not None:
        tell_times(batch, seed)
    return batch


def tell_times(batch: Batch, seed: int = 0, but: int | None = 1) -> None:
    """Say when the symbols of all texts are said, but of one: some last nothing, the last go on
    after the codes."""
    text = batch.conditions["text"]
    generator = torch.Generator().manual_seed(200 + seed)
    durations = 4 * torch.rand(len(text.values), 9, generator=generator) - 0.5
    times = times_of(durations.clamp(min=0))[:, : text.values.shape[1]]
    unknown = torch.arange(times.shape[1]) >= text.lengths[:, None]
    if but is not None:
        unknown[but : but + 1] = True
    times = times.masked_fill(unknown[..., None], torch.nan)
    batch.conditions["text"] = text._replace(times=times)


def single(batch: Batch, i: int) -> Batch:
    """Item i of a batch, alone."""
    n = int(batch.lengths[i])
    given = {}
    for kind, padded in batch.conditions.items():
        if length := int(padded.lengths[i]):
            given[kind] = [padded.values[i, :length]]
    prompts = None if batch.prompt_lengths is None else [int(batch.prompt_lengths[i])]
    alone = Batch.from_codes([batch.codes[i, :n]], [bool(batch.ends[i])], given, prompts)
    alone.index = batch.index[i : i + 1]
    for kind, padded in alone.conditions.items():
        if (times := batch.conditions[kind].times) is not None:
            times = times[i : i + 1, : padded.values.shape[1]]
            alone.conditions[kind] = padded._replace(times=times)
    return alone
