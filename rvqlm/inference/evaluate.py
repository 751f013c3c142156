"""What a trained model needs to code a split, beside what needs no training: the uniform
distribution, the frequencies of the training codes, the code of the frame before; and how sure all
of it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from math import log
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rvqlm.batch import PAD, Batch
from rvqlm.cli import counted, flatten, kebab
from rvqlm.condition_info import Infos
from rvqlm.data.conditions import open_conditions
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.inference.free_running import FreeRunningArgs, run_freely
from rvqlm.inference.model_args import ModelArgs
from rvqlm.metrics import losses
from rvqlm.metrics.references import PreviousFrame, pairs_fit
from rvqlm.metrics.uncertainty import ByRecording
from rvqlm.models.base import TokenModel
from rvqlm.modules.fused_loss import GAPS, calibration
from rvqlm.modules.packed import rounded_to_int8
from rvqlm.runtime import pick_precision
from rvqlm.training.config import TrainerConfig


@dataclass
class EvaluateConfig:
    """Flags of `rvqlm evaluate`."""

    exp_dir: str
    """Experiment of `rvqlm trainer`; the result is written there."""
    manifest_dir: str
    """Token directory, of the codec that the model was trained on."""
    split: str = "test"
    """Split to evaluate."""
    unigram_split: str = "train"
    """Split whose codes are the yardstick: how frequent each is, and which follow each other."""
    prompt_fraction: float = 0.0
    """Share of each cut that is given as a prompt and not scored; models that train on prompts are
    best compared so."""
    eval_draws: int = 0
    """Random maskings of each recording that a masked model is scored by: more are less noisy and
    slower. 0: as in training, and at least 4."""
    without: tuple[str, ...] = ()
    """Conditions of the model that it is not given: what it needs as if, for instance, nobody told
    it the text. The result goes to a file of its own."""
    max_duration: float = 0.0
    """Seconds of audio in a batch; 0: as in training."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware multiplies it natively."""
    weights: Literal["float", "int8"] = "float"
    """int8: every matrix rounded as rvqlm generate --weights int8 has it, to see what that costs.
    The result goes to a file of its own."""
    model: ModelArgs = field(default_factory=ModelArgs)
    free: FreeRunningArgs = field(default_factory=FreeRunningArgs)

    def check(self) -> None:
        if self.max_duration < 0:
            raise UserError(f"--max-duration {self.max_duration}: at least 0")
        if not 0 <= self.prompt_fraction < 1:
            raise UserError(f"--prompt-fraction {self.prompt_fraction}: in [0, 1)")
        if self.eval_draws < 0:
            raise UserError(f"--eval-draws {self.eval_draws}: at least 0")
        if problems := self.free.problems():
            raise UserError("; ".join(problems))
        if self.free.free_running and self.without:
            raise UserError("--free-running is of the model as it was trained; leave out --without")

    def given(self, conditions: Infos) -> Infos:
        """Those of a model's conditions that it is given; `UserError` where it lacks one of
        --without."""
        if lacking := [kind for kind in self.without if kind not in conditions]:
            has = f"only with {', '.join(conditions)}" if conditions else "without conditions"
            raise UserError(f"--without {' '.join(lacking)}: the model was trained {has}")
        return {kind: info for kind, info in conditions.items() if kind not in self.without}

    def path(self) -> Path:
        """Where the result goes."""
        left_out = f"_without_{'_'.join(sorted(set(self.without)))}" if self.without else ""
        left_out += "_int8" if self.weights == "int8" else ""
        return Path(self.exp_dir) / f"eval_{self.split}{left_out}.json"


