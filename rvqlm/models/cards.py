"""What each family of models is and can do, and the sizes of its parts, for ``rvqlm models``. The
cards are readable without torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from math import inf

from rvqlm.errors import UserError
from rvqlm.patterns import PATTERNS


@dataclass(frozen=True)
class ModelCard:
    """A family: what `rvqlm.models.factory.MODELS` does not say."""

    name: str
    what: str
    order: str
    """In which the codes are made."""
    likelihood: str
    conditions: tuple[str, ...]
    """Those that it can be given."""
    fills_gaps: bool
    gaps: str
    ends: str
    """What decides how long a sequence becomes."""
    passes: str
    """Of the transformer, for T frames of K levels."""
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()


EXACT = [
    *(name for name, p in PATTERNS.items() if p.exact_up_to == inf),
    "--head depth",
    *(f"{n} of {p.exact_up_to} levels" for n, p in PATTERNS.items() if 1 < p.exact_up_to < inf),
]
CARDS = (
    ModelCard(
        "codec-lm",
        what="one causal transformer over all levels; an encoder-decoder with --fusion cross",
        order=f"--pattern {', '.join(PATTERNS)}",
        likelihood=f"exact with {', '.join(EXACT)}, or 1 level; else a bound",
        conditions=("text", "midi", "source", "prompt"),
        fills_gaps=False,
        gaps="no: it sees only what came before",
        ends="by itself: one decision a frame (--no-model-end: at the limit)",
        passes=", ".join(f"{name} {p.passes}" for name, p in PATTERNS.items()),
        sources=(
            "MusicGen: Copet et al., 2023, arXiv:2306.05284",
            "RQ-Transformer: Lee et al., 2022, arXiv:2203.01941",
            "Moshi: Défossez et al., 2024, arXiv:2410.00037",
        ),
    ),
    ModelCard(
        "valle",
        what="level 0 frame by frame (AR), each finer level for all frames at once (NAR)",
        order="level 0, then level 1, 2, ... (no --pattern); at least 2 levels",
        likelihood="a bound",
        conditions=("text", "midi", "source", "prompt"),
        fills_gaps=True,
        gaps="yes: level 0 from what is before it, finer levels from both sides",
        ends="by itself: one decision a frame (--no-model-end: at the limit)",
        passes="T of the AR, K - 1 of the NAR",
        sources=(
            "VALL-E: Wang et al., 2023, arXiv:2301.02111",
            "AudioLM: Borsos et al., 2022, arXiv:2209.03143",
        ),
        aliases=("audio-lm",),
    ),
    ModelCard(
        "masked",
        what="a transformer that sees both sides and fills in hidden codes, many at a time",
        order="any; with --masking coarse_first level by level (no --pattern); with --ar-share "
        "frame by frame as well",
        likelihood="a bound, estimated with --eval-draws maskings",
        conditions=("text", "midi", "source", "prompt"),
        fills_gaps=True,
        gaps="yes",
        ends="by itself: a length, before any code (--no-predict-length: at the limit)",
        passes="--steps (16), however long; coarse_first --steps + (K - 1) --fine-steps; "
        "--frame-by-frame T",
        sources=(
            "MaskGIT: Chang et al., 2022, arXiv:2202.04200",
            "SoundStorm: Borsos et al., 2023, arXiv:2305.09636",
        ),
    ),
    ModelCard(
        "recognizer",
        what="transcribes codes into text, to measure what the others say (rvqlm recognize)",
        order="none: it makes no codes",
        likelihood="of the text: exact over all alignments (CTC)",
        conditions=("text",),
        fills_gaps=False,
        gaps="no: it makes no codes",
        ends="does not apply",
        passes="1, of T / --frames-per-step steps",
        sources=(
            "SpecAugment: Park et al., 2019, arXiv:1904.08779",
            "Conformer: Gulati et al., 2020, arXiv:2005.08100",
        ),
    ),
)


def card_of(name: str) -> ModelCard:
    """The family of that name or alias; `UserError` lists them."""
    names = {n: c for c in CARDS for n in (c.name, *c.aliases)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
    raise UserError(f"unknown model {name!r} (--model-name): {hint}")


def count_parameters(model) -> dict[str, int]:
    """Parameters by part of a model, in the order of its modules; weights that two parts share
    count once."""
    found: dict[str, int] = {}
    for name, p in model.named_parameters():
        part = _part(name)
        found[part] = found.get(part, 0) + p.numel()
    return found


def _part(name: str) -> str:
    """Name of the part that a parameter belongs to.

    >>> _part("ar.network.transformer.layers.0.up.weight"), _part("heads.weight")
    ('AR decoder', 'heads')
    """
    words = name.split(".")
    whose = words.pop(0).upper() + " " if words[0] in ("ar", "nar") else ""
    if words[0] in ("network", "inputs"):
        words.pop(0)
    names = {
        "transformer": "decoder", "head": "heads", "end_head": "end", "length_head": "length",
        "front": "convolutions", "level": "level embedding",
    }  # fmt: skip
    return whose + names.get(words[0], words[0])
