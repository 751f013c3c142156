"""``--compile``: kernels made to measure for the transformer blocks, by `torch.compile`.

Every block of a network runs the same code, so one block is compiled and all of them share the
result: how long that takes does not grow with depth. Batch size and length stay variables of the
compiled code, unless the batches have hardly more than one shape. What is compiled is the forward
pass of training alone: validation and generation, whose shapes change at every step, run as
without the flag. Hooks on blocks, sharding and activation checkpointing stay outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from types import MethodType

import torch
from torch import Tensor, _dynamo, nn
from torch._dynamo.utils import counters
from torch.fx.experimental import _config

from rvqlm.batch import Batch
from rvqlm.errors import UserError, reason_of
from rvqlm.modules.depth import DepthBlock
from rvqlm.modules.transformer import Block, Transformer
from rvqlm.training.memory import items_of

REGIONS = (Block, DepthBlock)
"""What is compiled: modules that come in stacks."""

FEW_SHAPES = 4
"""Up to so many shapes of batches each gets code of its own."""

MOST_VERSIONS = 64
"""Compiled versions of a block, over all networks of a model; torch stops at 8, and runs what
comes later uncompiled."""


def compile_model(
    model: nn.Module,
    shapes: Collection[tuple[int, int]],
    say: Callable[[str], None],
    backend: str | Callable = "inductor",
    in_rows: bool = False,
) -> list[tuple[int, int]]:
    """Compile the blocks of a model at their first use, before it is wrapped for several ranks.

    :param shapes: (items, frames) of the batches to come, the same on all ranks.
    :param say: prints a line.
    :param backend: of `torch.compile`.
    :param in_rows: several items stand in a row; rows are of other widths from batch to batch.
    :return: (items, frames) to warm up with, the largest first: all there are, or those that need
        a version of the code each.
    :raises UserError: nothing to compile, or no working compiler on this machine.
    """
    found = [m for m in model.modules() if isinstance(m, REGIONS)]
    if not found:
        raise UserError(
            f"--compile: {type(model).__name__} has no transformer blocks; leave it out"
        )
    if backend == "inductor":
        _try_compiler(next(model.parameters()).device)
    conditioned = bool(getattr(model, "conditions", None))  # their lengths are shapes too
    dynamic = conditioned or in_rows or len(shapes) > FEW_SHAPES
    # its name before torch 2.7
    limit = "recompile_limit" if hasattr(_dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(_dynamo.config, limit, max(getattr(_dynamo.config, limit), MOST_VERSIONS))
    # sizes that happen to be equal, as of 256 frames and width 256, are not so in other batches
    _config.use_duck_shape = False
    for module in model.modules():
        if isinstance(module, Transformer):
            module.masks_always = True
    for kind in REGIONS:
        # one compiled function for all modules: their weights are its arguments
        compiled = torch.compile(kind.forward, dynamic=dynamic, backend=backend)
        forward = _in_training(kind.forward, compiled)
        for module in found:
            if isinstance(module, kind):
                module.forward = MethodType(forward, module)
    say(
        f"--compile: {len(found)} blocks, "
        + ("for batches of any shape" if dynamic else f"for shapes {sorted(shapes)} of batches")
    )
    return _to_try(shapes, dynamic)


def _in_training(plain: Callable, compiled: Callable) -> Callable:
    def forward(self, x: Tensor, *others):
        # the last argument of all regions is a cache, which changes its length at every step
        if not (self.training and torch.is_grad_enabled()):
            return plain(self, x, *others)
        # a view would have its base looked at too, and be one more version
        return compiled(self, x.clone() if x._is_view() else x, *others)

    return forward


def _try_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: (x + 1).sin())(torch.ones(2, device=device))
    except Exception as e:
        needed = "a C++ compiler (g++)"
        if device.type == "cuda":
            needed = (
                "triton and a C compiler with Python.h (python3-dev), which work on GPUs of "
                "compute capability 7.0 or newer"
            )
        raise UserError(
            f"--compile does not work on {device.type} here ({reason_of(e)}); install {needed}, or "
            "leave --compile out"
        ) from None


def _to_try(shapes: Collection[tuple[int, int]], dynamic: bool) -> list[tuple[int, int]]:
    """Largest first, whose memory is then found to suffice. Compiled code takes a dimension of 1
    for a constant, so that batches of one item are a version of their own."""
    ordered = sorted(shapes, key=lambda s: (s[0] * s[1], s), reverse=True)
    if not dynamic:
        return ordered
    single, several = ([s for s in ordered if (s[0] == 1) == one] for one in (True, False))
    # beside the largest the smallest: should a size be a constant after all, it shows before step 1
    chosen = [s for part in (several, single) for s in (*part[:1], *part[-1:])]
    return list(dict.fromkeys(chosen))


def reshaped(batch: Batch, items: int, frames: int) -> Batch:
    """A batch of so many items of so many frames each, the given one's over and over; or so many of
    its rows, where items stand in rows.

    >>> batch = Batch.from_codes([torch.arange(3)[:, None]])
    >>> reshaped(batch, 1, 5).codes.flatten().tolist()
    [0, 1, 2, 0, 1]
    """
    if batch.rows is not None:
        return items_of(batch, batch.rows[:, 0] < items)
    chosen = items_of(batch, torch.arange(items) % len(batch.codes))
    lengths = torch.full((items,), frames)
    return replace(
        chosen,
        codes=chosen.codes[:, torch.arange(frames) % int(batch.lengths.min())].contiguous(),
        lengths=lengths,
        prompt_lengths=None if batch.prompt_lengths is None else torch.zeros_like(lengths),
    )


def warm_up(
    module: nn.Module,
    shapes: Collection[tuple[int, int]],
    like: Batch,
    dtype: torch.dtype,
    say: Callable[[str], None],
) -> float:
    """One forward and backward pass of a batch of each shape, so that no later step waits for a
    compiler.

    Weights and random numbers are as before, and there are no gradients. Every rank has to call it
    with equally many shapes. Returns the seconds it took.

    :param module: the model, wrapped for several ranks or not.
    :param like: the batches are made of this one (`reshaped`).
    :param dtype: of autocast; float32: none.
    """
    model = getattr(module, "module", module)  # without DDP: no gradients to reduce
    device = next(model.parameters()).device
    training, began, stats = model.training, time.monotonic(), counters["stats"]
    before = stats["unique_graphs"]
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for number, (items, frames) in enumerate(shapes, 1):
                say(f"--compile: warming up {number} of {len(shapes)}, {items} x {frames} frames")
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    out = model(reshaped(like, items, frames).to(device))
                out.loss.backward()
                model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        model.train(training)
    seconds, versions = time.monotonic() - began, stats["unique_graphs"] - before
    say(f"--compile: {versions} versions of the blocks in {seconds:.0f} s")
    return seconds
