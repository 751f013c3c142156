"""How far the outputs of a convolutional network see, from its strides, kernels and dilations.

The network is taken as its convolutions one behind the other, in the order in which its modules
were registered; branches of residual blocks beside the main path hold convolutions of one tap at
most in all codecs here, which see nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class Layer(NamedTuple):
    """A convolution along time; `before` is padded (or, if transposed, trimmed) on the left."""

    kernel: int
    stride: int
    dilation: int
    before: int
    transposed: bool = False


def layers_of(module: nn.Module) -> list[Layer]:
    """The convolutions of a network.

    Knows plain ones and the wrappers of EnCodec and Mimi, which pad and trim by themselves: all on
    the left where they are causal, otherwise on both sides, the odd sample on the left.
    """
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        return [_layer(module, module.padding[0])]
    if not (hasattr(module, "causal") and isinstance(getattr(module, "conv", None), nn.Module)):
        return [layer for child in module.children() for layer in layers_of(child)]
    conv = module.conv
    total = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    if not module.causal:
        after = total // 2
    elif isinstance(conv, nn.ConvTranspose1d):
        after = math.ceil(total * module.trim_right_ratio)
    else:
        after = 0
    return [_layer(conv, total - after)]


def _layer(conv: nn.Conv1d | nn.ConvTranspose1d, before: int) -> Layer:
    (k,), (s,), (d,) = conv.kernel_size, conv.stride, conv.dilation
    return Layer(k, s, d, before, isinstance(conv, nn.ConvTranspose1d))


def reach(layers: Sequence[Layer], per_in: int, per_out: int) -> tuple[int, int]:
    """Units before and after a unit that its outputs depend on, at least 0 each.

    Args:
        layers: from input to output.
        per_in: inputs in a unit: the product of the strides of an encoder, 1 of a decoder.
        per_out: outputs in a unit, 1 or the product of the transposed strides.
    """
    before, after = reach_in_samples(layers, per_in, per_out)
    return max(0, math.ceil(before / per_in)), max(0, math.ceil(after / per_in))


def reach_in_samples(layers: Sequence[Layer], per_in: int, per_out: int) -> tuple[int, int]:
    """Inputs before and after a unit's own `per_in` inputs that its outputs depend on."""
    lo, hi = 0, per_out - 1  # the outputs of unit 0, traced back to the input
    for k, s, d, before, transposed in reversed(layers):
        if transposed:  # output n depends on inputs i with 0 <= n + before - i * s < k
            lo, hi = -((k - 1 - lo - before) // s), (hi + before) // s
        else:
            lo, hi = lo * s - before, hi * s - before + (k - 1) * d
    return -lo, hi - (per_in - 1)
