"""What a trained model needs to code a split, beside what a unigram of the training codes would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import torch

from rvqlm.batch import PAD, Batch
from rvqlm.cli import flatten, kebab
from rvqlm.data.conditions import open_conditions
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.metrics import losses
from rvqlm.training.config import TrainerConfig


def evaluate_split(
    model,
    flags: dict,
    where: str,
    manifest_dir: str,
    split: str,
    unigram_split: str,
    *,
    prompt_fraction: float = 0.0,
    max_duration: float = 0.0,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Metrics of `Totals` over a split, whether its bits are an upper bound, and the unigram's.

    :param flags: of the model's training, by kebab-case name; batches are made as there.
    :param where: path of the model, for messages.
    :param prompt_fraction: share of each cut that is given as a prompt and not scored.
    :param max_duration: seconds of audio in a batch; 0: as in training.
    :param dtype: of autocast.
    :raises UserError: tokens or conditions of another kind than those of the training.
    """
    # an exported model need not have those of its training
    flags = flatten(TrainerConfig("", "")) | flags
    info = model.info
    levels = info.num_codebooks
    held_out = TokenDataset.open(manifest_dir, split, num_codebooks=levels)
    info.require_same(held_out.info, where, manifest_dir)
    train = TokenDataset.open(manifest_dir, unigram_split, num_codebooks=levels)
    seconds = flags["condition-prompt-seconds"]
    conditions = open_conditions(held_out, list(model.conditions), seconds, flags["seed"])
    for kind, condition in model.conditions.items():
        condition.require_same(conditions.infos[kind], where, manifest_dir)
    names = [f.name for f in fields(PlanConfig) if kebab(f.name) in flags]
    plan = PlanConfig(**{name: flags[kebab(name)] for name in names}).for_validation()
    if max_duration:
        plan = replace(plan, max_duration=max_duration)
    loader = TokenLoader(held_out, plan, seed=0, conditions=conditions)
    counts = losses.count_codes([], info)
    cuts: set[int] = set()

    def counted() -> Iterator[Batch]:
        for batch in loader.epoch_batches():
            batch.prompt_lengths = (batch.lengths * prompt_fraction).long()
            codes = batch.codes.masked_fill(~batch.scored()[..., None], PAD)
            counts[:] += losses.count_codes([codes.numpy()], info)
            cuts.update(batch.index.tolist())
            yield batch

    totals = losses.evaluate_batches(model, counted(), info, device, dtype)
    of_train = losses.count_codes((train.view(row) for row in range(len(train))), info)
    unigram = losses.unigram_nats(of_train, counts)
    return {
        "cuts": len(cuts),
        "prompt_fraction": prompt_fraction,
        **totals.metrics(info.frame_rate),
        "bound": not model.exact_likelihood,
        "unigram_nats": unigram,
        "unigram_bits_per_second": losses.bits_per_second(unigram, info.frame_rate),
    }
