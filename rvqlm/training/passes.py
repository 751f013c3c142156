"""Forward and backward pass of micro-batches: `Passes`, one operation after another, or, with
``--cuda-graphs``, `GraphedPasses`, all of them by one launch.

A graph does again what was captured, on the memory that it was captured with, and nothing else. So
a batch is copied to where that of its shape lay; gradients are added to in place; numbers that the
host changes from step to step, `progress` of the model and the loss scale, are tensors in a
capture; random numbers are the device's, and torch lets a graph go on from their state. What
depends on other numbers of the host has a graph for each, or is no graph (`why_not_graphed`).

None is believed. Before a graph of a shape is used, two batches go through single operations, the
second with other codes, lengths, weights, numbers and random numbers, and with an error where the
host waits. Replayed, the graph has to give the losses, sums and gradients of both, those of the
second added to those of the first, and leave the random numbers where they were left. Where it
does not, that is said, and training goes on without graphs.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from rvqlm.batch import PAD, Batch, Padded, mask_of
from rvqlm.errors import UserError, reason_of
from rvqlm.models.base import LMOutput
from rvqlm.training.guards import LossScale
from rvqlm.training.optim import Optimizers

MOST_GRAPHS = 32
"""Of the shapes that come first."""
ROOM = 32
"""Conditions are padded to a multiple of so many steps, or each length would be a shape."""
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""By the dtype of autocast, the largest distance of a graph from single operations, relative to
their size: kernels add some gradients up in any order."""
OTHER_SEED = 0x5EED


class Passes:
    """Makes the passes of a model and leaves its gradients, added up.

    :param module: the model, or what `World` put around it.
    :param dtype: of autocast; float32: none.
    :param watch: `Stopwatch`.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Optimizers,
        device: torch.device,
        dtype: torch.dtype,
        label_smoothing: float,
        scale: LossScale,
        watch: Callable,
    ):
        self.module, self.optimizers, self.device, self.dtype = module, optimizers, device, dtype
        self.label_smoothing, self.scale, self.watch = label_smoothing, scale, watch

    def begin(self) -> None:
        """Before the first micro-batch of a step: there are no gradients."""
        self.optimizers.zero_grad()

    def sized(self, batch: Batch) -> Batch:
        """A batch of the loader as it is to be computed, on the host."""
        return batch

    def __call__(self, batch: Batch, level_weights: Tensor | None) -> LMOutput:
        """Sums of a batch on the device, all of them detached and to be read before the next."""
        mixed = self.dtype != torch.float32
        with self.watch("forward"), torch.autocast(self.device.type, self.dtype, enabled=mixed):
            out = self.module(
                batch, label_smoothing=self.label_smoothing, level_weights=level_weights
            )
        with self.watch("backward"):
            self.scale.apply(out.loss).backward()
        out.loss = out.loss.detach()
        return out


# ------------------------------------------------------------------------------------ as graphs


def why_not_graphed(model: nn.Module, device: torch.device, ranks: int) -> str:
    """Why passes of a model cannot be graphs here; empty where they can."""
    if device.type != "cuda":
        return f"there are none on --device {device.type}, only on NVIDIA GPUs"
    if ranks > 1:
        return f"{ranks} ranks add their gradients up by what was not tried in a graph"
    return model.why_not_graphed()


def require_few(shapes: Collection) -> None:
    """`UserError` where batches have more shapes (B, T) than there may be graphs."""
    if len(shapes) > MOST_GRAPHS:
        raise UserError(
            f"--cuda-graphs: the batches of an epoch have {len(shapes)} shapes, and each is a "
            f"graph of its own, of which there are at most {MOST_GRAPHS}: give windows or crops "
            "of one length (--window-frames, --crop-frames), or a larger --length-multiple"
        )


class Refused(Exception):
    """Why something is no graph."""


class Reads(TorchDispatchMode):
    """Notes the memory that operations of a capture find, to keep it for as long as they are
    repeated; copies from or to the host, whose memory may be another's then, are `Refused`."""

    COPIES = ("aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")

    def __init__(self):
        super().__init__()
        self.found: dict[int, Any] = {}
        """Storages by their number."""
        self._made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _tensors(args, kwargs)
        for storage in (t.untyped_storage() for t in given if t.is_cuda):
            if storage._cdata not in self._made:
                self.found[storage._cdata] = storage
        out = func(*args, **(kwargs or {}))
        made = _tensors(out)
        if func._schema.name in self.COPIES and len({t.is_cuda for t in given + made}) > 1:
            raise Refused("a tensor is copied between the host and the GPU")
        numbers = {t.untyped_storage()._cdata for t in made if t.is_cuda}
        self._made |= numbers - self.found.keys()
        return out


