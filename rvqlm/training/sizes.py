"""`--size`: one dial for the shape of a model and the training that suits it.

A size gives values to flags that are set neither on the command line nor in ``--config``, so
any of them can still be changed: ``--size small --nhead 6``. Width, depth and heads, learning rate
and batch belong together. The rates of tiny and small are measured; those of base and large are a
half and a quarter of the best at their width with two layers, as neither was trained whole
(docs/LOG.md, "Sizes"). Muon's updates are scaled to the size of AdamW's.
"""

from __future__ import annotations

from collections.abc import Sequence

from rvqlm.cli import peek

_ALL = {"optimizer": "muon", "activation": "relu2"}
SIZES: dict[str, dict] = {
    # 0.6 M parameters of blocks: minutes of audio, a minute of training
    "tiny": _ALL
    | {"decoder-dim": 128, "num-decoder-layers": 2, "nhead": 4, "base-lr": 0.01}
    | {"max-duration": 40.0, "ema-decay": 0.97, "warmup-ratio": 0.05},
    # 2.7 M: hours of audio, minutes on a CPU
    "small": _ALL
    | {"decoder-dim": 192, "num-decoder-layers": 6, "nhead": 3, "base-lr": 0.004}
    | {"max-duration": 60.0, "ema-decay": 0.99, "warmup-ratio": 0.03},
    # 38 M: tens of hours, hours on a GPU
    "base": _ALL
    | {"decoder-dim": 512, "num-decoder-layers": 12, "nhead": 8, "base-lr": 0.002}
    | {"max-duration": 60.0, "accum": 2, "ema-decay": 0.999, "warmup-ratio": 0.03},
    # 113 M: a hundred hours, days on a GPU of 12 GB
    "large": _ALL
    | {"decoder-dim": 768, "num-decoder-layers": 16, "nhead": 12, "base-lr": 0.001}
    | {"max-duration": 60.0, "accum": 6, "ema-decay": 0.999, "warmup-ratio": 0.03},
}
"""Values of flags by kebab-case name. Parameters are those of a plain decoder's blocks."""


def with_size(argv: Sequence[str] | None, before: dict | None = None) -> dict:
    """Values beneath the flags of a command: those of its ``--size`` and, over them, those that the
    training had which it resumes.

    :param argv: the command's arguments; None: those of the process.
    :param before: flags of the run to resume. Where the command asks for another size than the run
        had, the size wins, so that resuming is refused by the flags that differ.
    """
    before = before or {}
    had = str(before.get("size", "none"))
    size = peek(argv, "size", had)
    values = SIZES.get(size, {})  # an unknown one is refused with the other flags
    return values | before if size == had else before | values
