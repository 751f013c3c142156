"""What a trained model needs to code a split, beside what a unigram of the training codes would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from rvqlm.batch import PAD, Batch
from rvqlm.cli import flatten, kebab
from rvqlm.condition_info import Infos
from rvqlm.data.conditions import open_conditions
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.inference.model_args import ModelArgs
from rvqlm.metrics import losses
from rvqlm.metrics.uncertainty import ByRecording
from rvqlm.models.base import TokenModel
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
    """Split whose code frequencies are the yardstick."""
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
    model: ModelArgs = field(default_factory=ModelArgs)

    def check(self) -> None:
        if self.max_duration < 0:
            raise UserError(f"--max-duration {self.max_duration}: at least 0")
        if not 0 <= self.prompt_fraction < 1:
            raise UserError(f"--prompt-fraction {self.prompt_fraction}: in [0, 1)")
        if self.eval_draws < 0:
            raise UserError(f"--eval-draws {self.eval_draws}: at least 0")

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
        return Path(self.exp_dir) / f"eval_{self.split}{left_out}.json"


def evaluate_split(config: EvaluateConfig) -> dict:
    """Metrics of `Totals` over a split, how sure they are (`ByRecording`), whether its bits are an
    upper bound, what it was conditioned on, and the unigram's; the content of eval_SPLIT.json.

    :raises UserError: no such model, one that predicts no codes or only some levels, or tokens or
        conditions of another kind than those of its training.
    """
    model, path, state, device = config.model.load(config.exp_dir)
    dtype = pick_precision(config.precision, device)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; use rvqlm recognize")
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

    def counted() -> Iterator[Batch]:
        for batch in loader.epoch_batches():
            batch.prompt_lengths = (batch.lengths * config.prompt_fraction).long()
            codes = batch.codes.masked_fill(~batch.scored()[..., None], PAD)
            counts[:] += losses.count_codes([codes.numpy()], info)
            cuts.update(batch.index.tolist())
            yield batch

    recordings = ByRecording(levels)
    totals = losses.evaluate_batches(model, counted(), info, device, dtype, recordings)
    metrics = totals.metrics(info.frame_rate)
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
    of_train = losses.count_codes((train.view(row) for row in range(len(train))), info)
    unigram = losses.unigram_nats(of_train, counts)
    return {
        "split": config.split,
        "checkpoint": str(path),
        "step": state["step"],
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
    }


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
