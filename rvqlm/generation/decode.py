"""The decoding loop of all autoregressive models, of a batch that all begins and ends together.

One whose rows come and go, of the same steps, is made in `rvqlm.generation.slots`.
"""

from __future__ import annotations

import torch

from rvqlm.generation import ready
from rvqlm.generation.request import Generation, Request
from rvqlm.generation.steps import BLOCK, Autoregressive, Decoding, Group, advance


def decode(model: Autoregressive, request: Request, offset: int = 0) -> Generation:
    """Fill the cells of the pattern until every sequence has ended; ``offset`` as of `Decoding`."""
    with torch.inference_mode():
        return _Batch(model, request, offset).decode()


class _Batch:
    """One group of sequences."""

    def __init__(self, model: Autoregressive, request: Request, offset: int):
        self.model, self.request, r = model, request, request
        self.run = Decoding(model, r, offset=offset)
        (conditions, drop), times = r.conditions_of_rows(), 2 if r.guided else 1
        self.rows, self.owners = times * r.batch_size, None
        if r.guided:
            self.owners = torch.arange(r.batch_size, device=self.run.device).repeat(2)
        self.state = model.begin(conditions, self.rows, self.run.steps, drop)

    def decode(self) -> Generation:
        kind = "together", self.rows
        memory = ready.take(self.model, kind)
        if memory is None:
            return self._one_by_one()
        made = self._made_ready(memory)
        ready.give(self.model, kind, memory)
        return made

    def _one_by_one(self) -> Generation:
        run, group = self.run, Group(self.run)
        inputs, whole = run.begin(), run.whole_step(self.state)
        begin = inputs.shape[1] - 1
        for s in range(begin, run.steps):
            cells = group.next_cells()
            if whole is None or s == begin:
                advance(self.model, self.state, [group], [cells], self.owners, inputs)
            else:
                run.take_whole(whole, cells)
            group.count()
            inputs = None
            if self._over(run, s, begin):
                break
        return run.finish()

    def _made_ready(self, memory: ready.Ready) -> Generation:
        """The same by steps that are made ready once (`rvqlm.generation.ready`)."""
        model, steps = self.model, self.run.steps
        before = self.run.begin()[:, :-1]
        begin = before.shape[1]
        positions = self.run.pattern.positions(
            torch.arange(begin, device=before.device), self.run.lengths
        )
        if self.owners is not None:
            before = before.index_select(0, self.owners)
            positions = None if positions is None else positions.index_select(0, self.owners)
        model.fill(before, self.state, positions)
        held = self.state.cache.position
        most = self.state.cache.longest - self.state.lead
        memory.make_room(model, self.state, self.rows, most)
        for row in range(self.rows):
            memory.state.put(row, self.state, row, held)
        memory.state.use(self.rows, held)
        self.run.widen(memory.steps)
        group = Group(self.run)
        memory.settle(model, [group], self.owners)
        for s in range(begin, steps):
            memory.step(model, [group])
            if self._over(group.run, s, begin):
                break
        return group.run.finish()

    def _over(self, run: Decoding, step: int, begin: int) -> bool:
        """Whether it was the last, for which a device is waited for now and then."""
        done = step + 1 - begin
        if self.request.progress is not None:
            self.request.progress(done)
        return done % BLOCK == 0 and step + 1 >= run.pattern.num_steps(int(run.lengths.max()))
