"""`masked`: a transformer that sees both sides and fills in hidden codes, many at a time.

The family of MaskGIT (Chang et al., 2022, arXiv:2202.04200) and SoundStorm (Borsos et al., 2023,
arXiv:2305.09636). In training a random part of the codes is hidden and predicted from the rest and
from the conditions; generation begins with all of them hidden and fills them in within a few passes
(`rvqlm.generation.demask`), so it also fills gaps. How long a sequence is, the same network says
from the conditions alone, before any code exists (`rvqlm.modules.ends`).

What the numbers mean:

- in training, loss and nats are means over the hidden codes, and depend on how many are hidden
- outside training, nats bound -log p of *all* codes from above: the mean over n = 1 ... N of N / n
  times the nats of n hidden units (frames, or cells) of N is what making them one by one in a
  random order costs (Uria et al., 2014, arXiv:1310.1757; Hoogeboom et al., 2022, arXiv:2110.02037;
  docs/metrics.md)

How the second is estimated. A masking of an item gives each hidden cell a weight w, such that over
maskings the weighted nats of level k have the mean that is wanted, those of all the item's cells of
level k, and the weights alone the number of these cells. Both sums are without bias, but what a
masking scores of a level varies, with coarse_first between all and nothing: a level's mean nats are
therefore the ratio of the two sums, over all items and maskings, as a weighted mean is (Hájek,
1971). It lies between the smallest and the largest nats (an accuracy never above 1), is exact where
all cells cost the same, and has a bias of the order of 1 / items, far below its standard error. The
nats of a frame are the sum over levels of these means, so that no level counts by how often it was
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import pi
from typing import Literal

import torch
from torch import Tensor

from rvqlm.batch import Batch, Constant, Padded, mask_of, to_device
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.errors import UserError
from rvqlm.flags import Schedule, parse_schedule, value_at
from rvqlm.generation.decode import decode
from rvqlm.generation.demask import demask, demask_chunks
from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import DemaskConfig, generators
from rvqlm.generation.slots import decode_in_windows
from rvqlm.models.base import LMOutput, TokenModel
from rvqlm.models.both_ways import FrameByFrame
from rvqlm.models.network import GridConfig
from rvqlm.modules.conditioning import Context, Steps
from rvqlm.modules.ends import LengthHead
from rvqlm.modules.fused_loss import HeadLoss
from rvqlm.modules.heads import LinearHeads
from rvqlm.modules.masking import MASKINGS, Mask, draw_mask

UNPROMPTED = 0.3
"""Share of items that are trained without known frames at either end."""
SUFFIX = 0.3
"""Share of the others that know frames at both ends."""
TYPICAL_SECONDS = 5.0
"""Length that the prediction of lengths starts from."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, spread evenly over [0, 1) however many there are."""


def _level_training(word: str) -> str:
    if word not in ("parallel", "random"):
        raise ValueError
    return word


