"""Where the steps of conditions lie on the time axis of the frames: by what they say of it, or one
after the other by average durations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rvqlm.condition_info import MIDI_FIELDS, ConditionInfo, room_of


def by_clock(info: ConditionInfo, values: Tensor) -> Tensor:
    """(B, S) places in frames of steps (B, S, F) that know their time modulo a turn.

    How many turns lie between two notes their onset says, to the precision of its bins. What sounds
    from before, of an id above all counts, comes first and lies at 0.
    """
    number, unit = info.clock
    size = info.settings.get("positions", info.sizes[number])
    counts = values[..., number].long()
    before = counts >= size
    counts = counts.masked_fill(before, 0)
    counts = counts.diff(dim=1, prepend=torch.zeros_like(counts[:, :1])) % size
    made = info.settings
    if "seconds_unit" in made:
        onset = values[..., MIDI_FIELDS.index("onset")].float()
        seconds = made["seconds_unit"] * torch.expm1(onset / made["seconds_steps"])
        turns = (seconds / made["position_step"] - counts) / size
        turns = turns.round().clamp(min=0).masked_fill(before, 0)
        counts = counts + size * turns.long()
    return counts.cumsum(1) * unit


def bits_of(durations: Sequence[float]) -> Tensor:
    """(V,) int32, float32 to `in_order`: a cast of the model to 16 bits would round floats, and
    texts would drift from their codes."""
    return torch.tensor(durations).view(torch.int32)


def in_order(
    info: ConditionInfo,
    durations: Tensor | None,
    ids: Tensor,
    mask: Tensor,
    frames: Tensor | None = None,
) -> Tensor:
    """(B, S) middles, in frames, of steps that follow one another by their average durations.

    :param durations: `bits_of` those of ``info``, or None where it has none.
    :param ids: (B, S) of the first field; mask (B, S) which of them exist.
    :param frames: (B,) frames of the items where known: durations are scaled to fill them.
    """
    lead, width = laid_out(info, durations, ids, mask, frames)
    return lead + width.cumsum(1) - width / 2


def laid_out(
    info: ConditionInfo,
    durations: Tensor | None,
    ids: Tensor,
    mask: Tensor,
    frames: Tensor | None,
) -> tuple[Tensor | float, Tensor]:
    """Frames before the first step, (B, 1) or one for all, and of each (B, S); see `in_order`."""
    width = mask.float()
    known = None if durations is None else durations.view(torch.float32)
    width = width * (info.rate if known is None else known[ids.clamp(min=0).long()])
    lead = info.margins[0]
    if frames is not None:
        lead, room = room_of(frames, info.margins)
        width = width * (room / width.sum(1).clamp(min=1e-6))[:, None]
        lead = lead[:, None]
    return lead, width
