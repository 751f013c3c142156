"""Heads by the name of their kind (`rvqlm.modules.heads`, `rvqlm.modules.depth`)."""

from __future__ import annotations

from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.heads import Heads, LinearHeads, MLPHeads, SharedLinearHeads


def depth_width(depth_dim: int, dim: int) -> int:
    """Width of a depth transformer; 0: that of the model, at most 256."""
    return depth_dim or min(dim, 256)


def make_heads(
    kind: str,
    num_codebooks: int,
    codebook_size: int,
    dim: int,
    *,
    shared: bool = False,
    expansion: float = 1.0,
    depth_dim: int = 0,
    depth_layers: int = 2,
    depth_heads: int = 4,
) -> Heads:
    """Heads of a kind: linear, mlp or depth.

    :param shared: one classifier for all levels; linear and mlp.
    :param expansion: inner width of mlp heads, in widths of the model.
    :param depth_dim: as of `depth_width`.
    :param depth_layers: layers of the depth transformer.
    :param depth_heads: its attention heads.
    :raises ValueError: an unknown kind, or depth heads that are shared.
    """
    shape = num_codebooks, codebook_size, dim
    if kind == "linear":
        return SharedLinearHeads(*shape) if shared else LinearHeads(*shape)
    if kind == "mlp":
        return MLPHeads(*shape, expansion, shared)
    if kind == "depth" and not shared:
        return DepthHeads(*shape, depth_width(depth_dim, dim), depth_layers, depth_heads)
    raise ValueError(f"no heads of kind {kind!r}{' that are shared' if shared else ''}")
