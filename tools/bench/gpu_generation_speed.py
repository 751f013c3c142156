"""The part ``generation-speed`` of `gpu.py`: models of d768 x 16 with random weights make 128
frames of 9 levels from nothing, each sequence of a batch; and the first after a prompt of 3 s.

MBU is the share of the card's bandwidth that the weights, in the type they are held in, keys and
values take which the steps have to read. `valle` makes its finer levels and `masked` all of them
for all frames at once: their first frame comes with the last, and `masked` waits for arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property, partial
from unittest.mock import patch

import torch
from generate import PROMPT_SECONDS, bytes_of, first_frame
from gpu_checks import Check, NotRun, Where
from gpu_speed import (
    Place,
    Row,
    Size,
    Table,
    ahead,
    bandwidth,
    counted,
    median_seconds,
    of_the_card,
    place,
    swept,
    within_memory,
)
from tape import Tape
from train_step_cases import clock, make_model

from rvqlm.generation import ready
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.models.cards import count_parameters
from rvqlm.modules.packed import with_weights_in
from rvqlm.runtime import has_fast_bf16

FAMILIES = ("delay", "depth", "valle", "masked")
BATCHES = (1, 8, 64)
FRAMES, PASSES = 128, 16
UNITS = 8
"""More frames or passes, to count what each launches."""
TOY = Size(dim=144, layers=2, codebook_size=64, frame_rate=2.0)  # matrices that int8 is worth
TABLE = Table(
    "Generation, d768 x 16, 9 codebooks of 1,024, 128 frames, top-k 50; launches are of a frame, "
    "of a pass of masked",
    ("family", "weights", "steps", "batch"),
    {
        "frames/s": ",.0f", "x real time": ".1f", "MBU": ".0%", "first frame, ms": ".1f",
        "launches": ",.0f",
    },
    ("frames/s", "x real time", "MBU", "first frame, ms"),
)  # fmt: skip


def numbers_read(
    family: str, parts: dict[str, int], size: Size, again: int, frames: int, batch: int
) -> tuple[float, float]:
    """Weights, and numbers in keys and values, that have to be read for so many frames of each of
    the sequences of a batch.

    :param parts: parameters by part (`count_parameters`).
    :param again: parameters of a depth head that each level after the first reads once more.
    """
    each = batch * size.layers * 2 * size.dim  # keys and values of a step
    levels = size.codebooks
    if family == "masked":
        return PASSES * (parts["decoder"] + parts["heads"]), PASSES * frames * each
    if family == "valle":
        weights = frames * (parts["AR decoder"] + parts["AR heads"])
        weights += (levels - 1) * parts["NAR decoder"] + parts["NAR heads"]
        return weights, each * (frames**2 / 2 + (levels - 1) * frames)
    steps = frames + levels - 1 if family == "delay" else frames
    step = parts["decoder"] + parts["heads"] + (levels - 1) * again
    return steps * step, each * steps**2 / 2


class Subject:
    """A family in generation."""

    def __init__(self, at: Place, family: str, weights: str):
        self.at, self.family, self.weights = at, family, weights
        self.size = TOY if at.quick else Size()
        self.frames = 2 if at.quick else FRAMES

    @cached_property
    def model(self):
        swept()
        if not has_fast_bf16(self.at.device):
            raise NotRun("this card has no bf16")
        model = make_model(self.size, asdict(self.size), self.family).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.uniform_(-0.03, 0.03)
        self.parts, self.again = count_parameters(model), 0
        if self.family == "depth":
            self.parts["heads"] -= model.heads.tables.numel()  # of which rows are read
            self.again = sum(p.numel() for p in model.heads.blocks.parameters())
        return model.to(self.at.device)

    def run(self, batch: int, frames: int, after_step: Callable | None = None, **options) -> None:
        given = {"batch_size": batch} if "prompt_codes" not in options else {}
        self.model.generate(
            max_new_frames=frames,
            min_new_frames=frames,
            sampling=SamplingConfig(top_k=50),
            seed=0,
            progress=after_step,
            **given,
            **options,
        )

    def launches(self) -> float | None:
        """Of a frame, or of a pass."""
        if self.at.gpu is None:
            return self._launches(UNITS)
        found = []
        for layers in (1, 2):
            toy = Subject(self.at, self.family, self.weights)
            toy.size = replace(TOY, layers=layers)
            toy.hold("eager")
            found.append(toy._launches(1))
        return ahead(*found, Size().layers)

    def _launches(self, units: int) -> float | None:
        def of(units: int) -> int | None:
            frames, options = units, {}
            if self.family == "masked":
                frames, options = self.frames, {"demask": DemaskConfig(steps=units)}
            self.run(1, frames, **options)
            return counted(self.at, partial(self.run, 1, frames, **options))[0]

        fewer, more = of(1), of(1 + units)
        return None if more is None else (more - fewer) / units

    def hold(self, steps: str) -> None:
        """Weights in their type, steps made one by one or as graphs."""
        kernels = "graph" if steps == "graph" else "torch"
        with_weights_in(self.model, torch.bfloat16, self.weights == "int8", kernels)

    def row(self, steps: str, batch: int) -> Row:
        others = {"graph": FAMILIES[1:], "eager": FAMILIES[2:] if self.weights == "int8" else ()}
        if self.at.quick and (batch > 1 or self.family in others[steps]):
            raise NotRun("not simulated")  # which takes its time
        frames, size = self.frames, self.size
        self.hold(steps)
        if steps == "graph":  # makes room, and graphs of these windows
            count = round(PROMPT_SECONDS * size.frame_rate)
            prompt = torch.zeros(batch, count, size.codebooks, dtype=torch.int64)
            self.run(batch, UNITS, prompt_codes=prompt)
        last = frames if self.family in ("valle", "masked") else 1
        times = 1 if self.at.quick else 3
        first = first_frame(size, self.run, partial(clock, self.at.device), batch, last, times)
        seconds = median_seconds(self.at, partial(self.run, batch, frames), warm=1, seconds=1.0)
        weights, keys = numbers_read(self.family, self.parts, size, self.again, frames, batch)
        read = bytes_of(weights, 1 if self.weights == "int8" else 2, keys, 2)
        counts = batch == 1 and not (self.at.quick and steps == "graph")
        figures = {
            "frames/s": batch * frames / seconds,
            "x real time": frames / seconds / size.frame_rate,
            "MBU": read / seconds / bandwidth(self.at),
            "first frame, ms": first,
            "launches": self.launches() if counts else None,
        }
        return TABLE.row(self.at, figures)


def generation_speed(where: Where) -> Iterator[tuple[str, Check]]:
    yield "copies of a large array", of_the_card(where)["copies"]
    for weights in ("bf16", "int8"):
        for family in FAMILIES:
            taped = nullcontext()
            if where.simulated:  # a graph is written down
                taped = patch.object(ready, "capture", Tape.capture)
            with place(where) as at, taped:
                subject = Subject(at, family, weights)
                for steps in ("eager", "graph"):
                    if family == "masked" and steps == "graph":
                        continue  # graphs are of steps one by one
                    for batch in BATCHES:
                        work = partial(within_memory, partial(subject.row, steps, batch))
                        yield f"{family}, {weights}, {steps}, {batch}", work
