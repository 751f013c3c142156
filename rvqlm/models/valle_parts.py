"""The two networks of `rvqlm.models.valle`: `CoarseModel` makes level 0 frame by frame,
`FineModel` makes one of the other levels, all frames at once.

Both are given frames of codes through one sum of embeddings in which a hidden level is the special
id, and both build these inputs by one function for training and for generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch, Padded, mask_of
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.generation.request import Request
from rvqlm.generation.sampling import SamplingConfig, guide, sample
from rvqlm.modules.conditioning import Context, DecoderState
from rvqlm.modules.documents import Documents
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.ends import EndHead
from rvqlm.modules.fused_loss import HeadLoss
from rvqlm.modules.heads import LinearHeads
from rvqlm.patterns import ParallelPattern

DRAWN_AT_ONCE = 4096
"""Cells whose logits are held at once when the fine levels are drawn."""


class CodeInputs(nn.Module):
    """Sum of the levels' embeddings and, with a prenet, two linear layers with dropout."""

    def __init__(self, num_codebooks: int, ids: int, dim: int, prenet: bool, dropout: float):
        super().__init__()
        self.embedding = SumEmbedding(num_codebooks, ids, dim)
        self.prenet = None
        if prenet:
            self.prenet = nn.Sequential(
                nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dim, dim)
            )

    def forward(self, ids: Tensor) -> Tensor:
        """(B, S, K) -> (B, S, d)."""
        x = self.embedding(ids)
        return x if self.prenet is None else self.prenet(x)

    def matrices(self) -> list[nn.Parameter]:
        """Matrices between hidden layers."""
        return [] if self.prenet is None else [self.prenet[0].weight, self.prenet[3].weight]


def hide(codes: Tensor, visible: Tensor, special: int) -> Tensor:
    """(B, T, K) codes as ids: ``special`` where not ``visible`` (B, T, K)."""
    return codes.long().masked_fill(~visible, special)


class CoarseModel(nn.Module):
    """Causal transformer over frames that predicts level 0 and the end.

    A frame of the prompt is given with all levels, a later one with level 0. Columns, and what is
    predicted from them, for a prompt of frames 0 and 1; ``^`` is the special id on all levels,
    ``|`` the step that ``prepend_bos`` puts before the first frame to predict::

        ^  0  1  2  3                 ^  0  1  |  2  3
              2  3  end                        2  3  end
    """

    def __init__(self, config, info: CodecInfo, conditions: Infos):
        super().__init__()
        c, K, V, d = config, info.num_codebooks, info.codebook_size, config.decoder_dim
        self.num_codebooks, self.special = K, V
        self.shift = int(c.prepend_bos)
        """Column from which frame t is predicted, less t."""
        self.inputs = CodeInputs(K, V + 1 + self.shift, d, c.add_prenet, c.dropout)
        self.network = c.build(conditions)
        self.heads = LinearHeads(1, V, d)
        self.end_head = EndHead(d) if c.model_end else None

    def matrices(self) -> list[nn.Parameter]:
        return self.network.matrices() + self.inputs.matrices()

    def encode_conditions(
        self, conditions: Mapping[str, Padded], batch_size: int, drop: Tensor | None = None
    ) -> Context | None:
        """Conditions where the columns stand that the frames are predicted from."""
        context = self.network.encode_conditions(conditions, batch_size, drop=drop)
        return context and context.late(self.shift)

    def columns(self, codes: Tensor, lengths: Tensor, prompt_lengths: Tensor) -> Tensor:
        """(B, T, K) codes -> (B, T + 1 + shift, K) ids."""
        T, levels = codes.shape[1], torch.arange(self.num_codebooks, device=codes.device)
        known, real = mask_of(prompt_lengths, T), mask_of(lengths, T)
        ids = hide(codes, (known[..., None] | (levels == 0)) & real[..., None], self.special)
        ids = nn.functional.pad(ids, (0, 0, 1, 0), value=self.special)  # (B, T + 1, K)
        if not self.shift:
            return ids
        step = torch.arange(ids.shape[1] + 1, device=ids.device)
        boundary = prompt_lengths[:, None] + 1  # where the extra step stands
        source = (step - (step >= boundary).long())[..., None].expand(-1, -1, ids.shape[2])
        ids = ids.gather(1, source)
        return ids.masked_fill((step == boundary)[..., None], self.special + 1)

    def loss(
        self,
        batch: Batch,
        level_weights: Tensor,
        label_smoothing: float,
        documents: Documents | None = None,
    ) -> tuple[HeadLoss, tuple[Tensor, Tensor] | None]:
        """Sums over the scored frames of level 0; nats of the ends and number of decisions.

        :param batch: with ``prompt_lengths``.
        :param level_weights: (1,).
        """
        B, T, _ = batch.codes.shape
        context = self.encode_conditions(batch.conditions, B)
        ids = self.columns(batch.codes, batch.lengths, batch.prompt_lengths)
        if self.end_head is None:
            ids = ids[:, :-1]  # from the last column nothing but the end is predicted
        hidden = self.network(self.inputs(ids), context, documents=documents)
        scored = batch.scored()
        loss = self.heads.loss(
            hidden[:, self.shift : self.shift + T].flatten(0, 1),
            batch.codes[..., :1].long().masked_fill(~scored[..., None], 0).flatten(0, 1),
            scored.flatten()[:, None],
            level_weights,
            label_smoothing,
            batch.most(),
        )
        if self.end_head is None:
            return loss, None
        at = torch.arange(T + 1, device=hidden.device)[None, :] + self.shift
        return loss, self.end_head.loss(hidden, at, batch)


