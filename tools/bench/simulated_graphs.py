"""CUDA graphs of `simulated_cuda`: what an operation is given is written down, and done again and
again on the memory that it was written down with.

As of a graph, nothing but operations comes again, and of these all: numbers of the host are what
they were, random numbers go on from where the GPU's are. Refused are, in a capture, waits of the
host, its random state and tensors of its own; in a replay, memory that was given back since the
capture. A capture does nothing: what it makes is NaN until a replay, and again once another graph
of its pool was replayed, whose memory may be the same.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors(*given) -> list[Tensor]:
    return [t for t in tree_leaves(given) if isinstance(t, Tensor)]


def spoil(made: list[Tensor]) -> None:
    with torch.no_grad():
        for t in made:
            t.fill_(torch.nan) if t.is_floating_point() else t.zero_()


class Pool:
    """Memory that graphs share."""

    last: Graph | None = None
    """The one that has its numbers there."""


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    gpu = None
    """That of the class which `graphs_of` makes."""

    def __init__(self, keep_graph: bool = False):
        self.operations, self.pool = [], None
        self.memory: set[int] = set()
        """Where what was made in the capture lies."""
        self.outside: dict[int, weakref.ref] = {}
        """Other memory that is read or written."""

    def record(self, func, args, options, given, view: bool):
        """What an operation returns that goes to the graph, of memory that is to be filled.

        :param args, options: with CPU tensors in the place of those of the GPU, ``given``.
        """
        if any(t.is_cpu and (t.ndim or func is torch.ops.aten.copy_.default) for t in given):
            raise RuntimeError(
                f"{func} of a tensor of the host, which a graph would not read again"
            )
        for t in given:
            if t.is_cuda and t.numel() and (place := t.block.data_ptr()) not in self.memory:
                self.outside[place] = weakref.ref(t.block)
        if view:
            return self.gpu.done(func, args, options)
        written = [
            options.get(a.name, args[i] if i < len(args) else None)
            for i, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        if written:
            if len(func._schema.returns) not in (0, len(written)):
                raise NotImplementedError(f"{func} in a graph: it both makes and changes tensors")
            self.operations.append((func, args, options, []))
            if not func._schema.returns:
                return None
            return written[0] if len(written) == 1 else tuple(written)
        out = self.gpu.done(func, args, options)
        made = tensors(out)
        self.memory |= {t.untyped_storage().data_ptr() for t in made}
        self.operations.append((func, args, options, made))
        spoil(made)
        return out

    def spoil(self) -> None:
        for *_, made in self.operations:
            spoil(made)

    def replay(self) -> None:
        if any(block() is None for block in self.outside.values()):
            raise RuntimeError("a graph uses memory that was given back since it was captured")
        if self.pool.last not in (self, None):
            self.pool.last.spoil()
        self.pool.last = self
        with self.gpu.one_launch("graph"), torch.no_grad(), torch._C._DisableTorchDispatch():
            for func, args, options, made in self.operations:
                with self.gpu.drawing(func):
                    out = self.gpu.done(func, args, options)
                for t, new in zip(made, tensors(out)):
                    t.copy_(new)


@contextmanager
def capturing(gpu, graph: Graph, pool=None, stream=None, capture_error_mode: str = "global"):
    """In the place of `torch.cuda.graph`."""
    graph.pool = pool or Pool()
    before, gpu.capture = gpu.random, graph
    try:
        yield
    finally:
        gpu.capture, gpu.random = None, before


class Stream(SimpleNamespace):
    """One as good as another: all is done at once."""

    def __init__(self, *_, **__):
        super().__init__(wait_stream=lambda other: None, synchronize=lambda: None)


@contextmanager
def _on(stream):
    yield


def graphs_of(gpu) -> dict:
    """What is put in the place of torch.cuda's."""
    return {
        "CUDAGraph": type("CUDAGraph", (Graph,), {"gpu": gpu}),  # annotations name it
        "graph": partial(capturing, gpu),
        "graph_pool_handle": Pool,
        "is_current_stream_capturing": lambda: gpu.capture is not None,
        "Stream": Stream,
        "stream": _on,
        "current_stream": Stream,
    }
