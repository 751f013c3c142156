"""Sizes of tensors, alone and by module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import hypot, inf, sqrt

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


def norm(tensors: Iterable[Tensor]) -> float:
    """Euclidean norm of all values together."""
    return hypot(*(rms(t) * sqrt(t.numel()) for t in tensors))


def differences(a: dict[str, Tensor], b: dict[str, Tensor], names: Iterable[str]) -> list[Tensor]:
    return [a[n].float() - b[n].float() for n in names]


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
        tensors = [weights[n] for n in names]
        count, size = sum(t.numel() for t in tensors), norm(tensors)
        row = {"module": module, "tensors": len(names), "parameters": count}
        row["rms"] = size / sqrt(count)
        row["max"] = max(float(t.abs().max()) for t in tensors)
        shared = [n for n in names if n in average and average[n].shape == weights[n].shape]
        if shared:
            row["ema_distance"] = norm(differences(average, weights, shared)) / (size or 1.0)
        rows.append(row)
    return rows