@dataclass
class MaskedConfig(GridConfig):
    """Shape of a masked model."""

    may_change = ("level_training", "level_training_schedule", "level_distribution")

    masking: Literal[MASKINGS] = "level"
    """What is hidden and filled in as one: all levels of a frame; each code on its own; or the
    codes of one level, the coarser ones known and the finer ones hidden, so that generation goes
    from level to level."""
    mask_schedule: Literal["cosine", "uniform", "fixed"] = "cosine"
    """How much of an item training hides: cosine, mostly much, as in generation; uniform, any
    share alike, as the held-out nats weigh it; fixed, --mask-ratio."""
    mask_ratio: float = 0.8
    """Share that is hidden, with --mask-schedule fixed."""
    level_training: Literal["parallel", "random"] = "parallel"
    """Score the hidden codes of all levels, or of one random level per item. --masking coarse_first
    always scores one."""
    level_training_schedule: tuple[str, ...] = ()
    """--level-training by epoch, such as 0:random 20:parallel: one level first, later all."""
    level_distribution: Literal["uniform", "normal", "coarse"] = "uniform"
    """How that one level is drawn: all alike; the middle ones more often; or the coarser the more
    often, in proportion K, K - 1, ... 1."""
    prompt_fraction: float = 0.5
    """At most this share of an item is known from the start in training, as a prompt or at both
    ends, so that continuing and filling gaps are learnt. 0: never."""
    predict_length: bool = True
    """Learn how many frames a sequence has; generation then chooses its length."""
    ar_share: float = 0.0
    """Weight of a second loss, in which the same weights write frame after frame, each from those
    before it; generation then goes either way (--frame-by-frame). Costs a second pass. 0: none."""
    eval_draws: int = 4
    """Random maskings of each held-out item in validation: more are less noisy and slower.
    rvqlm evaluate makes as many, and at least 4."""

    def problems(self) -> list[str]:
        found = super().problems()
        found += self.outside("(0, 1]", "mask_ratio")
        found += self.outside("[0, 1)", "prompt_fraction", "ar_share")
        found += self.outside("[1, inf)", "eval_draws")
        if self.mask_schedule != "fixed":
            found += self.without_effect("--mask-schedule fixed", "mask_ratio")
        try:
            ways = {way for _, way in self.level_trainings()}
        except UserError as e:
            return [*found, str(e)]
        if self.level_training_schedule and self.level_training != "parallel":
            found.append("--level-training and --level-training-schedule exclude each other")
        if self.masking == "coarse_first" and "random" in ways:
            found.append("--level-training random: --masking coarse_first scores one level anyway")
        if self.masking != "coarse_first" and "random" not in ways:
            needed = "--level-training random or --masking coarse_first"
            found += self.without_effect(needed, "level_distribution")
        return found

    def level_trainings(self) -> Schedule:
        """From which epoch on which --level-training holds; `UserError` for a bad schedule."""
        words = self.level_training_schedule or (f"0:{self.level_training}",)
        return parse_schedule(words, "--level-training-schedule", _level_training)

    def level_weights(self, num_codebooks: int) -> Tensor:
        """(K,) how likely each level is to be the one that is scored, up to a factor."""
        levels = torch.arange(num_codebooks, dtype=torch.float32)
        if self.level_distribution == "coarse":
            return num_codebooks - levels
        if self.level_distribution == "normal":
            off = (levels - (num_codebooks - 1) / 2) / (num_codebooks / 4)
            return (-0.5 * off.square()).exp()
        return torch.ones(num_codebooks)


