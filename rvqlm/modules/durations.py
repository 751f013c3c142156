"""How long each symbol of a text is said: what a model learns beside the codes where its texts are
aligned, and says itself where only words are given."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 48
SHORTEST, LONGEST = 0.005, 3.0
"""Seconds between which durations are told apart, on a logarithmic scale; what is shorter counts as
nothing, as most white space, and takes bin 0."""


class DurationHead(nn.Module):
    """A distribution over the duration of each symbol, and over the silence before the first, from
    the encoded text: of a number of bins, since white space lasts nothing or long, seldom between.

    Two convolutions give a symbol its neighbours where no encoder did.
    """

    def __init__(self, dim: int, frame_rate: float):
        super().__init__()
        self.frame_rate = frame_rate
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, 5, padding=2) for _ in range(2))
        self.linear = nn.Linear(dim, BINS + 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, 1 + S, d) encoded text behind its first step, which stands for the silence before,
        and which of the steps exist -> (B, 1 + S, bins) logits."""
        for convolution in self.convolutions:
            # nothing past a text reaches it, as it is alone in a batch
            x = x + F.gelu(convolution((x * mask[..., None]).mT)).mT
        return self.linear(x).float()

    def nats(self, logits: Tensor, frames: Tensor) -> Tensor:
        """-log p, (B, 1 + S), of durations in frames."""
        seconds = frames / self.frame_rate
        log_step = math.log(LONGEST / SHORTEST) / BINS
        log_share = (seconds.clamp(min=1e-9) / SHORTEST).log() / log_step
        bins = (log_share.floor() + 1).clamp(0, BINS).long()
        return F.cross_entropy(logits.flatten(0, 1), bins.flatten(), reduction="none").view_as(bins)

    def draw(self, logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
        """Frames (B, 1 + S) from the distributions, or their medians at temperature 0.

        :param uniform: (B, 1 + S) in [0, 1).
        """
        if not temperature:
            uniform, temperature = torch.full_like(uniform, 0.5), 1.0
        share = (logits / temperature).softmax(-1).double()
        until = share.cumsum(-1)
        uniform = uniform.double().unsqueeze(-1) * until[..., -1:]
        bins = (until <= uniform).sum(-1, keepdim=True).clamp(max=BINS)
        own = share.gather(-1, bins)
        inside = ((uniform - (until.gather(-1, bins) - own)) / own.clamp(min=1e-12)).clamp(0, 1)
        log_step = math.log(LONGEST / SHORTEST) / BINS
        seconds = SHORTEST * torch.exp((bins - 1 + inside) * log_step)
        return torch.where(bins == 0, 0.0, seconds).squeeze(-1).float() * self.frame_rate


def durations_of(times: Tensor) -> Tensor:
    """(B, S, 2) begin and end of symbols -> (B, 1 + S) how long the silence before the first and
    each symbol are."""
    lead = times[:, :1, 0] if times.shape[1] else times.new_full((len(times), 1), torch.nan)
    return torch.cat([lead, times[..., 1] - times[..., 0]], 1)


def times_of(durations: Tensor, known: Tensor | None = None) -> Tensor:
    """(B, 1 + S) as of `durations_of` -> (B, S, 2), one symbol right after the other.

    :param known: (B, S, 2) times that are given, NaN elsewhere: symbols between two of these fill
        what lies between them, in proportion to their durations, those behind follow the last.
    """
    until = durations.cumsum(1)
    times = torch.stack([until[:, :-1], until[:, 1:]], -1)
    if known is not None:
        for row, given in zip(times, known):
            _fit(row, given)
    return times


def _fit(times: Tensor, given: Tensor) -> None:
    """Place the symbols of one text, (S, 2), about the given ones."""
    places = (~given.isnan().any(1)).nonzero().flatten().tolist()
    before, after = 0.0, 0.0  # where the symbol before ends, by the durations and as given
    begin = 0
    for place in [*places, len(times)]:
        scale = 1.0
        if place < len(times):
            room, wanted = float(given[place, 0]) - after, float(times[place, 0]) - before
            scale = max(0.0, room) / wanted if wanted > 0 else 0.0
        times[begin:place] = after + (times[begin:place] - before) * scale
        if place < len(times):
            before, after, begin = float(times[place, 1]), float(given[place, 1]), place + 1
            times[place] = given[place]