class CoarseDecoder:
    """`CoarseModel` as `rvqlm.generation.steps` wants it: of each frame it draws level 0 and
    leaves the others special.

    The extra step of ``prepend_bos`` stands where each item's prompt ends, so that items with
    unequal prompts would fall out of step. Since prompts are known beforehand, every item is one
    column ahead from the beginning instead.
    """

    OF_REQUEST = ("columns", "known")
    """Tensors that are of the request."""

    def __init__(self, model: CoarseModel, request: Request):
        self.model, self.special, self.network = model, model.special, model.network
        self.pattern = ParallelPattern(model.num_codebooks)
        lengths = request.prompt_lengths
        self.columns = model.columns(request.prompt_codes, lengths, lengths)
        """(B, P + 1 + shift, K) of the prompts."""
        self.known = lengths + 1 + model.shift
        """(B,) columns of an item that its prompt determines."""

    def begin(
        self, conditions: Mapping[str, Padded], batch_size: int, max_steps: int, drop: Tensor | None
    ) -> DecoderState:
        context = self.model.encode_conditions(conditions, batch_size, drop)
        return self.model.network.start(context, batch_size, max_steps + self.model.shift)

    def step(
        self, inputs: Tensor, state: DecoderState, positions: None = None
    ) -> tuple[Tensor, Tensor | None]:
        """inputs (rows, n, K) frames that follow those in the cache, the first a frame of specials;
        their positions are in order."""
        hidden = self.fill(inputs, state)[:, -1]
        end_head = self.model.end_head
        return hidden, None if end_head is None else end_head(hidden)

    def fill(self, inputs: Tensor, state: DecoderState, positions: None = None) -> Tensor:
        """Hidden states of the same steps."""
        return self.model.network.step(self.model.inputs(self._ahead(inputs, state)), state)

    def _ahead(self, inputs: Tensor, state: DecoderState) -> Tensor:
        """The columns that come next."""
        shift, (rows, n) = self.model.shift, inputs.shape[:2]
        if not shift:
            return inputs
        if state.rows_differ or state.cache.position:
            first = (state.cache.places - state.lead)[:, None]
        else:
            first, n = torch.zeros(rows, 1, dtype=torch.int64, device=inputs.device), n + shift
        step = first + torch.arange(n, device=inputs.device)  # (rows, n)
        times = rows // len(self.known)  # twice under guidance
        index = step.clamp(max=self.columns.shape[1] - 1)[..., None]
        columns = self.columns.repeat(times, 1, 1)
        columns = columns.gather(1, index.expand(-1, -1, columns.shape[2]))
        known = (step < self.known.repeat(times)[:, None])[..., None]
        if not inputs.shape[1]:  # nothing is drawn yet
            return columns
        # what is not known is a frame drawn just now, the last one
        return torch.where(known, columns, inputs[:, -1:])

    def draw(
        self, hidden: Tensor, choose: Callable[[int, Tensor], Tensor], level: int | None = None
    ) -> Tensor:
        codes = self.model.heads.draw(hidden, choose)  # (B, 1)
        return nn.functional.pad(codes, (0, self.model.num_codebooks - 1), value=self.special)


