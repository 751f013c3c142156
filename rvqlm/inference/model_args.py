"""Opening a trained model as the flags of a command say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from msgspec import Meta

from rvqlm.checkpoints.loading import find_checkpoint, load_model
from rvqlm.models.base import TokenModel
from rvqlm.runtime import use_device


@dataclass
class ModelArgs:
    """Model"""

    checkpoint: str = "best"
    """best, latest, or the path of a checkpoint file."""
    ema: bool = True
    """Averaged weights, where the training kept them."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    num_threads: Annotated[int, Meta(ge=0)] | Literal["auto"] = "auto"
    """CPU threads; 0: torch's choice. auto: torch's choice; of rvqlm generate 1 or those, whichever
    is faster just now, as 1 is on cores that others use."""

    def load(self, exp_dir: str) -> tuple[TokenModel, Path, dict, torch.device]:
        """Open a checkpoint of an experiment, a checkpoint file, or an exported model.

        :return: the model in eval mode, its checkpoint file or the directory of an exported model,
            the checkpoint, and the device.
        :raises UserError: no such checkpoint, no such device.
        """
        if self.num_threads not in ("auto", 0):
            torch.set_num_threads(self.num_threads)
        device = use_device(self.device)
        path = find_checkpoint(exp_dir, self.checkpoint)
        model, _, state = load_model(path, device=device, use_ema=self.ema)
        return model, path, state, device
