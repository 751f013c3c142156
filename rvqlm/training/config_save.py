"""The trainer's flags of the group `save`: checkpoints and archives."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass
class SaveConfig:
    """When to save, and what to keep."""

    save_every_steps: int = 0
    """Write latest.pt every so many steps."""
    save_every_minutes: float = 5.0
    """Write latest.pt every so many minutes. 0: only as --save-every-steps says; always at the end
    and on Ctrl-C or SIGTERM."""
    archive_every: int = 0
    """Keep a checkpoint in EXP_DIR/archive every so many epochs, for a return to before a
    divergence and for `rvqlm average`; 0: not."""
    archive_every_steps: int = 0
    """The same every so many steps; 0: not."""
    archive_best: bool = False
    """Keep each best.pt in EXP_DIR/archive as well."""
    keep_archived: int = 10
    """How many archives to keep, the newest ones, of periodic ones and of best ones so many each;
    0: all. Each is as large as latest.pt."""

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found = [
            f"--{name.replace('_', '-')} {getattr(self, name)}: at least 0"
            for name in (
                "save_every_steps",
                "save_every_minutes",
                "archive_every",
                "archive_every_steps",
                "keep_archived",
            )
            if not (isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        archives = self.archive_every or self.archive_every_steps or self.archive_best
        if self.keep_archived != SaveConfig.keep_archived and not archives:
            found.append(
                f"--keep-archived {self.keep_archived} means nothing without --archive-every, "
                "--archive-every-steps or --archive-best"
            )
        return found
