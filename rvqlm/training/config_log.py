"""The trainer's flags of the group `log`: when to log, validate and sample."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal


@dataclass
class LogConfig:
    """When to log, validate and make samples."""

    log_every_steps: int = 10
    """Steps that each line of metrics.jsonl averages over."""
    valid_every_steps: int = 0
    """Validate every so many steps."""
    valid_every_minutes: float = 0.0
    """Validate every so many minutes. With neither: at the end of each epoch. Always at the end."""
    valid_max_batches: int = 0
    """Use only the first so many batches of the validation split, the same every time; 0: all."""

    mfu: bool = True
    """Log the share of the device's peak that goes into the model (measured on a CPU)."""
    sample_every_epochs: int = 0
    """Make samples every so many epochs, with the averaged weights: held-out recordings, their
    reconstruction by the codec, continued, and from nothing. 0: not."""
    sample_every_steps: int = 0
    """The same every so many steps."""
    sample_every_minutes: float = 0.0
    """The same every so many minutes. With any of these also at the end."""
    sample_count: int = 2
    """Recordings to continue, and samples from nothing."""
    sample_seconds: float = 5.0
    """Length of each sample, its prompt included."""
    sample_prompt_seconds: float = 2.0
    """How much of a recording is continued."""
    sample_temperature: float = 1.0
    """Temperature of the draws."""
    sample_top_k: int = 0
    """Draw among so many likeliest codes; 0: all."""
    sample_device: Literal["same", "cpu"] = "same"
    """Where the codec decodes: cpu leaves a GPU's memory to the training."""

    @property
    def samples(self) -> bool:
        """Whether any are made."""
        return bool(
            self.sample_every_epochs or self.sample_every_steps or self.sample_every_minutes
        )

    def problems(self, config) -> list[str]:
        """Everything wrong with the flags; `config` is the whole `TrainerConfig`."""
        found: list[str] = []
        for name, low in (
            ("log_every_steps", 1),
            ("valid_every_steps", 0),
            ("valid_every_minutes", 0),
            ("valid_max_batches", 0),
            ("sample_every_epochs", 0),
            ("sample_every_steps", 0),
            ("sample_every_minutes", 0),
            ("sample_top_k", 0),
            ("sample_count", 1),
        ):
            value = getattr(self, name)
            if not (isfinite(value) and value >= low):
                found.append(f"--{name.replace('_', '-')} {value}: at least {low}")
        if self.valid_every_steps and self.valid_every_minutes:
            found.append("--valid-every-steps and --valid-every-minutes exclude each other")
        if not (isfinite(self.sample_temperature) and self.sample_temperature > 0):
            found.append(f"--sample-temperature {self.sample_temperature}: above 0")
        if not 0 < self.sample_prompt_seconds < self.sample_seconds < float("inf"):
            found.append(
                f"--sample-prompt-seconds {self.sample_prompt_seconds}: above 0 and below "
                f"--sample-seconds {self.sample_seconds}"
            )
        default = LogConfig()
        names = ("count", "seconds", "prompt_seconds", "temperature", "top_k", "device")
        changed = [n for n in names if vars(self)[f"sample_{n}"] != vars(default)[f"sample_{n}"]]
        if changed and not self.samples:
            flags = ", ".join(f"--sample-{n.replace('_', '-')}" for n in changed)
            found.append(
                f"{flags}: no samples are made without --sample-every-epochs, --sample-every-steps "
                "or --sample-every-minutes"
            )
        return found
