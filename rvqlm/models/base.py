"""What every model returns and offers, whatever its family: the trainer knows only this."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.errors import UserError
from rvqlm.generation.request import Generation, Request, make_request
from rvqlm.generation.sampling import SamplingConfig, SpeechConfig, uniforms
from rvqlm.generation.steps import Autoregressive
from rvqlm.modules.conditioning import ConditionedTransformer
from rvqlm.modules.documents import Documents
from rvqlm.modules.durations import DurationHead, durations_of, times_of
from rvqlm.modules.fused_loss import HeadLoss


@dataclass
class LMOutput:
    """Sums over the scored tokens of a batch, never means, so that any split of the data over
    micro-batches, ranks or validation batches adds up exactly. Padding and prompts are not
    scored."""

    loss: Tensor
    """Scalar to back-propagate: weighted nats of the codes plus those of the end decision."""
    normalizer: Tensor
    """Scalar: tokens in `loss`. A step's gradient is the sum of d loss over micro-batches and
    ranks, divided by the sum of normalizers."""
    sums: dict[str, tuple[Tensor, Tensor]]
    """Metrics by name as (sum, count), detached: (K,) each for one per level, scalars for one of
    the batch. Always there, and over the same count of codes: ``nats``, -log p of the codes,
    unweighted, without smoothing; ``accuracy``, codes that were the most likely ones. A level's
    count is that of what scored it: where an item scores some levels only, levels differ."""
    items: tuple[Tensor, Tensor] | None = None
    """Nats and count (B, K) of each item, which add up to those in `sums`; without gradients
    only."""
    later: Callable[[], dict[str, tuple[Tensor, Tensor]]] | None = None
    """More of `sums`, to be asked for once the device was waited for."""

    @classmethod
    def of_levels(
        cls, loss: HeadLoss, count: Tensor, level_weights: Tensor | None = None
    ) -> LMOutput:
        """From the loss of heads over cells, an equal number of rows for each item, of which
        ``count`` (B, K) were scored (or the sum of their weights)."""
        of_levels = count.sum(0)
        weights = of_levels if level_weights is None else of_levels * level_weights
        sums = {name: (value, of_levels) for name, value in loss.sums.items()}
        items = None
        if loss.cells is not None:
            items = loss.cells.unflatten(0, (len(count), -1)).sum(1), count
        return cls(loss.loss, weights.sum(), sums, items)

    @property
    def nats(self) -> Tensor:
        """(K,)"""
        return self.sums["nats"][0]

    @property
    def count(self) -> Tensor:
        """(K,) codes scored."""
        return self.sums["nats"][1]


class TokenModel(nn.Module):
    """Base of all models: built from a `NetworkConfig`, a `CodecInfo` and the `ConditionInfo`s of
    what it may be conditioned on.

    Subclasses write `forward`, which trains, and `_generate`, which samples.

    :raises UserError: everything wrong with the config, in one message.
    """

    name: ClassVar[str]
    packs: ClassVar[bool] = False
    """Whether it computes rows of several sequences (`Batch.rows`)."""
    generates: bool = True
    """Whether it predicts codes at all."""
    exact_likelihood: bool = False
    """Whether the loss estimates the entropy of the codes; otherwise it bounds it from above."""
    in_order: ClassVar[bool] = True
    """Whether it draws one code after another: where not, what is asked of the codes before, or of
    their likelihood, has no answer."""
    judged_by: ClassVar[str] = "loss"
    """The figure of a validation whose lowest value makes the best checkpoint."""
    stage: int = 0
    """Of a family that is trained in stages, which; see `rvqlm.training.run`."""
    progress: float = 0.0
    """Share of the training that is done; the trainer sets it before each step."""
    epoch: int = 0
    """Epoch of the data in which a step of training begins; set likewise."""

    @property
    def phase(self) -> Hashable:
        """What a pass of training depends on of `epoch`."""
        return None

    def __init__(self, config, info: CodecInfo, conditions: Infos | None):
        conditions = conditions or {}
        config.check(info, conditions)
        super().__init__()
        self.config, self.info = config, info
        self.conditions = {kind: conditions[kind] for kind in config.conditions}
        self.duration_head: DurationHead | None = None

    def why_not_graphed(self) -> str:
        """Why its passes in training cannot be repeated as CUDA graphs; empty where they can."""
        if self.config.activation_checkpointing:
            return "--activation-checkpointing asks for the state of random numbers in between"
        return ""

    def documents(
        self, network: ConditionedTransformer, batch: Batch, per_frame: int, more: int, size: int
    ) -> Documents | None:
        """Where the items of a batch stand in its rows; None where each has one of its own.

        :param network: that computes them.
        :param per_frame, more: steps of an item of T frames: per_frame * T + more.
        :param size: steps of the padded batch.
        """
        if batch.rows is None:
            return None
        if not self.packs:
            raise UserError(f"--packing: {self.name} has no rows of several cuts")
        steps = batch.rows * torch.tensor([1, per_frame]) + torch.tensor([0, more])
        return network.documents(batch, steps, size)

    @property
    def ordered_levels(self) -> int:
        """Levels, from 0 on, whose codes are predicted from the same whatever part of a sequence is
        its prompt."""
        return self.info.num_codebooks if self.in_order else 0

    @property
    def special(self) -> int:
        """Id of cells without a code: before the start, past the end, and those that a pattern
        leaves empty."""
        return self.info.codebook_size

    @property
    def way(self) -> Autoregressive | None:
        """What writes from left to right, whatever the length, so that sequences can come and go in
        a running batch (`rvqlm.generation.slots`); None where nothing does."""
        return None

    def forward(
        self, batch: Batch, label_smoothing: float = 0.0, level_weights: Tensor | None = None
    ) -> LMOutput:
        """Loss of a batch; see `LMOutput`.

        :param label_smoothing: share of each target spread over all codes, in the loss only.
        :param level_weights: (K,) weight of each level's nats in the loss.
        """
        raise NotImplementedError

    def muon_parameters(self) -> list[nn.Parameter]:
        """Matrices between hidden layers, for optimizers that treat them apart: not tables,
        classifiers, norms. Of the `network`, `embedding` and `heads` that most families have."""
        matrices = [*self.embedding.muon_matrices(), *self.heads.muon_matrices()]
        return self.network.matrices() + matrices

    def generate(
        self,
        prompt_codes: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        max_new_frames: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        **options,
    ) -> Generation:
        """Continue prompts, or generate unprompted: prompt + continuation.

        A model that was trained on ends ends by itself, after a few frames if it has learned
        little; ``min_new_frames`` equal to ``max_new_frames`` gives that many in any case.

        :param prompt_codes: (B, P, K) integers; None generates ``batch_size`` items unprompted.
        :param prompt_lengths: (B,) valid frames of the prompts; all P by default.
        :param max_new_frames: longest continuation. Or instead ``max_frames``: longest sequence,
            prompt included; ``limits``: (B,) the same for each item.
        :param temperature, top_k: how codes are drawn; or ``sampling``, a `SamplingConfig`, which
            has the rest. ``logit_bias``: (K, V), added to the logits. ``demask``: `DemaskConfig` of
            masked models. ``speech``: `SpeechConfig`, how fast a text is said; ``durations``: (B, 1
            + S) frames of the silence before it and of each symbol, NaN where the model is to
            choose.
        :param options: further ``min_new_frames``: no end before the continuation has so many;
            ``min_frames`` (one number or (B,)): the same, prompt included; ``conditions``: `Padded`
            by kind; ``batch_size``; ``seed`` of the draws; ``rows``: number of each item in the
            random stream; ``progress``: called after each step with the number of steps made;
            ``context_frames``, ``overlap_frames``: go on in windows of so many frames, the last so
            many of each (half by default) being the prompt of the next.
        :raises UserError: a prompt that leaves no room, codes out of range, bad options.
        """
        options.setdefault("sampling", SamplingConfig(temperature, top_k))
        device = next(self.parameters()).device
        request = make_request(
            self.info, device, prompt_codes, prompt_lengths, max_new_frames, **options
        )
        return self._run(request)

    def infill(self, before: Tensor, after: Tensor, frames: int, **options) -> Generation:
        """Fill a gap of ``frames`` frames between two recordings.

        :param before: (B, P, K) codes ahead of the gap.
        :param after: (B, A, K) codes behind it.
        :param options: as for `generate`.
        :return: codes (B, P + frames + A, K), ``before`` and ``after`` verbatim.
        :raises UserError: where the family sees only what came before.
        """
        if before.ndim != 3 or after.ndim != 3 or len(before) != len(after) or frames < 1:
            raise UserError("infill wants (B, P, K) before, (B, A, K) after and at least one frame")
        device = next(self.parameters()).device
        total = before.shape[1] + frames
        request = make_request(
            self.info, device, before, max_frames=total, min_frames=total, **options
        )
        make_request(self.info, device, after, max_new_frames=1)  # its codes are checked alike
        request.suffix_codes = after.to(device).long()
        return self._run(request)

    def _run(self, request: Request) -> Generation:
        for made in self.generate_parts(request):  # noqa: B007 - the last is all
            pass
        return made

    @torch.no_grad()
    def generate_parts(self, request: Request) -> Iterator[Generation]:
        """What there is of a request of `make_request` by and by, where the family makes a sequence
        in parts; the last time all of it. Each part takes as long as it takes."""
        self.check_request(request)
        training = self.training
        self.eval()
        try:
            placed = self.place_text(request)
            for made in self._generate_parts(placed):
                if self.duration_head is not None and (text := placed.conditions.get("text")):
                    made.times = text.times
                yield made
        finally:
            self.train(training)

    def check_request(self, request: Request) -> None:
        """Raise `UserError` for what this family cannot do or what would have no effect."""
        if flags := request.demask.given():
            raise UserError(f"{', '.join(flags)}: only masked models fill in; this is {self.name}")
        if not self.in_order:
            s = request.sampling
            flags = {"--best-of": s.best_of > 1, "--repetition-window": s.repetition_window}
            flags["--ban"] = request.logit_bias is not None
            if found := [flag for flag, given in flags.items() if given]:
                raise UserError(f"{', '.join(found)}: {self.name} draws no code after another")
        if request.context_frames is not None and self.way is None:
            raise UserError(
                f"--context-seconds: {self.name} as this one was trained has no windows"
            )
        text = request.conditions.get("text")
        if self.duration_head is None and (
            request.durations is not None
            or request.speech != SpeechConfig()
            or (text is not None and text.times is not None)
        ):
            raise UserError(
                "speed, pauses and durations of a text: this model was trained without rvqlm align "
                "and does not know how long a symbol is said"
            )
        if request.sampling.cfg_scale != 1.0 and not request.conditions:
            why = "guidance needs a model that was trained with conditions; this one has none"
            if self.conditions:
                kinds = " or ".join(self.conditions)
                why = f"there is nothing to be guided by; give the model {kinds}"
            raise UserError(f"--cfg-scale {request.sampling.cfg_scale:g}: {why}")
        if request.suffix_codes is not None:
            raise UserError(
                f"{self.name} sees only what came before and cannot fill a gap; use the masked "
                "model, or valle, whose fine levels see both sides"
            )

    # ----------------------------------------------------------------------- where a text lies

    def learn_durations(self, network: ConditionedTransformer) -> None:
        """Make the head over a network's encoded text, for models of aligned texts; a subclass does
        so once it has the network."""
        if "text" in self.conditions and self.conditions["text"].aligned:
            dim = network.transformer.config.dim
            self.duration_head = DurationHead(dim, float(self.info.frame_rate))

    def _durations(
        self, network: ConditionedTransformer, conditions: Mapping[str, Padded], batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, 1 + S, bins) of how long the symbols of a text are said, of which no time is
        told, and which of them exist."""
        untold = {kind: given._replace(times=None) for kind, given in conditions.items()}
        context = network.encode_conditions(untold, batch_size)
        text = slice(*context.spans["text"])
        mask = context.mask[:, text]
        return self.duration_head(context.x[:, text], mask), mask

    def add_duration_loss(
        self, out: LMOutput, network: ConditionedTransformer, batch: Batch
    ) -> None:
        """Add to the loss -log p of the durations that a batch's texts have. One without times, or
        dropped, counts nothing; but the head takes part in every batch, as all parameters do."""
        if self.duration_head is None:
            return
        logits, mask = self._durations(network, batch.conditions, len(batch.lengths))
        text = batch.conditions.get("text")
        frames = logits.new_full(mask.shape, torch.nan)
        if text is not None and text.times is not None:
            frames = durations_of(text.times)
        mask = mask & mask[:, 1:].any(1, keepdim=True) & ~frames.isnan()
        nats = self.duration_head.nats(logits, frames.nan_to_num())
        nats = (nats * mask).sum()
        out.loss = out.loss + nats
        out.sums["duration_nats"] = (nats.detach(), mask.sum().float())

    def duration_network(self) -> ConditionedTransformer:
        """The one whose encoded text `duration_head` reads."""
        return self.network

    def place_text(self, request: Request) -> Request:
        """Say of each symbol when it is said, where the request does not."""
        text = request.conditions.get("text")
        if self.duration_head is None or text is None or not text.values.shape[1]:
            return request
        logits, mask = self._durations(
            self.duration_network(), request.conditions, request.batch_size
        )
        # another stream of random numbers than that of the codes
        draws = uniforms(request.seed ^ 0x5EED, request.rows, logits.shape[1], 1)[..., 0]
        frames = self.duration_head.draw(
            logits, draws.to(logits), request.speech.duration_temperature
        )
        frames = frames / request.speech.speed
        if request.durations is not None:
            if request.durations.shape != frames.shape:
                given, wanted = (tuple(t.shape) for t in (request.durations, frames))
                raise UserError(f"durations of shape {given}, wanted {wanted}: (B, 1 + symbols)")
            frames = torch.where(request.durations.isnan(), frames, request.durations)
        times = times_of(frames, text.times)
        ends = times[..., 1].masked_fill(~mask[:, 1:], 0).amax(1)
        times = times.masked_fill(~mask[:, 1:, None], torch.nan)
        placed = {**request.conditions, "text": text._replace(times=times)}
        # what is to be said is said, as far as the limits let it
        least = torch.minimum(ends.floor().long(), request.limits)
        least = torch.maximum(request.min_frames, least)
        return replace(request, conditions=placed, min_frames=least)

    def _generate(self, request: Request) -> Generation:
        raise NotImplementedError

    def _generate_parts(self, request: Request) -> Iterator[Generation]:
        """What there is by and by, the last time all that `_generate` gives."""
        yield self._generate(request)
