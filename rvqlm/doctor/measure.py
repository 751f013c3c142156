"""Sizes of tensors, alone and by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf, sqrt

from torch import Tensor


def floating(tensors: dict | None) -> dict[str, Tensor]:
    """Tensors that have a size: of floating point, and not empty."""
    return {k: t for k, t in (tensors or {}).items() if t.is_floating_point() and t.numel()}


def rms(tensor: Tensor) -> float:
    """Root mean square; float32 sums of squares overflow at 1e19, so the scale is taken out."""
    top = float(tensor.abs().max())
    if not 0 < top < inf:
        return top
    return top * sqrt(float((tensor.float() / top).square().mean()))


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of a difference."""
    return rms(a.float() - b.float())


def module_of(name: str) -> str:
    """Row of the tables that a tensor belongs to: a layer, or what is outside of layers.

    >>> module_of("network.transformer.layers.3.attention.qkv.weight"), module_of("heads.weight")
    ('network.transformer.layers.3', 'heads')
    """
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return ".".join(parts[:-1][:3]) or name


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of tensors by `module_of`."""
    modules = defaultdict(list)
    for name in names:
        modules[module_of(name)].append(name)
    return modules


def module_table(weights: dict[str, Tensor], average: dict[str, Tensor]) -> list[dict]:
    """A row for each module: tensors, parameters, rms, largest value, and distance of the average
    as a share of the norm."""
    rows = []
    for module, names in by_module(weights).items():
        count = sum(weights[n].numel() for n in names)
        squares = sum(rms(weights[n]) ** 2 * weights[n].numel() for n in names)
        row = {"module": module, "tensors": len(names), "parameters": count}
        row["rms"] = sqrt(squares / count)
        row["max"] = max(float(weights[n].abs().max()) for n in names)
        shared = [n for n in names if n in average and average[n].shape == weights[n].shape]
        if shared:
            apart = sum(distance(average[n], weights[n]) ** 2 * weights[n].numel() for n in shared)
            row["ema_distance"] = sqrt(apart / squares) if squares else 0.0
        rows.append(row)
    return rows
