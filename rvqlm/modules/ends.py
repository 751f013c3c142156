"""Where a sequence ends, apart from the codes: one binary decision per frame (`EndHead`), or how
many frames it has, said before any of them exists (`LengthHead`)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.batch import Batch
from rvqlm.modules.conditioning import Context

LEAST_LOG_SCALE, MOST_LOG_SCALE = -6.0, 3.0


class EndHead(nn.Module):
    """Logit that the sequence ends before a frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        # ends are rare: start from "continues"
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -5.0)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (...)"""
        return self.linear(hidden).squeeze(-1)

    def loss(self, hidden: Tensor, at: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p of "continues" before every scored frame and of "ends" after the last, the latter
        only for items that end where their recording ends; sum and number of decisions.

        :param hidden: (B, S, d).
        :param at: (B or 1, T + 1) int64 step at which it is decided whether the sequence has
            exactly 0, 1, ... T frames.
        """
        B, T = batch.codes.shape[:2]
        index = at.expand(B, -1).clamp(max=hidden.shape[1] - 1).unsqueeze(-1)
        logits = self(hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))).float()  # (B, T+1)
        frames = torch.arange(T + 1, device=hidden.device)[None, :]
        ends = (frames == batch.lengths[:, None]) & batch.ends[:, None]
        decided = (frames < batch.lengths[:, None]) | ends
        if batch.prompt_lengths is not None:
            decided &= frames >= batch.prompt_lengths[:, None]
        nats = F.binary_cross_entropy_with_logits(logits, ends.float(), reduction="none")
        return (nats * decided).sum(), decided.sum().float()


class LengthHead(nn.Module):
    """A logistic distribution over the logarithm of the number of frames, cut into whole frames, so
    that its nats are those of a number and not of a density; made of the output of one step.

    Its centre begins where the conditions end on the time axis, so that what is left to learn is by
    how much a text is spoken faster or slower than the average; without any that reach anywhere, at
    a typical length.

    :param typical: frames to begin from where no condition says anything.
    """

    def __init__(self, dim: int, typical: float):
        super().__init__()
        self.typical = math.log(typical)
        self.query = nn.Parameter(torch.randn(dim))
        self.reach = nn.Parameter(torch.zeros(dim))
        self.linear = nn.Linear(dim, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.bias[1] = math.log(0.3)

    def begin(self, context: Context | None, batch_size: int) -> tuple[Tensor, Tensor]:
        """The step (B, 1, d) that is put behind the conditions, and (B,) log frames to begin from.

        :param context: conditions that were placed without knowledge of the number of frames.
        """
        if context is None:
            reach = self.query.new_zeros(batch_size)
        else:  # frames from the beginning to the last step of any condition
            reach = context.positions.masked_fill(~context.mask, 0).amax(1).clamp(min=0).float()
        base = torch.where(reach > 0, reach.clamp(min=1).log(), self.typical)
        step = self.query + (base - self.typical)[:, None].to(self.reach) * self.reach
        return step[:, None], base

    def forward(self, hidden: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Centre and scale (B,) of the log frames from the step's output (B, d)."""
        shift, log_scale = self.linear(hidden).float().unbind(-1)
        return base + shift, log_scale.clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE).exp()

    @staticmethod
    def nats(centre: Tensor, scale: Tensor, frames: Tensor) -> Tensor:
        """-log p(frames), (B,); the sum of p over 1, 2, 3, ... is 1."""
        frames = frames.to(centre.dtype)
        low = ((frames - 0.5).log() - centre) / scale
        high = ((frames + 0.5).log() - centre) / scale
        least = (math.log(0.5) - centre) / scale
        # sigmoid(high) - sigmoid(low) without cancellation, over the mass of at least one frame
        log_p = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(low - high))
        return F.logsigmoid(-least) - log_p

    @staticmethod
    def draw(
        centre: Tensor, scale: Tensor, uniform: Tensor, least: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Frames (B,) int64 of at least ``least``: from the distribution given that, or its centre
        at temperature 0.

        :param uniform: (B,) in [0, 1).
        """
        centre, scale = centre.double(), scale.double() * temperature
        log_frames = centre
        if temperature:
            # inverse of the survival function, which keeps precision far above the centre
            at_least = torch.sigmoid((centre - (least - 0.5).clamp(min=0.5).double().log()) / scale)
            v = ((1 - uniform.double()) * at_least).clamp(min=1e-300)
            log_frames = centre + scale * (torch.log1p(-v.clamp(max=1 - 1e-12)) - v.log())
        longest = math.log(2**40)
        frames = log_frames.clamp(max=longest).exp().round().long()
        return torch.maximum(frames, least)