class Masked(TokenModel):
    """Transformer that fills in hidden codes.

    >>> info = CodecInfo("demo", "", 16000, 320, num_codebooks=4, codebook_size=16)
    >>> config = MaskedConfig(masking="frame", decoder_dim=32, nhead=2, num_decoder_layers=1)
    >>> model = Masked(config, info).eval()
    >>> batch = Batch.from_codes([torch.randint(16, (5, 4)), torch.randint(16, (3, 4))])
    >>> model(batch).count.tolist()  # 5 + 3 codes per level
    [8.0, 8.0, 8.0, 8.0]
    >>> model.generate(batch.codes[:1, :2], max_frames=9, min_frames=9).codes.shape
    torch.Size([1, 9, 4])
    """

    name = "masked"
    packs = True
    in_order = False

    def __init__(self, config: MaskedConfig, info: CodecInfo, conditions: Infos | None = None):
        super().__init__(config, info, conditions)
        c = config
        self.masking, self.frame_rate = c.masking, float(info.frame_rate)
        self.level_trainings = c.level_trainings()
        until = c.level_weights(info.num_codebooks).cumsum(0)
        self._below = Constant((until / until[-1])[:-1].double())
        """(K - 1,) chance that the level that is scored is one of the first."""
        self.network = c.build(self.conditions, causal=False)
        self.embedding = c.make_embedding(info)
        self.heads = c.make_heads(info)
        typical = TYPICAL_SECONDS * float(info.frame_rate)
        self.length_head = LengthHead(c.decoder_dim, typical) if c.predict_length else None
        self.ar: FrameByFrame | None = None
        if c.ar_share:
            self.ar = FrameByFrame(c.decoder_dim, self.embedding, self.network, self.heads)
        self.learn_durations(self.network)

    @property
    def phase(self) -> str:
        """The --level-training of the epoch."""
        return value_at(self.level_trainings, self.epoch)

    # ------------------------------------------------------------------- what generation uses too

    def encode_conditions(
        self, conditions: Mapping[str, Padded], frames: Tensor, drop: Tensor | None = None
    ) -> Context | None:
        """Conditions of items of so many frames (B,), spread over them."""
        return self.network.encode_conditions(conditions, len(frames), frames=frames, drop=drop)

    def hidden(
        self,
        codes: Tensor,
        frames: Tensor,
        context: Context | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """:param codes: (B, T, K), `special` where hidden and past the items' ``frames`` (B,).
        :param positions: (B, T) places of the frames on the time axis; 0, 1, 2, ... by default.
        :return: (B, T, d)
        """
        valid = mask_of(frames, codes.shape[1])
        return self.network(self.embedding(codes), context, valid, positions=positions)

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """(n, d) -> (n, V) of one level."""
        return self.heads.logits_of_level(hidden, level)

    def length(self, conditions: Mapping[str, Padded], batch_size: int) -> tuple[Tensor, Tensor]:
        """Centre and scale (B,) of the log number of frames, from the conditions alone."""
        context = self.network.encode_conditions(conditions, batch_size)
        step, base = self.length_head.begin(context, batch_size)
        return self.length_head(self.network(step, context)[:, 0], base)

    # ------------------------------------------------------------------------------------- losses

    def forward(
        self, batch: Batch, label_smoothing: float = 0.0, level_weights: Tensor | None = None
    ) -> LMOutput:
        """In training the loss of hidden codes; otherwise an estimate of a bound on that of all
        (see the module), and the same for an item whenever and in whatever batch.

        Items of a batch without ``prompt_lengths`` know random frames at their ends in training.
        """
        # random numbers are drawn in this order: conditions to drop, the mask, conditions to drop
        B, network = len(batch.lengths), self.network
        contexts = [network.embed_conditions(batch.conditions, B, frames=batch.lengths)]
        if self.training:
            masks, score = [self.training_mask(batch)], self._hidden_codes
        else:
            draws = range(self.config.eval_draws)
            masks, score = [self.held_out_mask(batch, draw) for draw in draws], self._all_codes
        ar = None
        if self.ar is not None:
            documents = self.documents(network, batch, 1, 1, batch.codes.shape[1] + 1)
            ar = self.ar.loss(batch, label_smoothing, level_weights, documents)
        if self.length_head is not None:
            contexts.append(network.embed_conditions(batch.conditions, B))
        context, *alone = network.encode(*contexts)
        first, length = self._first_pass(batch, masks[0], context, *alone)
        others = (self._masked_hidden(batch, mask, context) for mask in masks[1:])
        out = score(batch, masks, chain([first], others), label_smoothing, level_weights)
        if ar is not None:
            share = self.config.ar_share
            out.loss = (1 - share) * out.loss + share * ar.loss
            out.normalizer = (1 - share) * out.normalizer + share * ar.normalizer
            out.sums["ar_nats"] = (ar.nats.sum(), ar.count.sum())
            out.sums["end_nats"] = ar.sums["end_nats"]
        if length is not None:
            # of a part of a recording the conditions do not tell the length
            whole = batch.ends if batch.begins is None else batch.ends & batch.begins
            nats = self.length_head.nats(*length, batch.lengths)
            nats = (nats * whole).sum()
            out.loss = out.loss + nats
            out.sums["length_nats"] = (nats.detach(), whole.sum().float())
        self.add_duration_loss(out, self.network, batch)
        return out

    def _masked_hidden(self, batch: Batch, mask: Mask, context: Context | None) -> Tensor:
        """Hidden states (B, T, d) of a batch with cells hidden."""
        return self.network(**self._masked_steps(batch, mask, context)._asdict())

    def _masked_steps(self, batch: Batch, mask: Mask, context: Context | None) -> Steps:
        unseen = mask.hidden | (batch.codes < 0)
        codes = batch.codes.long().masked_fill(unseen, self.special)
        documents = self.documents(self.network, batch, 1, 0, codes.shape[1])
        padded = documents is None and batch.padded
        valid = mask_of(batch.lengths, codes.shape[1]) if padded else None
        return Steps(self.embedding(codes), context, valid, documents)

    def _first_pass(
        self, batch: Batch, mask: Mask, context: Context | None, alone: Context | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`_masked_hidden` and, of the conditions ``alone``, `length`, in one pass."""
        if self.length_head is None:
            return self._masked_hidden(batch, mask, context), None
        step, base = self.length_head.begin(alone, len(batch.lengths))
        steps = self._masked_steps(batch, mask, context)
        hidden, last = self.network.together(steps, Steps(step, alone))
        return hidden, self.length_head(last[:, 0], base)

    def _score(self, batch, mask: Mask, hidden: Tensor, weights: Tensor, *how) -> HeadLoss:
        """Of the predicted cells, with weights (B, T, K) or all alike."""
        targets = batch.codes.long().masked_fill(~mask.predicted, 0)
        rows = (x.flatten(0, 1) for x in (hidden, targets, weights))
        return self.heads.loss(*rows, *how, batch.most())

    def _hidden_codes(self, batch, masks, states, smoothing, level_weights) -> LMOutput:
        (mask,), (hidden,) = masks, states
        if mask.level is not None and isinstance(self.heads, LinearHeads):
            at = mask.level[:, None, None].expand(*hidden.shape[:2], 1)
            targets, scored = (x.gather(2, at)[..., 0] for x in (batch.codes, mask.predicted))
            targets = targets.long().masked_fill(~scored, 0)
            how = level_weights, smoothing
            loss = self.heads.loss_of_level(hidden, mask.level, targets, scored, *how)
        else:
            loss = self._score(batch, mask, hidden, mask.predicted, level_weights, smoothing)
        return LMOutput.of_levels(loss, mask.predicted.sum(1).float(), level_weights)

    def _all_codes(self, batch, masks, states, smoothing, level_weights) -> LMOutput:
        K, parts, count = self.info.num_codebooks, [], 0
        for mask, hidden in zip(masks, states):
            # each hidden cell stands for so many of all that the item has
            share = K * batch.scored().sum(1) / mask.predicted.sum((1, 2)).clamp(min=1) / len(masks)
            weights = mask.predicted * share[:, None, None]
            count = count + weights.sum(1)
            parts.append(self._score(batch, mask, hidden, weights, level_weights, smoothing))
        sums = {name: sum(part.sums[name] for part in parts) for name in parts[0].sums}
        cells = None if parts[0].cells is None else sum(part.cells for part in parts)
        loss = HeadLoss(sum(part.loss for part in parts), sums, cells)
        return LMOutput.of_levels(loss, count, level_weights)

    # -------------------------------------------------------------------------------------- masks

    def training_mask(self, batch: Batch) -> Mask:
        """Random, from torch's generator of the device."""
        c, device = self.config, batch.codes.device
        B, T, K = batch.codes.shape
        free = batch.scored() if batch.prompt_lengths is not None else self._without_ends(batch)
        share = torch.rand(B, device=device)
        if c.mask_schedule == "cosine":
            share = (share * pi / 2).cos()
        elif c.mask_schedule == "uniform":
            share = 1 - share
        else:  # a little less, lest 0.8 * 15 be rounded up to 13
            share = torch.full_like(share, c.mask_ratio - 1e-6)
        # as torch.multinomial draws, which asks the device whether these are probabilities
        drawn = torch.rand(B, dtype=torch.float64, device=device)
        level = (drawn[:, None] > self._below.on(device)).sum(1)
        mask = draw_mask(c.masking, free, share, torch.rand(B, T, K, device=device), level)
        if self.phase == "random":
            one = torch.arange(K, device=device) == level[:, None, None]
            mask = mask._replace(predicted=mask.predicted & one, level=level)
        return mask

    def _without_ends(self, batch: Batch) -> Tensor:
        """(B, T) bool: frames but for those that an item knows at its beginning and end."""
        lengths, device = batch.lengths, batch.codes.device
        prompted, both, share, at_end = torch.rand(4, len(lengths), device=device)
        known = (share * self.config.prompt_fraction * lengths).floor()  # fewer than all
        known = known.masked_fill(prompted < UNPROMPTED, 0)
        suffix = (known * at_end).round().masked_fill(both >= SUFFIX, 0)
        T = batch.codes.shape[1]
        return mask_of(lengths - suffix, T) & ~mask_of(known - suffix, T)

    def held_out_mask(self, batch: Batch, draw: int) -> Mask:
        """The same for an item in any batch: how much is hidden goes evenly over 1 ... N from item
        to item and from draw to draw; which units, by a generator of each item's own."""
        T, K = batch.codes.shape[1:]
        index, device = batch.here.index.cpu(), batch.codes.device
        at = (index.double() * GOLDEN + draw / self.config.eval_draws) % 1
        level = torch.zeros_like(index)
        if self.masking == "coarse_first":  # its order: level by level
            at = at * K
            level = at.long()
            at = at - level
        draws = generators(draw, index.tolist())
        keys = torch.stack([torch.rand(T, K, generator=g) for g in draws])
        share, keys, level = (to_device(x, device) for x in ((1 - at).float(), keys, level))
        return draw_mask(self.masking, batch.scored(), share, keys, level)

    # --------------------------------------------------------------------------------- generation

    def choose_lengths(self, request: Request, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B,) of each item, prompt included and suffix not, and whether the model chose
        them (B,) and not the limits. With a prompt: the total given that it is longer than that.

        :param uniform: (B,) in [0, 1).
        """
        r = request
        fixed = r.min_frames >= r.limits
        if self.length_head is None or bool(fixed.all()):
            return r.limits, torch.zeros_like(fixed)
        centre, scale = self.length(r.conditions, r.batch_size)
        least = torch.maximum(r.min_frames, r.prompt_lengths + 1)
        frames = self.length_head.draw(centre, scale, uniform, least, r.sampling.temperature)
        chosen = ~fixed & (frames < r.limits)
        return torch.where(chosen, frames, r.limits), chosen

    @property
    def way(self) -> FrameByFrame | None:
        return self.ar

    def check_request(self, request: Request) -> None:
        demask = request.demask
        if request.context_frames is not None and not demask.frame_by_frame:
            raise UserError("--context-seconds: masked models have --chunk-seconds")
        if demask.fine_steps is not None and self.masking != "coarse_first":
            raise UserError(
                f"--fine-steps {demask.fine_steps}: this model was trained with --masking "
                f"{self.masking} and fills in all levels at once; give --steps only"
            )
        if demask.frame_by_frame:
            if self.ar is None:
                raise UserError("--frame-by-frame: this model was trained without --ar-share")
            if others := demask.given()[:-1]:
                raise UserError(f"{', '.join(others)}: --frame-by-frame has no passes to fill in")
            if request.suffix_codes is not None:
                raise UserError("--frame-by-frame sees only what came before; fill gaps without it")
        # filling in and gaps are what this family is for
        super().check_request(replace(request, demask=DemaskConfig(), suffix_codes=None))

    def _generate(self, request: Request) -> Generation:
        if request.demask.frame_by_frame:
            in_windows = request.context_frames is not None
            return (decode_in_windows if in_windows else decode)(self.ar, request)
        return demask(self, request)

    def _generate_parts(self, request: Request) -> Iterator[Generation]:
        if request.demask.frame_by_frame:
            return super()._generate_parts(request)
        return demask_chunks(self, request)
