"""State of decoding whose rows come and go, each at a step of its own, with conditions of its own.

A sequence is read in by itself and then put into a row; the rows in use are the first ones, and
where one is given up the last takes its place, so that a step computes none in vain.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rvqlm.modules.conditioning import ConditionedTransformer, DecoderState
from rvqlm.modules.stepping import Stepper

UNIT = 64
"""Steps of conditions that room is made for at a time."""


class Running(DecoderState):
    """Rows of a cache and of all else that a step of theirs is given.

    :param like: state of a sequence that was read in: what is given beside the cache.
    :param rows: most of them.
    :param steps: longest sequence; the steps in front of it (`lead`) come on top.
    :param lead: most of these.
    """

    rows_differ = True

    def __init__(
        self,
        network: ConditionedTransformer,
        like: DecoderState,
        rows: int,
        steps: int,
        lead: int = 0,
    ):
        super().__init__(cache=network.transformer.make_cache(rows, lead + steps))
        device = self.cache.places.device
        self.stepper = Stepper(network.transformer, self.cache)
        self.stepper.counts = False
        self.room, self.rows = rows, 0
        self.steps, self.most_lead = steps, lead
        self._lead = torch.zeros(rows, dtype=torch.int64, device=device)
        self._added = self._memory = self._seen = None
        if like.added is not None:
            self._added = like.added.new_zeros(rows, steps, like.added.shape[1])
        if like.memory is not None:
            self._memory = [
                tuple(part.new_zeros(rows, part.shape[1], 0, part.shape[3]) for part in layer)
                for layer in like.memory
            ]
            self._seen = torch.zeros(rows, 0, dtype=torch.bool, device=device)

    @property
    def lead(self) -> Tensor:
        return self._lead[: self.rows]

    def put(self, row: int, other: DecoderState, source: int, held: int) -> None:
        """Make a row a copy of a row of another state, or of this, whose cache holds ``held`` steps
        of it; `use` then says which are in use."""
        self.cache.put(row, other.cache, source, held)
        self._lead[row] = other.lead[source] if other.rows_differ else other.lead
        if self._added is not None:
            added = other.added.unflatten(0, (len(other.cache.places), -1))[source]
            count = min(len(added), self.steps)
            self._added[row, :count] = added[:count]
        if self._memory is not None:
            count = other.memory_mask.shape[1]
            self._widen(count)
            self._seen[row, count:] = False
            self._seen[row, :count] = other.memory_mask[source]
            for mine, given in zip(self._memory, other.memory):
                for held_, part in zip(mine, given):
                    held_[row, :, :count] = part[source]

    def tensors(self) -> list[Tensor]:
        """All that a step reads and writes."""
        memory = [part for layer in self.memory or () for part in layer]
        # another one, once a longer sequence asks for it
        turns = self.stepper.rotary.wide(self.cache.longest, self._lead.device)
        found = [turns, self._lead, self.added, self.memory_mask, *memory, *self.cache.tensors()]
        return [x for x in found if x is not None]

    def reserve(self) -> None:
        """Before each step."""
        self.cache.reserve()

    def count(self) -> None:
        """After each step."""
        self.cache.position += 1

    def use(self, rows: int, longest: int) -> None:
        """Go on with the first rows, of which the longest holds so many steps in the cache."""
        self.rows = rows
        self.cache.use(rows, longest)
        if self._added is not None:
            self.added = self._added[:rows].flatten(0, 1)
        if self._memory is not None:
            self.memory = [tuple(part[:rows] for part in layer) for layer in self._memory]
            self.memory_mask = self._seen[:rows]

    def _widen(self, count: int) -> None:
        """Room for so many steps of memory."""
        more = -(-count // UNIT) * UNIT - self._seen.shape[1]
        if more > 0:
            self._seen = pad(self._seen, (0, more))
            self._memory = [
                tuple(pad(part, (0, 0, 0, more)) for part in layer) for layer in self._memory
            ]