def evaluate_split(config: EvaluateConfig) -> dict:
    """Metrics of `Totals` over a split, how sure they are (`ByRecording`), whether its bits are an
    upper bound, what it was conditioned on, and the references'; the content of eval_SPLIT.json.

    :raises UserError: no such model, one that predicts no codes or only some levels, or tokens or
        conditions of another kind than those of its training.
    """
    model, path, state, device = config.model.load(config.exp_dir)
    dtype = pick_precision(config.precision, device)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; use rvqlm recognize")
    if config.weights == "int8":
        model = rounded_to_int8(model)
    draws = _set_draws(model, config.eval_draws)
    manifest_dir = config.manifest_dir
    # an exported model need not have all flags of its training
    flags = flatten(TrainerConfig("", "")) | state["config"]
    info = model.info
    levels = info.num_codebooks
    held_out = TokenDataset.open(manifest_dir, config.split, num_codebooks=levels)
    info.require_same(held_out.info, str(path), manifest_dir)
    train = TokenDataset.open(manifest_dir, config.unigram_split, num_codebooks=levels)
    seconds = flags["condition-prompt-seconds"]
    given = config.given(model.conditions)
    aligned = any(info.aligned for info in given.values())
    conditions = open_conditions(held_out, list(given), seconds, flags["seed"], aligned)
    for kind, condition in given.items():
        condition.require_same(conditions.infos[kind], str(path), manifest_dir)
    names = [f.name for f in fields(PlanConfig) if kebab(f.name) in flags]
    plan = PlanConfig(**{name: flags[kebab(name)] for name in names}).for_validation()
    if config.max_duration:
        plan = replace(plan, max_duration=config.max_duration)
    loader = TokenLoader(held_out, plan, seed=0, conditions=conditions)
    counts = losses.count_codes([], info)
    cuts: set[int] = set()
    damaged: set[int] = set()
    of_train = losses.count_codes(_sound(train, damaged), info)
    previous = PreviousFrame(_sound(train, damaged), info) if pairs_fit(info) else None
    if damaged:
        print(
            f"{manifest_dir}: {counted(len(damaged), 'cut')} of {config.unigram_split} with codes "
            "out of range left out; rvqlm validate finds the damage",
            file=sys.stderr,
        )

    def counted_batches() -> Iterator[Batch]:
        for batch in loader.epoch_batches():
            batch.prompt_lengths = (batch.lengths * config.prompt_fraction).long()
            codes = batch.codes.masked_fill(~batch.scored()[..., None], PAD)
            counts[:] += losses.count_codes([codes.numpy()], info)
            cuts.update(batch.index.tolist())
            if previous is not None:
                references.add(batch.index, _reference_nats(previous, batch))
            yield batch

    recordings, references = ByRecording(levels), ByRecording(levels)
    with calibration():
        totals = losses.evaluate_batches(model, counted_batches(), info, device, dtype, recordings)
    metrics = totals.metrics(info.frame_rate)
    gaps = [metrics.pop(name) for name in GAPS]
    apart = _apart_again(model, next(iter(loader.epoch_batches())), device, dtype)
    if "text" in config.without:  # of no symbol
        metrics.pop("duration_nats", None)
    if metrics["bits_per_second"] is None:
        missing = ", ".join(str(k) for k, nats in enumerate(metrics["nats"]) if nats is None)
        if draws is not None:
            raise UserError(
                f"--split {config.split}: {draws} random maskings of each of its {len(cuts)} "
                f"recordings did not score level {missing}; give --eval-draws {levels}"
            )
        raise UserError(f"{path}: level {missing} is not trained; train the others first")
    unigram = losses.unigram_nats(of_train, counts)
    result = {
        "split": config.split,
        "checkpoint": str(path),
        "step": state["step"],
        "weights": config.weights,
        "cuts": len(cuts),
        "prompt_fraction": config.prompt_fraction,
        **metrics,
        "uncertainty": recordings.uncertainty(info.frame_rate),
        "eval_draws": draws,
        "conditions": [
            f"{kind} and its times" if info.aligned else kind for kind, info in given.items()
        ],
        "without": sorted(set(config.without)),
        "texts_without_times": conditions.without_times() if conditions else 0,
        "bound": not model.exact_likelihood,
        "unigram_nats": unigram,
        "unigram_bits_per_second": losses.bits_per_second(unigram, info.frame_rate),
        "uniform_bits_per_second": losses.bits_per_second(
            [log(info.codebook_size)] * levels, info.frame_rate
        ),
        **_beside_previous(recordings, references, info),
        **_calibration(gaps, model),
        "scored_again": apart,
    }
    if config.free.free_running:
        voice = flags["condition-prompt-seconds"]
        result["free_running"] = run_freely(
            model, held_out, train, counts, config.free, voice, dtype
        )
    return result


