#!/usr/bin/env python3
"""``rvqlm models``: the families of models, their options, and how large a configuration is.

    rvqlm models                                  what each family is and can do
    rvqlm models valle                            one of them, with all its options
    rvqlm models --config egs/custom/conf/base.yaml --codec-shape 9x1024
    rvqlm models valle --codec-shape 4x2048 --decoder-dim 1024

The last two count the parameters of what a file and flags of ``rvqlm trainer`` describe, part by
part, without memory for any of them. Families are what ``--model-name`` takes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import sys
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from rvqlm.cli import flatten, kebab, parse, peek, run_main
from rvqlm.errors import UserError

COUNTING = ("--config", "--codec-shape", "--manifest-dir", "--model-name")
"""Flags that ask for numbers of parameters."""
LEVELS, CODES = 8, 1024
"""Assumed where nothing says what the codes are."""
SYMBOLS, FRAMES_PER_STEP = 100, 5.0
"""Assumed of text, and frames a symbol or note, where there is no data."""
WIDTH = 100


@dataclass(frozen=True)
class ModelCard:
    """A family: what `rvqlm.models.factory.MODELS` does not say, readable without torch."""

    name: str
    what: str
    order: str
    """In which the codes are made."""
    likelihood: str
    hears: tuple[str, ...]
    """Conditions that it takes beside the codes."""
    fills_gaps: bool
    gaps: str
    ends: str
    """What decides how long a sequence becomes."""
    passes: str
    """Of the transformer, for T frames of K levels."""
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()


CARDS = (
    ModelCard(
        "codec-lm",
        what="one causal transformer over all levels; an encoder-decoder with --fusion cross",
        order="--pattern delay, parallel, flatten, coarse_first",
        likelihood="exact with flatten, --head depth, coarse_first of 2 levels, or 1 level; else "
        "a bound",
        hears=("text", "midi", "source", "prompt"),
        fills_gaps=False,
        gaps="no: it hears only what came before",
        ends="by itself: one decision a frame (--no-model-end: at the limit)",
        passes="delay T + K - 1, parallel T, flatten T K, coarse_first 2 T",
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
        hears=("text", "midi", "source", "prompt"),
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
        order="any; with --masking coarse_first level by level (no --pattern)",
        likelihood="a bound, estimated with --eval-draws maskings",
        hears=("text", "midi", "source", "prompt"),
        fills_gaps=True,
        gaps="yes",
        ends="by itself: a length, before any code (--no-predict-length: at the limit)",
        passes="--steps (16), however long; coarse_first --steps + (K - 1) --fine-steps",
        sources=(
            "MaskGIT: Chang et al., 2022, arXiv:2202.04200",
            "SoundStorm: Borsos et al., 2023, arXiv:2305.09636",
        ),
    ),
    ModelCard(
        "recognizer",
        what="hears codes and writes text, to measure what the others say (rvqlm recognize)",
        order="none: it makes no codes",
        likelihood="of the text: exact over all alignments (CTC)",
        hears=("text",),
        fills_gaps=False,
        gaps="no: it makes no codes",
        ends="does not apply",
        passes="1, of T / --frames-per-step steps",
        sources=("SpecAugment: Park et al., 2019, arXiv:1904.08779",),
    ),
)


@dataclass
class Args:
    name: Annotated[str, tyro.conf.Positional] = ""
    """A family; nothing: all of them."""
    codec_shape: str = ""
    """Count parameters for codes of so many levels and codes a level, such as 9x1024."""
    manifest_dir: str = ""
    """Or for the codes and conditions of a token directory."""
    json: bool = False
    """JSON instead of text."""


# ------------------------------------------------------------------------------------- families


def card_of(name: str) -> ModelCard:
    """The family of that name or alias; `UserError` lists them."""
    names = {n: c for c in CARDS for n in (c.name, *c.aliases)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
    raise UserError(f"no family of models {name!r}; {hint}")


def _card_text(card: ModelCard) -> str:
    rows = [
        *[("also", f"--model-name {a}") for a in card.aliases],
        ("order", card.order),
        ("likelihood", card.likelihood),
        ("hears" if card.name != "recognizer" else "writes", ", ".join(card.hears)),
        ("fills gaps", card.gaps),
        ("ends", card.ends),
        ("passes", card.passes),
        *[("" if i else "source", s) for i, s in enumerate(card.sources)],
    ]
    lines = [f"  {key:<12}{value}" for key, value in rows]
    return "\n".join([f"{card.name}: {card.what}", *lines])


def overview_text(cards: Sequence[ModelCard]) -> str:
    more = "rvqlm models NAME lists the options of one; docs/models.md explains them all"
    return "\n\n".join([*map(_card_text, cards), more])


# -------------------------------------------------------------------------------------- options


def options(config_class: type) -> list[dict[str, Any]]:
    """Every option of a family's config: its flag, group, values, default and help."""
    from rvqlm.models.network import NetworkConfig

    shared = {f.name for f in dataclasses.fields(NetworkConfig)}
    hints = typing.get_type_hints(config_class, include_extras=True)
    defaults, helps = flatten(config_class()), _field_docs(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        found.append(
            {
                "flag": f"--{kebab(field.name)}",
                "aliases": [a for m in marks for a in getattr(m, "aliases", None) or ()],
                "group": "transformer" if field.name in shared else "family",
                "values": _values(hint.__origin__ if marks else hint),
                "default": defaults[kebab(field.name)],
                "help": helps[field.name],
            }
        )
    return found


def _field_docs(cls: type) -> dict[str, str]:
    """Docstrings under the fields of a dataclass and of those it derives from."""
    import docstring_parser

    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            params = docstring_parser.parse_from_object(base).params
            found |= {p.arg_name: " ".join((p.description or "").split()) for p in params}
    return found


def _values(hint: Any) -> str:
    """What may follow the flag.

    >>> _values(tuple[int, ...]), _values(bool)
    ('INT ...', 'yes|no')
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return f"{_values(inner[0])} ..."
    return "yes|no" if hint is bool else hint.__name__.upper()


def _options_text(found: list[dict[str, Any]], name: str) -> str:
    groups = {"family": f"options of {name}", "transformer": "options of all families"}
    lines = []
    for group, title in groups.items():
        lines += ["", title]
        for o in (o for o in found if o["group"] == group):
            values = "" if o["values"] == "yes|no" else f" {o['values']}"
            default = o["default"]
            if isinstance(default, bool):
                default = "yes" if default else "no"
                if o["default"]:  # the flag that changes something
                    values = f", --no-{o['flag'][2:]}"
            elif isinstance(default, list):
                default = " ".join(map(str, default)) or "none"
            also = f", also {', '.join(o['aliases'])}" if o["aliases"] else ""
            lines.append(f"  {o['flag']}{values}  (default {default}{also})")
            lines += textwrap.wrap(
                o["help"], WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines)


# ----------------------------------------------------------------------------------- parameters


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


def counted(argv: list[str]) -> dict[str, Any]:
    """Size of the model that the command line describes, and what had to be assumed for it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model-name", *argv]
    import torch

    from rvqlm.models.factory import build_model, model_entry
    from rvqlm.training.config import flags_class

    config_class, _ = model_entry(peek(argv, "model-name", "codec-lm"))
    flags = dataclasses.make_dataclass(
        "Count",
        [(n, str, "") for n in ("exp_dir", "manifest_dir", "codec_shape")]
        + [("json", bool, False)],
        bases=(flags_class(config_class),),
        namespace={"__doc__": "Flags of `rvqlm trainer`, none of them needed, and of this command"},
    )
    config = parse(flags, "rvqlm models", "Parameters of a configuration.", argv)
    info, conditions, assumed = _surroundings(config)
    with torch.device("meta"):
        model = build_model(config.model_name, config.model, info, conditions)
    parts = count_parameters(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "model": model.name,
        "codes": [info.num_codebooks, info.codebook_size],
        "conditions": {kind: list(c.sizes) for kind, c in model.conditions.items()},
        "assumed": assumed,
        "parameters": parts,
        "total": sum(parts.values()),
        "trained": trained,
        # what a recogniser scores is text
        "exact_likelihood": model.exact_likelihood if model.name != "recognizer" else None,
    }


def _surroundings(config) -> tuple[Any, dict[str, Any], list[str]]:
    """Codes and conditions that the flags name, and what of them is assumed."""
    from rvqlm.codec_info import CodecInfo
    from rvqlm.condition_info import ConditionInfo

    levels, kinds, assumed = config.num_quantizers, config.model.conditions, []
    if config.manifest_dir and config.codec_shape:
        raise UserError("--codec-shape and --manifest-dir exclude each other")
    if config.manifest_dir:
        from rvqlm.data.conditions import ConditionSet
        from rvqlm.data.index import TokenDataset

        data = TokenDataset.open(config.manifest_dir, config.train_split, levels or None)
        return data.info, ConditionSet.open(data, kinds).infos, []
    K, V = levels or LEVELS, CODES
    if config.codec_shape:
        K, V = _shape(config.codec_shape)
        if levels > K:
            raise UserError(
                f"--num-quantizers {levels} of the {K} levels of --codec-shape {config.codec_shape}"
            )
        K = levels or K
    else:
        assumed.append(f"codes {K}x{V} (--codec-shape or --manifest-dir says it)")
    info = CodecInfo("assumed", "", 16000, 320, K, V)
    conditions = {k: ConditionInfo.of_codes(k, info) for k in ("source", "prompt")}
    conditions["text"] = ConditionInfo("text", (SYMBOLS,), FRAMES_PER_STEP)
    if "text" in kinds:
        assumed.append(f"text of {SYMBOLS} symbols, {FRAMES_PER_STEP:g} frames each")
    if "midi" in kinds:
        from rvqlm.frontends.midi import MidiFrontEnd

        conditions["midi"] = MidiFrontEnd().info(FRAMES_PER_STEP)
        assumed.append(f"midi of {'+'.join(map(str, conditions['midi'].sizes))} ids")
    return info, conditions, assumed


def _shape(text: str) -> tuple[int, int]:
    """
    >>> _shape("9x1024")
    (9, 1024)
    """
    match = re.fullmatch(r"\s*([1-9]\d*)\s*x\s*([1-9]\d*)\s*", text)
    if not match:
        raise UserError(f"--codec-shape {text!r}: levels x codes a level, such as 9x1024")
    return int(match[1]), int(match[2])


def _count_text(c: dict[str, Any]) -> str:
    rows = [*c["parameters"].items(), ("total", c["total"])]
    if c["trained"] != c["total"]:
        rows.append(("trained in this stage", c["trained"]))
    name = max(len(part) for part, _ in rows)
    number = max(len(f"{n:,}") for _, n in rows)
    heard = "".join(f", {kind}" for kind in c["conditions"])
    lines = [f"{c['model']} on codes {c['codes'][0]}x{c['codes'][1]}{heard}"]
    lines += [f"  {part:<{name}}  {n:>{number},}" for part, n in rows]
    likelihood = {True: "; exact likelihood", False: "; likelihood: a bound", None: ""}
    size = f"{4 * c['total'] / 1e6:,.1f} MB in float32"
    lines.append(f"  {size}{likelihood[c['exact_likelihood']]}")
    return "\n".join(lines + [f"  assumed: {a}" for a in c["assumed"]])


def _run(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        argv = ["--help"]
    elif {kebab(word.split("=")[0]) for word in argv} & set(COUNTING):
        found = counted(argv)
        print(json.dumps(found, indent=2) if "--json" in argv else _count_text(found))
        return 0
    description = (
        "The families of models. With --config, --codec-shape, --manifest-dir or --model-name: the "
        "parameters of one, which all flags of rvqlm trainer may describe."
    )
    args = parse(Args, "rvqlm models", description, argv)
    if not args.name:
        text = overview_text(CARDS)
        print(json.dumps([asdict(c) for c in CARDS], indent=2) if args.json else text)
        return 0
    card = card_of(args.name)
    from rvqlm.models.factory import model_entry

    found = options(model_entry(card.name)[0])
    if args.json:
        print(json.dumps({**asdict(card), "options": found}, indent=2))
    else:
        print(_card_text(card) + "\n" + _options_text(found, card.name))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "models")


if __name__ == "__main__":
    sys.exit(main())
