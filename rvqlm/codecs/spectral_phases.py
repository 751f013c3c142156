"""Magnitudes that arrive in pieces become audio, in memory that does not grow with the recording.

Griffin-Lim sees some tens of seconds at a time. Cuts are made where it is quietest, because the
phases on the two sides of a cut do not agree, and the sides are faded into each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FADE = 4
"""Spectra on each side of a cut over which its sides are mixed."""


def quiet_cuts(magnitudes: Tensor, size: int) -> list[int]:
    """Where to cut (n, bins) into pieces of about `size`, 0 and n included: each time the quietest
    spectrum within a fifth of `size`."""
    cuts = [0]
    while (cut := _next_cut(magnitudes[cuts[-1] :], size)) is not None:
        cuts.append(cuts[-1] + cut)
    return [*cuts, len(magnitudes)]


def _next_cut(magnitudes: Tensor, size: int) -> int | None:
    """The first cut of what begins at a cut; None if there is too little for another one."""
    reach = size // 5
    if len(magnitudes) <= size + reach + FADE:
        return None
    around = magnitudes[size - reach : size + reach]
    return size - reach + int(around.square().sum(1).argmin())


class Phases:
    """A stage of `rvqlm.codecs.streaming`: magnitudes (1, bins, n) -> audio (1, 1, n * hop).

    Args:
        invent: (n, bins) -> (n * hop,), phases and all.
        hop: samples per spectrum.
        size: spectra in a piece, about.

    How the magnitudes are cut when they arrive changes nothing.
    """

    def __init__(self, invent: Callable[[Tensor], Tensor], hop: int, size: int):
        self.invent, self.hop, self.size = invent, hop, size
        self.ramp = torch.linspace(0, 1, 2 * FADE * hop)
        self.held: Tensor | None = None  # from FADE spectra before the last cut on
        self.lead = 0  # so many of them are before it
        self.carry: Tensor | None = None  # what the piece before gives to this one's beginning

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            part = x[0].T.contiguous()  # kernels may round by layout
            self.held = part if self.held is None else torch.cat((self.held, part))
        if self.held is None:
            return None
        made = []
        while (cut := _next_cut(self.held[self.lead :], self.size)) is not None:
            cut += self.lead
            audio = self._piece(self.held[: cut + FADE])
            self.carry = audio[-len(self.ramp) :] * (1 - self.ramp)
            made.append(audio[: -len(self.ramp)])
            self.held, self.lead = self.held[cut - FADE :], FADE
        if last:
            made.append(self._piece(self.held))
            self.held = None
        return torch.cat(made)[None, None] if made else None

    def _piece(self, magnitudes: Tensor) -> Tensor:
        audio = self.invent(magnitudes)
        if self.carry is not None:
            audio[: len(self.ramp)] *= self.ramp
            audio[: len(self.ramp)] += self.carry
        return audio
