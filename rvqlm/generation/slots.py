"""`Engine`: a running batch whose sequences come and go, each at a step of its own.

A request joins at any moment: what it is given is read in by itself, put into rows of the cache
that are free, and from there on its steps are made together with those of all others. It gets the
codes that it gets alone, since nothing of a step depends on other rows: random numbers are a
function of seed, row and step, and attention sees a row's own steps.

A sequence longer than a context goes on in windows: when one is full its last codes are the prompt
of the next, whose positions begin from 0 (Copet et al., 2023, arXiv:2306.05284), so that a frame
costs the same however long it runs. The next window is a sequence of its own that follows this one:
as one more row of each step it is given the codes of its prompt as they are made, so that none are
read in again and nothing waits when it takes over. Conditions that belong to times cannot be
carried on, but for a source, which lies frame by frame; that of a speaker is given again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rvqlm.errors import UserError
from rvqlm.generation import ready
from rvqlm.generation.kept import Kept
from rvqlm.generation.request import Generation, Request
from rvqlm.generation.steps import BLOCK, Autoregressive, Decoding, Group, advance
from rvqlm.modules.conditioning import DecoderState
from rvqlm.modules.running import UNIT, Running
from rvqlm.modules.whole_step import WholeStep


@dataclass
class Made:
    """What is new of a sequence."""

    slot: int
    codes: Tensor
    """(n, K) int64 frames that follow those given out before; the first after the prompt."""
    ended: Literal["eos", "length"] | None = None
    """Why no more follow; its slot is then free."""
    times: Tensor | None = None
    """(1, S, 2) at the end, of models that say when the symbols of a text are said: frames at which
    each begins and ends, the prompt included; NaN past its length."""


class _Sequence:
    """A request on its way."""

    def __init__(self, slot: int, request: Request):
        self.slot, self.request = slot, request
        self.base = 0
        """Frame that its window begins with."""
        self.given = 0
        """Frames of the window that were given out."""
        self.rows: list[int] = []
        """Of the cache: with conditions, and under guidance without."""
        self.lead = 0
        """Steps in front of the first."""
        self.next: _Sequence | None = None
        """The next window, which follows this one."""
        self.follows = False

    @property
    def reach(self) -> int | None:
        """Frames after which the next window begins, if one does."""
        r = self.request
        more = r.context_frames is not None and int(r.limits) - self.base > r.context_frames
        return r.context_frames - r.overlap_frames if more else None


class _Group(Group):
    """Sequences that draw in the same way."""

    def __init__(self, run: Decoding, sequence: _Sequence):
        super().__init__(run)
        self.sequences = [sequence]


class RunningBatch:
    """Rows of an autoregressive model that come and go, of requests that were checked.

    :param way: the model; its pattern must not depend on the lengths.
    :param slots: most sequences at a time; under guidance each has two rows.
    :param frames: made in a `step`: more are waited for less often.
    :param kept: for keys and values of prompts that are shared.
    """

    def __init__(self, way: Autoregressive, slots: int, frames: int = 1, kept: Kept | None = None):
        self.way, self.slots, self.frames, self.kept = way, slots, frames, kept
        self.pattern = way.pattern
        self._first = self.pattern.num_steps(1)
        self._groups: list[_Group] = []
        self._rows: list[_Sequence] = []
        self._owners: Tensor | None = None
        self._state: Running | None = None
        self._whole: WholeStep | None = None
        self._steps = 0  # room of a sequence
        self._windows = False  # whether sequences have next ones
        self._due = 0  # steps until something happens to one
        self._ready: ready.Ready | None = None

    @property
    def sequences(self) -> list[_Sequence]:
        return [s for group in self._groups for s in group.sequences]

    @property
    def free(self) -> int:
        """Requests that can join."""
        return self.slots - sum(not s.follows for s in self.sequences)

    def join(self, request: Request) -> int:
        """Read a request (B = 1) in; returns its slot."""
        taken = {s.slot for s in self.sequences}
        slot = next(n for n in range(self.slots) if n not in taken)
        sequence = _Sequence(slot, request)
        P, context = int(request.prompt_lengths), request.context_frames
        if context is not None and context <= P:
            sequence.base = P - request.overlap_frames
        with torch.inference_mode():
            self._enter(sequence, request.prompt_codes[:, sequence.base : P], kept=self.kept)
        return slot

    def step(self) -> list[Made]:
        """`frames` steps of all; what each has completed. Those that ended have left."""
        made = []
        for _ in range(self.frames * self.pattern.steps_per_frame):
            if not self._groups:
                break
            with torch.inference_mode():
                self._advance()
            self._due -= 1
            if self._due <= 0:
                made += self._all_completed()
                with torch.inference_mode():
                    self._begin_next()
        return made + self._all_completed()

    def _all_completed(self) -> list[Made]:
        return [made for group in list(self._groups) for made in self._completed(group)]

    def remove(self, slot: int) -> None:
        """Give a sequence up; its slot is free at once."""
        for group in self._groups:
            mine = [sequence for sequence in group.sequences if sequence.slot == slot]
            for sequence in mine:
                with torch.inference_mode():
                    self._leave(group, sequence)
            if mine:
                with torch.inference_mode():
                    self._arrange()
                return
        raise ValueError(f"nothing runs in slot {slot}")

    # ------------------------------------------------------------------------------ the steps

    def _advance(self) -> None:
        if self._ready is not None:
            self._ready.step(self.way, self._groups)
            return
        self._state.reserve()
        cells = [group.next_cells() for group in self._groups]
        if self._whole is not None:
            self._groups[0].run.take_whole(self._whole, cells[0])
        else:
            advance(self.way, self._state, self._groups, cells, self._owners)
        self._state.count()
        for group in self._groups:
            group.count()

    def _completed(self, group: _Group) -> list[Made]:
        run, made, over = group.run, [], []
        lengths = run.lengths.tolist()
        until = []
        for sequence, step, length in zip(group.sequences, run.next, lengths):
            context = sequence.request.context_frames or length
            complete = (step - self._first) // self.pattern.steps_per_frame + 1
            complete = 0 if sequence.follows else min(complete, length, context)
            until.append(max(sequence.given, complete))
        given = torch.tensor([s.given for s in group.sequences], device=run.device)
        count = max(n - s.given for s, n in zip(group.sequences, until))
        codes = run.codes(given[:, None] + torch.arange(count, device=run.device))
        for row, (sequence, n, length) in enumerate(zip(group.sequences, until, lengths)):
            if sequence.follows:
                continue
            r, new = sequence.request, codes[row, : n - sequence.given]
            sequence.given, ended = n, None
            if n >= length:
                ended = "eos" if length + sequence.base < int(r.limits) else "length"
            if ended or n == r.context_frames:
                over.append((sequence, ended))
            if len(new) or ended:
                text = r.conditions.get("text") if ended else None
                made.append(Made(sequence.slot, new, ended, text and text.times))
        with torch.inference_mode():
            for sequence, ended in over:
                row, following = group.sequences.index(sequence), sequence.next
                self._leave(group, sequence)
                if ended and following is not None:
                    self._leave(group, following)
                elif following is not None:
                    following.follows = False
                elif not ended:
                    self._go_on(sequence, run, row)
                run = group.run
            if over:
                self._arrange()
        return made

    def _changes(self) -> Iterator[tuple[int, _Sequence, Decoding, int]]:
        """What happens to windows, in so many steps: another one begins to follow, or takes over;
        with the row of which run."""
        unit = self.pattern.steps_per_frame
        for group in self._groups:
            for row, (s, step) in enumerate(zip(group.sequences, group.run.next)):
                if s.reach is None or s.follows:
                    continue
                r, begins = s.request, s.reach * unit - step
                late = begins < -r.overlap_frames * unit
                if s.next is not None or late or self._ready is not None:
                    yield self._first + (r.context_frames - 1) * unit - step, s, group.run, row
                else:
                    yield begins, s, group.run, row

    def _begin_next(self) -> None:
        """Windows for which it is time; they are given what is known of their prompts."""
        for due, sequence, run, row in list(self._changes()):
            if due > 0 or sequence.next is not None or self._ready is not None:
                continue
            known = run.margin + run.next[row]
            columns = run.grid[row : row + 1, known + due : known]
            following = sequence.next = _Sequence(sequence.slot, sequence.request)
            following.base, following.follows = sequence.base + sequence.reach, True
            overlap = sequence.request.overlap_frames
            self._enter(following, run.canvas.new_zeros(1, overlap, columns.shape[2]), columns)
        self._look_ahead()

    def _look_ahead(self) -> None:
        self._due = min((due for due, *_ in self._changes()), default=1 << 62)

    # ------------------------------------------------------------------- who is where

    def _go_on(self, sequence: _Sequence, run: Decoding, row: int) -> None:
        """The next window, whose prompt is the end of the last."""
        r = sequence.request
        frames = torch.arange(r.context_frames - r.overlap_frames, r.context_frames)
        prompt = run.codes(frames.to(run.device))[row : row + 1]
        sequence.base += r.context_frames - r.overlap_frames
        self._enter(sequence, prompt)

    def _enter(
        self,
        sequence: _Sequence,
        prompt: Tensor,
        columns: Tensor | None = None,
        kept: Kept | None = None,
    ) -> None:
        """Read the prompt (1, P, K) of a window in, and join the others.

        :param columns: (1, n, K) as far as the prompt of one that follows another is known.
        :param kept: for what is read in, if it is shared.
        """
        r, base, P = sequence.request, sequence.base, prompt.shape[1]
        limit = int(r.limits) - base
        if r.context_frames is not None:
            # no end at its edge but a true one: the next window makes again what this leaves open
            left_open = (self._first - 1) // self.pattern.steps_per_frame + 1
            limit = min(limit, r.context_frames + left_open)
        window = r.window(prompt, base, limit)
        conditions, drop = window.conditions_of_rows()
        times = 2 if window.guided else 1
        most = self.pattern.num_steps(window.max_frames)
        slack = self.frames * self.pattern.steps_per_frame
        state = self.way.begin(conditions, times, most + slack, drop)
        self._make_room(state, most + slack, r.context_frames is not None)
        run = Decoding(self.way, window, self._steps, base * self.pattern.steps_per_frame)
        before = (run.begin() if columns is None else run.follow(columns))[:, :-1]
        if before.shape[1] or state.lead:
            # conditions stand in front of the prompt, or every step of it attends to them
            alone = r.shared and not window.conditions
            self._read_in(before.repeat(times, 1, 1), state, kept if alone else None)
        sequence.given, sequence.lead = P, state.lead
        sequence.rows = list(range(len(self._rows), len(self._rows) + times))
        self._rows += [sequence] * times
        for source, row in enumerate(sequence.rows):
            self._state.put(row, state, source, state.lead + run.next[0])
        for group in self._groups:
            if group.run.kind == run.kind:
                group.run, group.tables = Decoding.joined([group.run, run]), []
                group.sequences.append(sequence)
                break
        else:
            self._groups.append(_Group(run, sequence))
        self._arrange()

    def _read_in(self, columns: Tensor, state: DecoderState, kept: Kept | None) -> None:
        """Columns (B, n, K) into the cache of a state; or the cache that has them, where it was
        kept."""
        if kept is None:
            self.way.fill(columns, state)
            return
        key = columns.cpu().numpy().tobytes()
        if (cache := kept.find("model", key)) is None:
            self.way.fill(columns, state)
            held = state.lead + columns.shape[1]
            cache = self.way.network.transformer.make_cache(len(columns), held)
            for row in range(len(columns)):
                cache.put(row, state.cache, row, held)
            kept.put("model", key, cache, cache.steps.nbytes)
        state.cache = cache

    def _leave(self, group: _Group, sequence: _Sequence) -> None:
        for row in sorted(sequence.rows, reverse=True):
            last = len(self._rows) - 1
            if row != last:
                moved = self._rows[last]
                self._state.put(row, self._state, last, self._held()[moved])
                moved.rows[moved.rows.index(last)] = row
                self._rows[row] = moved
            self._rows.pop()
        row = group.sequences.index(sequence)
        group.run, group.tables = group.run.without(row), []
        group.sequences.pop(row)
        if not group.sequences:
            self._groups.remove(group)

    def _held(self) -> dict[_Sequence, int]:
        """Steps of each in the cache."""
        return {
            sequence: sequence.lead + step
            for group in self._groups
            for sequence, step in zip(group.sequences, group.run.next)
        }

    def _arrange(self) -> None:
        """After any change: which rows are whose."""
        if not self._groups:
            self._owners = None
            if self._ready is not None:  # who comes next may be of another batch
                ready.give(self.way, ("slots", self.slots), self._ready)
                self._ready, self._state, self._steps = None, None, 0
            return
        number = {sequence: n for n, sequence in enumerate(self.sequences)}
        owners = [number[sequence] for sequence in self._rows]
        plain = owners == list(range(len(number)))
        device = self._groups[0].run.device
        self._owners = None if plain else torch.tensor(owners, device=device)
        for group in self._groups:
            rows = [row for rows in zip(*(s.rows for s in group.sequences)) for row in rows]
            all_ = rows == list(range(len(self._rows)))
            group.rows = None if all_ else torch.tensor(rows, device=device)
            leaders = {s.next: n for n, s in enumerate(group.sequences) if s.next is not None}
            group.run.follows = None
            if leaders:
                follows = [leaders.get(s, n) for n, s in enumerate(group.sequences)]
                group.run.follows = torch.tensor(follows, device=device)
        self._state.use(len(self._rows), max(self._held().values()))
        self._look_ahead()
        if self._ready is not None:
            return self._ready.settle(self.way, self._groups, self._owners)
        # of one group, with rows in its order
        self._whole, only = None, self._groups[0]
        if len(self._groups) == 1 and only.rows is None and (plain or only.run.guided):
            self._whole = only.run.whole_step(self._state)

    def _make_room(self, like, steps: int, windows: bool) -> None:
        """For a sequence of so many steps, and for next ones that follow; what there is grows, and
        never shrinks."""
        rows = self.slots * (2 if like.lead or like.memory is not None else 1)
        if self._state is None:
            self._ready = ready.take(self.way, ("slots", self.slots))
        old = self._state
        if self._ready is not None:
            self._ready.make_room(self.way, like, rows, steps)
            state, most = self._ready.state, self._ready.steps
        elif (
            old is not None
            and steps <= self._steps
            and like.lead <= old.most_lead
            and windows <= self._windows
        ):
            return
        else:
            self._windows = windows or self._windows
            rows *= 1 + self._windows
            most, lead = (-(-n // UNIT) * UNIT for n in (steps, like.lead))
            if old is not None:
                most, lead = max(most, self._steps), max(lead, old.most_lead)
            state = Running(self.way.network, like, rows, most, lead)
        if state is old:
            return
        self._state, self._steps = state, most
        held = self._held()
        for row, sequence in enumerate(self._rows):
            state.put(row, old, row, held[sequence])
        for group in self._groups:
            group.run.widen(most)
            group.tables = []


class Engine(RunningBatch):
    """A running batch of an autoregressive model, for anybody's requests.

    :param model: a model that has a `TokenModel.way`; masked models made with ``--ar-share``.
    :param max_frames: longest sequence that is taken, prompt included; None: any.
    :param context_frames: window of a sequence; None: as long as it is.
    :param overlap_frames: codes of a window that the next is given, half of it by default.
    :param frames: made in a `step`.
    :param kept: keeps keys and values of prompts that are shared (`Request.shared`).
    :raises UserError: a model that makes whole sequences only.
    """

    def __init__(
        self,
        model,
        slots: int,
        max_frames: int | None = None,
        context_frames: int | None = None,
        overlap_frames: int | None = None,
        frames: int = 1,
        kept: Kept | None = None,
    ):
        if model.way is None:
            raise UserError(
                f"{model.name} as this one was trained makes whole sequences: none can join a "
                "running batch"
            )
        super().__init__(model.way, slots, frames, kept)
        self.model, self.max_frames = model.eval(), max_frames
        self.context_frames, self.overlap_frames = context_frames, overlap_frames

    def add(self, request: Request) -> int:
        """One request (B = 1) of `rvqlm.generation.request.make_request`; returns its slot.

        :raises UserError: nothing is free, or what the model or a running batch cannot do.
        """
        if not self.free:
            raise UserError(f"all {self.slots} slots are taken")
        if request.batch_size != 1 or request.sampling.best_of > 1:
            raise UserError("a running batch takes one item at a time, and no --best-of")
        if not (self.model.in_order or request.demask.frame_by_frame):
            raise UserError(f"{self.model.name} joins a running batch with --frame-by-frame only")
        if request.context_frames is None and self.context_frames is not None:
            request = request.in_windows(self.context_frames, self.overlap_frames)
        longest = request.max_frames if request.context_frames is None else request.context_frames
        if self.max_frames is not None and longest > self.max_frames:
            raise UserError(
                f"a sequence of {longest} frames, and the longest taken here is {self.max_frames}"
            )
        with torch.no_grad():
            self.model.check_request(request)
            return self.join(self.model.place_text(request))


def decode_in_windows(way: Autoregressive, request: Request) -> Generation:
    """`rvqlm.generation.decode.decode` of sequences that go on beyond their context."""
    if request.sampling.best_of > 1:
        raise UserError("--best-of: a sequence in windows has no likelihood of its own")
    B, batch = request.batch_size, RunningBatch(way, request.batch_size, BLOCK)
    items = [request.item(n) for n in range(B)]
    parts = [[item.prompt_codes[0, : int(item.prompt_lengths)]] for item in items]
    item_of = {batch.join(item): n for n, item in enumerate(items)}
    stop, steps = ["length"] * B, 0
    while batch.sequences:
        for made in batch.step():
            parts[item_of[made.slot]].append(made.codes)
            stop[item_of[made.slot]] = made.ended or "length"
        steps += BLOCK
        if request.progress is not None:
            request.progress(steps)
    codes = torch.nn.utils.rnn.pad_sequence([torch.cat(p) for p in parts], batch_first=True)
    lengths = torch.tensor([sum(map(len, p)) for p in parts], device=codes.device)
    ended = torch.tensor([s == "eos" for s in stop])
    return Generation.trimmed(codes, lengths, request.prompt_lengths, ended)
