"""Key-value cache of autoregressive decoding, allocated once for the longest sequence."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of all layers, written in place.

    Memory: 2 * layers * batch * heads * max_steps * head_dim values. ``position`` is the number
    of steps held; the transformer advances it once per call, after its last layer.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        max_steps: int,
        head_dim: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (num_layers, batch_size, num_heads, max_steps, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.position = 0

    @property
    def max_steps(self) -> int:
        return self.keys.shape[3]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, n, D) at the current position; return all keys and values so far."""
        end = self.position + keys.shape[2]
        if end > self.max_steps:
            raise ValueError(f"KV cache holds {self.max_steps} steps, {end} asked for")
        self.keys[layer, :, :, self.position : end] = keys
        self.values[layer, :, :, self.position : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
