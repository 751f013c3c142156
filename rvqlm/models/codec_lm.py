"""`codec-lm`: one causal transformer over the codes of all levels.

- a pattern lays the (T, K) codes out in steps (`rvqlm.patterns`)
- input of a step: sum of the K embeddings of the step before; the first step hears only specials
- K linear heads; the loss is exact over real codes, padding and empty cells never count
- the end of a sequence is one binary decision per frame, apart from the codes, so that the
  losses of the codes stay comparable between models that end and models that don't

``python -m rvqlm.bin.main trainer --help`` lists its options as flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.codec_info import CodecInfo
from rvqlm.data.batch import Batch
from rvqlm.models.base import LMOutput, TokenModel
from rvqlm.modules.cache import KVCache
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.heads import LinearHeads
from rvqlm.modules.transformer import Transformer, TransformerConfig
from rvqlm.patterns import make_pattern


@dataclass
class CodecLMConfig:
    """Shape of a codec-lm."""

    pattern: Literal["delay", "parallel", "flatten"] = "delay"
    """Layout of the levels in steps. delay: each level one step after the coarser one; parallel:
    all levels of a frame at once, independent given the past; flatten: one code a step, K times
    the steps."""
    decoder_dim: int = 256
    """Width d of the transformer."""
    nhead: int = 4
    """Attention heads; must divide the width."""
    num_decoder_layers: int = 6
    """Transformer layers."""
    dim_feedforward: int = 0
    """Inner width of the feed-forward layers; 0 means 4 d (8/3 d for swiglu, which has two)."""
    dropout: float = 0.0
    """Dropout in attention and on each residual branch."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each branch, without bias. layernorm is one fused kernel on a CPU,
    rmsnorm several."""
    activation: Literal["gelu", "relu2", "swiglu"] = "gelu"
    """Non-linearity of the feed-forward layers."""
    rope_base: float = 10000.0
    """Base of the rotary position frequencies; larger for longer sequences."""
    model_end: bool = True
    """Learn where sequences end; generation then stops by itself."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def transformer(self) -> TransformerConfig:
        inner = self.dim_feedforward
        if inner == 0:
            inner = 4 * self.decoder_dim
            if self.activation == "swiglu":  # equal parameters, in multiples of 32
                inner = max(32, round(inner * 2 / 3 / 32) * 32)
        return TransformerConfig(
            dim=self.decoder_dim,
            num_heads=self.nhead,
            num_layers=self.num_decoder_layers,
            dim_feedforward=inner,
            dropout=self.dropout,
            norm=self.norm,
            activation=self.activation,
            rope_base=self.rope_base,
            activation_checkpointing=self.activation_checkpointing,
        )


