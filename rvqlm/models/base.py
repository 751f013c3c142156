"""What every model returns and offers, whatever its family: the trainer knows only this."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from rvqlm.codec_info import CodecInfo


@dataclass
class LMOutput:
    """Sums over the real tokens of a batch, never means, so that any split of the data over
    micro-batches, ranks or validation batches adds up exactly."""

    loss: Tensor
    """Scalar to back-propagate: weighted nats of the codes plus those of the end decision."""
    normalizer: Tensor
    """Scalar: tokens in `loss`. A step's gradient is the sum of d loss over micro-batches and
    ranks, divided by the sum of normalizers."""
    nats: Tensor
    """(K,) -log p of the codes per level, unweighted, without smoothing; detached."""
    correct: Tensor
    """(K,) codes that were the most likely ones; detached."""
    count: Tensor
    """(K,) codes scored; detached."""
    extra: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Further metrics as (sum, count)."""


class TokenModel(nn.Module):
    """Base of all models: built from a config dataclass and a `CodecInfo`.

    `forward(batch, label_smoothing, level_weights) -> LMOutput` trains it,
    `generate(...) -> Generation` samples from it.
    """

    name: ClassVar[str]
    exact_likelihood: bool = False
    """Whether the loss estimates the entropy of the codes; otherwise it bounds it from above."""

    def __init__(self, config, info: CodecInfo):
        super().__init__()
        self.config, self.info = config, info

    def muon_parameters(self) -> list[nn.Parameter]:
        """Matrices between hidden layers, for optimizers that treat them apart: not embeddings,
        heads, norms."""
        return []
