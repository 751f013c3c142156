"""The one transformer: rotary positions, SDPA attention, optional KV cache, cross-attention and
norms with a condition.

Causal in the autoregressive models, not so in those that see both sides. RMSNorm: Zhang &
Sennrich, 2019 (arXiv:1910.07467); SwiGLU: Shazeer, 2020 (arXiv:2002.05202); squared ReLU: So et
al., 2021 (arXiv:2109.08668); norms before or after the branches: Xiong et al., 2020
(arXiv:2002.04745).

Shapes: B items, S steps, d model width, H heads of D = d / H, M steps of a memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rvqlm.modules.attention import (
    Attention,
    BlockInputs,
    CrossAttention,
    RotaryTable,
    bias_of,
    masks_in_blocks,
    type_of_products,
)
from rvqlm.modules.documents import Documents
from rvqlm.modules.kv_cache import KVCache
from rvqlm.modules.native import WIDEST_HEAD, NativeLinear
from rvqlm.modules.native_training import gelu, project


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


NORMS = {"layernorm": partial(nn.LayerNorm, bias=False), "rmsnorm": nn.RMSNorm}
ACTIVATIONS = {
    "gelu": gelu,  # exact: on a CPU the tanh form takes three times as long
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "swiglu": swiglu,
}


@dataclass
class TransformerConfig:
    """Shape of a transformer, as its modules need it (models make it from their flags)."""

    dim: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    kv_heads: int = 0
    """Of keys and values; 0: as many as heads."""
    dropout: float = 0.0
    norm: str = "layernorm"
    norm_first: bool = True
    activation: str = "gelu"
    rope_base: float = 10000.0
    causal: bool = True
    cross: bool = False
    """Every block attends to a memory as well."""
    cross_lag: int | None = None
    """Heads of cross-attention begin by looking 0, 1, ... so many steps back, in turn over all
    layers; None: anywhere."""
    adaptive: bool = False
    """Gain and bias of every norm come from a vector per item (AdaLN)."""
    convolution: int = 0
    """Steps that a depthwise convolution in every block sees, odd, where not causal; 0: none."""
    activation_checkpointing: bool = False

    @property
    def key_heads(self) -> int:
        """Heads of keys, and as many of values."""
        return self.kv_heads or self.num_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


class Norm(nn.Module):
    """The chosen norm; adaptive, its output is scaled and shifted as a vector per item says.

    Level-conditional norm of VALL-E (Wang et al., 2023, arXiv:2301.02111, after Xu et al., 2019,
    arXiv:1911.07013). The projection starts at zero: the plain norm.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm = NORMS[config.norm](config.dim)
        self.modulation = nn.Linear(config.dim, 2 * config.dim) if config.adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, a: BlockInputs) -> Tensor:
        """x (B, S, d)"""
        x = self.norm(x)
        return x if self.modulation is None else a.each(self._modulated, x)

    def _modulated(self, a: BlockInputs, x: Tensor) -> Tensor:
        of_items = self.modulation(a.condition)
        of_steps = of_items[:, None] if a.documents is None else of_items[a.documents.item]
        scale, shift = of_steps.chunk(2, dim=-1)
        return x * (1 + scale) + shift


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        width = config.dim_feedforward * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.dim, width, bias=False)
        self.down = nn.Linear(config.dim_feedforward, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return project(self.down, ACTIVATIONS[self.activation](project(self.up, x)))


class Convolution(nn.Module):
    """The convolution module of a Conformer (Gulati et al., 2020, arXiv:2005.08100), with a norm
    over channels, so that nothing depends on the rest of a batch."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d, kernel = config.dim, config.convolution
        self.up = nn.Linear(d, 2 * d, bias=False)
        self.depthwise = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d)
        self.norm = nn.LayerNorm(d, bias=False)
        self.down = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, a: BlockInputs) -> Tensor:
        """x (B, S, d)"""
        y = a.each(self._convolved, F.glu(self.up(x)))
        return self.down(F.silu(self.norm(y)))

    def _convolved(self, a: BlockInputs, y: Tensor) -> Tensor:
        """Steps that may not be seen are nothing, as they are alone in a batch."""
        if a.key_mask is not None:
            y = y * a.key_mask[..., None]
        return self.depthwise(y.mT).mT


class Block(nn.Module):
    """A convolution where there is one, self-attention, cross-attention where there is a memory,
    feed-forward; each a residual branch with its norm before it, or after the sum where
    ``norm_first`` is false."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        c = config
        self.norm_first = c.norm_first
        self.convolution_norm = Norm(c) if c.convolution else None
        self.convolution = Convolution(c) if c.convolution else None
        self.attention_norm = Norm(c)
        self.attention = Attention(c.dim, c.num_heads, c.key_heads, c.dropout, layer)
        self.cross_norm = Norm(c) if c.cross else None
        self.cross = None
        if c.cross:
            lags = None
            if c.cross_lag is not None:
                lags = (torch.arange(c.num_heads) + layer * c.num_heads) % (c.cross_lag + 1)
            self.cross = CrossAttention(c.dim, c.num_heads, c.dropout, lags, c.rope_base)
        self.feedforward_norm = Norm(c)
        self.feedforward = FeedForward(c)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, a: BlockInputs, cache: KVCache | None = None) -> Tensor:
        def branch(x, norm, function, *others):
            y = function(norm(x, a) if self.norm_first else x, *others)
            x = x + (self.dropout(y) if self.training else y)
            return x if self.norm_first else norm(x, a)

        if self.convolution is not None:
            x = branch(x, self.convolution_norm, self.convolution, a)
        x = branch(x, self.attention_norm, self.attention, a, cache)
        if self.cross is not None:
            x = branch(x, self.cross_norm, self.cross, a)
        return branch(x, self.feedforward_norm, self.feedforward)


