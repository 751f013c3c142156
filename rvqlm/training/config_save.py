"""The trainer's flags of the group `save`: checkpoints and archives."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass
class SaveConfig:
    """When to save."""

    save_every_steps: int = 0
    """Write latest.pt every so many steps."""
    save_every_minutes: float = 5.0
    """Write latest.pt every so many minutes. 0: only as --save-every-steps says; always at the end
    and on Ctrl-C or SIGTERM."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        return [
            f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0"
            for name in ("save_every_steps", "save_every_minutes")
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
