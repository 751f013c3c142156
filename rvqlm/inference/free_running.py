"""A model that listens to itself: what it generates behind real prompts beside how the recordings
go on, and beside its figures when it is told the truth at every step (teacher forcing).

The loss says nothing of this: it falls just as well where the inputs of training and generation are
not the same. Continuations have the lengths of the recordings', so that all is compared frame by
frame; the end of a model has no part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rvqlm.batch import Batch
from rvqlm.data.index import TokenDataset
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.inference.conditions import ConditionArgs, Given, pad
from rvqlm.inference.prompts import Prompt, PromptArgs, from_tokens
from rvqlm.inference.speech import RECORDED
from rvqlm.metrics.bootstrap import bootstrapped, interval, ratio
from rvqlm.metrics.code_use import coverage, divergence, entropy
from rvqlm.metrics.losses import count_codes, evaluate_batches
from rvqlm.metrics.shared_runs import SharedRun, SharedRuns, symbols_of
from rvqlm.metrics.uncertainty import ByRecording
from rvqlm.models.base import TokenModel

TOGETHER = 8
"""Recordings in a batch."""


@dataclass
class FreeRunningArgs:
    """Free running"""

    free_running: int = 0
    """Continue so many recordings of the split, greedily and with draws, and say how the model
    fares when it listens to itself. 0: no."""
    prompt_seconds: float = 2.0
    """How much of each recording it is given."""
    seconds: float = 4.0
    """How far it goes on, at most: as far as the recording does."""
    seed: int = 0
    """Of the choice of recordings and of the draws."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def problems(self) -> list[str]:
        found = self.sampling.problems()
        for name in ("free_running", "seed"):
            if getattr(self, name) < 0:
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0")
        for name in ("prompt_seconds", "seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                found.append(f"--{name.replace('_', '-')} {getattr(self, name)}: above 0")
        if not self.free_running and self != type(self)():
            found.append("flags of free running do nothing without --free-running")
        return found


@dataclass
class Continuation:
    """A recording, and how the model goes on behind its beginning."""

    name: str
    given: Given
    prompt: int
    """Frames of it that are given."""
    real: Tensor
    """(T, K) int64, the prompt included; as long as what the model makes."""
    greedy: Tensor | None = None
    sampled: Tensor | None = None

    def new(self, codes: Tensor) -> np.ndarray:
        """(T - P, K): behind the prompt."""
        return codes[self.prompt :].cpu().numpy()


def read_continuations(
    model: TokenModel, dataset: TokenDataset, args: FreeRunningArgs, voice_seconds: float
) -> list[Continuation]:
    """Recordings to continue, without what the model makes of them.

    :raises UserError: none is long enough.
    """
    text, rate = model.conditions.get("text"), float(model.info.frame_rate)
    times = TextTimes.path(dataset.directory, dataset.split)
    # said when the recording says it, or codes at one position would be of different symbols
    recorded = (RECORDED,) if text is not None and text.aligned and times.exists() else ()
    wanted = ConditionArgs(durations=recorded, voice_seconds=voice_seconds)
    source = PromptArgs(
        manifest_dir=str(dataset.directory), split=dataset.split, num_prompts=args.free_running
    )
    frames = max(1, round(args.prompt_seconds * rate))
    most = frames + max(1, round(args.seconds * rate))
    prompts = from_tokens(source, wanted, frames, model, args.seed, most)
    return as_recorded(prompts, dataset, frames, most)


def as_recorded(
    prompts: Sequence[Prompt], dataset: TokenDataset, frames: int, most: int
) -> list[Continuation]:
    """What the recordings behind prompts of so many frames are, up to ``most`` frames."""
    names = {prompt.source for prompt in prompts}
    rows = {name: row for row, name in enumerate(dataset.ids()) if name in names}
    found = []
    for prompt in prompts:
        row = rows[prompt.source]
        codes = dataset.read(row, 0, min(most, int(dataset.frames[row])))
        real = torch.from_numpy(codes.astype(np.int64))
        found.append(Continuation(prompt.source, prompt.given, frames, real))
    return found


def _in_batches(items: Sequence[Continuation]) -> Iterator[list[int]]:
    for first in range(0, len(items), TOGETHER):
        yield list(range(first, min(first + TOGETHER, len(items))))


def continue_all(
    model: TokenModel, items: list[Continuation], sampling: SamplingConfig, seed: int
) -> list[Tensor]:
    """(T, K) of each item, prompt included, as long as its recording."""
    found = []
    for numbers in _in_batches(items):
        batch = [items[n] for n in numbers]
        lengths = torch.tensor([len(item.real) for item in batch])
        prompts = [item.real[: item.prompt] for item in batch]
        made = model.generate(
            torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True),
            torch.tensor([len(p) for p in prompts]),
            limits=lengths,
            min_frames=lengths,
            sampling=sampling if any(i.given.values for i in batch) else _unguided(sampling),
            conditions=pad([item.given for item in batch], model.conditions),
            seed=seed,
            rows=numbers,
        )
        found += [codes.cpu() for codes in made.items()]
    return found


