"""Recordings that arrive in pieces go through a codec in memory that does not grow with them.

A network is cut into stages. A stage of finite reach (convolutions, a whole encoder) sees a window
at a time: some new units with as many units of context on both sides as its outputs depend on,
whose own outputs are dropped. A recurrent stage, or a transformer with a sliding window, carries
its state from piece to piece. Either gives what it would have given for the whole recording, up to
float rounding: nothing that is kept depends on an artificial edge, and the true ends of the
recording are the ends of a window, so that the network pads there as it always does.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WHOLE = 1 << 62
"""A `step` of `Windows` that no recording reaches: everything goes in at once, at the end."""
LIVE = 0
"""A `step` with which a stage says at once all that can be said, however little: for codes that
are being made, and heard meanwhile."""

Stage = Callable[[Tensor | None, bool], Tensor | None]
"""``stage(x, last)``: the next piece (1, C, n), or None, and whether it is the last one; returns
what can be said by now as (1, C', m), or None. One that carries something else than numbers from
piece to piece names the attributes in `STATE`."""


class Encoded(NamedTuple):
    """Codes of some consecutive frames of a recording."""

    codes: Tensor
    """(t, K) int64 on the host"""
    scales: Tensor | None = None
    """(n,) float32 on the host: loudness of the segments that begin in these frames, for codecs
    that store one per segment (EnCodec 48 kHz); None for all others"""


class Windows:
    """A stage of finite reach.

    Lengths are in units: one unit is `per_in` inputs and `per_out` outputs (the hop and 1 for an
    encoder). Windows are ``[first - before, first + step + after)``; the first begins and the last
    ends with the recording, and the last is the longer for it, so that it is never tiny.

    Args:
        run: (1, C, n * per_in) -> (1, C', n * per_out).
        before: units on the left that an output unit depends on.
        after: units on the right.
        step: new units per call; larger steps cost memory, smaller ones compute context more often.
            More than `before` in any case: where a network pads by reflection, what lies up to
            `before` units behind the beginning shows at the beginning. Or `LIVE`.
        per_in: inputs in a unit.
        per_out: outputs in a unit.
        reflects: whether the network pads by reflection, or in a way that is not known; not so
            where it pads with zeros, or with the first unit. Asked for with `LIVE` only.
    """

    STATE = ("held",)

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        before: int,
        after: int,
        step: int,
        per_in: int = 1,
        per_out: int = 1,
        reflects: bool = True,
    ):
        self.run, self.before, self.after = run, before, after
        self.live, self.step = step == LIVE, max(step, before + 1)
        self.least = before + 1 if reflects else 1  # units that the beginning needs
        self.per_in, self.per_out = per_in, per_out
        self.first = self.begin = 0  # the next unit to give, and the unit that `held` begins with
        self.held: Tensor | None = None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            self.held = x if self.held is None else torch.cat((self.held, x), -1)
        if self.held is None:
            return None
        made = []
        units = self.begin - (-self.held.shape[-1] // self.per_in)
        if self.live and not last and units >= self.least and units - self.after > self.first:
            return self._part(units - self.after, units)
        while not self.live and has_next(units, self.first, self.step, self.after):
            end = self.first + self.step
            made.append(self._part(end, end + self.after))
        if last and units > self.first:
            made.append(self._part(units, units))
        return torch.cat(made, -1) if made else None

    def needs(self, outputs: int) -> int:
        """Inputs without which the first `outputs` cannot be said; all of them but with `LIVE`."""
        if not self.live:
            return WHOLE
        units = -(-outputs // self.per_out)
        return max(units + self.after, self.least) * self.per_in

    def _part(self, end: int, right: int) -> Tensor:
        """Outputs of the units [first, end), computed from all that is held before unit `right`."""
        y = self.run(self.held[..., : (right - self.begin) * self.per_in])
        y = y[..., (self.first - self.begin) * self.per_out : (end - self.begin) * self.per_out]
        self.first, keep = end, max(0, end - self.before)
        self.held = self.held[..., (keep - self.begin) * self.per_in :]
        self.begin = keep
        return y


def has_next(units: int, first: int, step: int, after: int) -> bool:
    """Whether `units` units are enough for a window from `first` that is not the last one."""
    return units > first + step + max(after, step // 2)


def windows(units: int, before: int, after: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """The windows of `Windows` for a recording of known length: (first, end, left, right), where
    units [first, end) are kept of [left, right)."""
    first, step = 0, max(step, before + 1)
    while has_next(units, first, step, after):
        yield first, first + step, max(0, first - before), first + step + after
        first += step
    if units > first:
        yield first, units, max(0, first - before), units


class Pointwise:
    """A stage that needs to see nothing but the piece at hand."""

    def __init__(self, run: Callable[[Tensor], Tensor]):
        self.run = run

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        return None if x is None else self.run(x)


class Recurrent:
    """A stage that is an LSTM with a residual connection around it (SEANet's): carries (h, c)."""

    STATE = ("state",)

    def __init__(self, lstm: nn.LSTM):
        self.lstm, self.state = lstm, None

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        x = x.permute(2, 0, 1)  # (n, 1, C)
        y, self.state = self.lstm(x, self.state)
        return (y + x).permute(1, 2, 0)


def encode_staged(codec, blocks: Iterable[Tensor], *stages: Stage) -> Iterator[Encoded]:
    """Blocks of audio (C, n) through stages whose last one gives codes (1, K, t)."""
    for codes in _through(codec, _whole_frames(blocks, codec.info.hop), stages):
        yield Encoded(codes[0].T.cpu())


def _whole_frames(blocks: Iterable[Tensor], hop: int) -> Iterator[Tensor]:
    """The blocks as (1, C, n), and zeros that complete the last frame."""
    samples = 0
    for block in blocks:
        samples += block.shape[1]
        if block.shape[1]:
            yield block[None]
    if samples % hop:
        yield block.new_zeros(1, len(block), -samples % hop)


class Decoder:
    """Codes of one recording go in piece by piece, and audio comes out as far as it is settled.

    Args:
        codec: whose settings of torch hold.
        stages: (1, K, t) codes to (1, C, n) audio.
    """

    def __init__(self, codec, *stages: Stage):
        self.codec, self.stages = codec, stages

    def __call__(self, codes: Tensor | None, last: bool = False) -> Tensor | None:
        """Codes (t, K) of any integer type, or None for no more, and whether they are the last ->
        audio (C, n) on the host, or None where nothing can be said yet."""
        x = None
        if codes is not None and len(codes):
            x = codes.T[None].to(self.codec.device, torch.int64)
        audio = _pushed(self.codec, x, last, self.stages)
        return None if audio is None else audio[0].float().cpu()

    def copied(self) -> tuple[Decoder, int]:
        """Another that goes on from here, and the bytes that it holds."""
        stages, size = [], 0
        for stage in map(copy.copy, self.stages):
            for name in getattr(stage, "STATE", ()):
                state, more = _copied(getattr(stage, name))
                setattr(stage, name, state)
                size += more
            stages.append(stage)
        return Decoder(self.codec, *stages), size

    def needs(self, samples: int) -> int:
        """Frames of codes without which the first `samples` cannot be said."""
        count = samples
        for stage in reversed(self.stages):
            count = stage.needs(count) if hasattr(stage, "needs") else count
        return count


def _copied(state) -> tuple[Any, int]:
    """A state of tensors, in whatever holds them, and its bytes; of what is a part of a larger
    tensor no more than that."""
    if isinstance(state, Tensor):
        return (part := state.clone(memory_format=torch.contiguous_format)), part.nbytes
    if isinstance(state, np.ndarray):
        return state.copy(), state.nbytes
    if isinstance(state, (list, tuple)):
        parts, sizes = zip(*map(_copied, state)) if state else ((), ())
        return type(state)(parts), sum(sizes)
    if not hasattr(state, "__dict__"):
        return state, 0
    one, size = copy.copy(state), 0
    for name, part in vars(state).items():
        if isinstance(part, (Tensor, list, tuple)):
            part, more = _copied(part)
            setattr(one, name, part)
            size += more
    return one, size


def _through(codec, pieces: Iterable[Tensor], stages: tuple[Stage, ...]) -> Iterator[Tensor]:
    """What comes out of the last stage."""
    for x in itertools.chain(pieces, [None]):
        if (x := _pushed(codec, x, x is None, stages)) is not None:
            yield x


def _pushed(codec, x: Tensor | None, last: bool, stages: tuple[Stage, ...]) -> Tensor | None:
    """A piece through all stages, with the settings of torch that the codec needs."""
    with codec.inference():
        for stage in stages:
            x = stage(x, last)
    return x
