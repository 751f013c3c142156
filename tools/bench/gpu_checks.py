"""Checks of `gpu.py`: models in training and generation. A part is a function that yields names and
what to call; a check returns what it found in a few words, and raises where it is wrong."""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from unittest.mock import patch

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

import torch
from families import ALL, CONDITIONS, INFO, PAIRWISE, make, random_batch, random_items
from torch import Tensor
from train_step_cases import Loader

from rvqlm.batch import Batch
from rvqlm.dtensors import local
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.models.factory import build_model
from rvqlm.modules.attention import RotaryTable
from rvqlm.modules.heads import Heads
from rvqlm.runtime import set_tf32
from rvqlm.training.config import GuardConfig, LogConfig, OptimConfig, SaveConfig, TrainerConfig
from rvqlm.training.distributed import World
from rvqlm.training.memory import Memory, batch_maker, largest_max_duration, optimizer_bytes
from rvqlm.training.trainer import Trainer

LENGTHS, LONG = (9, 3, 6), (1100, 900)
OPTIMIZERS = ("adamw", "muon", "scaled_adam")
DRY = {"dropout": 0.0}
WAITS = {
    "micro-batch": {
        "delay": 0, "flatten": 0, "coarse-first": 0, "depth-text-cross": 0, "valle": 0,
        "masked-prompt-cross": 0, "recognizer": 4,
    },
    "frame": {"delay": 0, "flatten": 0.25, "depth-text-cross": 0, "valle": 0},
    "pass": {"masked": 0, "masked-frame-spread": 0},
}  # fmt: skip
"""The most times that the host may wait: for a micro-batch (torch's CTC loss copies lengths, there
and back), for a frame of generation (after 16 steps it is asked whether all have ended, and flatten
makes several a frame), for a pass of a masked model; for a step it is one more."""


LAUNCHES = {
    "delay": (271, 61), "text": (342, 61), "text-cross": (534, 126), "masked": (391, 70),
    "masked-text": (536, 74), "valle": (660, 168), "valle-text": (802, 168),
}  # fmt: skip
"""The most kernels and copies of a micro-batch in bf16: with two layers, and for each further."""


@dataclass
class Where:
    """What a check is given."""

    device: torch.device
    folder: Path
    simulated: bool


class Wrong(Exception):
    """A check failed."""


class NotRun(Exception):
    """There is nothing to check here, and why."""


Check = Callable[[], str]

# ------------------------------------------------------------------------------------ equality

