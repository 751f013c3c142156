"""Learning of the spectral codec's codebooks, beside `tools/train_spectral_codec.py`.

Codebooks start from k-means on unquantised latents, follow the data by exponential moving averages
(van den Oord et al. 2017, appendix A.1; residual form as in SoundStream, Zeghidour et al. 2021),
and entries that nothing uses are restarted from the batch. Gradients pass straight through to the
encoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rvqlm.codecs.spectral_model import ResidualQuantizer


class Quantized(NamedTuple):
    latents: Tensor
    """(B, T, D) sum of the chosen entries; gradient of the input (straight through)."""
    codes: Tensor
    """(B, T, K) int64"""
    commitment: Tensor
    """Scalar: mean squared distance between each level's residual and its entry."""


class QuantizerTrainer:
    """What learning a `ResidualQuantizer` needs beside it: k-means, averages, restarts, dropout.

    `price` may be set at any time: squared distance (halved) that one nat of code must be worth.
    """

    def __init__(self, quantizer: ResidualQuantizer, decay: float = 0.98, seed: int = 0):
        self.quantizer = quantizer
        self.decay = decay
        self.price = 0.0
        K, V, _ = quantizer.codebooks.shape
        self.count = torch.ones(K, V)
        self.total = quantizer.codebooks.clone()
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict:
        return {
            "count": self.count,
            "total": self.total,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.count, self.total = state["count"], state["total"]
        self.generator.set_state(state["generator"])

    @torch.no_grad()
    def start(self, latents: Tensor, iterations: int = 8) -> None:
        """k-means of every level on `latents` (N, D), N well above the codebook size."""
        residual = latents
        for k, book in enumerate(self.quantizer.codebooks):
            V = len(book)
            book.copy_(residual[torch.randperm(len(residual), generator=self.generator)[:V]])
            for _ in range(iterations):
                index = _nearest(residual, book)
                count = torch.bincount(index, minlength=V).float()
                total = torch.zeros_like(book).index_add_(0, index, residual)
                used = count > 0
                book[used] = total[used] / count[used, None]
                idle = int((~used).sum())
                book[~used] = residual[self._draw(len(residual), idle)]
            index = _nearest(residual, book)
            share = torch.bincount(index, minlength=V).float()
            self.count[k] = share.clamp(min=0.5) * (2.0 * V / len(residual))
            self.total[k] = book * self.count[k, :, None]
            residual = residual - book[index]

    def __call__(self, latents: Tensor, levels: Tensor) -> Quantized:
        """Quantize a training batch and move the codebooks towards it.

        Args:
            latents: (B, T, D) with gradient.
            levels: (B,) levels that serve for each item (quantizer dropout), 1..K.
        """
        B, T, D = latents.shape
        flat = latents.reshape(-1, D)
        books = self.quantizer.codebooks
        use = levels.repeat_interleave(T)[:, None]  # (B*T, 1)
        residual, chosen, codes = flat.detach(), torch.zeros_like(flat), []
        commitment = flat.new_zeros(())
        for k in range(len(books)):
            index = _nearest(residual, books[k], self.quantizer.bias[k])
            entry = books[k][index]
            codes.append(index)
            # the encoder is pulled to its entry at every level that serves for the item
            serves = (use > k).float()
            commitment = commitment + ((flat - chosen - entry).square() * serves).mean()
            chosen = chosen + entry * serves
            # every level learns on every item, whether or not it serves for it
            self._move(k, index, residual)
            residual = residual - entry
        quantized = flat + (chosen - flat).detach()
        return Quantized(quantized.view(B, T, D), torch.stack(codes, 1).view(B, T, -1), commitment)

    def entropies(self) -> list[float]:
        """Nats of each level's codes, from the running counts."""
        share = self.count / self.count.sum(1, keepdim=True)
        return (-share * share.clamp(min=1e-9).log()).sum(1).tolist()

    def _move(self, k: int, index: Tensor, residual: Tensor) -> None:
        book, V = self.quantizer.codebooks[k], self.quantizer.codebooks.shape[1]
        with torch.no_grad():
            count = torch.bincount(index, minlength=V).float()
            total = torch.zeros_like(book).index_add_(0, index, residual)
            self.count[k].mul_(self.decay).add_(count, alpha=1 - self.decay)
            self.total[k].mul_(self.decay).add_(total, alpha=1 - self.decay)
            idle = (self.count[k] < 0.05).nonzero()[:, 0]
            if len(idle):
                fresh = residual[self._draw(len(residual), len(idle))]
                self.count[k, idle] = 0.5
                self.total[k, idle] = fresh * 0.5
            book.copy_(self.total[k] / self.count[k, :, None])
            frequency = self.count[k] / self.count[k].sum()
            self.quantizer.bias[k] = self.price * frequency.clamp(min=1e-6).log()

    def _draw(self, n: int, size: int) -> Tensor:
        return torch.randint(n, (size,), generator=self.generator)


def _nearest(x: Tensor, book: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    score = x.detach() @ book.t() - (book.square().sum(1) * 0.5 - bias)
    return torch.from_numpy(score.numpy().argmax(1))  # ten times faster than torch's on a CPU
