"""One step of a transformer over a cache: the same sums as `Transformer.forward` of one step, as a
plain sequence of operations, or as one program of kernels (`rvqlm.modules.native`) where the
weights are packed for these.

What a step of a small model takes is not the products but all that is between them, and half of
that are calls of modules. Every tensor has the same shape in every step, until the window of the
cache grows, and no number is read back from a device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.modules.attention import rotate
from rvqlm.modules.kv_cache import KVCache
from rvqlm.modules.native import NativeLinear, Program
from rvqlm.modules.packed import PackedLinear
from rvqlm.modules.transformer import ACTIVATIONS, Block, FeedForward, Norm, Transformer

Function = Callable[[Tensor], Tensor]
Memory = list[tuple[Tensor, Tensor]]


def _norm(norm: Norm | None) -> Function:
    if norm is None:
        return lambda x: x
    inner = norm.norm
    if not isinstance(inner, nn.LayerNorm):
        return inner.forward
    shape, weight, eps = inner.normalized_shape, inner.weight, inner.eps
    return lambda x: torch.layer_norm(x, shape, weight, None, eps)


def _linear(linear: nn.Module) -> Function:
    if isinstance(linear, PackedLinear):
        return linear.product
    if type(linear) is not nn.Linear:
        return linear.forward
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

    counts = True
    """Whether a step counts itself; else who asks for it does, by `KVCache.reserve` before and
    `KVCache.position` after it, and it is a function of tensors alone."""

    def __new__(cls, transformer: Transformer, cache: KVCache):
        if cls is Stepper and transformer.native is not None:
            cls = NativeStepper
        return super().__new__(cls)

    def __init__(self, transformer: Transformer, cache: KVCache):
        c = transformer.config
        self.cache, self.rotary, self.norm_first = cache, transformer.rotary, c.norm_first
        self.heads, self.kv_heads, self.width = c.num_heads, c.key_heads, c.head_dim
        self.layers = [_Layer(block) for block in transformer.layers]
        self.norm = _norm(transformer.norm)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        places: Tensor | None = None,
        memory: Memory | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """One step (B, 1, d) -> (B, 1, d).

        :param places: (B,) int64 on the time axis, below the longest of the cache; those in the
            cache by default.
        :param memory: what `Transformer.read` gave, with its mask (B, M).
        """
        if self.counts:
            self.cache.reserve()
            self.cache.position += 1
        places = self.cache.places if places is None else places
        y = self._step(x, places, memory, memory_mask, self.cache.open())
        self.cache.shift()
        return y

    def _step(self, x, places, memory, memory_mask, seen: Tensor) -> Tensor:
        cache, B = self.cache, len(x)
        one = B, 1, self.heads * self.width
        cos, sin = self.rotary.rows(places, cache.longest)
        cos, sin = cos.to(cache.dtype), sin.to(cache.dtype)
        shown = None if memory_mask is None else memory_mask[:, None, None]
        heads, kv_heads = self.heads, self.kv_heads

        def attention(y: Tensor) -> Tensor:
            qkv = layer.qkv(y).view(B, 1, heads + 2 * kv_heads, self.width).to(cache.dtype)
            qk = qkv[:, :, :-kv_heads]
            turned = qk.roll(self.width // 2, -1)
            qk.mul_(cos).addcmul_(turned, sin)
            k, v = cache.write(number, qkv[:, 0, heads:].unflatten(1, (2, kv_heads)))
            # queries that share keys are so many steps of one head: all see the same
            q = qkv[:, 0, :heads].unflatten(1, (kv_heads, -1))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
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
        return self.norm(x)


class NativeStepper(Stepper):
    """The same as one call."""

    def __init__(self, transformer: Transformer, cache: KVCache):
        self.cache, self.transformer = cache, transformer
        self._made_for: tuple = ()
        self._program: Program | None = None

    def _step(self, x, places, memory, memory_mask, seen: Tensor) -> Tensor:
        B, program = len(x), self.program(memory, memory_mask)
        self.input[:B] = x[:, 0]
        program.run(B, self.cache.rows_at, places.contiguous())
        return self.output[:B, None].clone()

    def program(self, memory: Memory | None, memory_mask: Tensor | None) -> Program:
        """From `input` to `output`, (rows, d) each; a new one where the memory is another."""
        # what the operations point to
        made_for = self.cache.steps, None if memory is None else memory[0][0], memory_mask
        if self._program is None or any(a is not b for a, b in zip(made_for, self._made_for)):
            self._made_for = made_for
            self._program = self._make(memory, memory_mask)
        return self._program

    def _make(self, memory: Memory | None, memory_mask: Tensor | None) -> Program:
        """The operations of all layers; x is the stream, y what a branch makes of it."""
        t, cache = self.transformer, self.cache
        c, heads = t.config, t.config.num_heads
        program = Program(cache.steps.shape[1])
        widths = {"x": c.dim, "y": c.dim, "query": c.dim}
        widths["qkv"] = c.dim + 2 * c.key_heads * c.head_dim
        widths["inner"] = c.dim_feedforward
        widths["up"] = c.dim_feedforward * (2 if c.activation == "swiglu" else 1)
        at = {name: program.buffer(width) for name, width in widths.items()}
        rotary = t.rotary.wide(cache.longest, cache.steps.device)
        cross_mask = None
        if memory_mask is not None:
            cross_mask = torch.zeros(memory_mask.shape).masked_fill_(~memory_mask, -torch.inf)

        def norm(module: Norm, x: str, y: str) -> None:
            gain, centred = module.norm.weight, isinstance(module.norm, nn.LayerNorm)
            eps = module.norm.eps
            eps = torch.finfo(torch.float32).eps if eps is None else eps
            program.norm(gain, eps, centred, at[x], at[y])

        def product(linear: nn.Module, x: str, y: str, bias=None, **then) -> None:
            linear = NativeLinear.of(linear)
            if bias is not None:
                linear = linear.with_bias(bias)
            program.product(linear, at[x], at[y], **then)

        def attention(block: Block, x: str) -> None:
            product(block.attention.qkv, x, "qkv")
            k, v = cache.steps[block.attention.layer].permute(2, 0, 3, 1, 4)
            program.attention(at["qkv"], at["y"], heads, k, v, cache.mask, rotary, writes=True)
            product(block.attention.out, "y", "x", add=True)

        def cross(block: Block, x: str) -> None:
            product(block.cross.query, x, "query", bias=block.cross.place)
            # a copy: strides of a memory of one step may be anything
            plain = {"dtype": torch.float32, "memory_format": torch.contiguous_format, "copy": True}
            k, v = (part.to(**plain) for part in memory[block.attention.layer])
            program.attention(at["query"], at["y"], heads, k, v, cross_mask, rotary, writes=False)
            product(block.cross.out, "y", "x", add=True)

        def feedforward(block: Block, x: str) -> None:
            if c.activation == "swiglu":
                product(block.feedforward.up, x, "up")
                program.swiglu(at["up"], at["inner"])
            else:
                product(block.feedforward.up, x, "inner", activation=c.activation)
            product(block.feedforward.down, "inner", "x", add=True)

        for block in t.layers:
            branches = [(block.attention_norm, attention), (block.feedforward_norm, feedforward)]
            if memory is not None:
                branches.insert(1, (block.cross_norm, cross))
            for before, branch in branches:
                if c.norm_first:
                    norm(before, "x", "y")
                    branch(block, "y")
                else:
                    branch(block, "x")
                    norm(before, "x", "x")
        if t.norm is not None:
            norm(t.norm, "x", "y")
        self.input, self.output = at["x"], at["y" if t.norm is not None else "x"]
        return program
