"""Weights of the levels in the loss that is minimised; losses that are logged stay unweighted.

The idea of lifting levels by their loss, and of training some levels at random, comes with many
codec language models; how strongly is a flag here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rvqlm.errors import UserError
from rvqlm.training.config import NAMED_WEIGHTS, LossConfig

_MEMORY = 0.98
"""Decay per step of the running losses of ``auto``."""


class LevelWeights:
    """Gives the weights of each micro-batch, None where all levels count alike.

    >>> weights = LevelWeights(LossConfig(level_weights=("3", "1")), num_codebooks=2)
    >>> weights.draw(torch.device("cpu")).tolist()
    [1.5, 0.5]

    :raises UserError: a number of weights or of drawn levels that does not fit the codec.
    """

    def __init__(self, config: LossConfig, num_codebooks: int):
        self.config, self.num_levels = config, num_codebooks
        self.running: Tensor | None = None
        """(K,) float64 running nats per level, of ``auto``."""
        names = config.level_weights
        self.kind = names[0] if len(names) == 1 and names[0] in NAMED_WEIGHTS else "given"
        found = []
        if self.kind == "given" and len(names) != num_codebooks:
            found.append(f"--level-weights has {len(names)} numbers for {num_codebooks} levels")
        if config.levels_per_batch > num_codebooks:
            found.append(f"--levels-per-batch {config.levels_per_batch}: {num_codebooks} levels")
        if found:
            raise UserError("; ".join(found))
        self.fixed = self._fixed()

    def _fixed(self) -> Tensor:
        K = self.num_levels
        weights = torch.ones(K, dtype=torch.float64)
        if self.kind == "given":
            weights = torch.tensor([float(w) for w in self.config.level_weights]).double()
        elif self.kind == "normal":  # half a bell over the levels, two deviations wide
            weights = torch.exp(-0.5 * (torch.arange(K).double() * 2 / K) ** 2)
        return weights * (K / weights.sum())

    def current(self) -> Tensor:
        """(K,) float64 with a mean of 1."""
        if self.kind != "auto" or self.running is None:
            return self.fixed
        weights = self.running.clamp(min=1e-3) ** self.config.level_weights_alpha
        return weights * (self.num_levels / weights.sum())

    def draw(self, device: torch.device) -> Tensor | None:
        """(K,) float32 for a micro-batch. Draws levels from torch's random state where asked to,
        without replacement; those drawn count alike, since they were drawn by their weights."""
        number = self.config.levels_per_batch
        if not number and self.kind == "equal":
            return None
        weights = self.current()
        if number:
            likely = weights.clamp(min=1e-12)
            drawn = torch.multinomial(likely, number)
            weights = torch.zeros_like(weights).index_fill(0, drawn, 1.0)
        return weights.float().to(device, non_blocking=True)

    def observe(self, nats: list[float], counts: list[float]) -> None:
        """Take in a step: summed nats and counts of each level, over all ranks."""
        if self.kind != "auto":
            return
        counts = torch.tensor(counts, dtype=torch.float64)
        means = torch.tensor(nats, dtype=torch.float64) / counts.clamp(min=1)
        if self.running is None:
            self.running = torch.where(counts > 0, means, means.sum() / (counts > 0).sum().clamp(1))
        else:
            self.running = torch.where(
                counts > 0, _MEMORY * self.running + (1 - _MEMORY) * means, self.running
            )

    def state_dict(self) -> dict:
        return {"running": None if self.running is None else self.running.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.running = None if state["running"] is None else state["running"].clone()