def _tensors(*given) -> list[Tensor]:
    return [t for t in tree_leaves(given) if isinstance(t, Tensor)]


def another(batch: Batch) -> Batch:
    """A batch of the same shape with other codes and, where items are padded, other lengths.

    >>> batch = Batch.from_codes([torch.arange(6)[:, None], torch.arange(3)[:, None]])
    >>> made = another(batch)
    >>> made.codes[:, :, 0].tolist(), made.lengths.tolist()
    ([[0, 0, -1, -1, -1, -1], [5, 0, 1, 2, -1, -1]], [2, 4])
    """

    def shorter(lengths: Tensor) -> Tensor:
        return (2 * lengths.flip(0) + 2) // 3

    def cut(values: Tensor, lengths: Tensor, end) -> Tensor:
        beyond = ~mask_of(lengths, values.shape[1])
        return values.masked_fill(beyond[..., None], end)

    lengths = shorter(batch.lengths) if batch.padded else batch.lengths
    codes = cut(batch.codes.flip(0).roll(1, 1).clamp(min=0), lengths, PAD)
    conditions, prompts = {}, batch.prompt_lengths
    for kind, (values, given, times) in batch.conditions.items():
        fewer = shorter(given)
        times = None if times is None else cut(times.flip(0), fewer, torch.nan)
        conditions[kind] = Padded(cut(values.flip(0), fewer, PAD), fewer, times)
    if prompts is not None:
        prompts = torch.minimum(prompts.flip(0), lengths - 1)
    return replace(
        batch, codes=codes, lengths=lengths, conditions=conditions, prompt_lengths=prompts,
        ends=batch.ends.flip(0),
    )  # fmt: skip


