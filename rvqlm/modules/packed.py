"""Weights laid out once for the products of decoding, in the type that they are computed in.

A step of decoding multiplies every matrix with one row or a few, so its time is that of reading the
weights: 16 bits each, or 8 with a factor for each output, are read in a half or a quarter of it.

========== ========================================================================================
native     CPUs with AVX-512 BF16 and a C++ compiler: kernels of our own (`rvqlm.modules.native`)
torch      elsewhere: oneDNN's copies in bf16 on a CPU, the plain model on a GPU
compile    the plain model, a step of which `torch.compile` makes kernels of
graph      the plain model on a GPU, a step of which is captured once and repeated
========== ========================================================================================

The last two are of autoregressive models; what they draw is what single steps draw
(`rvqlm.generation.ready`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.errors import UserError
from rvqlm.modules import native
from rvqlm.modules.heads import Heads, LinearHeads, TrunkHeads
from rvqlm.modules.transformer import Transformer

SMALLEST = 1 << 14
"""Weights of a matrix that is worth it."""
Kernels = Literal["auto", "native", "torch", "compile", "graph"]
Picked = Literal["native", "torch", "compile", "graph"]
Pack = Callable[[Tensor, Tensor | None], nn.Module]
"""``pack(weight (out, in), bias or None)``: the module of their product."""


class PackedLinear(nn.Module):
    """x W^T (+ bias) by oneDNN in the type of the weights; float32 in and out, as all around it is.

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


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -127 ... 127 (out, in) and the factors (out) float32 that make them the weights."""
    scale = weight.detach().float().abs().amax(1).clamp(min=1e-30) / 127
    return (weight.detach().float() / scale[:, None]).round().to(torch.int8), scale


class CastLinear(nn.Module):
    """x W^T (+ bias) in the type of the weights, float32 in and out, by whatever a compiler makes
    of it.

    :param weight: (out, in).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


class Int8Linear(nn.Module):
    """x W^T (+ bias) with `quantized` weights by what torch has, in the type of x; of a CPU its
    kernel, which rounds x to bf16.

    :param weight: (out, in).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        # buffers would be cast with the model
        self.weight, self.scale = quantized(weight)
        self.bias = None if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if x.device.type != "cpu":
            return self.dequantizing(x)
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16())
        y = y.view(*x.shape[:-1], len(self.weight)).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def dequantizing(self, x: Tensor) -> Tensor:
        """The same from weights that are made floats in the product."""
        y = F.linear(x, self.weight.to(x.dtype)).float() * self.scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class PackedLinearHeads(Heads):
    """`LinearHeads` for drawing; each form is packed when it is first asked for."""

    def __init__(self, heads: LinearHeads, pack: Pack):
        super().__init__()
        self.weight = nn.Parameter(heads.classifiers.detach(), requires_grad=False)
        self.pack = pack
        self._products: dict[int | None, nn.Module] = {}  # None: of all levels

    def product(self, level: int | None) -> nn.Module:
        if level not in self._products:
            weight = self.weight.flatten(0, 1) if level is None else self.weight[level]
            self._products[level] = self.pack(weight, None)
        return self._products[level]

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        return self.product(None)(hidden).unflatten(-1, self.weight.shape[:2])

    def logits_of_level(self, hidden: Tensor, level: int) -> Tensor:
        return self.product(level)(hidden)


def pick_kernels(kernels: Kernels, device: torch.device) -> Picked:
    """What ``auto`` is here.

    :raises UserError: those that are asked for cannot be had, and why. Whether anything compiles
        the first step says.
    """
    if kernels == "graph" and device.type != "cuda":
        raise UserError(f"--kernels graph: graphs are of CUDA, not of {device.type}; use auto")
    if device.type == "cuda" and kernels == "auto":
        return "graph"
    if kernels in ("compile", "graph"):
        return kernels
    why = native.missing() if device.type == "cpu" else f"they are of CPUs, not of {device.type}"
    if kernels == "native" and why:
        raise UserError(f"--kernels native: {why}; use --kernels torch")
    return "torch" if why or kernels == "torch" else "native"


def _packing(dtype: torch.dtype, kernels: str, device: torch.device) -> Pack | None:
    """How matrices are packed; None: not at all."""
    if kernels == "native":
        if dtype == torch.int8:
            return lambda weight, bias: _native_int8(weight, bias)
        return lambda weight, bias: native.NativeLinear(weight.to(dtype), bias)
    if dtype == torch.int8:
        return Int8Linear
    on_cpu = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if dtype == torch.float32 or not on_cpu:
        return None
    if kernels == "compile":
        return lambda weight, bias: CastLinear(weight, bias, dtype)
    return lambda weight, bias: PackedLinear(weight, bias, dtype)


def _native_int8(weight: Tensor, bias: Tensor | None) -> native.NativeLinear:
    integers, scale = quantized(weight)
    return native.NativeLinear(integers, bias, scale)


def with_weights_in(
    model: nn.Module, dtype: torch.dtype, int8: bool = False, kernels: Kernels = "auto"
) -> nn.Module:
    """A model that is to generate and no more, with its weights in ``dtype``; it is changed.

    On a CPU the matrices are packed and all between the products stays float32, as autocast has it
    in training. Elsewhere the whole model is cast.

    :param int8: matrices, but for small ones and tables of embeddings, in 8 bits.
    :param kernels: ``torch`` and float32 leave the model as it is.
    """
    device = next(model.parameters()).device
    kernels = pick_kernels(kernels, device)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.steps = kernels if kernels in ("compile", "graph") else "eager"
    pack = _packing(torch.int8 if int8 else dtype, kernels, device)
    if pack is None:
        return model if device.type == "cpu" else model.to(dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, TrunkHeads):
            for stack in _stacks(module):
                matrices = getattr(module, stack)
                delattr(module, stack)
                each = (pack(weight, None) for weight in matrices)
                setattr(module, stack, nn.ModuleList(each))
        elif _is_matrix(module):
            _replace(model, name, pack(module.weight, module.bias))
        elif type(module) is LinearHeads:
            _replace(model, name, PackedLinearHeads(module, pack))
    return model if device.type == "cpu" else model.to(dtype)


@torch.no_grad()
def rounded_to_int8(model: nn.Module) -> nn.Module:
    """The model with every weight that `with_weights_in` has in 8 bits rounded to what it then is,
    for whatever a model can do; it is changed."""

    def rounded(weight: Tensor) -> Tensor:
        integers, scale = quantized(weight)
        return (integers * scale[:, None]).to(weight.dtype)

    for module in list(model.modules()):
        if isinstance(module, TrunkHeads):
            for stack in _stacks(module):
                for weight in getattr(module, stack):
                    weight.copy_(rounded(weight))
        elif _is_matrix(module):
            module.weight.copy_(rounded(module.weight))
        elif type(module) is LinearHeads:  # the embedding that it may be tied to is not rounded
            module.untie(rounded(module.classifiers.flatten(0, 1)).view_as(module.classifiers))
    return model


def _is_matrix(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.weight.numel() >= SMALLEST


def _stacks(heads: TrunkHeads) -> list[str]:
    """Names of matrices (K, out, in), one for each level."""
    named = heads.named_parameters(recurse=False)
    return [name for name, p in named if p.ndim == 3 and p[0].numel() >= SMALLEST]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
