"""Checks of `gpu.py`: every kernel of attention that torch has, on every shape that models ask for.

Which of them `torch.nn.functional.scaled_dot_product_attention` takes depends on the card, the
type, the mask and the release, so each is made to answer for itself. Where one refuses, that is
said, and is wrong only of those that `MUST` answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import torch
from gpu_checks import Check, NotRun, Where, apart, check
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rvqlm.modules.attention import attend

BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
SHAPES = {
    "causal": (300, 300, {"causal": True}),
    "all": (300, 300, {}),
    "padded": (300, 300, {"key_mask": True}),
    "causal after a prefix": (300, 340, {"causal": True, "prefix": 40, "key_mask": True}),
    "one step": (1, 300, {"causal": True, "key_mask": True}),
    "another sequence": (300, 70, {"key_mask": True}),
    "1,100 steps": (1100, 1100, {"causal": True}),
    "levels of a frame": (9, 9, {"causal": True}),
}
"""Queries, keys, and what `rvqlm.modules.attention.attend` is told; a key mask hides the last keys
of an item."""
PLAIN = ("causal", "all", "1,100 steps", "levels of a frame")
MUST = {"math": tuple(SHAPES), "efficient": tuple(SHAPES), "flash": PLAIN}
"""Shapes that a kernel must have: the memory-efficient one takes masks, flash none. (cuDNN's is not
in every build, and flash is of 16 bits on cards of compute capability 8.0 or newer.)"""
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HEADS, WIDTH = 4, 64


def operands(shape: str) -> tuple[list[Tensor], Tensor, dict]:
    """Queries, keys and values (2, H, S, D) in float64, a gradient, and options, on the CPU."""
    queries, keys, options = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def draw(steps: int) -> Tensor:
        return torch.randn(2, HEADS, steps, WIDTH, generator=generator, dtype=torch.float64)

    given, gradient, options = [draw(n) for n in (queries, keys, keys)], draw(queries), {**options}
    if options.pop("key_mask", False):
        options["key_mask"] = torch.arange(keys) < torch.tensor([[keys], [keys - 30]])
    return given, gradient, options


def answer(given: list[Tensor], gradient: Tensor, options: dict, device, dtype) -> list[Tensor]:
    """Output and gradients, in float64 on the CPU."""
    given = [t.detach().to(device, dtype, copy=True).requires_grad_() for t in given]
    mask = options.get("key_mask")
    placed = options if mask is None else {**options, "key_mask": mask.to(device)}
    out = attend(*given, **placed)
    out.backward(gradient.to(device, dtype))
    return [t.detach().cpu().double() for t in (out, *(g.grad for g in given))]


def backend(where: Where, name: str, shape: str, dtype: torch.dtype) -> str:
    """Output and gradients by one kernel, beside those of plain products in float64."""
    given, gradient, options = operands(shape)
    with sdpa_kernel(SDPBackend.MATH):
        want = answer(given, gradient, options, torch.device("cpu"), torch.float64)
    try:
        with sdpa_kernel(BACKENDS[name]):
            got = answer(given, gradient, options, where.device, dtype)
    except RuntimeError as e:
        must = where.device.type == "cuda" and shape in MUST.get(name, ())
        if must and name == "flash":
            must = torch.cuda.get_device_capability(where.device) >= (8, 0)
        if must or not re.search("No (available kernel|viable backend)", str(e)):
            raise
        raise NotRun("torch has no such kernel for it here") from None
    names = ("output", "gradient of queries", "gradient of keys", "gradient of values")
    for one, a, b in zip(names, got, want):
        check(distance := apart(a, b), LIMITS[dtype] * (1 if one == "output" else 3), one)
    return f"{distance:.0e}"


def attention(where: Where) -> Iterator[tuple[str, Check]]:
    for name in BACKENDS:
        types = (torch.bfloat16, torch.float16)
        types = (torch.float32, *types) if name in ("math", "efficient") else types
        for dtype in types:
            for shape in SHAPES:
                what = f"{name} {str(dtype)[6:]}, {shape}"
                yield what, partial(backend, where, name, shape, dtype)
