"""The trainer's flags of the group `guard`: what is done when a step goes wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class GuardConfig:
    """What is done when a step goes wrong."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        return []