EXTRA = {
    "swiglu-rmsnorm": lambda: make("delay", norm="rmsnorm", activation="swiglu"),
    "recompute": lambda: make(
        "text", activation_checkpointing=True, condition_dropout=0.0, **DRY
    ).train(),
    "recognizer": lambda: shaken(
        build_model("recognizer", {**SMALL, "conditions": ("text",)}, INFO, CONDITIONS)
    ),
}
SMALL = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2, **DRY}
CASES = [*dict.fromkeys((*PAIRWISE, *ALL, *EXTRA))]
LIMITS = {"float64": 1e-9, "float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "cast": 5e-2}
"""Largest distance from the reference, relative to its size; cast: of weights in bf16."""
ENDS = 1e-4
"""The same of ends and lengths, and of models with conditions, whose places on the time axis are
float32 in float64 too."""


def shaken(model):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@lru_cache(maxsize=2)
def reference(case: str, lengths: tuple) -> tuple[torch.nn.Module, Batch, dict[str, Tensor]]:
    """Model in float64, batch, and `numbers` on the CPU."""
    model = EXTRA[case]() if case in EXTRA else make(case).eval()
    model = model.double()
    batch = random_batch(model, lengths, prompt_lengths=[2, 0, 3][: len(lengths)])
    return model, batch, numbers(copy.deepcopy(model), batch)


def numbers(model, batch: Batch) -> dict[str, Tensor]:
    """Loss, sums, logits and gradients, in float64 on the CPU."""
    with states(model) as scored:
        out = model(batch)
    out.loss.backward()
    found = {"loss": out.loss, **{k: v for k, (v, _) in out.sums.items()}}
    with torch.no_grad():
        found |= {f"logits {n}": heads(*given) for n, (heads, given) in enumerate(scored)}
    found |= {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach().cpu().double() for k, v in found.items()}


@contextmanager
def states(model) -> Iterator[list]:
    """Heads that score something, and what they need for the logits, (..., d) and (..., K)."""
    found: list[tuple[Heads, tuple]] = []

    def noting(heads, name):
        score = getattr(heads, name)

        def noted(hidden, targets, *args, **kwargs):
            # `loss_of_level` has levels there, and no heads that ask for codes
            found.append((heads, (hidden.detach(), targets if name == "loss" else None)))
            return score(hidden, targets, *args, **kwargs)

        return patch.object(heads, name, noted)

    with ExitStack() as stack:
        for heads in (m for m in model.modules() if isinstance(m, Heads)):
            for name in ("loss", "loss_of_level"):
                if hasattr(heads, name):
                    stack.enter_context(noting(heads, name))
        yield found


def apart(got: Tensor, want: Tensor, least: float = 1e-3) -> float:
    """Distance relative to the size of `want`."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float((got - want).norm() / want.norm().clamp(min=least))


def check(distance: float, limit: float, what: str) -> None:
    if not distance <= limit:
        raise Wrong(f"{what}: {distance:.1e} away, at most {limit:.0e} allowed")


def gradients(where: Where, case: str, precision: str, lengths: tuple = LENGTHS) -> str:
    """Loss, sums and gradients of a model in eval mode, where nothing is drawn on the device."""
    model, batch, want = reference(case, lengths)
    dtype = {"float64": torch.float64, "cast": torch.bfloat16}.get(precision, torch.float32)
    there, batch = copy.deepcopy(model).to(where.device, dtype), batch.to(where.device)
    set_tf32(precision == "tf32")
    with torch.autocast(where.device.type, torch.bfloat16, enabled=precision == "bf16"):
        got = numbers(there, batch)
    if set(got) != set(want):
        raise Wrong(f"{sorted(set(got) ^ set(want))[0]} is on one device only")
    # a gradient that is nearly zero beside the others is judged by their size
    whole = torch.cat([v.flatten() for k, v in want.items() if k.startswith("gradient")]).norm()
    worst = 0.0
    for name, value in want.items():
        if name == "accuracy" and dtype != torch.float64:  # of two alike, either
            continue
        of_gradients = name.startswith("gradient")
        limit = LIMITS[precision]
        if bool(model.conditions) or "end" in name or "length" in name or of_gradients:
            limit = max(limit, ENDS)
        if of_gradients and dtype != torch.float64:  # sums of many
            limit *= 12 if lengths == LONG else 3
        distance = apart(got[name], value, float(whole) / 10 if of_gradients else 1e-3)
        check(distance, limit, name)
        worst = max(worst, distance)
    return f"{worst:.0e}"


def positions(where: Where) -> str:
    """Positions of a model in bf16 are those of float32: exact, however far."""
    rotary = make("delay").to(where.device, torch.bfloat16).network.transformer.rotary
    steps = torch.arange(3000)
    exact = RotaryTable(rotary.head_dim, rotary.base).at(steps.double())
    there = steps.to(where.device)
    for got in (rotary.at(there), rotary(0, 3000, there.device)):
        for one, want in zip(got, exact):
            check(distance := float((one.cpu() - want).abs().max()), 1e-6, "cosines and sines")
    return f"{distance:.0e}"


def equality(where: Where) -> Iterator[tuple[str, Check]]:
    yield from ((f"{c} float64", partial(gradients, where, c, "float64")) for c in CASES)
    # these would equal one another where nothing is rounded otherwise
    precisions = ("float32", "bf16") if where.simulated else ("float32", "tf32", "bf16")
    for case in (*PAIRWISE, *EXTRA):
        yield from ((f"{case} {p}", partial(gradients, where, case, p)) for p in precisions)
    yield "positions in bf16", partial(positions, where)
    # beyond 1,024 steps the table of positions grows; with and without mask and prefix attention
    # has other kernels
    for case in ("delay", "text", "masked"):
        for p in ("float32", "bf16", "cast"):
            yield f"{case}, 1,100 frames, {p}", partial(gradients, where, case, p, LONG)


# ---------------------------------------------------------------------------------- generation

DRAWS = {
    "greedy": SamplingConfig(temperature=0),
    "top-k top-p": SamplingConfig(top_k=5, top_p=0.9),
    "guided": SamplingConfig(top_k=5, cfg_scale=2.0),
}


def generate(where: Where, case: str, sampling: SamplingConfig) -> str:
    """Prompts of unequal lengths, and none at all."""
    model = make(case).eval().double()
    there = copy.deepcopy(model).to(where.device)
    batch, prompts = random_batch(model, LENGTHS), torch.tensor([4, 2, 3])
    options = {"max_new_frames": 8, "sampling": sampling, "conditions": batch.conditions, "seed": 1}
    for given in ((batch.codes[:, :4], prompts), (None, None)):
        options["batch_size"] = len(LENGTHS)
        want, got = (m.generate(*given, **options) for m in (model, there))
        same(got, want)
    return f"{int(got.lengths.sum())} frames"


def same(got, want) -> None:
    if got.lengths.tolist() != want.lengths.tolist() or got.stop != want.stop:
        raise Wrong(f"lengths {got.lengths.tolist()} {got.stop}, not {want.lengths.tolist()}")
    wrong = int((got.codes.cpu() != want.codes).sum())
    if wrong:
        raise Wrong(f"{wrong} of {want.codes.numel()} codes differ")


def infill(where: Where, case: str) -> str:
    model = make(case).eval().double()
    there = copy.deepcopy(model).to(where.device)
    items = torch.stack(random_items([9, 9]))
    given = random_batch(model, [9, 9]).conditions
    want, got = (m.infill(items[:, :3], items[:, 7:], 4, conditions=given) for m in (model, there))
    same(got, want)
    return f"{int(got.lengths.sum())} frames"


def generation(where: Where) -> Iterator[tuple[str, Check]]:
    for case in PAIRWISE:
        for name, sampling in DRAWS.items():
            if name != "guided" or PAIRWISE[case][1].get("conditions"):
                yield f"{case} {name}", partial(generate, where, case, sampling)
    yield from (
        (f"infill, {c}", partial(infill, where, c)) for c in ("masked", "masked-prompt-cross")
    )


# ------------------------------------------------------------------------------------ training


def trainer(
    folder: Path, case: str, device: torch.device, optimizer="adamw", steps=6, dtype=torch.float32,
    world: World | None = None, graphs: bool = False, **changes,
) -> Trainer:  # fmt: skip
    model = EXTRA[case]().train() if case in EXTRA else make(case, **DRY | changes)
    model = model.to(device)
    flags = TrainerConfig(
        str(folder),
        "",
        max_steps=steps,
        cuda_graphs=graphs,
        optim=OptimConfig(
            optimizer, 0.01, schedule="constant", warmup_steps=0, accum=2, ema_decay=0.9
        ),
        guard=GuardConfig(hang_minutes=0),
        log=LogConfig(log_every_steps=1),
        save=SaveConfig(save_every_minutes=0),
    )
    loader = Loader(random_batch(model, LENGTHS))
    return Trainer(model, loader, None, flags, INFO, device, dtype, world)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def weights(trained: Trainer) -> Tensor:
    return torch.cat(
        [local(p.detach()).cpu().double().flatten() for p in trained.model.parameters()]
    )


def train(where: Where, case: str, optimizer: str) -> str:
    """The curve of a CPU where nothing is drawn on the device; else that it falls."""
    runs = {}
    for device in (torch.device("cpu"), where.device):
        folder = where.folder / f"{case}-{optimizer}-{device.type}"
        trained = trainer(folder, case, device, optimizer)
        trained.fit()
        runs[device.type] = losses(folder), weights(trained)
    (want, after), (got, there) = runs["cpu"], runs[where.device.type]
    if case == "delay":
        limit = 1e-2 if optimizer == "muon" else 1e-3  # it iterates in bf16 where that is fast
        check(max(abs(a / b - 1) for a, b in zip(got, want)), limit, "losses")
        check(apart(there, after), limit, "weights")
    return falls(got, there) + f", on the CPU {want[-1]:.3f}"


def falls(losses: list[float], weights: Tensor) -> str:
    if not losses[-1] < losses[0] or not bool(weights.isfinite().all()):
        raise Wrong(f"losses {losses}")
    return f"{losses[0]:.3f} to {losses[-1]:.3f}"


def learn(where: Where, name: str, dtype: torch.dtype, **changes) -> str:
    """What draws on the device, or rounds: the loss falls."""
    folder = where.folder / name.replace(" ", "-")
    trained = trainer(folder, "delay", where.device, dtype=dtype, **changes)
    trained.fit()
    return falls(losses(folder), weights(trained))


def resume(where: Where, optimizer: str, first: str = "gpu", then: str = "gpu") -> str:
    """6 steps, a checkpoint, and 6 more on another device or the same: 12 steps in one go."""
    devices = {"cpu": torch.device("cpu"), "gpu": where.device}
    folder = where.folder / f"{first}-{then}-{optimizer}"
    whole = trainer(folder / "whole", "delay", devices[then], optimizer, steps=12)
    whole.fit()
    trainer(folder / "parts", "delay", devices[first], optimizer).fit()
    rest = trainer(folder / "parts", "delay", devices[then], optimizer, steps=12)
    rest.resume(folder / "parts" / "latest.pt")
    if rest.step != 6:
        raise Wrong(f"resumed at step {rest.step}")
    rest.fit()
    check(distance := apart(weights(rest), weights(whole)), 1e-3, "weights")
    return "bit for bit" if distance == 0 else f"{distance:.0e}"


def skip(where: Where) -> str:
    """A loss that is NaN: not taken, its batch kept, training goes on."""
    trained, calls, before = trainer(where.folder / "nan", "delay", where.device), [], []

    def spoil(model, args, out):
        calls.append(0)
        if len(calls) == 5:  # the first micro-batch of step 3
            before.append(weights(trained))
            out.loss = out.loss * float("nan")
        if len(calls) == 7:
            before.append(weights(trained))

    trained.model.register_forward_hook(spoil)
    trained.fit()
    if trained.guard.counts["nonfinite"] != 1 or not before[0].equal(before[1]):
        raise Wrong(f"skipped {trained.guard.counts}, weights changed")
    kept = [p.name for p in (where.folder / "nan").rglob("*") if "bad" in str(p) and p.is_file()]
    if not kept:
        raise Wrong("the batch was not kept")
    return f"kept {kept[0]}"


def training(where: Where) -> Iterator[tuple[str, Check]]:
    for optimizer in OPTIMIZERS:
        for case in ("delay", "valle", "masked"):
            yield f"{case} {optimizer}", partial(train, where, case, optimizer)
    for optimizer in OPTIMIZERS:
        yield f"6 steps and 6 more, {optimizer}", partial(resume, where, optimizer)
    for first, then in (("cpu", "gpu"), ("gpu", "cpu")):
        yield f"resume, {first} to {then}", partial(resume, where, "adamw", first, then)
    yield "a step that is NaN", partial(skip, where)
    half = torch.bfloat16, torch.float16
    yield from ((str(dtype)[6:], partial(learn, where, str(dtype)[6:], dtype)) for dtype in half)
    chance = {"dropout": 0.1, "scheduled_sampling": 0.5}
    name = "dropout, scheduled sampling"
    yield name, partial(learn, where, name, torch.float32, **chance)


# -------------------------------------------------------------------------------------- memory


def fits(where: Where) -> str:
    """With 256 MiB to use: what ``--max-duration auto`` finds trains in two micro-batches."""
    bigger = {"decoder_dim": 64}
    model = make("delay", **bigger, **DRY).to(where.device)
    torch.cuda.empty_cache()
    used = torch.cuda.memory_allocated(where.device)
    total = torch.cuda.mem_get_info(where.device)[1]
    torch.cuda.set_per_process_memory_fraction((used + 2**28) / total, where.device)
    try:
        states = optimizer_bytes(model, OptimConfig())
        memory = Memory(model, where.device, torch.float32, states, gradients=True)
        batches, rate = batch_maker(random_batch(model, [200]), 50.0), 50.0
        if memory.need(batches(2000.0)) != float("inf"):
            raise Wrong("2,000 s fit into 256 MiB")
        found = largest_max_duration(memory, batches, frame_rate=rate, ceiling=2000.0)
        if any(p.grad is not None for p in model.parameters()):
            raise Wrong("gradients were left behind")
        trained = trainer(where.folder / "memory", "delay", where.device, steps=2, **bigger)
        trained.train.batch = batches(found)
        trained.fit()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, where.device)
    return f"{found:g} s fit"


def memory(where: Where) -> Iterator[tuple[str, Check]]:
    yield "the memory check", partial(fits, where)


# --------------------------------------------------------------------------------------- waits


def waited(work: Callable[[], object]) -> Counter:
    """How often the host waits for the GPU in `work`, by line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "synchronizing" in str(w.message)]
    return Counter(f"{re.sub('.*/rvqlm/', '', w.filename)}:{w.lineno}" for w in found)


