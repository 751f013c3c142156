"""`recognizer`: transcribes codes into the symbols of the `text` condition.

It measures what models say that are given words: the error rate of its transcript, beside that of
real recordings, needs nobody's opinion. Trained like any model, with the text as the target.

    codes (B, T, K) -> embedding -> two convolutions, two frames a step -> transformer that sees
    both sides, with convolutions -> for each step some decisions: one of the symbols, or none

- Connectionist temporal classification (Graves et al., 2006): the loss is -log of the probability
  of all alignments of the symbols to the decisions, exactly; no alignment is needed in training.
  Symbol 0 of the table, ``<eps>``, is the blank.
- At first the alignments near to where a text lies by the average durations of its symbols
  (`rvqlm.modules.time_axis.in_order`) weigh more than others, less and less so. Without, CTC
  writes blanks alone for its first thousand steps.
- Augmentation: spans of frames are blanked (SpecAugment, Park et al., 2019, arXiv:1904.08779) and
  fine levels left out, so that it also understands codes that no recording has.
- It has no level of its own to predict: all sums of `LMOutput` are at level 0, where `count` counts
  symbols, `nats` is the loss and `accuracy` what the greedy transcript leaves after its errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from rvqlm.batch import Batch, mask_of, to_device
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.errors import UserError
from rvqlm.metrics.bigram import Bigram
from rvqlm.metrics.recognition import edit_distances
from rvqlm.models.base import LMOutput, TokenModel
from rvqlm.models.network import NetworkConfig
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.time_axis import bits_of, in_order
from rvqlm.modules.transformer import Transformer

BLANK = 0
NEAR, NEVER = 12.0, 30.0
"""Of the prior on alignments: standard deviation in frames, largest penalty in nats."""


@dataclass
class RecognizerConfig(NetworkConfig):
    """Shape of a recogniser."""

    decoder_dim: Annotated[int, tyro.conf.arg(aliases=["--d-model"])] = 192
    """Width d of the transformer."""
    nhead: int = 3
    """Attention heads; must divide the width."""
    num_decoder_layers: Annotated[int, tyro.conf.arg(aliases=["--num-layers"])] = 4
    """Transformer layers."""
    dropout: float = 0.1
    """Dropout in attention and on each residual branch."""
    conditions: tuple[Literal["text", "midi", "source", "prompt"], ...] = ("text",)
    """What it writes: text, and nothing else."""
    condition_dropout: float = 0.0
    """Of models that are conditioned."""
    kernel: int = 5
    """Frames that each of the two convolutions sees at once; odd."""
    convolution: int = 0
    """Steps that a depthwise convolution in every layer sees, as in a Conformer; odd; 0: none."""
    frames_per_step: int = 2
    """Frames that become one step of the transformer: fewer steps take less time."""
    decisions_per_step: int = 0
    """Decisions at each step of the transformer, each for one symbol or none; 0: as many as give
    each symbol two on average. An item with more symbols than decisions is left out."""
    mask_share: float = 0.2
    """Share of the frames that are hidden in training, in spans."""
    mask_frames: int = 10
    """Longest of these spans."""
    level_dropout: float = 0.3
    """Chance that an item is given in training with its first levels only, a random number."""

    alignment_prior: float = 0.6
    """Share of the training in which alignments near to the average ones weigh more, fading to
    nothing; 0: never. The loss of that time is no likelihood, the held-out one always is."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.conditions != ("text",):
            found.append(
                f"--conditions {' '.join(self.conditions) or '(none)'}: a recogniser writes text, "
                "give --conditions text"
            )
        found += self.without_effect(
            "conditions, and a recogniser is given codes alone",
            *("fusion", "num_encoder_layers", "condition_dropout"),
        )
        found += self.outside("[0, 1]", "alignment_prior", "level_dropout")
        found += self.outside("[0, 1)", "mask_share")
        found += self.outside("[0, inf)", "decisions_per_step")
        found += self.outside("[1, inf)", "frames_per_step")
        if self.kernel < 1 or self.kernel % 2 == 0:
            found.append(f"--kernel {self.kernel}: an odd number")
        if self.convolution < 0 or (self.convolution and self.convolution % 2 == 0):
            found.append(f"--convolution {self.convolution}: an odd number, or 0 for none")
        if self.mask_frames < 1:
            found.append(f"--mask-frames {self.mask_frames}: at least 1; --mask-share 0 hides none")
        return found


class _Facts(NamedTuple):
    symbols: Tensor
    """(B, S)"""
    decisions: Tensor
    """(B,)"""
    scored: Tensor
    """(B,) bool"""
    counts: Tensor
    """(B,) symbols to score."""


