"""Attention with rotary positions: over a sequence itself, or from one sequence to another.

Rotary embedding: Su et al., 2021 (arXiv:2104.09864). Positions may be fractions, so sequences of
different rates can lie on one time axis.

Shapes: B items, S steps, H heads of D = d / H; J heads of keys and values, each for H / J heads of
queries (grouped-query attention, Ainslie et al., 2023, arXiv:2305.13245).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.modules import native_training
from rvqlm.modules.kv_cache import KVCache
from rvqlm.modules.native_training import project

CPU_BLOCK = 256
"""Queries per call of causal attention with a mask on a CPU."""
MASKS_IN_BLOCKS = ("cpu",)
"""Devices where each layer makes masks by itself, of blocks of queries. On others, where each
operation is a launch, all layers share one (`bias_of`)."""
SHARPNESS = 32.0
"""Score of a step at the very time that a head of cross-attention looks at, to begin with; that of
others falls off like the mean over frequencies of the cosine of their distance."""
HIDDEN = -65504.0
"""Added to the scores of what may not be seen: what torch gives to cuDNN, which -inf was a trouble
to, and float16 has."""


class RotaryTable:
    """Cosines and sines of rotary positions: a table for whole steps, grown on demand.

    No module with buffers, whose frequencies a cast of the model to 16 bits would round: it makes
    what it needs on the device that asks.
    """

    def __init__(self, head_dim: int, base: float):
        self.head_dim, self.base = head_dim, base
        self._frequencies: Tensor | None = None  # (D/2,) float64
        self.table: Tensor | None = None  # (2, steps, D/2) float32
        self._wide: Tensor | None = None  # (steps, 2, D) float32

    def __call__(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(length, D/2) cosines and sines of positions start ... start + length - 1, float32."""
        end = start + length
        if self.table is None or self.table.device != device or self.table.shape[1] < end:
            size = max(1024, 1 << (end - 1).bit_length())
            with torch.inference_mode(False):  # else of no use to a later training step
                positions = torch.arange(size, dtype=torch.float64, device=device)
                self.table = torch.stack(self.at(positions))
        return self.table[0, start:end], self.table[1, start:end]

    def rows(self, places: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Of one step per item at whole places (B,) below ``longest``: cosines and signed sines
        (B, 1, 1, D) for `rotate`."""
        wide = self.wide(longest, places.device)
        cos, sin = wide.index_select(0, places)[:, :, None, None].unbind(1)
        return cos, sin

    def wide(self, longest: int, device: torch.device) -> Tensor:
        """(at least ``longest``, 2, D) float32 cosines and signed sines of whole places."""
        wide = self._wide
        if wide is None or wide.device != device or len(wide) < longest:
            cos, sin = self(0, longest, device)
            with torch.inference_mode(False):
                wide = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)], 1)
            self._wide = wide
        return wide

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D/2) cosines and sines of any positions (...), float32."""
        if self._frequencies is None or self._frequencies.device != positions.device:
            with torch.inference_mode(False):  # of the CPU, so that all devices have the same
                half = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device="cpu")
                frequencies = self.base ** (-half / self.head_dim)
                self._frequencies = frequencies.to(positions.device)
        angles = positions.double()[..., None] * self._frequencies
        return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}); x (B, S, ..., D), cos and sin (S, D/2), a batch
    before where items differ; or of `RotaryTable.rows`."""
    if cos.shape[-1] == x.shape[-1]:
        return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, -1) * sin.to(x.dtype)
    batch = cos.shape[:-2] or (1,)
    shape = (*batch, cos.shape[-2], *([1] * (x.ndim - 3)), cos.shape[-1])
    cos, sin = cos.view(shape).to(x.dtype), sin.view(shape).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, S, H, D) and keys (B, S, J, D), rotated, and values of their projection
    (B, S, H + 2 J, D), in this order."""
    if torch.compiler.is_compiling():  # makes kernels of its own
        q, k, v = qkv.split([qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads], 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v
    return _Rotated.apply(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype), kv_heads)


