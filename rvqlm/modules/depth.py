"""Depth heads: a small causal transformer over the K levels of one frame.

The state of level k is conditioned on the hidden state of the frame and the codes of the levels
before k, so the frame's joint distribution is exact, as in RQ-Transformer (Lee et al., 2022,
arXiv:2203.01941) and Moshi (Défossez et al., 2024, arXiv:2410.00037). Each level has its own
projection of the hidden state, table of input codes and classifier; the layers in between are
common to all.

Shapes: n rows, K levels, w width, H attention heads of D = w / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.modules.heads import Choose, TrunkHeads, of_level


def attend_levels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (n, H, Q, D) of the last Q of the levels so far, (n, H, L, D), causal.

    Thousands of tiny sequences: in bf16 the fused kernel for CPUs takes ten times as long as plain
    products here (K = 9, forward and backward), in float32 about as long.
    """
    Q, L = q.shape[2], k.shape[2]
    if q.device.type != "cpu" or q.dtype == torch.float32 or Q == 1:
        # asked, not handed over: of a compiled Q it is a symbol, on which --compile broke off
        causal = True if Q > 1 else False  # noqa: SIM210
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    n, H, _, D = q.shape
    later = torch.full((Q, L), -torch.inf, dtype=q.dtype).triu(1 + L - Q)
    q, k, v = (t.reshape(n * H, t.shape[2], D) for t in (q, k, v))
    scores = torch.baddbmm(later.expand(n * H, Q, L), q, k.mT, alpha=D**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(n, H, Q, D)


class DepthBlock(nn.Module):
    """Pre-norm attention over levels and feed-forward layer; the levels' projections and tables
    tell positions apart, so it needs none of its own."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feedforward_norm = nn.LayerNorm(dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)
        bound = (3 / dim) ** 0.5
        nn.init.uniform_(self.qkv.weight, -bound, bound)
        nn.init.uniform_(self.up.weight, -bound, bound)
        # the block begins as the identity
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None = None):
        """(n, L, w) -> (n, L, w), and keys and values (n, H, L', D) of all levels so far.

        :param past: keys and values of the levels before those of ``x``.
        """
        n, L, w = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(n, L, 3, self.num_heads, w // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (n, H, L, D) each
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        y = attend_levels(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(n, L, w))
        return x + self.down(F.gelu(self.up(self.feedforward_norm(x)))), (k, v)


class DepthHeads(TrunkHeads):
    """See the file's docstring.

    Codes outside 0 ... V - 1 mean "no code here": cells that a pattern leaves empty.
    """

    exact_frame = True

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        depth_dim: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
    ):
        super().__init__(num_codebooks, codebook_size, depth_dim)
        K, V, w = num_codebooks, codebook_size, depth_dim
        self.depth_dim = w
        self.project = nn.Linear(dim, K * w)
        bound = (3 / dim) ** 0.5
        nn.init.uniform_(self.project.weight, -bound, bound)
        nn.init.zeros_(self.project.bias)
        # inputs of levels 1 ... K - 1
        self.tables = nn.Parameter(torch.randn((K - 1) * (V + 1), w))
        self.blocks = nn.ModuleList(DepthBlock(w, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(w, bias=False)

    def _embed(self, codes: Tensor, level: int) -> Tensor:
        """Inputs (n, L, w) of the levels after those of codes (n, L), which begin at ``level``."""
        V, L = self.codebook_size, codes.shape[1]
        ids = torch.where((codes >= 0) & (codes < V), codes, V).long()
        first = torch.arange(level, level + L, device=codes.device) * (V + 1)
        return F.embedding(ids + first, self.tables)

    def states(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """(n, d), targets (n, K) -> (n, K, w); state k sees targets of levels before k."""
        if targets is None or hidden.ndim != 2:
            raise ValueError("depth heads need the codes, and one hidden state for all of them")
        K = self.num_codebooks
        x = self.project(hidden).unflatten(-1, (K, self.depth_dim))  # (n, K, w)
        x = x + F.pad(self._embed(targets[:, :-1], 0), (0, 0, 1, 0))
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)

    def draw(self, hidden: Tensor, choose: Choose) -> Tensor:
        """Level after level, each given the codes chosen before it, on all rows of a sequence."""
        n, K = len(hidden), self.num_codebooks
        inputs = self.project(hidden).unflatten(-1, (K, self.depth_dim))
        past = [None] * len(self.blocks)
        chosen: list[Tensor] = []
        for level in range(K):
            x = inputs[:, level : level + 1]  # (n, 1, w)
            if level:
                last = chosen[-1].repeat(n // len(chosen[-1]), 1)
                x = x + self._embed(last, level - 1)
            for i, block in enumerate(self.blocks):
                x, past[i] = block(x, past[i])
            logits = of_level(self.weight, self.norm(x), level)  # (n, 1, V)
            chosen.append(choose(level, logits))
        return torch.cat(chosen, 1)

    def muon_matrices(self) -> list[nn.Parameter]:
        names = ("qkv", "out", "up", "down")
        matrices = [getattr(block, name).weight for block in self.blocks for name in names]
        return [self.project.weight, *matrices]
