"""What a run will take, before it starts: parameters, steps, memory."""

from __future__ import annotations

import torch

from rvqlm.batch import Batch
from rvqlm.training.muon import Muon


def activation_bytes(model, batch: Batch, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes that the forward pass of `batch` keeps for the backward pass, measured by one."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = model(batch.to(device))
    del out
    return sum(kept.values())


def optimizer_bytes(model, config) -> int:
    """Bytes of the moments that the first step will make, and of the averages.

    :param config: `OptimConfig`.
    """
    numbers = sum(p.numel() for p in model.parameters())
    hidden = sum(p.numel() for p in model.muon_parameters()) if config.optimizer == "muon" else 0
    averages = numbers if config.ema_decay else 0
    return 4 * (2 * numbers - hidden + averages)


def describe_plan(trainer, train_batches_per_epoch: int) -> list[str]:
    """Lines of ``--dry-run`` for a `Trainer` that hasn't started."""
    model, config = trainer.model, trainer.config
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(
        p.numel() * p.element_size() * (1 if isinstance(o, Muon) else 2)
        for o in trainer.optimizers.parts
        for g in o.param_groups
        for p in g["params"]
    )
    batch = next(iter(trainer.train.epoch_batches()))
    activations = activation_bytes(model, batch, trainer.device, trainer.dtype)
    average = weights if trainer.ema is not None else 0
    total = 2 * weights + moments + average + activations
    steps = -(-train_batches_per_epoch // config.optim.accum)
    limits = []
    if config.num_epochs:
        limits.append(f"{config.num_epochs} epochs (about {config.num_epochs * steps} steps)")
    if config.max_steps:
        limits.append(f"{config.max_steps} steps ({config.max_steps / steps:.2f} epochs)")
    if config.max_minutes:
        limits.append(f"{config.max_minutes:g} minutes")
    mb = 2**20
    return [
        f"model       {model.name}, {parameters:,} parameters",
        f"device      {trainer.device}, {str(trainer.dtype).removeprefix('torch.')}, "
        f"{trainer.world.size} ranks",
        f"epoch       {train_batches_per_epoch} batches a rank, {steps} steps",
        f"batch       {tuple(batch.codes.shape)} at most, {batch.num_frames} frames, "
        f"{config.optim.accum} in a step",
        f"budget      {', or '.join(limits)}",
        f"memory      about {total / mb:,.0f} MB: weights and gradients {2 * weights / mb:,.0f}, "
        f"optimizer {moments / mb:,.0f}, average {average / mb:,.0f}, "
        f"activations {activations / mb:,.0f}",
    ]