class Transformer(nn.Module):
    """Stack of blocks with a final norm.

    :raises ValueError: heads that do not divide the width in pairs.
    """

    steps = "eager"
    """How steps of decoding are made: eager, or made ready once, compile or graph
    (`rvqlm.generation.ready`)."""
    masks_always = False
    """Whether training that is not causal has a mask of what is padded where nothing is, too, and
    rows of several sequences one on any device: what is compiled would need one more version for
    batches without, and one for all sequences in a row."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if config.dim % (2 * config.num_heads):
            raise ValueError(f"width {config.dim}: no multiple of 2 x {config.num_heads} heads")
        if config.num_heads % config.key_heads:
            raise ValueError(f"{config.num_heads} heads: no multiple of {config.kv_heads} of keys")
        if config.convolution and (config.causal or config.convolution % 2 == 0):
            raise ValueError(f"convolution {config.convolution}: odd, and sees both sides")
        self.config = config
        self.rotary = RotaryTable(config.head_dim, config.rope_base)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        # after blocks that end with a norm another would change nothing
        self.norm = Norm(config) if config.norm_first else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scaled uniform init; the projections back into the stream start at zero, so that every
        block begins as the identity and depth costs no stability."""
        bound = 3**0.5 * self.config.dim**-0.5
        for block in self.layers:
            into = [block.attention.qkv, block.feedforward.up]
            back = [block.attention.out, block.feedforward.down]
            if block.cross is not None:
                into += [block.cross.query, block.cross.key_value]
                back.append(block.cross.out)
            if block.convolution is not None:
                into.append(block.convolution.up)
                back.append(block.convolution.down)
            for linear in into:
                nn.init.uniform_(linear.weight, -bound, bound)
            for linear in back:
                nn.init.zeros_(linear.weight)

    def read(self, memory: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a memory (B, M, d) at positions (B, M), for every layer."""
        cos, sin = self.rotary.at(positions)
        return [block.cross.read(memory, cos, sin) for block in self.layers]

    def forward(self, x: Tensor, *, cache: KVCache | None = None, **given) -> Tensor:
        """(B, S, d) -> (B, S, d).

        :param cache: when given, ``x`` continues the steps it holds.
        :param given: see `inputs`.
        """
        x = self._run(x, self.inputs(x, cache, **given), cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def together(self, xs: Sequence[Tensor], given: Sequence[dict]) -> list[Tensor]:
        """`forward` of several batches, each with what it is `given`, in one pass: all that is done
        step by step is done once, of one row."""
        joined = BlockInputs.joined([self.inputs(x, **how) for x, how in zip(xs, given)])
        row = torch.cat([x.to(xs[0].dtype).flatten(0, 1)[None] for x in xs], 1)
        made = self._run(row, joined).squeeze(0).split([B * S for B, S in joined.shapes])
        return [y.unflatten(0, shape) for y, shape in zip(made, joined.shapes)]

    def inputs(
        self,
        x: Tensor,
        cache: KVCache | None = None,
        *,
        positions: Tensor | None = None,
        key_mask: Tensor | None = None,
        prefix: int = 0,
        condition: Tensor | None = None,
        memory: list[tuple[Tensor, Tensor]] | None = None,
        memory_mask: Tensor | None = None,
        causal: bool | None = None,
        documents: Documents | None = None,
    ) -> BlockInputs:
        """What all blocks are given beside the stream (B, S, d).

        :param positions: (B, S) places on the time axis, any numbers; 0, 1, 2, ... by default.
        :param key_mask: (B, S') bool over all steps, cached ones included: which may be seen.
        :param prefix: so many first steps are seen by all, whatever their order.
        :param condition: (B, d), for adaptive norms.
        :param memory: what `read` gave, with its mask (B, M).
        :param causal: whether steps see no later ones, where not as the transformer is made.
        :param documents: of rows of several sequences, with ``positions``; condition and memory are
            then of each sequence. What is no step may be seen by ``key_mask``. No cache.
        """
        (B, S), held = x.shape[:2], 0 if cache is None else cache.position
        causal = self.config.causal if causal is None else causal
        if positions is not None:
            cos, sin = self.rotary.at(positions)
        else:
            cos, sin = self.rotary(held, S, x.device)
        dtype = type_of_products(x)
        if not masks_in_blocks(x.device):  # or every layer would
            cos, sin = cos.to(dtype), sin.to(dtype)
        masked = self.masks_always and self.training and torch.is_grad_enabled()
        if documents is not None:
            blocks = masks_in_blocks(x.device) and not masked
            bias = None if blocks else documents.bias(causal, dtype, key_mask)
        else:
            if masked and key_mask is None and not causal:
                key_mask = x.new_ones(B, S, dtype=torch.bool)
            bias = bias_of(x.device, dtype, S, held + S, key_mask, causal, prefix)
        memory_bias = None
        if memory_mask is not None:
            memory_bias = bias_of(x.device, dtype, S, memory_mask.shape[1], memory_mask)
        seen = causal, prefix, key_mask, bias, condition, documents
        return BlockInputs((B, S), cos, sin, *seen, memory, memory_mask, memory_bias)

    def _run(self, x: Tensor, a: BlockInputs, cache: KVCache | None = None) -> Tensor:
        recompute = self.config.activation_checkpointing and self.training and cache is None
        for i, block in enumerate(self.layers):
            if recompute:
                x = checkpoint(block, x, a.at(i), use_reentrant=False)
            else:
                x = block(x, a.at(i), cache)
        return x if self.norm is None else self.norm(x, a)

    @property
    def native(self) -> torch.dtype | None:
        """How `rvqlm.modules.native` holds keys and values, where weights are packed for it."""
        if self.config.head_dim > WIDEST_HEAD or self.config.adaptive:
            return None
        packed = [m for m in self.layers.modules() if isinstance(m, NativeLinear)]
        if not packed:
            return None
        plain = all(linear.dtype == torch.float32 for linear in packed)
        return torch.float32 if plain else torch.bfloat16

    def make_cache(self, batch_size: int, max_steps: int, seen: Tensor | None = None) -> KVCache:
        """``seen`` (B, M): which of the first steps may be seen."""
        c = self.config
        shape = (c.num_layers, batch_size, c.key_heads, max_steps, c.head_dim)
        return KVCache(shape, like=next(self.parameters()), seen=seen, dtype=self.native)