def apart(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest distance of a tensor from the one that is wanted, relative to the size of that one or
    to a tenth of the size of all, whichever is larger.

    >>> apart([torch.tensor([1.0]), torch.tensor([2.02])], [torch.tensor([1.0]), torch.tensor(2.0)])
    0.01
    """
    sizes = [float(w.double().norm()) for w in want]
    least = sum(size**2 for size in sizes) ** 0.5 / 10
    distances = [float((g.double() - w.double()).norm()) for g, w in zip(got, want)]
    found = [d / max(size, least, 1e-30) for d, size in zip(distances, sizes)]
    return round(max(found, default=0.0), 6)


@dataclass
class Given:
    """What a pass is made of."""

    batch: Batch
    level_weights: Tensor | None
    progress: float
    scale: float
    random: Tensor
    """State of the device's random numbers."""


@dataclass
class Made:
    """What single operations made of it, on the host."""

    sums: Tensor
    grads: dict[nn.Parameter, Tensor]
    random: Tensor
    """State after it."""


@dataclass
class Captured:
    """The graph of a shape, and the memory that it is given batches and weights in."""

    batch: Batch
    level_weights: Tensor | None
    graph: Any = None
    out: LMOutput | None = None
    read: dict = field(default_factory=dict)
    """Other memory that has to stay."""

    @classmethod
    def of(cls, batch: Batch, level_weights: Tensor | None) -> Captured:
        """For batches like this. Of how many frames they have, the host knows no more than the
        shape: those of all items where none is padded, else nothing."""
        B, T = batch.codes.shape[:2]
        frames = None if batch.padded else B * T
        own = replace(batch.map(torch.clone), host=None, frames=frames, epoch=0, step=0)
        return cls(own, None if level_weights is None else level_weights.clone())

    def load(self, batch: Batch, level_weights: Tensor | None) -> None:
        for mine, new in zip(self.batch.tensors().values(), batch.tensors().values()):
            mine.copy_(new)
        if level_weights is not None:
            self.level_weights.copy_(level_weights)


def _sums(out: LMOutput) -> Tensor:
    parts = (out.loss, out.normalizer, *(t for pair in out.sums.values() for t in pair))
    return torch.cat([t.detach().double().flatten() for t in parts]).cpu()


class GraphedPasses(Passes):
    """`Passes` that captures each shape of batches at its first use; one process, on a GPU.

    Memory: that of the passes of the largest shape, and, while a shape is tried, of a pass by
    single operations beside it.

    :param of_passes: as `Passes` wants it.
    :param quiet: say nothing but why there are no graphs.
    """

    def __init__(self, *of_passes, quiet: bool = False):
        super().__init__(*of_passes)
        self.quiet = quiet
        self.off = ""
        """Why passes are made by single operations for good, where they are."""
        self.graphs: dict[Hashable, Captured] = {}
        self.grads: dict[nn.Parameter, Tensor] = {}
        """The memory of gradients, of parameters that have any."""
        self._stream, self._pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()
        self._progress = torch.zeros((), dtype=torch.float64, device=self.device)
        self._scale = torch.ones((), device=self.device)
        self._weights = [*self.module.parameters(), *self.module.buffers()]
        self._places: list[int] = []
        """Where they lay at the last capture."""
        self._full = False

    def begin(self) -> None:
        super().begin()
        if not self.grads:
            return
        if self.graphs and self._places != [t.data_ptr() for t in self._weights]:
            self._drop()  # of weights that are elsewhere now
        for p, grad in self.grads.items():
            p.grad = grad
        torch._foreach_zero_(list(self.grads.values()))
        self._numbers(self.module.progress, self.scale.value)

    def sized(self, batch: Batch) -> Batch:
        conditions = {kind: padded.widened(ROOM) for kind, padded in batch.conditions.items()}
        return replace(batch, conditions=conditions)

    def __call__(self, batch: Batch, level_weights: Tensor | None) -> LMOutput:
        if self.off:
            return super().__call__(batch, level_weights)
        of_parts = ((name, t.shape, t.dtype) for name, t in batch.tensors().items())
        key = (*of_parts, batch.padded, level_weights is None, self.module.phase)
        if key not in self.graphs and not self._first(key, batch, level_weights):
            return super().__call__(batch, level_weights)
        made = self.graphs[key]
        with self.watch("forward"):
            made.load(batch, level_weights)
        with self.watch("backward"):  # and the forward pass
            made.graph.replay()
        return made.out

    # ------------------------------------------------------------------------------ the first use

    def _first(self, key: Hashable, batch: Batch, level_weights: Tensor | None) -> bool:
        """Capture a pass like this and try it; whether there is a graph to use now. Gradients and
        random numbers are as before."""
        if len(self.graphs) >= MOST_GRAPHS:
            if not self._full:
                self._say(f"{MOST_GRAPHS} shapes of batches are graphs; others have none", True)
            self._full = True
            return False
        began, failed = time.monotonic(), ""
        with self._as_before():
            try:
                made = self._tried(batch, level_weights)
            except Exception as e:  # whatever it is: a pass by single operations shows it again
                failed = str(e) if isinstance(e, Refused) else reason_of(e)
            if failed:  # the exception, which holds tensors, is gone
                self._give_up(failed)
        if self.off or made is None:
            return False
        self.graphs[key] = made
        self._numbers(self.module.progress, self.scale.value)
        B, T = batch.codes.shape[:2]
        self._say(f"{B} x {T} frames captured and tried in {time.monotonic() - began:.1f} s")
        return True

    def _tried(self, batch: Batch, level_weights: Tensor | None) -> Captured | None:
        """A graph that makes what single operations make; None where what these make is not finite,
        and shows nothing.

        :raises Refused: why there is none.
        """
        # where captures have to be, and what autograd remembers of parameters with them
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            givens = self._two(batch, level_weights)
            # what is made once is made by the first
            wanted = [self._by_operations(g, strict=n > 0) for n, g in enumerate(givens)]
            if not all(t.isfinite().all() for w in wanted for t in (w.sums, *w.grads.values())):
                return None
            self._place_gradients(wanted)
            made = Captured.of(batch, level_weights)
            gc.collect()  # graphs of autograd that still name another stream
            self._capture(made)
            self._compare(made, givens, wanted)
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        torch.cuda.empty_cache()  # what single operations left
        return made

    def _two(self, batch: Batch, level_weights: Tensor | None) -> list[Given]:
        """A pass that is asked for, and one of which all is otherwise."""
        random, progress, scale = self._random(), self.module.progress, self.scale.value
        weights = None if level_weights is None else level_weights.roll(1) * 1.5 + 0.1
        torch.cuda.manual_seed(OTHER_SEED)
        other = another(batch.here).to(self.device), weights, (progress + 0.5) % 1, scale / 2
        return [
            Given(batch, level_weights, progress, scale, random),
            Given(*other, self._random()),
        ]

    def _random(self) -> Tensor:
        return torch.cuda.get_rng_state(self.device)

    def _numbers(self, progress: float, scale: float) -> None:
        self._progress.fill_(progress)
        self._scale.fill_(scale)

    def _by_operations(self, given: Given, strict: bool) -> Made:
        """:param strict: an error where the host waits."""
        self.optimizers.zero_grad()
        torch.cuda.set_rng_state(given.random, self.device)
        mode, on_host = torch.cuda.get_sync_debug_mode(), torch.get_rng_state()
        with self._set(given.progress, given.scale):
            torch.cuda.set_sync_debug_mode("error" if strict else mode)
            try:
                out = super().__call__(given.batch, given.level_weights)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        if out.later is not None:
            raise Refused("the model has sums that are known only later")
        if not torch.equal(on_host, torch.get_rng_state()):
            raise Refused("the model draws random numbers on the host")
        grads = {p: p.grad.cpu() for p in self.optimizers.params if p.grad is not None}
        self.optimizers.zero_grad()
        return Made(_sums(out), grads, self._random())

    @contextmanager
    def _set(self, progress: float | Tensor, scale: float | Tensor) -> Iterator[None]:
        """What the host changes from step to step; no time is taken."""
        before = self.module.progress, self.scale.value, self.watch
        self.module.progress, self.scale.value, self.watch = progress, scale, nullcontext
        try:
            yield
        finally:
            self.module.progress, self.scale.value, self.watch = before

    def _place_gradients(self, wanted: list[Made]) -> None:
        found = wanted[0].grads.keys()
        known = self.grads or {p: torch.zeros_like(p) for p in found}
        if any(w.grads.keys() != known.keys() for w in wanted):
            raise Refused("which parameters have gradients differs between batches")
        self.grads = known
        for p, grad in known.items():
            p.grad = grad
        self._places = [t.data_ptr() for t in self._weights]

    def _capture(self, made: Captured) -> None:
        graph, reads = torch.cuda.CUDAGraph(), Reads()
        how = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with self._set(self._progress, self._scale), torch.cuda.graph(graph, **how), reads:
            made.out = super().__call__(made.batch, made.level_weights)
        made.graph, made.read = graph, reads.found
        if any(p.grad is not self.grads.get(p) for p in self.optimizers.params):
            raise Refused("gradients are not where they were")

    def _compare(self, made: Captured, givens: list[Given], wanted: list[Made]) -> None:
        limit = LIMITS[self.dtype]
        torch._foreach_zero_(list(self.grads.values()))
        total = [torch.zeros_like(grad) for grad in wanted[0].grads.values()]
        for given, want in zip(givens, wanted):
            made.load(given.batch, given.level_weights)
            self._numbers(given.progress, given.scale)
            torch.cuda.set_rng_state(given.random, self.device)
            made.graph.replay()
            total = [t + g for t, g in zip(total, want.grads.values())]
            grads = [self.grads[p].cpu() for p in want.grads]
            for name, distance in (
                ("sums", apart([_sums(made.out)], [want.sums])),
                ("gradients", apart(grads, total)),
            ):
                if not distance <= limit:
                    raise Refused(
                        f"{name} of a graph are {distance:.0e} away from those of single "
                        f"operations, {limit:.0e} is allowed"
                    )
            if not torch.equal(self._random(), want.random):
                raise Refused("a graph draws other random numbers than single operations")

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Gradients and random numbers are left as they were."""
        params = self.optimizers.params
        grads = [None if p.grad is None else p.grad.cpu() for p in params]
        random, on_host = self._random(), torch.get_rng_state()
        yield
        for p, grad in zip(params, grads):
            p.grad = self.grads.get(p)
            if p.grad is None:
                p.grad = None if grad is None else grad.to(self.device)
            elif grad is None:
                p.grad.zero_()
            else:
                p.grad.copy_(grad)
        torch.cuda.set_rng_state(random, self.device)
        torch.set_rng_state(on_host)

    def _give_up(self, why: str) -> None:
        """No graphs any more.

        :raises UserError: a capture that broke off left torch without random numbers.
        """
        self.off, self.grads = why, {}
        try:
            self._drop()
            torch.rand(1, device=self.device)
        except RuntimeError as e:
            raise UserError(
                f"--cuda-graphs: {why}; after that torch {torch.__version__} draws no random "
                f"numbers ({reason_of(e)}): give --no-cuda-graphs"
            ) from None
        self._say(f"{why}: training goes on without graphs; --no-cuda-graphs does not try", True)

    def _drop(self) -> None:
        torch.cuda.synchronize(self.device)  # a graph may be running
        self.graphs.clear()
        torch.cuda.empty_cache()

    def _say(self, text: str, problem: bool = False) -> None:
        if problem or not self.quiet:
            tqdm.write(f"--cuda-graphs: {text}", file=sys.stderr)
