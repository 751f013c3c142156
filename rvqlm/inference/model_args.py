"""Opening a trained model as the flags of a command say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from msgspec import Meta

from rvqlm.checkpoints.loading import find_checkpoint, load_model
from rvqlm.models.base import TokenModel
from rvqlm.modules.packed import Kernels, pick_kernels, with_weights_in
from rvqlm.runtime import pick_precision, use_device


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


@dataclass
class DrawingArgs(ModelArgs):
    """Model"""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights: half as many bytes to read in every step; auto: bf16 where the hardware
    has it."""
    weights: Literal["float", "int8"] = "float"
    """Matrices as --precision says, or in 8 bits with a factor for each output: again half as many
    bytes."""
    kernels: Kernels = "auto"
    """How a step is made. On a CPU native, by kernels of our own, where it has AVX-512 BF16 and
    there is a C++ compiler; on a GPU graph, captured once and repeated; compile, by torch.compile,
    which takes a minute or more; torch, one operation after the other. auto: native or graph where
    possible, else torch."""

    def load_to_draw(
        self, exp_dir: str
    ) -> tuple[TokenModel, Path, dict, torch.device, dict[str, str]]:
        """`load` a model that is to draw codes and no more, held as the flags say; last what they
        came to be: precision, weights, kernels.

        :raises UserError: also kernels that cannot be had here.
        """
        model, path, state, device = self.load(exp_dir)
        dtype, kernels = pick_precision(self.precision, device), pick_kernels(self.kernels, device)
        model = with_weights_in(model, dtype, self.weights == "int8", kernels)
        how = {"precision": str(dtype).removeprefix("torch."), "weights": self.weights}
        return model, path, state, device, how | {"kernels": kernels}
