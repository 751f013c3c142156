#!/usr/bin/env python3
"""``rvqlm models``: the families of models, their options, and how large a configuration is.

    rvqlm models                                  what each family is and can do
    rvqlm models valle                            one of them, with all its options
    rvqlm models --size large --codec-shape 9x1024
    rvqlm models valle --codec-shape 4x2048 --decoder-dim 1024

The last two count the parameters of what a file and flags of ``rvqlm trainer`` describe, part by
part, without memory for any of them. Families are what ``--model-name`` takes.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from rvqlm.cli import kebab, parse, peek, run_main
from rvqlm.errors import UserError
from rvqlm.models.cards import CARDS, ModelCard, card_of, count_parameters
from rvqlm.runtime import shapes_only

COUNTING = ("--config", "--codec-shape", "--manifest-dir", "--model-name")
"""Flags that ask for numbers of parameters."""
LEVELS, CODES = 8, 1024
"""Assumed where nothing says what the codes are."""
SYMBOLS, FRAMES_PER_STEP = 100, 5.0
"""Assumed of text, and frames a symbol or note, where there is no data."""


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


def _card_text(card: ModelCard) -> str:
    rows = [
        *[("also", f"--model-name {a}") for a in card.aliases],
        ("order", card.order),
        ("likelihood", card.likelihood),
        ("conditions" if card.name != "recognizer" else "writes", ", ".join(card.conditions)),
        ("fills gaps", card.gaps),
        ("ends", card.ends),
        ("passes", card.passes),
        *[("" if i else "source", s) for i, s in enumerate(card.sources)],
    ]
    lines = [f"  {key:<12}{value}" for key, value in rows]
    return "\n".join([f"{card.name}: {card.what}", *lines])


def _card_json(card: ModelCard) -> dict[str, Any]:
    values = asdict(card)
    values["hears"] = values.pop("conditions")
    return values


def counted(argv: list[str]) -> dict[str, Any]:
    """Size of the model that the command line describes, and what had to be assumed for it."""
    if argv and not argv[0].startswith("-"):
        argv = ["--model-name", *argv]

    from rvqlm.models.factory import build_model, model_entry
    from rvqlm.training.config import flags_class
    from rvqlm.training.sizes import with_size

    config_class, _ = model_entry(peek(argv, "model-name", "codec-lm"))
    flags = dataclasses.make_dataclass(
        "Count",
        [(n, str, "") for n in ("exp_dir", "manifest_dir", "codec_shape")]
        + [("json", bool, False)],
        bases=(flags_class(config_class),),
        namespace={"__doc__": "Flags of `rvqlm trainer`, none of them needed, and of this command"},
    )
    described = "Parameters of a configuration."
    config = parse(flags, "rvqlm models", described, argv, beneath=with_size(argv))
    info, conditions, assumed = _codes_and_conditions(config)
    with shapes_only():
        model = build_model(config.model_name, config.model, info, conditions)
    parts = count_parameters(model)
    return {
        "model": model.name,
        "codes": [info.num_codebooks, info.codebook_size],
        "conditions": {kind: list(c.sizes) for kind, c in model.conditions.items()},
        "assumed": assumed,
        "parameters": parts,
        "total": sum(parts.values()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _codes_and_conditions(config) -> tuple[Any, dict[str, Any], list[str]]:
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
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", config.codec_shape)
        if not match:
            raise UserError(
                f"--codec-shape {config.codec_shape!r}: levels x codes a level, such as 9x1024"
            )
        K, V = map(int, match.groups())
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


def _count_text(c: dict[str, Any]) -> str:
    rows = [*c["parameters"].items(), ("total", c["total"])]
    if c["trained"] != c["total"]:
        rows.append(("trained in this stage", c["trained"]))
    name = max(len(part) for part, _ in rows)
    number = max(len(f"{n:,}") for _, n in rows)
    levels, size = c["codes"]
    lines = [", ".join([f"{c['model']} on codes {levels}x{size}", *c["conditions"]])]
    lines += [f"  {part:<{name}}  {n:>{number},}" for part, n in rows]
    lines.append(f"  {4 * c['total'] / 1e6:,.1f} MB in float32")
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
        more = "rvqlm models NAME lists the options of one; docs/models.md explains them all"
        text = "\n\n".join([*map(_card_text, CARDS), more])
        print(json.dumps([_card_json(c) for c in CARDS], indent=2) if args.json else text)
        return 0
    card = card_of(args.name)
    if args.json:
        print(json.dumps(_card_json(card), indent=2))
        return 0
    from rvqlm.models.factory import model_entry

    print(_card_text(card) + "\n", flush=True)
    prog = f"rvqlm train --model-name {card.name}"
    parse(model_entry(card.name)[0], prog, "Options of this family.", ["--help"])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "models")


if __name__ == "__main__":
    sys.exit(main())