def each(more: Counter, fewer: Counter, units: int, most: float) -> str:
    """What `units` more of a kind cost."""
    lines = {k: (more[k] - fewer[k]) / units for k in more}
    lines = {k: n for k, n in sorted(lines.items(), key=lambda item: -item[1]) if n > 0}
    total = sum(lines.values())
    said = ", ".join((f"{total:g}", *(f"{k} {n:g}" for k, n in lines.items())))
    if total > most:
        raise Wrong(f"{said}; at most {most}")
    return said


def waits_of_training(where: Where, case: str) -> str:
    def step(accum: int) -> Counter:
        trained = trainer(where.folder / "waits", case, where.device)
        trained.config.optim.accum = accum
        trained.train_step()  # what is copied once
        return waited(trained.train_step)

    one, most = step(1), WAITS["micro-batch"][case]
    said = each(step(5), one, 4, most)
    if (whole := sum(one.values())) > most + 1:
        raise Wrong(f"{whole} in a step of one micro-batch; at most {most + 1}: {dict(one)}")
    return f"{said}; a step {whole}"


def waits_of_generation(where: Where, case: str, kind: str) -> str:
    model = make(case).eval().to(where.device)
    given = random_batch(model, LENGTHS).to(where.device).conditions

    def run(units: int) -> Counter:
        frames = {"max_new_frames": 4 + units, "min_frames": 4 + units}
        passes = {"max_new_frames": 8, "min_frames": 8, "demask": DemaskConfig(steps=2 + units)}
        options = {"conditions": given, **(frames if kind == "frame" else passes)}
        return waited(lambda: model.generate(None, batch_size=len(LENGTHS), seed=0, **options))

    run(0)
    return each(run(4), run(0), 4, WAITS[kind][case])


