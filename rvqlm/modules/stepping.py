"""One step of a transformer over a cache: the same sums as `Transformer.forward` of one step, as a
plain sequence of operations.

What a step of a small model takes is not the products but all that is between them, and half of
that are calls of modules. Every tensor has the same shape in every step, until the window of the
cache grows, and no number is read back from a device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.modules.attention import KVCache, rotate
from rvqlm.modules.packed import PackedLinear
from rvqlm.modules.transformer import ACTIVATIONS, Block, FeedForward, Norm, Transformer

Function = Callable[[Tensor], Tensor]


def _norm(norm: Norm | None) -> Function:
    if norm is None:
        return lambda x: x
    inner = norm.norm
    if not isinstance(inner, nn.LayerNorm):
        return inner.forward
    shape, weight, eps = inner.normalized_shape, inner.weight, inner.eps
    return lambda x: torch.layer_norm(x, shape, weight, None, eps)


def _linear(linear: nn.Linear | PackedLinear) -> Function:
    if isinstance(linear, PackedLinear):
        return linear.product
    weight = linear.weight
    return lambda x: F.linear(x, weight)


def _feedforward(module: FeedForward) -> Function:
    up, down = module.up, _linear(module.down)
    if isinstance(up, PackedLinear) and module.activation in up.FUSED:
        return lambda x: down(up.product(x, module.activation))
    up, activation = _linear(up), ACTIVATIONS[module.activation]
    return lambda x: down(activation(up(x)))


class _Layer:
    """The functions of a block."""

    def __init__(self, block: Block):
        self.attention_norm = _norm(block.attention_norm)
        self.qkv, self.out = _linear(block.attention.qkv), _linear(block.attention.out)
        self.feedforward_norm = _norm(block.feedforward_norm)
        self.feedforward = _feedforward(block.feedforward)
        if block.cross is not None:
            self.cross_norm = _norm(block.cross_norm)
            self.query, self.cross_out = _linear(block.cross.query), _linear(block.cross.out)
            self.place = block.cross.place


class Stepper:
    """Continues what a cache holds of a causal transformer step by step."""

    def __init__(self, transformer: Transformer, cache: KVCache):
        c = transformer.config
        self.cache, self.rotary, self.norm_first = cache, transformer.rotary, c.norm_first
        self.heads, self.width = c.num_heads, c.dim // c.num_heads
        self.layers = [_Layer(block) for block in transformer.layers]
        self.norm = _norm(transformer.norm)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        places: Tensor | None = None,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """One step (B, 1, d) -> (B, 1, d).

        :param places: (B,) int64 on the time axis, below the longest of the cache; those in the
            cache by default.
        :param memory: what `Transformer.read` gave, with its mask (B, M).
        """
        cache, B = self.cache, len(x)
        one = B, 1, self.heads * self.width
        cos, sin = self.rotary.rows(cache.places if places is None else places, cache.longest)
        cos, sin, seen = cos.to(cache.dtype), sin.to(cache.dtype), cache.open()
        shown = None if memory_mask is None else memory_mask[:, None, None]

        def attention(y: Tensor) -> Tensor:
            qkv = layer.qkv(y).view(B, 3, self.heads, self.width).to(cache.dtype)
            qk = qkv[:, :2]
            turned = qk.roll(self.width // 2, -1)
            qk.mul_(cos).addcmul_(turned, sin)
            k, v = cache.write(number, qkv[:, 1:])
            y = F.scaled_dot_product_attention(qkv[:, 0, :, None], k, v, attn_mask=seen)
            return layer.out(y.reshape(one).to(x.dtype))

        def cross(y: Tensor) -> Tensor:
            k, v = memory[number]
            q = layer.query(y)
            if layer.place is not None:
                q = q + layer.place.to(q.dtype)
            q = q.view(B, 1, self.heads, self.width)
            q = rotate(q.to(k.dtype), cos, sin).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
            return layer.cross_out(y.reshape(one).to(x.dtype))

        for number, layer in enumerate(self.layers):  # noqa: B007 - the functions above see both
            branches = [(layer.attention_norm, attention)]
            if memory is not None:
                branches.append((layer.cross_norm, cross))
            for norm, function in [*branches, (layer.feedforward_norm, layer.feedforward)]:
                x = x + function(norm(x)) if self.norm_first else norm(x + function(x))
        cache.advance(1, shown=True)
        return self.norm(x)