def _sound(dataset: TokenDataset, damaged: set[int]) -> Iterator[np.ndarray]:
    """Codes (T, K) of each recording; rows with others than there can be go to ``damaged``."""
    unsigned = f"<u{dataset.dtype.itemsize}"
    for row in range(len(dataset)):
        codes = dataset.view(row)
        if codes.view(unsigned).max(initial=0) < dataset.info.codebook_size:
            yield codes
        else:
            damaged.add(row)


def _reference_nats(previous: PreviousFrame, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and count (B, K) of the scored codes of each item."""
    scored, K = batch.scored().numpy(), batch.codes.shape[2]
    nats = [
        previous.nats(codes[:n].numpy())[use[:n]].sum(0)
        for codes, n, use in zip(batch.codes, batch.lengths.tolist(), scored)
    ]
    count = torch.from_numpy(scored.sum(1))[:, None].expand(-1, K)
    return torch.from_numpy(np.stack(nats)), count


def _beside_previous(recordings: ByRecording, references: ByRecording, info) -> dict:
    """The reference by the frame before, and how much less the model needs; None each where its
    table would be too large."""
    if not references.sums:
        return {"previous_frame_nats": None, "previous_frame_bits_per_second": None, "gain": None}
    nats, count = sum(references.sums.values())
    means = (nats / count).tolist()
    return {
        "previous_frame_nats": means,
        "previous_frame_bits_per_second": losses.bits_per_second(means, info.frame_rate),
        "gain": references.difference(recordings, info.frame_rate),
    }


def _calibration(gaps: list[list[float | None]], model: TokenModel) -> dict:
    """Expected calibration error of each level (Guo et al., 2017, arXiv:1706.04599, over tenths),
    and how much surer the model is of its likeliest code than it is right. None for models that
    are scored by random maskings, whose probabilities are each of another question."""
    by_level = [[gap for gap in level if gap is not None] for level in zip(*gaps)]
    if not model.in_order:
        by_level = [[] for _ in by_level]
    return {
        "calibration_error": [sum(map(abs, level)) if level else None for level in by_level],
        "overconfidence": [sum(level) if level else None for level in by_level],
    }


SAME = 1e-3
"""Relative difference of nats that the order of sums may make, in bf16."""


def _apart_again(model, batch: Batch, device: torch.device, dtype: torch.dtype) -> float:
    """Relative difference of the nats of a batch's items from those of each by itself. Where it is
    no rounding, something is drawn at random (a dropout that is left on) or an item depends on its
    neighbours; said on stderr."""
    found = []
    for batches in ([batch], [batch.item(n) for n in range(len(batch.lengths))]):
        recordings = ByRecording(model.info.num_codebooks)
        losses.evaluate_batches(model, batches, model.info, device, dtype, recordings)
        found.append(np.array([nats.sum() for nats, _ in recordings.sums.values()]))
    apart = float(np.abs(found[0] - found[1]).sum() / max(found[0].sum(), 1e-9))
    if apart > SAME:
        print(
            f"in the first batch items have other nats than by themselves, by {apart:.1%}: figures "
            "depend on chance or on the batch; is a dropout left on?",
            file=sys.stderr,
        )
    return apart


LEAST_DRAWS = 4
"""Fewer serve a training, whose figures are compared with each other."""


def _set_draws(model: TokenModel, asked: int) -> int | None:
    """Random maskings of each recording; None where the family has none."""
    trained = getattr(model.config, "eval_draws", None)
    if trained is None:
        if asked:
            raise UserError(f"--eval-draws {asked}: only masked models draw; this is {model.name}")
        return None
    model.config.eval_draws = asked or max(LEAST_DRAWS, trained)
    return model.config.eval_draws
