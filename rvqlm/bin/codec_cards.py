#!/usr/bin/env python3
"""``rvqlm codecs``: the codecs there are, and what of them is on this machine.

    rvqlm codecs                         a table of all
    rvqlm codecs descript/dac_44khz      one in full
    rvqlm codecs path/to/weights.pth     a file or folder: loaded, and described

Names are what ``--codec`` of the other commands takes; so are weight files and folders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from rvqlm.cli import parse, run_main


@dataclass
class Args:
    name: Annotated[str, tyro.conf.Positional] = ""
    """A codec's name, or the path of its weights; nothing: all that are known."""
    json: bool = False
    """JSON instead of text."""


def described(card) -> dict[str, Any]:
    """All there is to say about a published codec."""
    from rvqlm.codecs.registry import BACKENDS

    return {
        **asdict(card),
        "backends": _ways(backend for backend in BACKENDS if card in backend.cards),
        "frame_rate": float(card.info.frame_rate),
        "kbps": card.info.bitrate / 1000,
        "here": card.weights_here(),
    }


def _ways(backends: Iterable) -> dict[str, dict]:
    """What to give for each backend, and whether the package behind it is installed."""
    return {b.name: {"give": b.give, "installed": b.installed, "extra": b.extra} for b in backends}


def loaded(name: str) -> dict[str, Any]:
    """All there is to say about the weights that `name` stands for, by loading them."""
    from rvqlm.codecs.registry import load_codec

    codec = load_codec(name)
    info = codec.info
    return {
        **info.to_dict(),
        "available": getattr(codec, "available_codebooks", info.num_codebooks),
        "frame_rate": float(info.frame_rate),
        "kbps": info.bitrate / 1000,
        "parameters": sum(p.numel() for p in codec.parameters()),
        "loaded_by": f"{type(codec).__module__}.{type(codec).__name__}",
        "context_frames": codec.context_frames,
        "decode_context_frames": codec.decode_context_frames,
        "look_ahead": codec.look_ahead,
        "bounded_memory": codec.bounded_memory,
    }


_ROW = "{:<26}{:>10}{:>8}{:>6}{:>8}{:>7}{:>4}{:>7}  {:<14}{}"


def _table(found: dict[str, Any]) -> str:
    lines = [
        _ROW.format(
            "codec", "K x V", "Hz", "hop", "fps", "kbps", "ch", "ahead", "licence", "weights"
        )
    ]
    for c in found["codecs"]:
        lines.append(
            _ROW.format(
                c["name"], f"{c['num_codebooks']} x {c['codebook_size']}", c["sampling_rate"],
                c["hop"], f"{c['frame_rate']:.2f}", f"{c['kbps']:.2f}", c["channels"],
                "?" if c["look_ahead"] is None else c["look_ahead"][0],
                c["licence"], "here" if c["here"] else "not here",
            )
        )  # fmt: skip
    lines += ["ahead: frames of codes that must follow a frame for it to be heard"]
    lines += ["", f"{'what to give to --codec':<68}goes through"]
    lines += [f"  {b['give']:<66}{_package(b)}" for b in found["backends"].values()]
    lines += ["", "model types of transformers"]
    lines += [f"  {kind:<30}{what}" for kind, what in found["transformers_types"].items()]
    return "\n".join(lines)


def _package(backend: dict[str, Any]) -> str:
    return backend["installed"] or f"not installed: pip install 'rvqlm[{backend['extra']}]'"


def _card(c: dict[str, Any]) -> str:
    rows = [
        ("codes", f"{c['num_codebooks']} x {c['codebook_size']}, {c['available']} in the weights"),
        ("audio", f"{c['sampling_rate']} Hz, {c['channels']} channel{'s' * (c['channels'] > 1)}"),
        ("frames", f"{c['hop']} samples, {c['frame_rate']:.4f} per second, {c['kbps']:.3f} kbps"),
    ]
    if c["segment"]:
        frames, stride = c["segment"]
        rows.append(("segments", f"{frames} frames, one every {stride} samples, a scale each"))
    if c["look_ahead"]:
        behind, first = c["look_ahead"]
        rows.append(("heard", f"when {behind} frames more are there, the first when {first} are"))
    elif "licence" not in c:
        rows.append(("heard", "when all frames are there"))
    if "licence" in c:
        rows += [("licence", f"{c['licence']} (of the weights)"), ("", c["licence_note"])]
        rows += [("weights", c["source"]), ("", c["native"]), ("", c["native_source"])]
        rows += [("found here", path) for path in c["here"] or ["no"]]
        rows += [("give", f"{b['give']} ({_package(b)})") for b in c["backends"].values()]
        rows.append(("note", c["note"]))
    else:
        rows += [
            ("fingerprint", c["fingerprint"]),
            ("parameters", f"{c['parameters']:,}"),
            ("loaded by", c["loaded_by"]),
            ("context", f"{c['context_frames']} frames to encode, {c['decode_context_frames']} to "
             "decode; None: no finite number"),
            ("long files", "in pieces" if c["bounded_memory"] else "go in whole"),
        ]  # fmt: skip
    return "\n".join([c["name"], *(f"  {name:<12}{value}" for name, value in rows if value)])


def _run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "rvqlm codecs", "The codecs there are.", argv)
    from rvqlm.codecs.pretrained import transformers_types
    from rvqlm.codecs.registry import BACKENDS, CARDS, card_of

    if not args.name:
        found, text = (
            {
                "codecs": [described(card) for card in CARDS],
                "backends": _ways(BACKENDS),
                "transformers_types": transformers_types(),
            },
            _table,
        )
    else:
        card = card_of(args.name)
        found, text = (described(card) if card else loaded(args.name)), _card
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "codecs")


if __name__ == "__main__":
    sys.exit(main())