class _Rotated(torch.autograd.Function):
    """`rotated` without intermediate results: on a CPU a third of the time, and the gradients of
    the three parts are written where they belong instead of being padded with zeros and added."""

    @staticmethod
    def forward(ctx, qkv, cos, sin, kv_heads):
        ctx.save_for_backward(cos, sin)
        turned, heads = qkv[:, :, :-kv_heads], qkv.shape[2] - 2 * kv_heads
        qk = torch.empty_like(turned)
        _turn(turned, cos[..., None, :], sin[..., None, :], qk)
        return qk[:, :, :heads], qk[:, :, heads:], qkv[:, :, -kv_heads:].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_q, grad_k, grad_v):
        cos, sin = ctx.saved_tensors
        (B, S, H, D), J = grad_q.shape, grad_k.shape[2]
        grad = grad_q.new_empty(B, S, H + 2 * J, D)
        of_q, of_k, of_v = grad.split([H, J, J], 2)
        for g, to in ((grad_q, of_q), (grad_k, of_k)):
            _turn(g, cos[..., None, :], -sin[..., None, :], to)
        of_v.copy_(grad_v)
        return grad, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)


def for_queries(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, J, S, D) as (B, heads, S, D): those of each query.

    A copy where there are fewer: asked for it by ``enable_gqa``, torch's memory-efficient kernel,
    which is for masks and float32 on GPUs, gives way to plain sums that hold all scores, and in
    older releases that for CPUs does too.
    """
    if x.shape[1] == heads:
        return x
    return x[:, :, None].expand(-1, -1, heads // x.shape[1], -1, -1).flatten(1, 2)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None = None,
    causal: bool = False,
    prefix: int = 0,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """SDPA of queries (B, H, S, D) over keys and values (B, H, S', D).

    :param key_mask: (B, S') bool, true where a key may be seen; every query must see one.
    :param causal: queries are the last S of the S' steps and see no later one, but for the first
        ``prefix`` steps, which all see.
    :param bias: what `bias_of` made of these, for all layers alike.

    The kernel for CPUs skips the unseen half of plain causal attention, but given a mask computes
    all of it. Blocks of queries that are shown only the keys up to their end skip it there too.
    """
    S, keys = q.shape[2], k.shape[2]
    if bias is None:
        bias = bias_of(q.device, q.dtype, S, keys, key_mask, causal, prefix)
    if bias is not None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout
        )
    causal = causal and S > 1
    offset = keys - S
    shown = None if key_mask is None else key_mask[:, None, None, :]  # (B, 1, 1, S')
    if not causal:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=shown, dropout_p=dropout)
    if shown is None and prefix == 0 and offset == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    # a compiled loop would be compiled anew for every length
    blocks = not torch.compiler.is_compiling() and S >= 2 * CPU_BLOCK
    if not blocks:
        return _attend_rows(q, k, v, shown, offset, prefix, dropout)
    parts = []
    for start in range(0, S, CPU_BLOCK):
        first, last = offset + start, offset + min(start + CPU_BLOCK, S)
        end = max(last, prefix)  # no later key is seen
        mask = None if shown is None else shown[..., :end]
        rows = q[:, :, start : start + CPU_BLOCK]
        parts.append(_attend_rows(rows, k[:, :, :end], v[:, :, :end], mask, first, prefix, dropout))
    return torch.cat(parts, dim=2)


def _attend_rows(q, k, v, shown, first: int, prefix: int, dropout: float) -> Tensor:
    """Causal attention of queries that are steps ``first``, ``first`` + 1, ..."""
    seen = _seen(q.device, q.shape[2], k.shape[2], shown, first, prefix)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)


def _seen(device, queries: int, keys: int, shown: Tensor | None, first: int, prefix: int) -> Tensor:
    """(S, S') bool, or (B, 1, S, S') with keys that are ``shown`` (B, 1, 1, S')."""
    column = torch.arange(keys, device=device)
    row = torch.arange(first, first + queries, device=device)[:, None]
    seen = (column <= row) | (column < prefix)
    return seen if shown is None else seen & shown


def masks_in_blocks(device: torch.device) -> bool:
    """Whether `attend` makes its masks by itself."""
    return device.type in MASKS_IN_BLOCKS


def bias_of(
    device: torch.device,
    dtype: torch.dtype,
    queries: int,
    keys: int,
    key_mask: Tensor | None,
    causal: bool = False,
    prefix: int = 0,
) -> Tensor | None:
    """What is added to the scores of all layers to hide what may not be seen, (B or 1, 1, S or 1,
    S'), see `attend`. None where kernels need none, and where `masks_in_blocks`."""
    if masks_in_blocks(device):
        return None
    seen = None if key_mask is None else key_mask[:, None, None, :]
    if causal and queries > 1:
        if seen is None and prefix == 0 and keys == queries:
            return None
        seen = _seen(device, queries, keys, seen, keys - queries, prefix)
    return None if seen is None else as_bias(seen, dtype)


def as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where ``seen`` (..., S, S') is true, and elsewhere so low that nothing is left. Of booleans
    torch's kernels for GPUs would make this anew in every layer, and once more where rows do not
    begin at multiples of 16."""
    shape = (1,) * (4 - seen.ndim) + seen.shape
    # never as wide as what is shown, of which compiled code would have one more version
    width = (shape[3] // 16 + 1) * 16
    strides = (shape[1] * shape[2] * width, shape[2] * width, width, 1)
    # no part of a wider tensor, which compiled code would look at too
    bias = torch.empty_strided(shape, strides, dtype=dtype, device=seen.device)
    return bias.fill_(HIDDEN).masked_fill_(seen, 0.0)


def type_of_products(x: Tensor) -> torch.dtype:
    """Of queries that are made of x, which autocast may make of 16 bits."""
    mixed = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if mixed else x.dtype


@dataclass
class BlockInputs:
    """What a block is given beside the stream (B, S, d): the same for all layers but for the
    memory. Or, `joined`, what each of several batches is given, whose steps stand one batch behind
    the other in a single row."""

    shape: tuple[int, int]
    """B and S; of joined ones 1 and the steps of all, N."""
    cos: Tensor
    sin: Tensor
    """(S, D/2), or (B, S, D/2)."""
    causal: bool = True
    prefix: int = 0
    """First steps that are no part of the causal order: all see them."""
    key_mask: Tensor | None = None
    """(B, S') bool: steps, cached ones included, that may be seen."""
    bias: Tensor | None = None
    """`bias_of` these three, or of the documents."""
    condition: Tensor | None = None
    """(B, d) for adaptive norms."""
    documents: Any = None
    """`rvqlm.modules.documents.Documents`, where several sequences stand in one row."""
    memory: Any = None
    """Keys and values (B, H, M, D) of a memory, of each sequence where there are documents; before
    `at`, of all layers."""
    memory_mask: Tensor | None = None
    """(B, M) bool."""
    memory_bias: Tensor | None = None
    """`bias_of` the latter."""
    parts: Sequence[BlockInputs] = ()
    """What the batches are given that are joined."""

    @classmethod
    def joined(cls, parts: Sequence[BlockInputs]) -> BlockInputs:
        turns = [
            [t.expand(*p.shape, -1).flatten(0, 1)[None] for t in (p.cos, p.sin)] for p in parts
        ]
        cos, sin = (torch.cat(of_parts, 1) for of_parts in zip(*turns))
        return cls((1, cos.shape[1]), cos, sin, parts=parts)

    def at(self, layer: int) -> BlockInputs:
        """Those of one layer."""
        if self.parts:
            return replace(self, parts=[part.at(layer) for part in self.parts])
        return self if self.memory is None else replace(self, memory=self.memory[layer])

    def each(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """``function(inputs, *rows)`` of tensors (B, S, ...). Of joined batches: of each with its
        own steps of the rows (1, N, ...), and what it returns in a row again."""
        if not self.parts:
            return function(self, *rows)
        of_parts = zip(*(row.squeeze(0).split([B * S for B, S in self.shapes]) for row in rows))
        made = [
            function(part, *(x.unflatten(0, part.shape) for x in own))
            for part, own in zip(self.parts, of_parts)
        ]
        return torch.cat([y.flatten(0, 1) for y in made])[None]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [part.shape for part in self.parts]

    @property
    def natively(self) -> list[native_training.Part]:
        """Of each of the batches, or of each sequence where there are documents."""
        if self.parts:
            return [of for part in self.parts for of in part.natively]
        if self.documents is not None:
            return self.documents.natively(self.cos, self.sin, self.key_mask, self.causal)
        seen = self.key_mask, self.causal, self.prefix
        return [native_training.Part(self.shape, self.cos, self.sin, *seen)]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, dim: int, num_heads: int, kv_heads: int, dropout: float, layer: int):
        super().__init__()
        self.num_heads, self.kv_heads, self.layer = num_heads, kv_heads, layer
        self.dropout = dropout
        self.qkv = nn.Linear(dim, dim + 2 * kv_heads * (dim // num_heads), bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, a: BlockInputs, cache: KVCache | None = None) -> Tensor:
        B, S, d = x.shape
        H, J = self.num_heads, self.kv_heads
        qkv = project(self.qkv, x).view(B, S, H + 2 * J, d // H)
        dropout = self.dropout if self.training else 0.0
        if cache is None and native_training.attends(qkv, dropout):
            y = native_training.attend_each(qkv, J, a.natively)
            return project(self.out, y.view(B, S, d))
        q, k, v = rotated(qkv, a.cos, a.sin, J)  # (B, S, H or J, D)
        if cache is not None:
            k, v = cache.update(self.layer, k.transpose(1, 2), v.transpose(1, 2))
            k, v = k.transpose(1, 2), v.transpose(1, 2)

        def attended(a: BlockInputs, *qkv: Tensor) -> Tensor:
            q, k, v = (for_queries(t.transpose(1, 2), H) for t in qkv)  # (B, H, S, D)
            if a.documents is not None and a.bias is None:
                y = a.documents.attend(q, k, v, a.causal, dropout, a.key_mask)
            else:
                y = attend(q, k, v, a.key_mask, a.causal, a.prefix, dropout, a.bias)
            return y.transpose(1, 2)

        return project(self.out, a.each(attended, q, k, v).reshape(B, S, d))


class CrossAttention(nn.Module):
    """Attention from the steps of a decoder to a memory of an encoder.

    Both sides are rotated by their positions on the common time axis, so that a step can find what
    belongs to its time by distance. For that alone queries and keys must agree on something that
    all of them have, whatever their content; without bias there is nothing such, and each distance
    that matters is found by chance. With ``lags`` keys get a mark, and queries a vector that looks
    for it at their own time or some steps before.

    :param lags: (H,) steps back that each head looks at to begin with; None: no marks.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        lags: Tensor | None = None,
        base: float = 10000.0,
    ):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.place = None
        if lags is not None:
            # rotated back by its lag, a mark fits best to one so many steps before
            mark = torch.zeros(1, num_heads, dim // num_heads)
            mark[..., : mark.shape[2] // 2] = (2 * SHARPNESS * mark.shape[2] ** -0.5) ** 0.5
            cos, sin = RotaryTable(mark.shape[2], base).at(-lags)
            self.place = nn.Parameter(rotate(mark, cos, sin).flatten())
            self.register_buffer("mark", mark[0, 0], persistent=False)

    def read(self, memory: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, M, D) of a memory (B, M, d); once for a whole generation."""
        B, M, _ = memory.shape
        k, v = self.key_value(memory).view(B, M, 2, self.num_heads, -1).unbind(2)
        if self.place is not None:
            k = k + self.mark.to(k.dtype)
        return rotate(k, cos, sin).transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, a: BlockInputs) -> Tensor:
        B, S, d = x.shape
        q = self.query(x)
        if self.place is not None:
            q = q + self.place.to(q.dtype)
        q = rotate(q.view(B, S, self.num_heads, -1), a.cos, a.sin)
        dropout = self.dropout if self.training else 0.0

        def attended(a: BlockInputs, q: Tensor) -> Tensor:
            docs = a.documents
            q = q if docs is None else docs.unpack(q)  # each sequence has a memory of its own
            seen = {"key_mask": a.memory_mask, "bias": a.memory_bias}
            y = attend(q.transpose(1, 2), *a.memory, **seen, dropout=dropout).transpose(1, 2)
            return y if docs is None else docs.pack(y)

        return self.out(a.each(attended, q).reshape(B, S, d))
