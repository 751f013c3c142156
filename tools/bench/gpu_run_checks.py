"""Checks of `gpu.py`: what is put around a model in training. Ranks, by a group of this process
alone, ``--compile`` and ``--cuda-graphs``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from gpu_checks import (
    DRY,
    LENGTHS,
    LIMITS,
    Check,
    NotRun,
    Where,
    Wrong,
    apart,
    check,
    losses,
    make,
    numbers,
    random_batch,
    trainer,
    weights,
)
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule

from rvqlm.modules import attention, native_training
from rvqlm.training.compiling import compile_model, warm_up
from rvqlm.training.distributed import World
from rvqlm.training.passes import ROOM

# --------------------------------------------------------------------------------------- ranks


class Several(int):
    """A number of ranks that is one and taken for several."""

    __hash__ = int.__hash__

    def __eq__(self, other) -> bool:
        return other != 1 and int(self) == other

    def __gt__(self, other) -> bool:
        return other == 1 or int(self) > other


class Alone(World):
    """A group of this process alone, which wraps, sums and shards as several do."""

    def __init__(self, device: torch.device, parallel: str):
        super().__init__(device, parallel)
        backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, device_id=own
        )
        self.control = dist.new_group(backend="gloo")
        self._own, self.size = True, Several(1)


@native_training.without()  # which gather in float32 on a CPU
def alone(where: Where, case: str, parallel: str, dtype: torch.dtype) -> str:
    """Six steps in two micro-batches each, of a group of one and of no group."""
    if parallel == "fsdp" and not hasattr(FSDPModule, "reset_iter_state"):
        raise NotRun(f"fsdp needs torch 2.13, this is {torch.__version__}")
    folder = where.folder / f"{case}-{parallel}-{dtype}"
    plain = trainer(folder / "plain", case, where.device, dtype=dtype)
    plain.fit()
    want, after = losses(folder / "plain"), weights(plain)
    world = Alone(where.device, parallel)
    try:
        trained = trainer(folder / "ranks", case, where.device, dtype=dtype, world=world)
        if parallel == "ddp" and trained.module is trained.model:
            raise Wrong("nothing was put around the model")
        if parallel == "fsdp" and not isinstance(trained.model, FSDPModule):
            raise Wrong("the model was not sharded")
        trained.fit()
        got, there = losses(folder / "ranks"), weights(trained)
    finally:
        world.close()
    limit = 1e-4 if dtype == torch.float32 else LIMITS["bf16"]
    check(max(abs(a / b - 1) for a, b in zip(got, want)), limit, "losses")
    check(distance := apart(there, after), limit, "weights")
    return f"{distance:.0e}"


def ranks(where: Where) -> Iterator[tuple[str, Check]]:
    float32 = torch.float32
    for parallel in ("ddp", "fsdp"):
        for case in ("delay", "text-cross", "masked", "valle"):
            yield f"{parallel} of one rank, {case}", partial(alone, where, case, parallel, float32)
    for case in ("text-cross", "valle"):
        bf16 = partial(alone, where, case, "fsdp", torch.bfloat16)
        yield f"fsdp of one rank in bf16, {case}", bf16


# ------------------------------------------------------------------------------------- compile

GRAPHED = (
    "delay", "coarse-first", "flatten-residual", "depth-text-cross", "parallel-text-spread",
    "aligned-delay-spread", "valle", "valle-midi-cross", "masked", "masked-prompt-cross",
    "both-ways-spread",
)  # fmt: skip
SHAPES = {(3, n) for n in range(5, 12)}
"""Batches to come, (items, frames): more than get code of their own."""


def compiled(where: Where, case: str, dtype: torch.dtype) -> str:
    """Loss, logits and gradients of compiled blocks are those of plain ones, whatever the length.
    On a CPU what dynamo finds is run as it is, with the masks of a GPU."""
    with patch.object(attention, "MASKS_IN_BLOCKS", ()):
        return compiled_blocks(where, case, dtype)


def compiled_blocks(where: Where, case: str, dtype: torch.dtype) -> str:
    torch._dynamo.reset()
    counters.clear()
    plain = make(case, **DRY).to(where.device).train()
    model = copy.deepcopy(plain)
    backend = "inductor" if where.device.type == "cuda" else "eager"
    batch = random_batch(model, LENGTHS)
    shapes = compile_model(model, SHAPES, lambda line: None, backend)
    seconds = warm_up(model, shapes, batch, dtype, lambda line: None)
    versions, worst = counters["stats"]["unique_graphs"], 0.0
    limit = LIMITS["float32" if dtype == torch.float32 else "bf16"]
    for lengths in (LENGTHS, (5, 5, 5), (11, 2, 3)):
        batch, found = random_batch(model, lengths).to(where.device), []
        for one in (plain, model):
            one.zero_grad()
            torch.manual_seed(0)
            mixed = torch.autocast(where.device.type, dtype, enabled=dtype != torch.float32)
            with mixed:
                found.append(numbers(one, batch))
        want, got = found
        whole = torch.cat([v.flatten() for k, v in want.items() if k.startswith("grad")]).norm()
        for name in want.keys() - {"accuracy"}:
            of_gradients = name.startswith("gradient")
            distance = apart(got[name], want[name], float(whole) / 10 if of_gradients else 1e-3)
            check(distance, (3 if of_gradients else 1) * limit, f"{name}, lengths {lengths}")
            worst = max(worst, distance)
    more = counters["stats"]["unique_graphs"] - versions
    if more or not versions:
        raise Wrong(
            f"{versions} versions of the blocks were made, and {more} more by other lengths"
        )
    if broken := dict(counters["graph_break"]):
        raise Wrong(f"graph breaks: {broken}")
    return f"{worst:.0e}, {versions} versions in {seconds:.0f} s, no graph breaks"


def breaks(where: Where, case: str) -> str:
    """Where a graph of the whole forward pass breaks, which is not compiled as one."""
    torch._dynamo.reset()
    model = make(case, **DRY).to(where.device).train()
    found = torch._dynamo.explain(model)(random_batch(model, LENGTHS).to(where.device))
    last = [r.user_stack[-1] for r in found.break_reasons]
    lines = dict.fromkeys(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in last)
    torch._dynamo.reset()
    return f"{found.graph_break_count}: {', '.join(lines)}"


def compiling(where: Where) -> Iterator[tuple[str, Check]]:
    float32, bf16 = torch.float32, torch.bfloat16
    first = (("delay", float32), ("delay", bf16))
    for case, dtype in (
        *first,
        *((c, float32) for c in ("depth", "text-cross", "masked", "valle")),
    ):
        yield f"blocks of {case}, {str(dtype)[6:]}", partial(compiled, where, case, dtype)
    for case in ("delay", "depth", "masked", "valle"):
        yield f"the whole forward pass of {case}", partial(breaks, where, case)


# -------------------------------------------------------------------------------------- graphs


def graphed(where: Where, case: str, dtype: torch.dtype, steps: int = 6) -> str:
    """With dropout, gradients of four micro-batches of two shapes, and losses and weights of some
    steps, are those without graphs, which have to be there."""
    precision = "float32" if dtype == torch.float32 else "bf16"
    runs, found = {}, {}
    for name in ("plain", "graphs"):
        folder = where.folder / f"{case}-{precision}-{name}"
        options = {"dtype": dtype, "graphs": name == "graphs", "steps": steps}
        runs[name] = trained = trainer(folder, case, where.device, dropout=0.1, **options)
        trained.train.batch = wide(trained.train.batch)
        trained.model.train()
        torch.manual_seed(0)
        trained.passes.begin()
        for seed, lengths in enumerate((LENGTHS, (9, 9), (4, 9, 2), (9, 9))):
            batch = wide(random_batch(trained.model, lengths, seed))
            trained.passes(batch.to(where.device), None)
        params = trained.optimizers.params
        found[name] = [p.grad.cpu().double() for p in params if p.grad is not None]
        trained.fit()
    if off := runs["graphs"].passes.off:
        raise Wrong(f"graphs were given up: {off}")
    limit = LIMITS[precision]
    whole = float(torch.stack([g.norm() for g in found["plain"]]).norm())
    for got, want in zip(found["graphs"], found["plain"], strict=True):
        check(apart(got, want, whole / 10), 3 * limit, "gradients")
    want, got = (losses(trained.exp_dir) for trained in runs.values())
    check(max(abs(a / b - 1) for a, b in zip(got, want)), limit, "losses")
    after, there = map(weights, runs.values())
    check(distance := apart(there, after), 10 * limit, "weights")
    return f"{len(runs['graphs'].passes.graphs)} graphs, {distance:.0e}"


def wide(batch):
    """As graphs are given it: what is drawn depends on it."""
    conditions = {kind: padded.widened(ROOM) for kind, padded in batch.conditions.items()}
    return replace(batch, conditions=conditions)


def graphs(where: Where) -> Iterator[tuple[str, Check]]:
    for dtype in (torch.float32, torch.bfloat16):
        for case in GRAPHED:
            yield f"{case}, {str(dtype)[6:]}", partial(graphed, where, case, dtype)
