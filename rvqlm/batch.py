"""`Batch`: all that a model sees of the data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

PAD = -1
"""Value of codes and conditions past an item's length; never a valid id."""


def mask_of(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths -> (B, size) bool: what lies before them.

    >>> mask_of(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The same on a device. Nothing waits on the way to a GPU, since the copy is made of pinned
    memory; on the way back what is read too early would be wrong."""
    kind = torch.device(device).type
    if kind == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=kind != "cpu")


class Constant:
    """Numbers that every batch takes part in: copied to a device once."""

    def __init__(self, values: Tensor):
        self._copies = {values.device: values}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            (first, *_) = self._copies.values()
            with torch.inference_mode(False):  # else of no use to a later training step
                self._copies[device] = to_device(first, device)
        return self._copies[device]


class Most(NamedTuple):
    """What is known of a loss before a device has worked out which cells are scored."""

    rows: int
    """At most so many rows have a scored cell."""
    cells: int
    """At most so many cells of a level are scored."""


class Padded(NamedTuple):
    """Sequences of unequal lengths in one tensor."""

    values: Tensor
    """(B, S, F) integers; `PAD` past lengths."""
    lengths: Tensor
    """(B,) int64; 0 where an item has none."""
    times: Tensor | None = None
    """(B, S, 2) float32, of a text whose place is known: frames at which each step begins and ends,
    NaN for items where it is not and past lengths."""

    @classmethod
    def of(
        cls,
        items: list[Tensor | None],
        num_fields: int,
        times: list[Tensor | None] | None = None,
    ) -> Padded:
        """Pad a list of (S_i, F) tensors, (S_i,) for one field; None for an item without.

        :param times: (S_i, 2) of each, or None where its times are not known.
        """
        empty = torch.empty(0, num_fields, dtype=torch.int32)
        rows = [empty if i is None else i.to(torch.int32).view(-1, num_fields) for i in items]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        placed = None
        if times is not None:
            placed = torch.full((*values.shape[:2], 2), torch.nan)
            for row, known in zip(placed, times):
                if known is not None:
                    row[: len(known)] = known
        return cls(values, torch.tensor([len(r) for r in rows]), placed)

    def map(self, change: Callable[[Tensor], Tensor]) -> Padded:
        """The same with each tensor changed, items or their place."""
        return Padded(*(None if t is None else change(t) for t in self))

    def widened(self, multiple: int) -> Padded:
        """With room for a multiple of so many steps."""
        more = (0, 0, 0, -self.values.shape[1] % multiple)
        values = torch.nn.functional.pad(self.values, more, value=PAD)
        times = self.times
        if times is not None:
            times = torch.nn.functional.pad(times, more, value=torch.nan)
        return Padded(values, self.lengths, times)

    def repeat(self, times: int) -> Padded:
        """The batch so many times over."""
        return self.map(lambda t: t.repeat(times, *(1,) * (t.ndim - 1)))

    def to(self, device: torch.device | str) -> Padded:
        return self.map(lambda t: to_device(t, device))


@dataclass
class Batch:
    """A padded batch of token sequences.

    Shapes: B items, T frames of the longest, K codebooks.
    """

    codes: Tensor
    """(B, T, K) int16 on the host (int32 where a codebook exceeds 32767 entries); `PAD` past
    lengths."""
    lengths: Tensor
    """(B,) int64, valid frames per item."""
    ends: Tensor
    """(B,) bool: the item ends where its recording ends (a crop usually does not). The end of the
    sequence is learnt only from these."""
    index: Tensor
    """(B,) int64: row of each item in the dataset's index."""
    epoch: int = 0
    step: int = 0
    """Micro-batch number within the epoch, on this rank."""
    begins: Tensor | None = None
    """(B,) bool: the item begins where its recording does; None: all do."""
    conditions: Mapping[str, Padded] = field(default_factory=dict)
    """What is given beside the codes, by kind (`rvqlm.condition_info`): (B, S, F) each."""
    prompt_lengths: Tensor | None = None
    """(B,) int64 leading frames that are given and not scored; None: 0 for all, or for the model
    to choose where it trains on a split of its own."""

    rows: Tensor | None = None
    """(B, 2) int64, on the host wherever the rest is: where several items stand in one row of what
    a model computes, the row of each and its frames (`rvqlm.modules.documents`). None: padded."""
    row_frames: int = 0
    """Frames that fill such a row."""
    host: Batch | None = field(default=None, repr=False, compare=False)
    """The same on the host, of a batch that was moved to a device, which would have to be waited
    for to tell a number."""
    frames: int | None = None
    """`num_frames`, where it was counted before the batch was moved."""

    @property
    def cells(self) -> int:
        """Frames with padding, of the rows where items stand in rows."""
        if self.rows is None:
            return self.codes.shape[0] * self.codes.shape[1]
        return len(self.rows[:, 0].unique()) * self.row_frames

    @property
    def num_frames(self) -> int:
        """Real (unpadded) frames."""
        return int(self.lengths.sum()) if self.frames is None else self.frames

    @property
    def here(self) -> Batch:
        """The batch on the host, where there is one."""
        return self if self.host is None else self.host

    @property
    def padded(self) -> bool:
        """Whether items are shorter than others; true where a device would have to be asked."""
        B, T = self.codes.shape[:2]
        if self.frames is None and self.lengths.device.type != "cpu":
            return True
        return self.num_frames < B * T

    def most(self) -> Most:
        """Of a loss with a row a frame; of all frames where a device would have to be asked."""
        B, T = self.codes.shape[:2]
        frames = B * T if self.frames is None else self.frames
        return Most(frames, frames)

    def scored(self) -> Tensor:
        """(B, T) bool: frames that are neither padding nor prompt."""
        T = self.codes.shape[1]
        real = mask_of(self.lengths, T)
        return real if self.prompt_lengths is None else real & ~mask_of(self.prompt_lengths, T)

    def tensors(self) -> dict[Hashable, Tensor]:
        """All there are, by names."""
        found: dict = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        for kind, padded in self.conditions.items():
            of_kind = padded._asdict().items()
            found |= {(kind, name): t for name, t in of_kind if t is not None}
        return found

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with each tensor changed."""
        changed = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        conditions = {k: p.map(change) for k, p in self.conditions.items()}
        return replace(self, **changed, conditions=conditions)

    def to(self, device: torch.device | str) -> Batch:
        moved = self.map(lambda t: to_device(t, device))
        moved.rows = self.rows
        if torch.device(device).type == "cpu":
            return replace(moved, host=None, frames=None)
        if self.lengths.device.type == "cpu":
            moved.host, moved.frames = self, self.num_frames
        return moved

    def item(self, number: int) -> Batch:
        """One item as a batch of its own, without the others' padding."""
        part = slice(number, number + 1)
        own = {k: v[part] for k, v in vars(self).items() if isinstance(v, Tensor)}
        own["codes"] = own["codes"][:, : int(self.lengths[number])]
        given = {}
        for kind, padded in self.conditions.items():
            longest = int(padded.lengths[number])
            values, lengths, times = (None if t is None else t[part] for t in padded)
            times = None if times is None else times[:, :longest]
            given[kind] = Padded(values[:, :longest], lengths, times)
        return replace(self, **own, conditions=given, host=None, frames=None)

    @classmethod
    def from_codes(
        cls,
        items: list[Tensor],
        ends: list[bool] | None = None,
        conditions: Mapping[str, list[Tensor | None]] | None = None,
        prompt_lengths: list[int] | None = None,
    ) -> Batch:
        """Pad a list of (T_i, K) tensors; for tests, prompts and examples.

        :param conditions: by kind, one (S_i, F) tensor an item, or None where it has none.

        >>> b = Batch.from_codes([torch.zeros(3, 2), torch.ones(1, 2)])
        >>> b.codes.shape, b.lengths.tolist(), b.codes[1, 1].tolist()
        (torch.Size([2, 3, 2]), [3, 1], [-1, -1])
        """
        codes = torch.nn.utils.rnn.pad_sequence(
            [i.to(torch.int32) for i in items], batch_first=True, padding_value=PAD
        )
        padded = {}
        for kind, given in (conditions or {}).items():
            shapes = {i.shape[1] if i.ndim == 2 else 1 for i in given if i is not None}
            padded[kind] = Padded.of(given, max(shapes, default=1))
        return cls(
            codes=codes,
            lengths=torch.tensor([len(i) for i in items]),
            ends=torch.tensor(ends if ends is not None else [True] * len(items)),
            index=torch.arange(len(items)),
            conditions=padded,
            prompt_lengths=None if prompt_lengths is None else torch.tensor(prompt_lengths),
        )