def launches_of_training(where: Where, case: str) -> str:
    if not where.simulated:
        raise NotRun("counted on a simulated GPU")

    def step(accum: int, layers: int) -> int:
        shape = {"num_decoder_layers": layers}
        folder = where.folder / "launches"
        trained = trainer(folder, case, where.device, dtype=torch.bfloat16, **shape)
        trained.config.optim.accum = accum
        trained.train_step()  # what is made once
        count = torch.empty(0, device=where.device).gpu.launches
        count.clear()
        trained.train_step()
        return count.total()

    two, four = (step(2, layers) - step(1, layers) for layers in (2, 4))
    found = two, (four - two) / 2
    said = f"{found[0]} of two layers, {found[1]:g} each further one"
    if any(n > most for n, most in zip(found, LAUNCHES[case])):
        raise Wrong(f"{said}; at most {LAUNCHES[case]}")
    return said


def waits(where: Where) -> Iterator[tuple[str, Check]]:
    for case in WAITS["micro-batch"]:
        yield f"a micro-batch of {case}", partial(waits_of_training, where, case)
    for kind in ("frame", "pass"):
        for case in WAITS[kind]:
            yield f"a {kind} of {case}", partial(waits_of_generation, where, case, kind)
    for case in LAUNCHES:
        yield f"launches of {case}", partial(launches_of_training, where, case)
