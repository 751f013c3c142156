"""`codec-lm`: one causal transformer over the codes of all levels.

- a pattern lays the (T, K) codes out in steps (`rvqlm.patterns`)
- input of a step: the K codes of the step before, embedded; that of the first is all special ids
- conditions stand before the codes or are attended to (`rvqlm.modules.conditioning`)
- heads over K levels at once, or a small transformer over the levels of a frame; the loss is exact
  over real codes: padding, prompts and empty cells never count
- the end of a sequence is one binary decision per frame, apart from the codes, so that the
  losses of the codes stay comparable between models that end and models that don't

With ``--conditions source --fusion cross --num-encoder-layers n`` it is the encoder-decoder that
accompanies another stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.generation.decode import decode
from rvqlm.generation.request import Generation, Request
from rvqlm.generation.slots import decode_in_windows
from rvqlm.models.base import LMOutput, TokenModel
from rvqlm.models.network import GridConfig
from rvqlm.modules.conditioning import Context, DecoderState
from rvqlm.modules.depth import DepthHeads
from rvqlm.modules.documents import Documents
from rvqlm.modules.ends import EndHead
from rvqlm.modules.heads import Heads, MLPHeads
from rvqlm.modules.whole_step import WholeStep
from rvqlm.patterns import PATTERNS, ParallelPattern, make_pattern

PatternName = Literal[tuple(PATTERNS)]
PATTERN_HELP = "Layout of the levels in steps. " + "; ".join(
    f"{p.name}: {p.about}" for p in PATTERNS.values()
)


@dataclass
class CodecLMConfig(GridConfig):
    """Shape of a codec-lm."""

    pattern: Annotated[PatternName, tyro.conf.arg(help=PATTERN_HELP)] = "delay"
    delays: tuple[int, ...] = ()
    """Steps that each level comes late with --pattern delay, such as 0 1 1 2; unset: 0 1 2 ..."""
    head: Literal["linear", "mlp", "residual", "depth"] = "linear"
    """Classifiers over the hidden state: linear; with a hidden layer; residual, a chain of such
    layers from level to level; or depth, a small transformer over the levels of a frame, which
    gives the exact joint likelihood (needs --pattern parallel)."""
    head_expansion: float = 1.0
    """Inner width of mlp heads, in widths of the model."""
    depth_dim: int = 0
    """Width of the depth transformer; 0: that of the model, at most 256."""
    depth_layers: int = 2
    """Layers of the depth transformer."""
    depth_nhead: int = 4
    """Attention heads of the depth transformer."""
    model_end: bool = True
    """Learn where sequences end; generation then stops by itself."""
    code_dropout: float = 0.0
    """Share of the past codes that are hidden in training, so that a model of little data learns
    to say its text rather than to go on as the recordings did."""
    scheduled_sampling: float = 0.0
    """Share of the input frames that come from the model's own predictions instead of the data by
    the end of training, growing linearly from 0; costs one more forward pass."""

    @property
    def depth_width(self) -> int:
        return self.depth_dim or min(self.decoder_dim, 256)

    def problems(self) -> list[str]:
        found = super().problems()
        found += self.outside("[0, 1]", "scheduled_sampling", "code_dropout")
        if self.head == "mlp" and round(self.head_expansion * self.decoder_dim) < 1:
            found.append(f"--head-expansion {self.head_expansion} must be positive")
        if self.head != "mlp":
            found += self.without_effect("--head mlp", "head_expansion")
        if self.head != "depth":
            names = ("depth_dim", "depth_layers", "depth_nhead")
            return found + self.without_effect("--head depth", *names)
        if self.pattern != ParallelPattern.name:
            found.append(
                f"--head depth models the levels of a frame in one step, --pattern {self.pattern} "
                f"spreads them over several: use --pattern {ParallelPattern.name}"
            )
        if self.shared_head:
            found.append("--shared-head has no meaning with --head depth")
        dim = self.depth_width
        if dim < 1 or self.depth_nhead < 1 or dim % self.depth_nhead:
            found.append(f"--depth-dim {dim} is not a multiple of --depth-nhead {self.depth_nhead}")
        return found + self.outside("[1, inf)", "depth_layers")

    def unfit(self, info: CodecInfo) -> list[str]:
        if self.head == "depth" and info.num_codebooks < 2:
            return ["--head depth needs at least 2 codebooks: use linear"]
        return []

    def make_heads(self, info: CodecInfo) -> Heads:
        shape = info.num_codebooks, info.codebook_size, self.decoder_dim
        if self.head == "depth":
            return DepthHeads(*shape, self.depth_width, self.depth_layers, self.depth_nhead)
        if self.head == "mlp":
            return MLPHeads(*shape, self.head_expansion, self.shared_head)
        return super().make_heads(info)


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
    packs = True

    def __init__(self, config: CodecLMConfig, info: CodecInfo, conditions: Infos | None = None):
        super().__init__(config, info, conditions)
        c = config
        self.pattern = make_pattern(c.pattern, info.num_codebooks, c.delays)
        self.embedding = c.make_embedding(info)
        first = torch.zeros(1, dtype=torch.long, device="cpu")
        lag = int(self.pattern.steps(first, first).max())  # of frame 0, whose time is step 0
        self.network = c.build(self.conditions, codes=self.embedding, lag=lag)
        self.heads = c.make_heads(info)
        self.end_head = EndHead(c.decoder_dim) if c.model_end else None
        self.learn_durations(self.network)
        self.exact_likelihood = self.pattern.exact or self.heads.exact_frame

    def hidden(
        self,
        inputs: Tensor,
        lengths: Tensor,
        context: Context | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """:param inputs: (B, S, K) ids; column s is the grid at step s - 1.
        :param lengths: (B,) frames, where the pattern wants to know them.
        :return: (B, S, d); column s predicts the grid at step s.
        """
        steps = torch.arange(inputs.shape[1], device=inputs.device)
        positions = self.pattern.positions(steps, lengths)
        inputs = self.embedding(inputs)
        return self.network(inputs, context, positions=positions, documents=documents)

    def _documents(self, batch: Batch, steps: int) -> Documents | None:
        one, two = (self.pattern.grid_steps(n, self.end_head is not None) for n in (1, 2))
        return self.documents(self.network, batch, two - one, 2 * one - two, steps)

    def shift(self, grid: Tensor) -> Tensor:
        """(B, S, K) grid -> inputs: one step later, the first all special."""
        start = grid.new_full((grid.shape[0], 1, grid.shape[2]), self.special)
        return torch.cat([start, grid[:, :-1]], dim=1)

    def encode_conditions(
        self, conditions: Mapping[str, Padded], batch_size: int, drop: Tensor | None = None
    ) -> Context | None:
        rate = float(self.pattern.steps_per_frame)
        return self.network.encode_conditions(
            conditions, batch_size, steps_per_frame=rate, drop=drop
        )

    def forward(
        self, batch: Batch, label_smoothing: float = 0.0, level_weights: Tensor | None = None
    ) -> LMOutput:
        B, T, K = batch.codes.shape
        steps = self.pattern.grid_steps(T, with_end=self.end_head is not None)
        grid, real = self.pattern.interleave(batch.codes, batch.lengths, self.special, steps)
        scored = real
        if batch.prompt_lengths is not None:
            cells = self.pattern.cells(torch.arange(steps, device=real.device), batch.lengths)
            scored = real & (cells >= batch.prompt_lengths[:, None, None])
        context = self.encode_conditions(batch.conditions, B)
        inputs, documents = self.shift(grid), self._documents(batch, steps)
        if self.training and self.config.scheduled_sampling:
            with torch.no_grad():
                predictions = self.hidden(inputs, batch.lengths, context, documents)
            inputs = self._mix_in_predictions(predictions, grid, real)
        if self.training and self.config.code_dropout:
            hide = torch.rand(inputs.shape, device=inputs.device) < self.config.code_dropout
            inputs = inputs.masked_fill(hide, self.special)
        hidden = self.hidden(inputs, batch.lengths, context, documents)  # (B, S, d)
        targets = grid.masked_fill(~real, 0)
        flat = hidden.flatten(0, 1), targets.flatten(0, 1), scored.flatten(0, 1)
        most = batch.most()
        if self.pattern.one_code_a_step:  # no K-fold classifiers
            used = T * K
            flat = (
                hidden[:, :used].reshape(B * T, K, -1),
                self._diagonal(targets[:, :used]).reshape(B * T, K),
                self._diagonal(scored[:, :used]).reshape(B * T, K),
            )
        else:  # a level more than another may be scored at a step
            most = most._replace(rows=self.pattern.steps_at_most(most.rows, B))
        loss = self.heads.loss(*flat, level_weights, label_smoothing, most)
        out = LMOutput.of_levels(loss, scored.sum(1).float(), level_weights)
        if self.end_head is not None:
            # the decision before frame t stands where level 0 of frame t would
            frames = torch.arange(T + 1, device=hidden.device)
            at = self.pattern.steps(frames, batch.lengths)[:, :, 0]
            nats, decisions = self.end_head.loss(hidden, at, batch)
            out.loss = out.loss + nats
            out.sums["end_nats"] = (nats.detach(), decisions)
        self.add_duration_loss(out, self.network, batch)
        return out

    def _diagonal(self, grid: Tensor) -> Tensor:
        """(B, T * K, K) -> (B, T, K): level k of each frame's step k."""
        return grid.unflatten(1, (-1, self.info.num_codebooks)).diagonal(dim1=2, dim2=3)

    @torch.no_grad()
    def _mix_in_predictions(self, hidden: Tensor, grid: Tensor, real: Tensor) -> Tensor:
        """Scheduled sampling in one pass (Mihaylova & Martins, 2019, arXiv:1906.07651): predict all
        steps from the data, then take draws from these predictions in place of some codes."""
        share = self.config.scheduled_sampling * self.progress
        hidden = hidden.flatten(0, 1)
        targets = grid.masked_fill(~real, 0).flatten(0, 1)
        draw = torch.rand(grid.shape[0] * grid.shape[1], grid.shape[2], 1, device=grid.device)
        parts = []
        for start in range(0, len(hidden), 1024):  # never the logits of a whole batch
            part = slice(start, start + 1024)
            p = self.heads(hidden[part], targets[part]).float().softmax(-1).cumsum(-1)
            drawn = (p < draw[part] * p[..., -1:]).sum(-1)
            parts.append(drawn.clamp(max=self.info.codebook_size - 1))
        predicted = torch.cat(parts).view(grid.shape).to(grid.dtype)
        swap = torch.rand(grid.shape[:2], device=grid.device)[..., None] < share
        return self.shift(torch.where(swap & real, predicted, grid))

    # ------------------------------------------------------------------------------ generation

    @property
    def way(self) -> CodecLM | None:
        return None if self.pattern.by_length else self

    def begin(self, conditions, batch_size: int, max_steps: int, drop=None) -> DecoderState:
        context = self.encode_conditions(conditions, batch_size, drop)
        return self.network.start(context, batch_size, max_steps)

    def step(
        self, inputs: Tensor, state: DecoderState, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Continue decoding by n steps.

        :param inputs: (B, n, K) grid columns that follow those in the cache.
        :param positions: (B, n), where the pattern has its own.
        :return: hidden (B, d) and end logits (B,) or None, both of the last step.
        """
        last = self.fill(inputs, state, positions)[:, -1]
        return last, self.end_head(last) if self.end_head is not None else None

    def fill(self, inputs: Tensor, state: DecoderState, positions: Tensor | None = None) -> Tensor:
        """Hidden states (B, n, d) of the same steps."""
        return self.network.step(self.embedding(inputs), state, positions)

    def draw(self, hidden: Tensor, choose, level: int | None = None) -> Tensor:
        if level is None:
            return self.heads.draw(hidden, choose)
        code = choose(level, self.heads.logits_of_level(hidden, level)[:, None])  # (B, 1)
        return code.expand(-1, self.info.num_codebooks)

    def whole_step(self, state: DecoderState) -> WholeStep | None:
        return WholeStep.of(self.embedding, self.heads, self.end_head, state)

    def _generate(self, request: Request) -> Generation:
        if request.context_frames is not None:
            return decode_in_windows(self, request)
        return decode(self, request.several()).best(request.sampling.best_of)
