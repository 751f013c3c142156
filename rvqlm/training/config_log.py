"""The trainer's flags of the group `log`: when to log, validate and sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass
class LogConfig:
    """When to log and validate."""

    log_every_steps: int = 10
    """Steps that each line of metrics.jsonl averages over."""
    valid_every_steps: int = 0
    """Validate every so many steps."""
    valid_every_minutes: float = 0.0
    """Validate every so many minutes. With neither: at the end of each epoch. Always at the end."""
    valid_max_batches: int = 0
    """Use only the first so many batches of the validation split, the same every time; 0: all."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found: list[str] = []
        for name, low in (
            ("log_every_steps", 1),
            ("valid_every_steps", 0),
            ("valid_every_minutes", 0),
            ("valid_max_batches", 0),
        ):
            value = getattr(self, name)
            if not (isfinite(value) and value >= low):
                found.append(f"--{name.replace('_', '-')} {value}: at least {low}")
        if self.valid_every_steps and self.valid_every_minutes:
            found.append("--valid-every-steps and --valid-every-minutes exclude each other")
        return found
