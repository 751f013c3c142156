"""`Batch`: all that a model sees of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

PAD = -1
"""Value of `Batch.codes` past an item's length; never a valid code."""


@dataclass
class Batch:
    """A padded batch of token sequences.

    Shapes: B items, T frames of the longest, K codebooks.
    """

    codes: Tensor
    """(B, T, K) int16 on the host (int32 where a codebook exceeds 32767 entries); `PAD` past
    lengths."""
    lengths: Tensor
    """(B,) int64, valid frames per item."""
    ends: Tensor
    """(B,) bool: the item ends where its recording ends (a crop usually does not). The end of the
    sequence is learnt only from these."""
    index: Tensor
    """(B,) int64: row of each item in the dataset's index."""
    epoch: int = 0
    step: int = 0
    """Micro-batch number within the epoch, on this rank."""

    @property
    def num_frames(self) -> int:
        """Real (unpadded) frames."""
        return int(self.lengths.sum())

    @property
    def padding(self) -> float:
        """Share of the (B, T) grid that is padding."""
        return 1.0 - self.num_frames / max(1, self.codes.shape[0] * self.codes.shape[1])

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        moved = {
            k: v.to(device, non_blocking=non_blocking)
            for k, v in vars(self).items()
            if isinstance(v, Tensor)
        }
        return replace(self, **moved)

    @classmethod
    def from_codes(cls, items: list[Tensor], ends: list[bool] | None = None) -> Batch:
        """Pad a list of (T_i, K) tensors; for tests, prompts and examples.

        >>> b = Batch.from_codes([torch.zeros(3, 2), torch.ones(1, 2)])
        >>> b.codes.shape, b.lengths.tolist(), b.codes[1, 1].tolist()
        (torch.Size([2, 3, 2]), [3, 1], [-1, -1])
        """
        codes = torch.nn.utils.rnn.pad_sequence(
            [i.to(torch.int32) for i in items], batch_first=True, padding_value=PAD
        )
        return cls(
            codes=codes,
            lengths=torch.tensor([len(i) for i in items]),
            ends=torch.tensor(ends if ends is not None else [True] * len(items)),
            index=torch.arange(len(items)),
        )
