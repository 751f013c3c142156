"""What lets a masked model write frame after frame as well: the same embeddings, transformer and
heads, with steps that see no later ones and come one frame late.

Each item is trained in both ways. Added to every step is one vector that says that it is the other
way; the end is one binary decision per frame, as that of `rvqlm.models.codec_lm` with the parallel
pattern, whose numbers those of this way compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch, Padded
from rvqlm.models.base import LMOutput
from rvqlm.modules.conditioning import ConditionedTransformer, Context, DecoderState
from rvqlm.modules.documents import Documents
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.ends import EndHead
from rvqlm.modules.heads import Heads
from rvqlm.patterns import ParallelPattern


class FrameByFrame(nn.Module):
    """The other way, as `rvqlm.generation.steps` wants it; its own are a vector and the end.

    :param embedding, network, heads: the model's, which stay its own.
    """

    def __init__(
        self, dim: int, embedding: SumEmbedding, network: ConditionedTransformer, heads: Heads
    ):
        super().__init__()
        self._parts = embedding, network, heads  # no submodules
        self.pattern = ParallelPattern(embedding.num_codebooks)
        self.special = embedding.num_embeddings - 1
        self.way = nn.Parameter(torch.randn(dim))
        self.end_head = EndHead(dim)

    def inputs(self, columns: Tensor) -> Tensor:
        """(B, n, K) frames, each one step late -> (B, n, d)."""
        return self._parts[0](columns) + self.way

    def hidden(
        self, codes: Tensor, context: Context | None, documents: Documents | None = None
    ) -> Tensor:
        """(B, T, K) codes, `special` past the items' ends -> (B, T + 1, d): step t sees the frames
        before t."""
        start = codes.new_full((len(codes), 1, codes.shape[2]), self.special)
        x = self.inputs(torch.cat([start, codes], 1))
        return self._parts[1](x, context, causal=True, documents=documents)

    def loss(
        self,
        batch: Batch,
        label_smoothing: float,
        level_weights: Tensor | None,
        documents: Documents | None = None,
    ) -> LMOutput:
        """-log p of each frame from those before it, and of where the items end."""
        _, network, heads = self._parts
        B, T, _ = batch.codes.shape
        context = network.encode_conditions(batch.conditions, B)
        codes = batch.codes.long().masked_fill(batch.codes < 0, self.special)
        hidden = self.hidden(codes, context, documents)
        scored = batch.scored()[..., None].expand_as(codes)
        rows = (hidden[:, :T], codes.masked_fill(~scored, 0), scored)
        how = level_weights, label_smoothing, batch.most()
        loss = heads.loss(*(x.flatten(0, 1) for x in rows), *how)
        out = LMOutput.of_levels(loss, scored.sum(1).float(), level_weights)
        steps = torch.arange(T + 1, device=hidden.device)[None]
        nats, decisions = self.end_head.loss(hidden, steps, batch)
        out.loss = out.loss + nats
        out.sums["end_nats"] = (nats.detach(), decisions)
        return out

    # ------------------------------------------------------------------------------ generation

    @property
    def network(self) -> ConditionedTransformer:
        return self._parts[1]

    def begin(
        self, conditions: Mapping[str, Padded], batch_size: int, max_steps: int, drop: Tensor | None
    ) -> DecoderState:
        network = self._parts[1]
        context = network.encode_conditions(conditions, batch_size, drop=drop)
        return network.start(context, batch_size, max_steps)

    def step(
        self, inputs: Tensor, state: DecoderState, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        last = self.fill(inputs, state, positions)[:, -1]
        return last, self.end_head(last)

    def fill(self, inputs: Tensor, state: DecoderState, positions: Tensor | None = None) -> Tensor:
        return self.network.step(self.inputs(inputs), state, positions, causal=True)

    def draw(self, hidden: Tensor, choose, level: int | None = None) -> Tensor:
        return self._parts[2].draw(hidden, choose)
