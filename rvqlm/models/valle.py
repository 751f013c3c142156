"""`valle`: level 0 frame by frame, then each finer level for all frames at once.

The family of VALL-E (Wang et al., 2023, arXiv:2301.02111); without conditions it continues audio
from audio, as AudioLM does (Borsos et al., 2022, arXiv:2209.03143), and is known as ``audio-lm``.

    prompt      all K levels of the first frames, given to both networks, never scored
    AR          causal; level 0 of the next frame, and where the sequence ends
    NAR         not causal; level j of all frames from their levels below j; K - 1 passes

The likelihood is p(c_0) prod_j p(c_j | c_<j), where the codes of a level j >= 1 are independent of
one another given the coarser levels: its nats bound the entropy of the codes from above. The NAR
trains on one random level per item and step; outside training every level is scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rvqlm.batch import PAD, Batch, mask_of
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.errors import UserError
from rvqlm.generation.decode import decode
from rvqlm.generation.request import Generation, Request
from rvqlm.generation.sampling import uniforms
from rvqlm.models.base import LMOutput, TokenModel
from rvqlm.models.network import NetworkConfig
from rvqlm.models.valle_parts import CoarseDecoder, CoarseModel, FineModel
from rvqlm.modules.conditioning import ConditionedTransformer
from rvqlm.modules.fused_loss import HeadLoss


@dataclass
class ValleConfig(NetworkConfig):
    """Shape of a valle: that of the AR network, and how the NAR network differs."""

    train_stage: Literal[0, 1, 2] = 0
    """What is trained: 0 both networks, 1 the AR (level 0 and the end), 2 the NAR (the other
    levels). A model of stage 1 cannot generate."""
    prompt_mode: Literal["fraction", "seconds", "none"] = "fraction"
    """How training splits an item into the prompt, which is given with all levels and not scored,
    and the target: by a fraction of its length, by seconds, or without prompts."""
    prompt_fraction: float = 0.4
    """Share of an item that is prompt, with --prompt-mode fraction."""
    prompt_seconds: float = 3.0
    """Seconds of prompt, with --prompt-mode seconds; at most half of an item."""
    unprompted_share: float = 0.1
    """Share of items that are trained without a prompt, so that the model can generate unprompted
    and score whole sequences."""
    infill_share: float = 0.1
    """Share of items of which the NAR is given a random stretch at the end too, so that it can fill
    gaps; none with --prompt-mode none."""
    add_prenet: bool = False
    """Two linear layers with --dropout between the embeddings and each network."""
    prepend_bos: bool = False
    """A learned step of the AR between prompt and target. Without it the last frame of the prompt
    is what the first frame of the target is predicted from."""
    nar_scale_factor: float = 1.0
    """Width of the NAR network, in widths of the AR."""
    num_nar_layers: int = 0
    """Layers of the NAR network; 0: as many as the AR has."""
    share_embedding: bool = False
    """The NAR classifies level j with the embeddings of level j instead of weights of its own."""
    model_end: bool = True
    """Learn where sequences end; generation then stops by itself."""

    @property
    def nar_dim(self) -> int:
        return round(self.decoder_dim * self.nar_scale_factor)

    def problems(self) -> list[str]:
        found = super().problems()
        found += self.outside("(0, 1)", "prompt_fraction")
        found += self.outside("[0, 1]", "unprompted_share", "infill_share")
        found += self.outside("[0, inf)", "num_nar_layers")
        found += self.outside("(0, inf)", "prompt_seconds")
        wrong = self.outside("(0, inf)", "nar_scale_factor")
        found += wrong
        if not wrong and self.nar_scale_factor != 1 and self.nhead > 0:
            width = self.decoder_dim * self.nar_scale_factor
            if self.nar_dim != width or self.nar_dim % (2 * self.nhead):
                found.append(
                    f"--nar-scale-factor {self.nar_scale_factor:g} makes the NAR {width:g} wide: "
                    f"that must be a multiple of {2 * self.nhead}, twice --nhead"
                )
        return found

    def unfit(self, info: CodecInfo) -> list[str]:
        found = []
        if info.num_codebooks < 2:
            found.append(
                f"valle needs at least 2 levels and {info.name} has {info.num_codebooks}: nothing "
                "is left for the NAR; use --model-name codec-lm"
            )
        frames = self.prompt_seconds * float(info.frame_rate)
        if self.prompt_mode == "seconds" and frames > 0 and round(frames) < 1:
            found.append(f"--prompt-seconds {self.prompt_seconds} is less than a frame")
        return found


class Valle(TokenModel):
    """AR over level 0, NAR over the others.

    >>> info = CodecInfo("demo", "", 16000, 320, num_codebooks=4, codebook_size=16)
    >>> model = Valle(ValleConfig(decoder_dim=32, nhead=2, num_decoder_layers=1), info).eval()
    >>> batch = Batch.from_codes([torch.randint(16, (5, 4))], prompt_lengths=[2])
    >>> model(batch).count.tolist()
    [3.0, 3.0, 3.0, 3.0]
    >>> model.generate(batch.codes[:, :2], max_new_frames=4, seed=1).codes.shape
    torch.Size([1, 6, 4])
    """

    name = "valle"
    packs = True

    def __init__(self, config: ValleConfig, info: CodecInfo, conditions: Infos | None = None):
        super().__init__(config, info, conditions)
        self.ar = CoarseModel(config, info, self.conditions)
        self.nar = FineModel(config, info, self.conditions)
        self.learn_durations(self.ar.network)
        of_ar = [part for part in (self.ar, self.duration_head) if part is not None]
        for frozen in {1: [self.nar], 2: of_ar}.get(config.train_stage, []):
            frozen.requires_grad_(False)

    @property
    def stage(self) -> int:
        """What is trained: 0 both networks, 1 the AR, 2 the NAR."""
        return self.config.train_stage

    @property
    def ordered_levels(self) -> int:
        """That of the AR, but where a learned step tells it where the prompt ends."""
        return 0 if self.config.prepend_bos else 1

    def muon_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.ar.matrices() + self.nar.matrices() if p.requires_grad]

    # -------------------------------------------------------------------------------- training

    def split(self, lengths: Tensor) -> Tensor:
        """(B,) frames of each item -> (B,) random frames of prompt, as the config says; at least
        one frame is left."""
        c = self.config
        if c.prompt_mode == "none":
            return torch.zeros_like(lengths)
        if c.prompt_mode == "seconds":
            frames = round(c.prompt_seconds * float(self.info.frame_rate))
            prompts = (lengths // 2).clamp(max=frames)
        else:
            prompts = torch.minimum((lengths * c.prompt_fraction).long(), lengths - 1)
        without = torch.rand(len(lengths), device=lengths.device) < c.unprompted_share
        return prompts.masked_fill(without, 0)

    def _known(self, batch: Batch, random: bool) -> Tensor:
        """(B, T) bool: frames that the NAR is given with all levels; ``random`` draws which items
        are known at the end too."""
        B, T, _ = batch.codes.shape
        known = mask_of(batch.prompt_lengths, T)
        if random and self.config.prompt_mode != "none" and self.config.infill_share:
            chance, share = torch.rand(2, B, device=known.device)
            left = (batch.lengths - batch.prompt_lengths).clamp(min=1)
            tail = torch.minimum((left * share).long(), left - 1)
            tail = tail.masked_fill(chance >= self.config.infill_share, 0)
            known = known | ~mask_of(batch.lengths - tail, T)
        return known & mask_of(batch.lengths, T)

    def forward(
        self, batch: Batch, label_smoothing: float = 0.0, level_weights: Tensor | None = None
    ) -> LMOutput:
        """As of every model; levels that the stage does not train have count 0.

        A batch without ``prompt_lengths`` is split at random in training, and scored as a whole
        otherwise. In training the NAR scores one random level of each item; its loss is weighted
        by K - 1, so that the gradient is on average that of all levels.
        """
        K, device = self.info.num_codebooks, batch.codes.device
        own_split = batch.prompt_lengths is None
        if own_split:
            lengths = batch.lengths
            prompts = self.split(lengths) if self.training else torch.zeros_like(lengths)
            batch = replace(batch, prompt_lengths=prompts)
        weights = torch.ones(K, device=device) if level_weights is None else level_weights
        B, rows = len(batch.lengths), torch.arange(len(batch.lengths), device=device)
        loss = normalizer = torch.zeros((), device=device)
        count, nats = torch.zeros(2, B, K, device=device)  # of each item
        sums, ends = {}, None

        def add(found: HeadLoss, first_level: int, level: Tensor | int) -> None:
            for name, value in found.sums.items():
                total = sums.setdefault(name, torch.zeros(K, dtype=value.dtype, device=device))
                total[first_level : first_level + len(value)] += value
            if found.cells is not None:
                nats[rows, level] = found.cells.view(B, -1).sum(1).to(nats)

        if self.stage != 2 or not self.training:
            more = self.ar.shift + (self.ar.end_head is not None)
            size = batch.codes.shape[1] + more
            documents = self.documents(self.ar.network, batch, 1, more, size)
            coarse, ends = self.ar.loss(batch, weights[:1], label_smoothing, documents)
            count[:, 0] = batch.scored().sum(1)
            add(coarse, 0, level=0)
            loss, normalizer = loss + coarse.loss, normalizer + count[:, 0].sum() * weights[0]
            if ends is not None:
                loss = loss + ends[0]
        if self.stage != 1:
            known = self._known(batch, random=self.training and own_split)
            context = self.nar.encode_conditions(batch.conditions, batch.lengths)
            documents = self.documents(self.nar.network, batch, 1, 0, batch.codes.shape[1])
            for level in self._levels(len(known), device):
                fine, frames = self.nar.loss(
                    batch, known, level, context, weights[1:], label_smoothing, documents
                )
                count[rows, level] = frames.float()
                add(fine, 1, level)
                loss = loss + fine.loss * (K - 1 if self.training else 1)
            # of all levels: what the random ones come to on average
            normalizer = normalizer + frames.sum() * weights[1:].sum()
        of_levels = {name: (value, count.sum(0)) for name, value in sums.items()}
        out = LMOutput(loss, normalizer, of_levels)
        if not torch.is_grad_enabled():
            out.items = nats, count
        if ends is not None:
            out.sums["end_nats"] = (ends[0].detach(), ends[1])
        if self.stage != 2 or not self.training:
            self.add_duration_loss(out, self.ar.network, batch)
        return out

    def duration_network(self) -> ConditionedTransformer:
        return self.ar.network

    def _levels(self, batch_size: int, device: torch.device) -> list[Tensor]:
        """(B,) level of each item, for every pass of the NAR."""
        K = self.info.num_codebooks
        if self.training:
            return [torch.randint(1, K, (batch_size,), device=device)]
        return [torch.full((batch_size,), level, device=device) for level in range(1, K)]

    # ------------------------------------------------------------------------------ generation

    def check_request(self, request: Request) -> None:
        """A gap can be filled, unlike by other causal models: its level 0 follows from what is
        before it alone, its other levels from both sides."""
        super().check_request(replace(request, suffix_codes=None, context_frames=None))
        if self.stage == 1:
            raise UserError(
                "this valle was trained with --train-stage 1 and has no finer levels than 0: train "
                "--train-stage 2 from it, and generate with that"
            )
        if request.context_frames is not None and request.sampling.best_of > 1:
            raise UserError("--best-of: a sequence in windows has no likelihood of its own")

    def _generate(self, request: Request) -> Generation:
        if request.context_frames is None:
            return self._window(request)
        made = [list(self._windows(request.item(n)))[-1] for n in range(request.batch_size)]
        lengths = torch.cat([m.lengths for m in made])
        codes = nn.utils.rnn.pad_sequence([m.codes[0] for m in made], batch_first=True)
        ended = torch.tensor([m.stop == ["eos"] for m in made])
        return Generation.trimmed(codes, lengths, request.prompt_lengths, ended)

    def _generate_parts(self, request: Request) -> Iterator[Generation]:
        if request.context_frames is not None and request.batch_size == 1:
            return self._windows(request)
        return super()._generate_parts(request)

    def _windows(self, r: Request) -> Iterator[Generation]:
        """One item, window after window; what there is after each."""
        codes, limit = r.prompt_codes[:, : int(r.prompt_lengths)], int(r.limits)
        while True:
            base = 0
            if codes.shape[1] >= r.context_frames:
                base = codes.shape[1] - r.overlap_frames
            window = r.window(codes[:, base:], base, min(limit - base, r.context_frames))
            made = self._window(window, base)
            codes = torch.cat([codes[:, :base], made.codes], 1)
            ended = made.stop == ["eos"]
            yield Generation(
                codes, made.lengths + base, r.prompt_lengths, ["eos" if ended else "length"]
            )
            if ended or codes.shape[1] >= limit:
                return

    def _window(self, request: Request, offset: int = 0) -> Generation:
        """All at once; ``offset``: the frame that it begins with, for the random numbers."""
        r, steps = request, itertools.count(1)

        def tick(_=None) -> None:
            if r.progress is not None:
                r.progress(next(steps))

        each = r.several()
        made = decode(CoarseDecoder(self.ar, each), replace(each, progress=tick), offset)
        made = made.best(r.sampling.best_of)
        codes, lengths = made.codes, made.lengths
        if r.suffix_codes is not None:
            frames = torch.arange(r.suffix_codes.shape[1], device=codes.device)
            at = (lengths[:, None] + frames)[..., None].expand_as(r.suffix_codes)
            codes = nn.functional.pad(codes, (0, 0, 0, len(frames)), value=PAD)
            codes = codes.scatter(1, at, r.suffix_codes)
            lengths = lengths + len(frames)
        _, T, K = codes.shape
        known = mask_of(r.prompt_lengths, T) | ~mask_of(made.lengths, T)
        # the AR draws from columns 0 and K of the same uniforms
        noise = uniforms(r.seed, r.rows, T, K + 1, offset)[:, :, 1:K].to(codes.device)
        conditions, drop = r.conditions_of_rows()
        rows = lengths.repeat(2) if r.guided else lengths
        context = self.nar.encode_conditions(conditions, rows, drop)
        codes = self.nar.fill(codes, lengths, known, context, noise, r.sampling, tick, r.logit_bias)
        ended = torch.tensor([s == "eos" for s in made.stop])
        return Generation.trimmed(codes, lengths, made.prompt_lengths, ended)
