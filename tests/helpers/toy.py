"""A model and a loader that share nothing with the package's own but the contract, so that these
tests show what the trainer asks of a model: to take a `Batch` and return an `LMOutput`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.models.base import LMOutput
from rvqlm.training.config import (
    GuardConfig,
    LogConfig,
    LossConfig,
    OptimConfig,
    SaveConfig,
    TrainerConfig,
)
from rvqlm.training.trainer import Trainer

INFO = CodecInfo("toy", "0" * 16, 16000, 320, num_codebooks=2, codebook_size=11)


@dataclass
class ToyConfig:
    width: int = 12
    dropout: float = 0.0


class ToyModel(nn.Module):
    """Predicts each frame from the one before."""

    name = "toy"
    judged_by = "loss"
    exact_likelihood = False
    stage = 0
    conditions: dict = {}

    def __init__(self, config: ToyConfig | None = None, info: CodecInfo = INFO):
        super().__init__()
        self.config, self.info = config or ToyConfig(), info
        K, V = info.num_codebooks, info.codebook_size
        self.embed = nn.Embedding(K * (V + 1), self.config.width)
        self.hidden = nn.Linear(self.config.width, self.config.width)
        self.norm = nn.LayerNorm(self.config.width)
        self.head = nn.Linear(self.config.width, K * V)

    def muon_parameters(self):
        return [self.hidden.weight]

    def forward(self, batch: Batch, label_smoothing=0.0, level_weights=None) -> LMOutput:
        K, V = self.info.num_codebooks, self.info.codebook_size
        codes = batch.codes.long()
        offsets = torch.arange(K) * (V + 1)
        shifted = F.pad(codes, (0, 0, 1, 0), value=V)[:, :-1]
        ids = torch.where(shifted < 0, V, shifted) + offsets  # (B, T, K)
        x = self.embed(ids).sum(2)
        x = F.dropout(self.norm(x + self.hidden(x).relu()), self.config.dropout, self.training)
        logits = self.head(x).unflatten(-1, (K, V))  # (B, T, K, V)
        flat = logits.flatten(0, 2), codes.flatten()
        nats = F.cross_entropy(*flat, ignore_index=-1, reduction="none").view(codes.shape)
        loss = F.cross_entropy(
            *flat, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing
        )
        real = codes >= 0
        hits, count = (logits.argmax(-1) == codes) & real, real.sum((0, 1)).float()
        sums = {
            "nats": (nats.detach().sum((0, 1)), count),
            "accuracy": (hits.sum((0, 1)).float(), count),
            "first_nats": (nats[:, 0].sum(), real[:, 0].sum().float()),
        }
        return LMOutput(loss, real.sum().float(), sums)


class ToyLoader:
    """Batches drawn from (seed, epoch, step), dealt to ranks in turn."""

    def __init__(self, steps=4, seed=0, rank=0, world_size=1, info: CodecInfo = INFO, fail_at=None):
        self.epoch_steps, self.seed, self.info = steps, seed, info
        self.rank, self.world_size = rank, world_size
        self.epoch, self.step, self.fail_at = 0, 0, fail_at

    def make(self, epoch: int, step: int) -> Batch:
        number = (epoch * self.epoch_steps + step) * self.world_size + self.rank
        g = torch.Generator().manual_seed(self.seed * 100003 + number)
        lengths = torch.randint(1, 9, (int(torch.randint(1, 4, (1,), generator=g)),), generator=g)
        V, K = self.info.codebook_size, self.info.num_codebooks
        # skewed codes: there is something to learn
        items = [(torch.rand(int(n), K, generator=g) ** 3 * V).long() for n in lengths]
        batch = Batch.from_codes(items)
        batch.epoch, batch.step = epoch, step
        return batch

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        if self.step == self.epoch_steps:
            self.epoch, self.step = self.epoch + 1, 0
        if self.fail_at == (self.epoch, self.step):
            raise ConnectionError("the power went out")
        self.step += 1
        return self.make(self.epoch, self.step - 1)

    def epoch_batches(self, epoch=0):
        return (self.make(10**6, step) for step in range(3))

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


@dataclass
class ToyFlags(TrainerConfig):
    model: ToyConfig = field(default_factory=ToyConfig)


GROUPS = {
    "optim": OptimConfig,
    "loss": LossConfig,
    "guard": GuardConfig,
    "save": SaveConfig,
    "log": LogConfig,
}
DEFAULTS = {"base_lr": 0.01, "warmup_steps": 3, "log_every_steps": 3, "save_every_steps": 4}


def toy_flags(exp_dir, **values) -> ToyFlags:
    """Flags by name, whatever their group."""
    exp_dir.mkdir(parents=True, exist_ok=True)
    values = {**DEFAULTS, **values}
    groups = {
        name: of(**{f.name: values.pop(f.name) for f in fields(of) if f.name in values})
        for name, of in GROUPS.items()
    }
    return ToyFlags(exp_dir=str(exp_dir), manifest_dir="nowhere", **groups, **values)


def toy_trainer(flags: ToyFlags, loader=None, world=None, dtype=torch.float32) -> Trainer:
    torch.manual_seed(flags.seed)
    model = ToyModel(flags.model)
    loader = loader or ToyLoader()
    return Trainer(model, loader, ToyLoader(), flags, INFO, dtype=dtype, world=world)