class FineModel(nn.Module):
    """Non-causal transformer that predicts level j of all frames from their levels below j, with
    norms conditioned on j (Wang et al., 2023, arXiv:2301.02111, section 4.2.2).

    Frames that are ``known`` are given with all levels.
    """

    def __init__(self, config, info: CodecInfo, conditions: Infos):
        super().__init__()
        c, K, V, d = config, info.num_codebooks, info.codebook_size, config.nar_dim
        self.num_codebooks, self.special = K, V
        self.inputs = CodeInputs(K, V + 1, d, c.add_prenet, c.dropout)
        self.level = nn.Embedding(K - 1, d)
        layers = c.num_nar_layers or c.num_decoder_layers
        self.network = c.build(conditions, dim=d, num_layers=layers, causal=False, adaptive=True)
        tied = self.inputs.embedding if c.share_embedding else None
        self.heads = LinearHeads(K - 1, V, d, tied, first_level=1)

    def matrices(self) -> list[nn.Parameter]:
        return self.network.matrices() + self.inputs.matrices()

    def encode_conditions(
        self, conditions: Mapping[str, Padded], lengths: Tensor, drop: Tensor | None = None
    ) -> Context | None:
        """Conditions on the time axis of sequences whose lengths (B,) are known."""
        return self.network.encode_conditions(conditions, len(lengths), frames=lengths, drop=drop)

    def hidden(
        self,
        codes: Tensor,
        lengths: Tensor,
        known: Tensor,
        level: Tensor,
        context: Context | None,
        documents: Documents | None = None,
        padded: bool = True,
    ) -> Tensor:
        """(B, T, d), from which level (B,), 1 ... K - 1, of the item is predicted.

        :param codes: (B, T, K); any values where they are hidden.
        :param known: (B, T) bool.
        :param padded: whether an item is shorter than T: attention then needs a mask.
        """
        valid = mask_of(lengths, codes.shape[1])
        levels = torch.arange(self.num_codebooks, device=codes.device)
        visible = known[..., None] | (levels < level[:, None, None])  # (B, T, K)
        ids = hide(codes, visible & valid[..., None], self.special)
        inputs, level = self.inputs(ids), self.level(level - 1)
        seen = valid if padded else None
        return self.network(inputs, context, seen, condition=level, documents=documents)

    def loss(
        self,
        batch: Batch,
        known: Tensor,
        level: Tensor,
        context: Context | None,
        level_weights: Tensor,
        label_smoothing: float,
        documents: Documents | None = None,
    ) -> tuple[HeadLoss, Tensor]:
        """Sums over the frames that are neither known nor padding, each item on its ``level``
        (B,), and how many these are, per item (B,).

        :param level_weights: (K - 1,); the sums are of levels 1 ... K - 1 likewise.
        """
        B, T, _ = batch.codes.shape
        given = batch.codes, batch.lengths, known, level, context, documents
        hidden = self.hidden(*given, padded=batch.padded)
        scored = ~known & mask_of(batch.lengths, T)
        targets = batch.codes.long().gather(2, level[:, None, None].expand(B, T, 1)).squeeze(2)
        loss = self.heads.loss_of_level(
            hidden,
            level - 1,
            targets.masked_fill(~scored, 0),
            scored,
            level_weights,
            label_smoothing,
        )
        return loss, scored.sum(1)

    def fill(
        self,
        codes: Tensor,
        lengths: Tensor,
        known: Tensor,
        context: Context | None,
        noise: Tensor,
        sampling: SamplingConfig,
        after_level: Callable[[], None],
        logit_bias: Tensor | None = None,
    ) -> Tensor:
        """Draw levels 1 ... K - 1 of the frames that are not known, coarse to fine.

        :param codes: (B, T, K) with level 0 everywhere and all levels of known frames.
        :param context: of B rows, or of 2 B: the second half without conditions, for guidance.
        :param noise: (B, T, K - 1) uniforms.
        :param logit_bias: (K, V).
        """
        codes, B = codes.clone(), len(codes)
        guided = context is not None and len(context.x) == 2 * B
        times = 2 if guided else 1
        hidden_frames = ~known & mask_of(lengths, codes.shape[1])
        item, frame = hidden_frames.nonzero(as_tuple=True)  # (N,) each
        for level in range(1, self.num_codebooks):
            hidden = self.hidden(
                codes.repeat(times, 1, 1),
                lengths.repeat(times),
                known.repeat(times, 1),
                torch.full((times * B,), level, device=codes.device),
                context,
            )
            states = hidden.unflatten(0, (times, B))[:, item, frame]  # (times, N, d)
            for start in range(0, len(item), DRAWN_AT_ONCE):
                part = slice(start, start + DRAWN_AT_ONCE)
                logits = self.heads.logits_of_level(states[:, part].flatten(0, 1), level - 1)
                if guided:
                    logits = guide(logits, sampling.cfg_scale)
                if logit_bias is not None:
                    logits = logits + logit_bias[level]
                uniform = noise[item[part], frame[part], level - 1]
                codes[item[part], frame[part], level] = sample(logits, uniform, sampling, level)
            after_level()
        return codes