class CodecLM(TokenModel):
    """Causal transformer over codec tokens.

    >>> info = CodecInfo("demo", "", 16000, 320, num_codebooks=4, codebook_size=16)
    >>> model = CodecLM(CodecLMConfig(decoder_dim=32, nhead=2, num_decoder_layers=1), info)
    >>> batch = Batch.from_codes([torch.randint(16, (5, 4)), torch.randint(16, (3, 4))])
    >>> out = model(batch)
    >>> out.count.tolist()  # 5 + 3 codes per level
    [8.0, 8.0, 8.0, 8.0]
    """

    name = "codec-lm"

    def __init__(self, config: CodecLMConfig, info: CodecInfo):
        super().__init__(config, info)
        self.pattern = make_pattern(config.pattern, info.num_codebooks)
        self.exact_likelihood = self.pattern.exact
        K, V, d = info.num_codebooks, info.codebook_size, config.decoder_dim
        self.special = V
        """Id of cells without a code: before the start, past the end, and those that the pattern
        leaves empty."""
        self.transformer = Transformer(config.transformer())
        self.embedding = SumEmbedding(K, V + 1, d)
        self.heads = LinearHeads(K, V, d)
        self.end_head = nn.Linear(d, 1) if config.model_end else None
        if self.end_head is not None:
            # ends are rare: start from "goes on"
            nn.init.zeros_(self.end_head.weight)
            nn.init.constant_(self.end_head.bias, -5.0)

    def muon_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.transformer.parameters() if p.ndim == 2]

    def hidden(self, inputs: Tensor, cache: KVCache | None = None) -> Tensor:
        """The one way in, for training and generation alike.

        :param inputs: (B, S, K) ids; column s is the grid at step s - 1.
        :return: (B, S, d); column s predicts the grid at step s.
        """
        return self.transformer(self.embedding(inputs), cache=cache)

    def shift(self, grid: Tensor) -> Tensor:
        """(B, S, K) grid -> inputs: one step later, the first all special."""
        start = grid.new_full((grid.shape[0], 1, grid.shape[2]), self.special)
        return torch.cat([start, grid[:, :-1]], dim=1)

    def forward(
        self,
        batch: Batch,
        label_smoothing: float = 0.0,
        level_weights: Tensor | None = None,
    ) -> LMOutput:
        """Loss of a batch; see `LMOutput`.

        :param label_smoothing: share of each target spread over all codes, in the loss only.
        :param level_weights: (K,) weight of each level's nats in the loss.
        """
        num_frames = batch.codes.shape[1]
        steps = self.pattern.grid_steps(num_frames, with_end=self.end_head is not None)
        grid, valid = self.pattern.interleave(batch.codes, batch.lengths, self.special, steps)
        hidden = self.hidden(self.shift(grid))  # (B, S, d)
        targets = grid.masked_fill(~valid, 0)
        flat = self.heads.loss(
            hidden.flatten(0, 1),
            targets.flatten(0, 1),
            valid.flatten(0, 1),
            level_weights,
            label_smoothing,
        )
        count = valid.sum((0, 1)).float()
        weights = count if level_weights is None else count * level_weights
        out = LMOutput(flat.loss, weights.sum(), flat.nats, flat.correct, count)
        if self.end_head is not None:
            nats, decisions = self._end_nats(hidden, batch, num_frames)
            out.loss = out.loss + nats
            out.extra["end_nats"] = (nats.detach(), decisions)
        return out

    def _end_nats(self, hidden: Tensor, batch: Batch, num_frames: int) -> tuple[Tensor, Tensor]:
        """-log p of "goes on" before every real frame and of "ends" after the last, the latter
        only for items that end where their recording ends; sum and number of decisions."""
        frames = torch.arange(num_frames + 1, device=hidden.device)
        # the decision before frame t stands where level 0 of frame t would
        at = self.pattern.steps(frames, batch.lengths)[:, :, 0].expand(len(batch.lengths), -1)
        index = at.clamp(max=hidden.shape[1] - 1).unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        logits = self.end_head(hidden.gather(1, index)).squeeze(-1).float()  # (B, T + 1)
        ends = (frames[None, :] == batch.lengths[:, None]) & batch.ends[:, None]
        decided = (frames[None, :] < batch.lengths[:, None]) | ends
        nats = F.binary_cross_entropy_with_logits(logits, ends.float(), reduction="none")
        return (nats * decided).sum(), decided.sum().float()

    def step(self, inputs: Tensor, cache: KVCache) -> tuple[Tensor, Tensor | None]:
        """Continue decoding by n steps.

        :param inputs: (B, n, K) grid columns that follow those in the cache.
        :return: logits (B, K, V) and end logits (B,) or None, both of the last step.
        """
        last = self.hidden(inputs, cache)[:, -1]
        end = self.end_head(last).squeeze(-1) if self.end_head is not None else None
        return self.heads(last), end

    def generate(self, *args, **kwargs):
        """Sample sequences: see `rvqlm.generation.decode.generate`, which this calls."""
        from rvqlm.generation.decode import generate

        return generate(self, *args, **kwargs)
