"""The one transformer: pre-norm, rotary positions, SDPA attention, optional KV cache.

Used causal by the autoregressive models and without a mask by those that see both sides.
Rotary embedding: Su et al., 2021 (arXiv:2104.09864); RMSNorm: Zhang & Sennrich, 2019
(arXiv:1910.07467); SwiGLU: Shazeer, 2020 (arXiv:2002.05202); squared ReLU: So et al., 2021
(arXiv:2109.08668).

Shapes: B items, S steps, d model width, H heads of D = d / H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rvqlm.errors import UserError
from rvqlm.modules.cache import KVCache

NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("gelu", "relu2", "swiglu")


@dataclass
class TransformerConfig:
    """Shape of a transformer, as its modules need it (models make it from their flags)."""

    dim: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    dropout: float = 0.0
    norm: str = "layernorm"
    activation: str = "gelu"
    rope_base: float = 10000.0
    causal: bool = True
    activation_checkpointing: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with it, in the words of the flags."""
        found = []
        if self.dim < 1 or self.num_heads < 1 or self.dim % self.num_heads:
            found.append(f"--decoder-dim {self.dim} is not a multiple of --nhead {self.num_heads}")
        elif (self.dim // self.num_heads) % 2:
            found.append(
                f"--decoder-dim {self.dim} / --nhead {self.num_heads} must be even (rotary pairs)"
            )
        if self.num_layers < 1:
            found.append(f"--num-decoder-layers {self.num_layers} must be at least 1")
        if self.dim_feedforward < 1:
            found.append(f"--dim-feedforward {self.dim_feedforward} must be positive")
        if not 0 <= self.dropout < 1:
            found.append(f"--dropout {self.dropout} must be in [0, 1)")
        if self.norm not in NORMS:
            found.append(f"--norm {self.norm!r}: choose one of {', '.join(NORMS)}")
        if self.activation not in ACTIVATIONS:
            found.append(
                f"--activation {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}"
            )
        return found


def make_norm(kind: str, dim: int) -> nn.Module:
    return nn.RMSNorm(dim) if kind == "rmsnorm" else nn.LayerNorm(dim, bias=False)


class RotaryTable(nn.Module):
    """Cosines and sines of rotary positions, grown on demand, shared by all layers."""

    def __init__(self, head_dim: int, base: float):
        super().__init__()
        half = torch.arange(0, head_dim, 2, dtype=torch.float64)
        self.register_buffer("frequencies", base ** (-half / head_dim), persistent=False)
        self.register_buffer("table", torch.empty(2, 0, head_dim // 2), persistent=False)

    def forward(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """(length, D/2) cosines and sines of positions start ... start + length - 1, float32."""
        end = start + length
        if self.table.shape[1] < end:
            size = max(1024, 1 << (end - 1).bit_length())
            positions = torch.arange(size, dtype=torch.float64, device=self.frequencies.device)
            angles = positions[:, None] * self.frequencies.double()[None, :]
            # an inference tensor could not serve a later training step
            with torch.inference_mode(False):
                angles = angles.clone()
                self.table = torch.stack([angles.cos(), angles.sin()]).float()
        return self.table[0, start:end], self.table[1, start:end]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}); x (B, S, ..., D), cos and sin (S, D/2)."""
    shape = (1, cos.shape[0], *([1] * (x.ndim - 3)), cos.shape[1])
    cos, sin = cos.view(shape).to(x.dtype), sin.view(shape).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


CPU_BLOCK = 192
"""Queries per call of causal attention on a CPU."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, dropout: float
) -> Tensor:
    """SDPA over (B, H, S, D).

    The kernel for CPUs computes the masked half of causal attention too. In blocks of queries that
    are shown only the keys up to their end, most of that half is never computed: at S = 512 a
    third less time, forward and backward.
    """
    S = q.shape[2]
    if not is_causal or q.device.type != "cpu" or S < 2 * CPU_BLOCK:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, dropout_p=dropout
        )
    blocks = []
    for start in range(0, S, CPU_BLOCK):
        end = min(start + CPU_BLOCK, S)
        seen = torch.ones(end - start, end, dtype=torch.bool).tril(start)
        part = (q[:, :, start:end], k[:, :, :end], v[:, :, :end])
        blocks.append(F.scaled_dot_product_attention(*part, attn_mask=seen, dropout_p=dropout))
    return torch.cat(blocks, dim=2)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for queries, keys and values."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.num_heads, self.causal, self.layer = config.num_heads, config.causal, layer
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        B, S, d = x.shape
        qkv = self.qkv(x).view(B, S, 3, self.num_heads, d // self.num_heads)
        qk = rotate(qkv[:, :, :2], cos, sin)  # (B, S, 2, H, D)
        q, k = qk[:, :, 0].transpose(1, 2), qk[:, :, 1].transpose(1, 2)  # (B, H, S, D)
        v = qkv[:, :, 2].transpose(1, 2)
        is_causal = self.causal and mask is None and S > 1
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
            if is_causal and cache.position > 0:  # several new steps after old ones
                seen = torch.arange(k.shape[2], device=x.device)
                now = cache.position + torch.arange(S, device=x.device)
                mask, is_causal = seen[None, :] <= now[:, None], False
        y = attend(q, k, v, mask, is_causal, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(B, S, d))


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        width = config.dim_feedforward * (2 if config.activation == "swiglu" else 1)
        self.up = nn.Linear(config.dim, width, bias=False)
        self.down = nn.Linear(config.dim_feedforward, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "gelu":
            x = F.gelu(x)  # exact: on a CPU the tanh form takes three times as long
        elif self.activation == "relu2":
            x = F.relu(x).square()
        else:
            gate, value = x.chunk(2, dim=-1)
            x = F.silu(gate) * value
        return self.down(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.dim)
        self.attention = Attention(config, layer)
        self.feedforward_norm = make_norm(config.norm, config.dim)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cos, sin, mask=None, cache=None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, mask, cache))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))


class Transformer(nn.Module):
    """Stack of blocks with a final norm; raises `UserError` with all problems of the config."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if problems := config.problems():
            raise UserError("; ".join(problems))
        self.config = config
        self.rotary = RotaryTable(config.dim // config.num_heads, config.rope_base)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = make_norm(config.norm, config.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scaled uniform init; the projections back into the stream start at zero, so that every
        block begins as the identity and depth costs no stability."""
        bound = 3**0.5 * self.config.dim**-0.5
        for block in self.layers:
            nn.init.uniform_(block.attention.qkv.weight, -bound, bound)
            nn.init.uniform_(block.feedforward.up.weight, -bound, bound)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.feedforward.down.weight)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, S, d) -> (B, S, d).

        :param mask: attention mask, true where a query (row) may see a key (column), broadcast
            to (B, H, S, S'); causal models need none.
        :param cache: when given, ``x`` continues the steps it holds.
        """
        start = cache.position if cache is not None else 0
        cos, sin = self.rotary(start, x.shape[1])
        recompute = self.config.activation_checkpointing and self.training and cache is None
        for block in self.layers:
            if recompute:
                x = checkpoint(block, x, cos, sin, mask, use_reentrant=False)
            else:
                x = block(x, cos, sin, mask, cache)
        if cache is not None:
            cache.position += x.shape[1]
        return self.norm(x)

    def make_cache(self, batch_size: int, max_steps: int) -> KVCache:
        c, weight = self.config, self.layers[0].attention.qkv.weight
        return KVCache(
            c.num_layers,
            batch_size,
            c.num_heads,
            max_steps,
            c.dim // c.num_heads,
            device=weight.device,
            dtype=weight.dtype,
        )
