"""The part ``train-speed`` of `gpu.py`: steps of the trainer at d768 x 16, in bf16.

Each family first at the settings of docs/training.md for 12 GB, 6 micro-batches of 6 items of 512
frames, then in one micro-batch of as many items as the card is fastest with; all of it once more
with compiled blocks, and with passes as graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial

import torch
from gpu_checks import Check, NotRun, Where, Wrong
from gpu_speed import (
    Place,
    Row,
    Size,
    Table,
    TooLarge,
    ahead,
    counted,
    flops,
    median_seconds,
    of_the_card,
    place,
    swept,
    within_memory,
)
from torch import nn
from train_step_cases import Loader, make_batch, make_model

from rvqlm.errors import UserError
from rvqlm.runtime import has_fast_bf16, set_tf32
from rvqlm.training.compiling import compile_model, warm_up
from rvqlm.training.config import GuardConfig, LogConfig, OptimConfig, SaveConfig, TrainerConfig
from rvqlm.training.level_weights import LossConfig
from rvqlm.training.meter import Speed, memory_mb, training_flops
from rvqlm.training.trainer import Trainer

FAMILIES = ("delay", "delay_text", "flatten", "coarse_first", "depth", "valle", "masked")
ACCUM = 6
TRIES = 6
"""Numbers of items tried at most."""
GROWTH = 1.05
"""What more items must bring to go on."""
TOY = Size(dim=24, layers=2, codebook_size=16, batch=2, frames=10)
TABLE = Table(
    "Training, d768 x 16, 9 codebooks of 1,024, items of 512 frames, bf16",
    ("family", "batch", "blocks"),
    {
        "items": "d", "tokens/s": ",.0f", "frames/s": ",.0f", "MFU": ".0%", "GiB": ".1f",
        "launches": ",d", "waits": "d",
    },
    ("tokens/s", "frames/s", "MFU", "GiB", "items"),
)  # fmt: skip


def best_batch(rate_of: Callable[[int], float], start: int, tries: int = TRIES) -> int:
    """Items of a batch with which the rate is highest: doubled while it grows, and halved at first
    where so many do not fit.

    :param rate_of: items -> tokens a second, or `TooLarge`.
    """
    items, rates, halved = start, {}, False
    for _ in range(tries):
        try:
            rates[items] = rate_of(items)
        except TooLarge:
            if rates:
                break
            if items == 1:
                raise
            items, halved = items // 2, True
            continue
        if halved or rates[items] < GROWTH * rates.get(items // 2, 0.0):
            break
        items *= 2
    return max(rates, key=rates.get)


class Subject:
    """A family in training."""

    def __init__(self, where: Where, at: Place, family: str, how: str):
        """:param how: eager, compiled or graphs."""
        self.where, self.at, self.family, self.how = where, at, family, how
        self.size = TOY if at.quick else Size()
        self.items = self.size.batch
        """Of the batch that blocks are first compiled with."""
        self.seconds: float | None = None
        """Of compiling."""

    def batch(self, items: int):
        return make_batch(self.size, asdict(self.size) | {"batch": items}, self.family)

    @cached_property
    def model(self) -> nn.Module:
        swept()
        if self.at.device.type == "cuda" and not has_fast_bf16(self.at.device):
            raise NotRun("this card has no bf16")
        model = make_model(self.size, asdict(self.size), self.family, dropout=0.1)
        return model.to(self.at.device).train()

    @cached_property
    def speed(self) -> Speed:
        one = self.batch(1).to(self.at.device)
        counted = training_flops(self.model, one, torch.bfloat16)
        return Speed(counted / self.size.frames, flops(self.at))

    @cached_property
    def trainer(self) -> Trainer:
        if self.how == "compiled":
            self._compile()
        flags = TrainerConfig(
            str(self.where.folder / f"{self.family}-{self.how}"),
            "",
            max_steps=1 << 20,
            cuda_graphs=self.how == "graphs",
            quiet=True,
            optim=OptimConfig(base_lr=2e-4, weight_decay=0.02, warmup_ratio=0.01),
            loss=LossConfig(label_smoothing=0.05, level_weights=("auto",)),
            guard=GuardConfig(hang_minutes=0),
            log=LogConfig(),
            save=SaveConfig(save_every_minutes=0),
        )
        model, device = self.model, self.at.device
        return Trainer(model, None, None, flags, model.info, device, torch.bfloat16)

    def _compile(self) -> None:
        if self.at.quick and self.family != FAMILIES[0]:
            raise NotRun("not simulated")  # which takes its time
        _ = self.speed  # counted before
        torch._dynamo.reset()
        backend = "inductor" if self.at.device.type == "cuda" else "eager"
        # as if there were more lengths: code for any of them
        shapes = {(self.items, self.size.frames - n) for n in range(8)}
        try:
            to_try = compile_model(self.model, shapes, lambda line: None, backend)
        except UserError as e:
            raise NotRun(str(e)) from None
        like = self.batch(self.items)
        self.seconds = warm_up(self.model, to_try, like, torch.bfloat16, lambda line: None)

    def step(self) -> None:
        outcome = self.trainer.train_step()
        self.trainer.step += 1
        if off := getattr(self.trainer.passes, "off", ""):
            raise Wrong(f"graphs were given up: {off}")
        if outcome.verdict != "good":
            raise Wrong(f"step {self.trainer.step} was not taken: {outcome.verdict}")

    def measure(self, items: int, accum: int, seconds: float = 2.0) -> dict:
        """Figures of steps of so many micro-batches."""
        set_tf32(True)  # as the trainer, whose default it is
        self.items = items
        self.trainer.train = Loader(self.batch(items))
        self.trainer.config.optim.accum = accum
        if self.at.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        frames = items * self.size.frames * accum
        rate = frames / median_seconds(self.at, self.step, seconds=seconds)
        return {
            "items": items,
            "tokens/s": rate * self.size.codebooks,
            "frames/s": rate,
            "MFU": self.speed.mfu(rate, ranks=1),
            "GiB": memory_mb(self.at.device) / 2**10,
        }

    @cached_property
    def _of_toys(self) -> tuple[dict[tuple[int, int], int], int]:
        """Launches by layers and micro-batches, and waits, on a simulated GPU."""
        found = {}
        for layers in (1, 2):
            toy = Subject(self.where, self.at, self.family, self.how)
            toy.size = replace(TOY, layers=layers)
            toy.trainer.train = Loader(toy.batch(TOY.batch))
            toy.step()  # what is made once
            for accum in (1, 2):
                toy.trainer.config.optim.accum = accum
                found[layers, accum], waits = counted(self.at, toy.step)
        return found, waits

    def counts(self, accum: int) -> tuple[int | None, int | None]:
        """Launches and waits of a step like the last that was measured."""
        if self.at.gpu is None:
            return counted(self.at, self.step)
        found, waits = self._of_toys
        by_accum = (ahead(found[1, a], found[2, a], Size().layers) for a in (1, 2))
        return ahead(*by_accum, accum), waits

    def row(self, figures: dict, accum: int = 1) -> Row:
        launches, waits = self.counts(accum)
        figures |= {"launches": launches, "waits": waits}
        if self.seconds is not None and not self.at.quick:
            figures["compiled in s"] = self.seconds
        return TABLE.row(self.at, figures)

    def at_12_gb(self) -> Row:
        accum = 2 if self.at.quick else ACCUM
        return within_memory(lambda: self.row(self.measure(self.size.batch, accum), ACCUM))

    def at_best(self) -> Row:
        found = {}

        def rate_of(items: int) -> float:
            found[items] = within_memory(partial(self.measure, items, 1, 0.7))
            return found[items]["tokens/s"]

        best = best_batch(rate_of, self.size.batch, 2 if self.at.quick else TRIES)
        self.trainer.train = Loader(self.batch(best))
        return self.row(found[best])


def train_speed(where: Where) -> Iterator[tuple[str, Check]]:
    yield "products of large matrices", of_the_card(where)["products"]
    for how in ("eager", "compiled", "graphs"):
        for family in FAMILIES:
            with place(where, simulated=how != "compiled") as at:
                subject = Subject(where, at, family, how)
                for batch, work in (("12 GB", subject.at_12_gb), ("best", subject.at_best)):
                    yield f"{family}, {batch}, {how}", work