def _unguided(sampling: SamplingConfig) -> SamplingConfig:
    return replace(sampling, cfg_scale=1.0)


def score(
    model: TokenModel,
    items: list[Continuation],
    codes: list[Tensor],
    device: torch.device,
    dtype: torch.dtype,
    after: int = 0,
) -> tuple[dict, ByRecording]:
    """Metrics of the codes behind the prompts and ``after`` more frames, and nats of each item."""
    recordings = ByRecording(model.info.num_codebooks)

    def batches() -> Iterator[Batch]:
        for numbers in _in_batches(items):
            some = [codes[n] for n in numbers]
            starts = [min(items[n].prompt + after, len(codes[n])) for n in numbers]
            batch = Batch.from_codes(some, [False] * len(some), prompt_lengths=starts)
            batch.conditions = pad([items[n].given for n in numbers], model.conditions)
            batch.index = torch.tensor(numbers)
            yield batch

    totals = evaluate_batches(model, batches(), model.info, device, dtype, recordings)
    return totals.sums, recordings


def by_position(
    model: TokenModel, items: list[Continuation], device: torch.device, dtype: torch.dtype
) -> dict:
    """Share of codes that the model gets right, from so many frames behind the prompt to the next
    number: told the truth so far, and told only the prompt (greedily, both)."""
    longest = max(len(item.real) - item.prompt for item in items)
    starts = [0, *(2**n for n in range(longest.bit_length()) if 2**n < longest)]
    K, L = model.info.num_codebooks, model.ordered_levels
    real, told = [i.real for i in items], []
    # what is scored from here on, less what is scored from the next number on
    sums = [score(model, items, real, device, dtype, s)[0] for s in starts if L]
    for now, later in zip(sums, [*sums[1:], None]):
        hits, count = now["accuracy"] - (0 if later is None else later["accuracy"])
        shares = [_ratio(h, c) for h, c in zip(hits[:L].tolist(), count.tolist())]
        told.append(shares + [None] * (K - L))
    alone = []
    same = [i.new(i.greedy) == i.new(i.real) for i in items]
    for start, end in zip(starts, [*starts[1:], longest]):
        equal = [item[start:end] for item in same]
        alone.append(np.concatenate(equal).mean(0).tolist())
    return {"frames": starts, "teacher_forced": told or None, "free_running": alone}


def _ratio(value: float, count: float) -> float | None:
    return value / count if count else None


def first_divergence(items: list[Continuation], frame_rate: float) -> dict:
    """Frames of level 0 that a greedy continuation has in common with the recording before the
    first that it has not: of half of the recordings at most so many; seconds; and how many
    never part."""
    parted, frames = 0, []
    for item in items:
        apart = (item.new(item.greedy) != item.new(item.real))[:, 0]
        parted += bool(apart.any())
        frames.append(int(apart.argmax()) if apart.any() else len(apart))
    middle = float(np.median(frames))
    return {
        "median_frames": middle,
        "mean_frames": float(np.mean(frames)),
        "median_seconds": middle / frame_rate,
        "never": len(items) - parted,
    }


