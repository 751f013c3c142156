"""Weights laid out once for the products of decoding, in the type that they are computed in.

A step of decoding multiplies every matrix with one row or a few, so its time is that of reading the
weights. On a CPU oneDNN reads 16-bit weights as fast as memory gives them where they lie as its
kernels want them, which takes a copy that is made here, once; plain ones it would bring into that
form in every product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rvqlm.modules.heads import Heads, LinearHeads

SMALLEST = 1 << 14
"""Weights of a matrix that is worth it."""


class PackedLinear(nn.Module):
    """x W^T (+ bias) in the type of the weights; float32 in and out, as all around it is.

    :param weight: (out, in).
    """

    FUSED = ("gelu", "relu")
    """Non-linearities that a product can end with."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        # opaque to torch: no buffer, which a cast or a copy would break
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), 1)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.product(x).float()

    def product(self, x: Tensor, then: str = "none") -> Tensor:
        """The same in the type of the weights, and a non-linearity of it."""
        product = torch.ops.mkldnn._linear_pointwise.default
        return product(x.to(self.dtype), self.packed, self.bias, then, [], "none")


class PackedLinearHeads(Heads):
    """`LinearHeads` for drawing; each form is packed when it is first asked for."""

    def __init__(self, heads: LinearHeads, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(heads.classifiers.detach().to(dtype), requires_grad=False)
        self._products: dict[int | None, PackedLinear] = {}  # None: of all levels

    def _product(self, level: int | None) -> PackedLinear:
        if level not in self._products:
            weight = self.weight.flatten(0, 1) if level is None else self.weight[level]
            self._products[level] = PackedLinear(weight, None, weight.dtype)
        return self._products[level]

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        return self._product(None)(hidden).unflatten(-1, self.weight.shape[:2])

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        return self._product(level)(hidden)


def with_weights_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A model that is to generate and no more, with its weights in ``dtype``; it is changed.

    On a CPU the matrices are packed and all between the products stays float32, as autocast has it
    in training. Elsewhere the whole model is cast.
    """
    device = next(model.parameters()).device
    if dtype == torch.float32:
        return model
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model.to(dtype)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.weight.numel() >= SMALLEST:
            packed = PackedLinear(module.weight, module.bias, dtype)
        elif type(module) is LinearHeads:
            packed = PackedLinearHeads(module, dtype)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed)
    return model