class Recognizer(TokenModel):
    """CTC recogniser over codec tokens.

    >>> info = CodecInfo("demo", "", 16000, 320, num_codebooks=4, codebook_size=16)
    >>> from rvqlm.condition_info import ConditionInfo
    >>> text = {"text": ConditionInfo("text", (30,), rate=4.0)}
    >>> model = Recognizer(RecognizerConfig(32, 2, 1), info, text).eval()
    >>> [len(ids) <= 9 for ids in model.recognize(torch.randint(16, (2, 9, 4)))]
    [True, True]
    """

    name = "recognizer"
    generates = False
    judged_by = "error_rate"  # which still falls when the loss, of too sure a model, has long risen

    def __init__(self, config: RecognizerConfig, info: CodecInfo, conditions: Infos | None = None):
        super().__init__(config, info, conditions)
        c, d, text = config, config.decoder_dim, self.conditions["text"]
        if text.num_fields != 1 or text.sizes[0] < 2:
            raise UserError(f"a text of sizes {text.sizes} has no symbols; run rvqlm text again")
        self.num_symbols = text.sizes[0]
        durations = None if text.durations is None else bits_of(text.durations)
        self.register_buffer("durations", durations, persistent=False)
        self.decisions = c.decisions_per_step or ceil(2 * c.frames_per_step / text.rate)
        self.embedding = SumEmbedding(info.num_codebooks, info.codebook_size + 1, d)
        self.front = nn.ModuleList(
            nn.Conv1d(d, d, c.kernel, stride, c.kernel // 2) for stride in (1, c.frames_per_step)
        )
        self.transformer = Transformer(c.transformer(causal=False))
        self.head = nn.Linear(d, self.decisions * self.num_symbols)
        nn.init.zeros_(self.head.weight)

    def muon_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.transformer.parameters() if p.ndim == 2]

    def why_not_graphed(self) -> str:
        return "torch's CTC loss reads lengths on the host"

    # -------------------------------------------------------------------------- transcription

    def log_probs(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What each decision is, and how many an item has.

        :param codes: (B, T, K); anything past ``lengths`` (B,).
        :return: (B, S, symbols) float32 log p, the blank first; (B,) decisions.
        """
        T, V = codes.shape[1], self.special
        real = mask_of(lengths, T)
        grid = codes.long().masked_fill(~real[:, :, None], V)
        if self.training:
            grid = self._augment(grid, lengths)
        x, joined = self.embedding(grid), self.config.frames_per_step
        # what lies past an item has to be nothing to the convolutions, as it is alone in a batch
        x = F.gelu(self.front[0]((x * real[..., None]).mT)).mT * real[..., None]
        x = self.front[1](x.mT).mT  # (B, steps, d)
        steps = (lengths + joined - 1) // joined
        seen = mask_of(steps, x.shape[1])
        seen[:, 0] = True  # attention has to see something, even of an item without frames
        logits = self.head(self.transformer(x, key_mask=seen))
        logits = logits.unflatten(2, (self.decisions, self.num_symbols)).flatten(1, 2)
        return logits.float().log_softmax(-1), self._decisions(lengths)

    def _augment(self, grid: Tensor, lengths: Tensor) -> Tensor:
        """Hide spans of frames, and fine levels of some items."""
        c, (B, T, K) = self.config, grid.shape
        device, hide = grid.device, torch.zeros(grid.shape, dtype=torch.bool, device=grid.device)
        if c.level_dropout and K > 1:
            levels = torch.randint(1, K, (B, 1), device=device)
            few = torch.rand(B, 1, device=device) < c.level_dropout
            fine = torch.arange(K, device=device) >= levels
            hide |= (fine & few)[:, None]
        if c.mask_share:
            # spans begin anywhere; one has (mask_frames + 1) / 2 frames on average
            begins = torch.rand(B, T, device=device) < 2 * c.mask_share / (c.mask_frames + 1)
            size = torch.randint(1, c.mask_frames + 1, (B, T), device=device)
            ends = torch.where(begins, torch.arange(T, device=device) + size, 0)
            reach = ends.cummax(1).values  # where the spans begun so far end
            hide |= (torch.arange(T, device=device) < reach)[..., None]
        return grid.masked_fill(hide, self.special)

    def forward(
        self, batch: Batch, label_smoothing: float = 0.0, level_weights: Tensor | None = None
    ) -> LMOutput:
        """Items without text, or with more symbols than decisions, are not scored."""
        if label_smoothing or level_weights is not None:
            raise UserError("a recogniser knows neither --label-smoothing nor weights of levels")
        text = batch.conditions.get("text")
        if text is None:
            raise UserError("a recogniser learns from text; the batch has none")
        log_probs, _ = self.log_probs(batch.codes, batch.lengths)
        S, symbols = text.values.shape[1], text.values[:, :, 0].long()
        real = mask_of(text.lengths, S)
        here = self._facts(batch.here)
        scored, counts = (to_device(x, symbols.device) for x in (here.scored, here.counts))
        likely, until = log_probs, self.config.alignment_prior
        if self.training and self.progress < until:
            far = self._far_off(batch.lengths, symbols, real, log_probs.shape[1])
            likely = log_probs - (1 - self.progress / until) * far
        targets = symbols.masked_fill(~real, BLANK)
        lengths = here.decisions.tolist(), here.counts.tolist()
        nats = F.ctc_loss(likely.transpose(0, 1), targets, *lengths, BLANK, reduction="none")
        loss, count = (nats * scored).sum(), counts.sum().float()
        ids = log_probs.detach().argmax(-1)  # (B, decisions)
        K, device = self.info.num_codebooks, count.device
        if waits := device.type == "cpu" or not self.training:
            ids = ids.cpu()
        else:  # it arrives while the step goes on
            ids = ids.to("cpu", non_blocking=True)

        def level(value: Tensor) -> Tensor:
            return F.pad(value.detach()[None], (0, K - 1))

        def recognised() -> dict[str, tuple[Tensor, Tensor]]:
            references = [row[:n] for row, n in zip(here.symbols.tolist(), here.counts.tolist())]
            found = edit_distances(references, collapsed(ids, here.decisions))
            errors = torch.from_numpy(found) * here.scored
            left = (here.counts - errors).clamp(min=0)
            left, wrong = (to_device(x.sum().float(), device) for x in (left, errors))
            return {"accuracy": (level(left), level(count)), "error_rate": (wrong, count)}

        left_out = (~scored).sum().float()
        sums = {
            "nats": (level(loss), level(count)),
            "left_out": (left_out, torch.full_like(count, len(scored))),
        }
        if waits:
            return LMOutput(loss, count, sums | recognised())
        return LMOutput(loss, count, sums, later=recognised)

    def _facts(self, batch: Batch) -> _Facts:
        """What the host knows of a batch without the model."""
        text = batch.conditions["text"].to("cpu")
        symbols, S = text.values[:, :, 0].long(), text.values.shape[1]
        # two equal symbols need a blank between them
        doubles = (symbols[:, 1:] == symbols[:, :-1]) & mask_of(text.lengths, S)[:, 1:]
        decisions = self._decisions(batch.lengths.cpu())
        scored = (text.lengths + doubles.sum(1) <= decisions) & (text.lengths > 0)
        # an item that is not scored takes part as an empty one: its loss is finite, its weight 0
        return _Facts(symbols, decisions, scored, text.lengths * scored)

    def _decisions(self, lengths: Tensor) -> Tensor:
        """(B,) of items of so many frames."""
        joined = self.config.frames_per_step
        return (lengths + joined - 1) // joined * self.decisions

    def _far_off(self, lengths: Tensor, symbols: Tensor, real: Tensor, decisions: int) -> Tensor:
        """(B, decisions, symbols of the table) how unlikely it is by time alone that a decision is
        a symbol: half the square of its distance in `NEAR` to the nearest one, `NEVER` at most."""
        at = in_order(self.conditions["text"], self.durations, symbols, real, lengths)  # (B, S)
        each = self.config.frames_per_step / self.decisions
        times = (torch.arange(decisions, device=at.device) + 0.5) * each
        off = ((times[None, :, None] - at[:, None, :]) / NEAR).square() / 2  # (B, decisions, S)
        off = off.clamp(max=NEVER).masked_fill(~real[:, None, :], NEVER)
        far = off.new_full((*off.shape[:2], self.num_symbols), NEVER)
        index = symbols.masked_fill(~real, BLANK)[:, None, :].expand_as(off)
        far = far.scatter_reduce(2, index, off, "amin")
        far[..., BLANK] = 0.0
        return far

    @torch.no_grad()
    def recognize(
        self, codes: Tensor, lengths: Tensor | None = None, bigram: Bigram | None = None
    ) -> list[list[int]]:
        """The most likely symbol of each decision, repetitions and blanks left out.

        :param codes: (B, T, K) integers.
        :param lengths: (B,) valid frames; all T by default.
        :param bigram: the likeliest decisions by it and the model together, instead.
        :return: symbol ids of each item, without 0.
        """
        device = self.head.weight.device
        if lengths is None:
            lengths = torch.full((len(codes),), codes.shape[1])
        training = self.training
        self.eval()
        try:
            found, decisions = self.log_probs(codes.to(device), lengths.to(device))
            if bigram is None:
                return greedy(found, decisions)
            return bigram.transcribe(*(value.cpu().numpy() for value in (found, decisions)))
        finally:
            self.train(training)

    def check_request(self, request) -> None:
        raise UserError(
            "a recogniser transcribes and makes no codes; use it with "
            "rvqlm recognize, and generate with a model of another family"
        )


def greedy(log_probs: Tensor, decisions: Tensor) -> list[list[int]]:
    """Transcripts of (B, S, symbols) log p, of which the first ``decisions`` (B,) count."""
    return collapsed(log_probs.argmax(-1).cpu(), decisions.cpu())


def collapsed(ids: Tensor, decisions: Tensor) -> list[list[int]]:
    """Transcripts of decisions (B, S), on the host, of which the first (B,) count: repetitions and
    blanks left out."""
    new = torch.ones_like(ids, dtype=torch.bool)
    new[:, 1:] = ids[:, 1:] != ids[:, :-1]
    kept = new & mask_of(decisions, ids.shape[1]) & (ids != BLANK)
    return [row[k].tolist() for row, k in zip(ids, kept)]