def likelihoods(
    model: TokenModel, items: list[Continuation], device: torch.device, dtype: torch.dtype
) -> dict:
    """Nats of a code of the model's own samples, by itself, and of the recordings, per level; how
    much less its own have, with the 95 % interval over recordings. Drawn without filters, at
    temperature 1, both are the entropy for a perfect model: far less is a model in love with what
    it says, far more one that is lost in what it does not know."""
    own, real = (
        score(model, items, codes, device, dtype)[1]
        for codes in ([i.sampled for i in items], [i.real for i in items])
    )
    columns = [x for r in (own, real) for x in np.stack([*r.sums.values()], axis=1)]  # (M, K) each
    whole = [c.sum(0) for c in columns]
    own_nats, real_nats = (ratio(*whole[i : i + 2]) for i in (0, 2))
    within = None
    if len(items) > 1:
        within = interval(bootstrapped(lambda a, b, c, d: ratio(a, b) - ratio(c, d), *columns))
    found = {"own": own_nats, "real": real_nats, "difference": own_nats - real_nats}
    # a level that no masking of these few items scored has none
    plain = {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in found.items()}
    return {**plain, "interval": within}


def codes_used(items: list[Continuation], of_split: np.ndarray, info) -> dict:
    """What the samples use of the codes beside what as many codes of recordings do: the real
    continuations, against the rest of the split.

    :param of_split: (K, V) counts of the split's codes.
    """
    made = count_codes([i.new(i.sampled) for i in items], info)
    real = count_codes([i.new(i.real) for i in items], info)
    others = (of_split - real).clip(0)
    found = {}
    for name, counts in (("samples", made), ("recordings", real)):
        found[name] = {
            "coverage": coverage(counts, others),
            "entropy": entropy(counts),
            "kl": divergence(counts, others),
        }
    return found


def memorised(items: list[Continuation], train: TokenDataset, seed: int) -> dict:
    """Longest runs of frames that continuations have in common with the training recordings: of
    level 0 and of all levels. What is shared by chance: runs of the recordings' own continuations,
    and of the samples with their frames in random order."""
    rng = np.random.default_rng(seed)
    kinds = {
        "samples": [i.new(i.sampled) for i in items],
        "recordings": [i.new(i.real) for i in items],
        "shuffled": [rng.permutation(i.new(i.sampled)) for i in items],
    }
    found: dict = {}
    for levels, name in ((1, "level_0"), (train.info.num_codebooks, "all_levels")):
        runs = SharedRuns([symbols_of(codes[:, :levels]) for of in kinds.values() for codes in of])
        shared = runs.search(symbols_of(train.view(row)[:, :levels]) for row in range(len(train)))
        parts = {k: shared[n * len(items) :][: len(items)] for n, k in enumerate(kinds)}
        found[name] = {k: _runs(part, items, train) for k, part in parts.items()}
    return found


def _runs(runs: list[SharedRun], items: list[Continuation], train: TokenDataset) -> dict:
    frames = [run.frames for run in runs]
    most = int(np.argmax(frames))
    where = runs[most].row
    return {
        "longest": frames[most],
        "mean": float(np.mean(frames)),
        "of": items[most].name,
        "shared_with": train.id_of(where) if where >= 0 else None,
    }


def run_freely(
    model: TokenModel,
    held_out: TokenDataset,
    train: TokenDataset,
    of_split: np.ndarray,
    args: FreeRunningArgs,
    voice_seconds: float,
    dtype: torch.dtype,
) -> dict:
    """All of this module, of ``args.free_running`` recordings.

    :param of_split: (K, V) counts of the held-out codes.
    """
    device, info = next(model.parameters()).device, model.info
    rate = float(info.frame_rate)
    items = read_continuations(model, held_out, args, voice_seconds)
    if args.sampling.cfg_scale != 1.0 and not any(i.given.values for i in items):
        raise UserError(f"--cfg-scale {args.sampling.cfg_scale:g}: no condition to be guided by")
    greedy = SamplingConfig(temperature=0.0, cfg_scale=args.sampling.cfg_scale)
    for how, sampling in (("greedy", greedy), ("sampled", args.sampling)):
        for item, codes in zip(items, continue_all(model, items, sampling, args.seed)):
            setattr(item, how, codes)
    likelihood = likelihoods(model, items, device, dtype)
    return {
        "recordings": len(items),
        "prompt_seconds": items[0].prompt / rate,
        "frames": sum(len(i.real) - i.prompt for i in items),
        "seed": args.seed,
        "settings": dict(vars(args.sampling)),
        "agreement": by_position(model, items, device, dtype),
        "first_divergence": first_divergence(items, rate),
        "likelihood": likelihood,
        "codes": codes_used(items, of_split, info),
        "shared_runs": memorised(items, train, args.seed),
    }
