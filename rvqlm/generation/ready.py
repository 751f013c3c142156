"""Steps made ready once and repeated: compiled by `torch.compile`, or captured as a CUDA graph.

A graph repeats operations on the memory that they were captured with, so all that a step reads and
writes lies in memory that stays: `Ready` has it, copies into it whatever changes when sequences
come and go, and captures a step once for every number of rows and every window of the cache (which
doubles, so that there are few). What is known of steps beforehand lies there for `BLOCK` of them,
and which is next a tensor says.

A graph is believed once it has made a step, another than it was captured from, as single operations
make it.

`take` lends what an earlier request of a model left behind, its graphs included.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad

from rvqlm.errors import UserError, reason_of
from rvqlm.generation.steps import BLOCK, Autoregressive, Cells, Group, advance
from rvqlm.modules.conditioning import DecoderState
from rvqlm.modules.running import UNIT, Running

MOST_GRAPHS = 64
"""Graphs kept of one memory; those not used for longest go."""
MOST_VERSIONS = 32
"""Versions of the compiled step in a process: of models, ways to draw, one row or several."""
BACKEND = "inductor"
"""Of `torch.compile`."""
LEAST = 256
"""Steps that there is room for at least."""
Table = dict[str, Tensor]
"""`Decoding.table`."""


def room_of(steps: int) -> int:
    """Steps to make room for, lest each length be a shape of its own: powers of two."""
    return max(LEAST, 1 << (steps - 1).bit_length())


def _wide(x: Tensor) -> Tensor:
    """What there is of each frame (B, T, K) with `room_of` T; of others as it is."""
    return x if x.ndim < 3 else pad(x, (0, 0, 0, room_of(x.shape[1]) - x.shape[1]))


def step_of_tables(
    way: Autoregressive,
    state: Running,
    groups: Sequence[Group],
    tables: Sequence[Table],
    levels: Sequence[int | None],
    at: Tensor,
    owners: Tensor | None,
) -> None:
    """`advance` by step ``at`` (1,) of the tables, and ``at`` by one."""
    cells = [
        Cells(**{name: x.index_select(1, at).squeeze(1) for name, x in table.items()}, level=level)
        for table, level in zip(tables, levels)
    ]
    advance(way, state, groups, cells, owners)
    at.add_(1)


def _alike(x: Tensor, y: Tensor) -> bool:
    """Equal, or what differs in the order of sums."""
    if not x.is_floating_point():
        return torch.equal(x, y)
    return torch.allclose(x.float(), y.float(), rtol=0.02, atol=0.02, equal_nan=True)


@dataclass
class Captured:
    """A graph of a kind of steps."""

    given: list[Tensor]
    """Whose memory is in use as long as the graph is."""
    seen: bool = False
    """Whether there was such a step, which has set up whatever a capture cannot."""
    graph: torch.cuda.CUDAGraph | None = None
    holds: bool = False
    """Whether a step that it repeated was right."""


class Ready:
    """Memory that stays, of one running batch at a time, and what was made ready for it."""

    def __init__(self, device: torch.device, how: str):
        self.how, self.on_gpu = how, device.type == "cuda"
        self.state: Running | None = None
        self.steps = 0
        """Room of a sequence in the state."""
        self._kept: dict[Hashable, Tensor] = {}
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._left, self._tables, self._levels = 0, [], []
        self._owners: Tensor | None = None
        self._window: Tensor | None = None
        self._key: Hashable = None
        self._given: list[Tensor] = []
        self._changed: list[Tensor] = []
        self._captures = how == "graph" or self.on_gpu

    def make_room(self, way: Autoregressive, like: DecoderState, rows: int, steps: int) -> None:
        """For sequences of so many steps. Where there was less, what was captured is of no use any
        more."""
        lead = -(-like.lead // UNIT) * UNIT
        if self.state is not None:
            if steps <= self.steps and lead <= self.state.most_lead:
                return
            steps, lead = max(steps, self.steps), max(lead, self.state.most_lead)
        self.steps = room_of(steps)
        self.state = Running(way.network, like, rows, self.steps, lead)
        self.state.cache.doubling = True
        self._kept, self._graphs = {}, OrderedDict()

    def keep(self, name: Hashable, x: Tensor) -> Tensor:
        """The same in memory that stays, for a name and a shape."""
        key = name, x.shape, x.dtype
        if key not in self._kept:
            self._kept[key] = x.clone(memory_format=torch.contiguous_format)
        elif self._kept[key] is not x:
            self._kept[key].copy_(x)
        return self._kept[key]

    def settle(self, way: Autoregressive, groups: Sequence[Group], owners: Tensor | None) -> None:
        """Take over the sequences that there are now; their groups then have them from here."""
        for group in groups:
            run, own = copy(group.run), group.run.kind
            run.canvas = _wide(run.canvas)
            for name in (*run.EACH, "temperature"):
                if isinstance(x := getattr(run, name), Tensor):
                    setattr(run, name, self.keep((own, name), x))
            group.run = run
            if group.rows is not None:
                group.rows = self.keep((own, "rows"), group.rows)
        self._owners = None if owners is None else self.keep("owners", owners)
        for name in getattr(way, "OF_REQUEST", ()):
            setattr(way, name, self.keep(name, _wide(getattr(way, name))))
        self._left, self._window = 0, None

    def step(self, way: Autoregressive, groups: Sequence[Group]) -> None:
        """One step of all."""
        state = self.state
        state.reserve()
        if not self._left:
            self._left, self._tables = BLOCK, []
            for group in groups:
                table = group.run.table(BLOCK).items()
                own = group.run.kind
                self._tables.append({name: self.keep((own, "of", name), x) for name, x in table})
            self._levels = list(zip(*(group.run.levels(BLOCK) for group in groups)))
            self._at.zero_()
        if self._window is not state.cache.shown:
            self._window = state.cache.shown
            self._given = [*self._all_given(way, groups)]
            self._changed = [
                self._at,
                *(getattr(g.run, name) for g in groups for name in g.run.CHANGED),
            ]
            self._key = tuple((x.data_ptr(), x.shape) for x in self._given)
        levels = self._levels[-self._left]
        args = way, state, groups, self._tables, levels, self._at, self._owners
        if self._captures:
            self._repeat((self._key, levels), args)
        else:
            self._function()(*args)
        self._left -= 1
        state.count()
        for group in groups:
            group.count()

    def _all_given(self, way: Autoregressive, groups: Sequence[Group]):
        """What a step reads and writes, but for weights."""
        for group, table in zip(groups, self._tables):
            yield from table.values()
            each = [getattr(group.run, name) for name in (*group.run.EACH, "temperature")]
            yield from (x for x in (*each, group.rows) if isinstance(x, Tensor))
        yield self._at
        if self._owners is not None:
            yield self._owners
        yield from (getattr(way, name) for name in getattr(way, "OF_REQUEST", ()))
        yield from self.state.tensors()

    def _function(self) -> Callable:
        return compiled_step(self.on_gpu) if self.how == "compile" else step_of_tables

    def _repeat(self, key: Hashable, args: tuple) -> None:
        """A step as a graph. The first of a kind is made as it is; the second too, once it is
        captured; the third in both ways, and later ones by the graph if those are the same."""
        made = self._graphs.setdefault(key, Captured(self._given))
        function, seen = self._function(), made.seen
        made.seen = True
        if made.holds and self._captures:
            made.graph.replay()
        elif made.graph is not None and self._captures:
            made.holds = self._captures = self._same(made.graph, lambda: function(*args))
            if not made.holds:
                say(
                    "a step of decoding repeated as a CUDA graph is not the step that was captured:"
                    " steps are made one by one"
                )
        else:
            if seen and self._captures:
                made.graph = self._captured(lambda: function(*args))
            function(*args)
        self._graphs.move_to_end(key)
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def _same(self, graph, function: Callable) -> bool:
        """Make a step by a function and again by its graph; whether codes, places and ends are
        equal, and keys and values nearly. What is left is what the function made."""
        cache = self.state.cache
        changed, row = [*self._changed, *cache.counted()], cache.row()
        before = [x.clone() for x in changed]
        function()
        want = [*(x.clone() for x in changed), cache.at(row)]
        for x, old in zip(changed, before):
            x.copy_(old)
        cache.put_at(row, torch.zeros_like(want[-1]))
        graph.replay()
        same = all(map(_alike, want, [*changed, cache.at(row)]))
        for x, new in zip(changed, want):
            x.copy_(new)
        cache.put_at(row, want[-1])
        return same

    def _captured(self, function: Callable):
        began = time.monotonic()
        try:
            graph = capture(function)
        except Exception as e:
            self._captures = False
            say(
                f"a step of decoding could not be captured as a CUDA graph ({reason_of(e)}): steps "
                "are made one by one; --kernels torch says nothing of it"
            )
            return None
        if not any(made.graph for made in self._graphs.values()):
            seconds, (rows, width) = time.monotonic() - began, self._window.shape
            say(
                f"a step of decoding captured as a CUDA graph in {seconds:.2f} s ({rows} rows that "
                f"see {width} steps); other numbers of them likewise, once each"
            )
        return graph


@lru_cache(256)
def say(line: str) -> None:
    """Once."""
    print(line, file=sys.stderr)


def capture(function: Callable):
    """A graph of what a function does, which is not done yet; `replay` does it."""
    graph = torch.cuda.CUDAGraph()
    # a capture that breaks off leaves its stream the current one
    with torch.cuda.stream(torch.cuda.current_stream()):
        with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
            function()
    return graph


@lru_cache(1)
def _pool():
    """One for the memory between the operations of all graphs, which run one after another."""
    return torch.cuda.graph_pool_handle()


@lru_cache(2)
def compiled_step(on_gpu: bool) -> Callable:
    """`step_of_tables`, compiled when first called.

    :raises UserError: then, where there is no working compiler.
    """
    from torch import _dynamo  # takes a second

    limit = "recompile_limit" if hasattr(_dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(_dynamo.config, limit, max(getattr(_dynamo.config, limit), MOST_VERSIONS))
    compiled = torch.compile(step_of_tables, dynamic=True, fullgraph=True, backend=BACKEND)
    counts = _dynamo.utils.counters["stats"]

    def step(*args) -> None:
        before, began = counts["unique_graphs"], time.monotonic()
        try:
            compiled(*args)
        except getattr(_dynamo.exc, "FailOnRecompileLimitHit", ()):
            say(f"more than {MOST_VERSIONS} versions of a step: others are not compiled")
            step_of_tables(*args)
        except Exception as e:
            needed = "a C++ compiler (g++)"
            if on_gpu:
                needed = "triton and a C compiler with Python.h (python3-dev)"
            raise UserError(
                f"--kernels compile does not work here ({reason_of(e)}); install {needed}, or use "
                "another of --kernels"
            ) from e
        if counts["unique_graphs"] > before:
            print(
                f"compiled a step of decoding in {time.monotonic() - began:.0f} s "
                f"({counts['unique_graphs']} of at most {MOST_VERSIONS} versions)",
                file=sys.stderr,
            )

    return step


_unused: WeakKeyDictionary[torch.nn.Module, dict[Hashable, list[Ready]]] = WeakKeyDictionary()


def take(way: Autoregressive, name: Hashable) -> Ready | None:
    """Of a model, for batches of a kind; None where its steps are made one by one. To be given
    back (`give`)."""
    transformer = way.network.transformer
    if transformer.steps == "eager":
        return None
    found = _unused.setdefault(transformer, {}).setdefault((name, transformer.steps), [])
    device = next(transformer.parameters()).device
    return found.pop() if found else Ready(device, transformer.steps)


def give(way: Autoregressive, name: Hashable, ready: Ready) -> None:
    """Leave it to who comes next."""
    transformer = way.network.transformer
    _unused[transformer][name, ready.how].append(ready)
