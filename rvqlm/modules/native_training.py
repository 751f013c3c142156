"""Kernels of training in bf16 for CPUs with AVX-512 BF16, compiled from `native_training.cpp` on
the machine that runs them, as those of decoding (`rvqlm.modules.native`).

========= =========================================================================================
attention turns queries and keys by their places, reads them where their projection left them and
          writes their gradients there: nothing is copied, padded or transposed on the way
products  of layers without bias read weights in float32, as optimizers keep them, and make
          gradients in float32, so that neither is cast; not where oneDNN has AMX for them
losses    of classifiers level by level, with gradients, while a level's logits are in a cache
GELU      the exact one, in one pass each way
steps     of AdamW with clipping and the average of the weights, in one pass
========= =========================================================================================

No sum depends on the number of threads. Elsewhere, for other types and with dropout of attention,
torch's do the same.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rvqlm.errors import UserError
from rvqlm.modules import native

SOURCE = Path(__file__).with_name("native_training.cpp")
WIDEST_HEAD = 512
TALL, BLOCK = 6, 64
LOGITS = 1 << 22
"""Of one level, whose gradients in bf16 are held at once: 8 MiB, and as much in another order."""


class _Attention(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("items", "heads", "kv_heads", "width")],
        *[(name, ctypes.c_int64) for name in ("queries", "keys")],
        *[(name, ctypes.c_void_p) for name in ("q", "k", "v")],
        *[(name, ctypes.c_int64) for name in ("q_item", "q_step", "k_item", "k_step")],
        *[(name, ctypes.c_void_p) for name in ("cos", "sin")],
        ("angles_item", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("causal", "prefix")],
        *[(name, ctypes.c_void_p) for name in ("y", "total", "grad_y")],
        *[(name, ctypes.c_void_p) for name in ("grad_q", "grad_k", "grad_v")],
        ("threads", ctypes.c_int64),
    ]


class _Linear(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")],
        *[(name, ctypes.c_void_p) for name in ("x", "weight", "grad_y", "y", "grad_x")],
        ("grad_x_wide", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("grad_weight", "scratch")],
        *[(name, ctypes.c_int64) for name in ("threads", "x_step", "grad_x_step")],
        *[(name, ctypes.c_int64) for name in ("add_to_x", "add_to_weight")],
    ]


class _Classifiers(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "levels", "codes", "width")],
        ("x", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("x_step", "x_level")],
        *[(name, ctypes.c_void_p) for name in ("weight", "targets", "factors")],
        ("smoothing", ctypes.c_float),
        *[(name, ctypes.c_void_p) for name in ("found", "grad_x", "grad_weight", "grad_y")],
        *[(name, ctypes.c_void_p) for name in ("scratch", "packed")],
        *[(name, ctypes.c_int64) for name in ("some_rows", "add", "threads")],
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("tensors", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("sizes", "weights", "grads", "means", "squares")],
        *[(name, ctypes.c_void_p) for name in ("averages", "sizes_of_step", "roots", "kept")],
        *[(name, ctypes.c_float) for name in ("factor", "beta1", "beta2", "eps", "share")],
        ("threads", ctypes.c_int64),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        library = native.compiled(SOURCE, "training")
    except (UserError, OSError) as error:
        return str(error)
    for function in (library.attention, library.linear, library.classify, library.adamw):
        function.argtypes, function.restype = [ctypes.c_void_p], None
    pointers = [ctypes.c_void_p] * 3
    of_all = [ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_int64]
    library.sum_of_squares.argtypes, library.sum_of_squares.restype = of_all, ctypes.c_double
    library.gelu.argtypes, library.gelu.restype = [ctypes.c_int64, *pointers, ctypes.c_int64], None
    return library


def missing() -> str:
    """Why there are no such kernels here; empty where there are."""
    found = _library()
    return found if isinstance(found, str) else ""


_wanted = True
_in_use = False
"""Whether the training of this process computes with them: then its optimizer does, too."""


def choose(kernels: str, device: torch.device, dtype: torch.dtype) -> str:
    """Kernels of trainings in this process.

    :param kernels: auto: these where they can be had; native: these; torch: none of these.
    :return: what is to be said, or nothing.
    :raises UserError: native ones are asked for and cannot be had, and why.
    """
    global _wanted, _in_use
    _wanted = kernels != "torch"
    suited = device.type == "cpu" and dtype == torch.bfloat16
    if kernels == "native" and not suited:
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"--kernels native: they compute in bf16 on a CPU, not in {name} on {device.type}; use "
            "--kernels auto"
        )
    why = missing() if suited and _wanted else ""
    if kernels == "native" and why:
        raise UserError(f"--kernels native: {why}; use --kernels torch")
    _in_use = suited and _wanted and not why
    return f"--kernels torch, which is slower: {why}" if why else ""


@contextmanager
def without() -> Iterator[None]:
    """torch's kernels for a while."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


def usable() -> bool:
    """Whether these are wanted and can be had; they take weights in float32."""
    return _wanted and not torch.compiler.is_compiling() and not missing()


@functools.cache
def _has_amx() -> bool:
    """Whether oneDNN multiplies in tiles, many times as fast as vectors can."""
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def attends(qkv: Tensor, dropout: float) -> bool:
    """Whether `attend` takes them: (B, S, H + 2 J, D) in bf16 on a CPU."""
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu" or dropout:
        return False
    return qkv.numel() > 0 and qkv.shape[3] <= WIDEST_HEAD and usable()


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv_heads: int,
    key_mask: Tensor | None = None,
    causal: bool = False,
    prefix: int = 0,
) -> Tensor:
    """Self-attention (B, S, H, D) of a projection (B, S, H + 2 J, D), bf16: H heads of queries, J
    (``kv_heads``) of keys and of values.

    :param cos, sin: (S, D/2) or (B, S, D/2) float32, by which queries and keys are turned.
    :param key_mask: (B, S) bool, true where a key may be seen.
    :param causal: no later step is seen, but for the first ``prefix``, which all see.
    """
    return attend_each(qkv, kv_heads, [Part(qkv.shape[:2], cos, sin, key_mask, causal, prefix)])


class Part(NamedTuple):
    """One of several batches in a row, and what `attend` is told of it."""

    shape: tuple[int, int]
    """B and S."""
    cos: Tensor
    sin: Tensor
    key_mask: Tensor | None
    causal: bool
    prefix: int


def attend_each(qkv: Tensor, kv_heads: int, parts: Sequence[Part]) -> Tensor:
    """`attend` of batches (B, S, H + 2 J, D) that stand one behind the other in a row
    (1, N, H + 2 J, D); or of one as it is."""
    return _Attend.apply(qkv.contiguous(), kv_heads, parts)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, kv_heads, parts):
        H, D = qkv.shape[2] - 2 * kv_heads, qkv.shape[3]
        y, others = qkv.new_empty(*qkv.shape[:2], H, D), []
        for own, own_y, part in zip(_split(qkv, parts), _split(y, parts), parts):
            B, S = part.shape
            cos, sin = part.cos.float().contiguous(), part.sin.float().contiguous()
            mask = None if part.key_mask is None else part.key_mask.contiguous()
            total = qkv.new_empty(B, H, S, dtype=torch.float32)
            others += [cos, sin, mask, total]
            _call(part, own, kv_heads, cos, sin, mask, own_y, total)
        ctx.kv_heads, ctx.parts = kv_heads, parts
        ctx.save_for_backward(qkv, y, *others)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        qkv, y, *others = ctx.saved_tensors  # once: checkpointing gives them out once
        grad = torch.empty_like(qkv)
        rows = qkv, y, grad_y.to(qkv.dtype).contiguous(), grad
        split = zip(*(_split(row, ctx.parts) for row in rows))
        for i, (part, (own, own_y, own_grad_y, own_grad)) in enumerate(zip(ctx.parts, split)):
            cos, sin, mask, total = others[4 * i : 4 * i + 4]
            _call(part, own, ctx.kv_heads, cos, sin, mask, own_y, total, own_grad_y, own_grad)
        return grad, None, None


def _split(row: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """(B, S, ...) of each part of a contiguous row."""
    steps = row.flatten(0, 1).split([B * S for B, S in (part.shape for part in parts)])
    return [own.unflatten(0, part.shape) for own, part in zip(steps, parts)]


def _call(part: Part, qkv, kv_heads, cos, sin, mask, y, total, grad_y=None, grad=None) -> None:
    B, S, H, D = y.shape
    strides = qkv.stride()[:2]
    call = _Attention(B, H, kv_heads, D, S, S, *_parts(qkv, H, kv_heads), *strides, *strides)
    call.cos, call.sin = cos.data_ptr(), sin.data_ptr()
    call.angles_item = S * (D // 2) if cos.ndim == 3 else 0
    call.mask = None if mask is None else mask.data_ptr()
    call.causal, call.prefix = part.causal, part.prefix
    call.y, call.total = y.data_ptr(), total.data_ptr()
    if grad is not None:
        call.grad_y = grad_y.data_ptr()
        call.grad_q, call.grad_k, call.grad_v = _parts(grad, H, kv_heads)
    call.threads = torch.get_num_threads()
    _library().attention(ctypes.addressof(call))


def _parts(qkv: Tensor, heads: int, kv_heads: int) -> list[int]:
    """Where queries, keys and values begin."""
    step = qkv.stride(2) * qkv.element_size()
    return [qkv.data_ptr() + i * step for i in (0, heads, heads + kv_heads)]


# ---------------------------------------------------------------------------------------- products


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """``linear(x)``; under autocast to bf16 by the kernels, where they suit it."""
    plain = type(linear) is nn.Linear and linear.bias is None
    # hooks are for those who look what a layer makes
    if not plain or linear._forward_hooks or linear._forward_pre_hooks:
        return linear(x)
    return _Project.apply(x, linear.weight) if _multiplies(x, linear.weight) else linear(x)


def _multiplies(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    return x.dtype in (torch.bfloat16, torch.float32) and x.numel() > 0 and _suits(weight)


def _suits(weight: Tensor) -> bool:
    """Whether products with weights (..., outputs, inputs) are better made by the kernels."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or _has_amx():
        return False
    even = weight.shape[-2] % 16 == 0 and weight.shape[-1] % 32 == 0
    return _is_whole(weight) and even and weight.is_contiguous() and usable()


def _is_whole(tensor: Tensor) -> bool:
    """Whether it is no shard of several processes, whose numbers are elsewhere."""
    return type(tensor) in (nn.Parameter, Tensor)


def _tiles(outputs: int, rows: int) -> Tensor:
    """Room for the gradient of y while that of the weight is made."""
    return torch.empty(-(-outputs // TALL) * TALL * ((rows + 1) // 2), dtype=torch.int32)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        rows = x.bfloat16().contiguous()
        outputs, inputs = weight.shape
        y = rows.new_empty(*x.shape[:-1], outputs)
        call = _Linear(rows.numel() // inputs, inputs, outputs, rows.data_ptr(), weight.data_ptr())
        call.y, call.threads, call.x_step = y.data_ptr(), torch.get_num_threads(), inputs
        _library().linear(ctypes.addressof(call))
        ctx.save_for_backward(rows, weight)
        ctx.wide = x.dtype == torch.float32
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        x, weight = ctx.saved_tensors
        outputs, inputs = weight.shape
        grad_y = grad_y.to(x.dtype).contiguous()
        call = _Linear(x.numel() // inputs, inputs, outputs, x.data_ptr(), weight.data_ptr())
        call.grad_y, call.threads = grad_y.data_ptr(), torch.get_num_threads()
        call.x_step = call.grad_x_step = inputs
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x, dtype=torch.float32 if ctx.wide else None)
            call.grad_x, call.grad_x_wide = grad_x.data_ptr(), ctx.wide
        if ctx.needs_input_grad[1]:
            grad_weight = torch.empty_like(weight)
            scratch = _tiles(outputs, call.rows)
            call.grad_weight, call.scratch = grad_weight.data_ptr(), scratch.data_ptr()
        _library().linear(ctypes.addressof(call))
        return grad_x, grad_weight


# ------------------------------------------------------------------------------------- classifiers


class Judged(NamedTuple):
    """What `classify` finds of cells (N, K), float32, 0 where they do not count."""

    nats: Tensor
    """-log p of the target."""
    hits: Tensor
    """Whether the target's logit is above all others."""
    sure: Tensor
    """The highest probability."""
    mean: Tensor
    """Mean of log p over all codes."""
    grad_hidden: Tensor | None
    """Like ``hidden``, float32."""


def classifies(dtype: torch.dtype, weight: Tensor) -> bool:
    """Whether `classify` takes hidden states of that type and these classifiers."""
    return dtype == torch.bfloat16 and _suits(weight)


def classify(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    factors: Tensor,
    smoothing: float = 0.0,
    grad_weight: Tensor | None = None,
    add: bool = True,
) -> Judged:
    """Judge K classifiers, and make the gradients of their loss: that of cells (N, K) is
    ``factors * ((1 - smoothing) * nats - smoothing * mean)``.

    :param hidden: (N, d) for all levels or (N, K, d), bf16.
    :param weight: (K, V, d) float32.
    :param targets: (N, K) int64 codes; -1: the cell does not count.
    :param factors: (N, K) float32.
    :param grad_weight: like ``weight``; its gradient is written there, or added to what is there.
        None: no gradients.
    """
    (N, K), (_, V, d) = targets.shape, weight.shape
    if N and not -1 <= targets.min() <= targets.max() < V:
        raise IndexError(f"targets {targets.min()} to {targets.max()} of {V} codes")
    some = max(1, min(N, LOGITS // V))
    hidden, targets, factors = hidden.contiguous(), targets.contiguous(), factors.contiguous()
    found = torch.empty(4, N, K)
    call = _Classifiers(N, K, V, d, hidden.data_ptr(), hidden.stride(0))
    call.x_level = 0 if hidden.ndim == 2 else hidden.stride(1)
    call.weight, call.targets = weight.data_ptr(), targets.data_ptr()
    call.factors, call.smoothing, call.found = factors.data_ptr(), smoothing, found.data_ptr()
    packed = torch.empty(-(-V // BLOCK) * BLOCK * d // 2, dtype=torch.int32)
    call.packed, call.some_rows, call.add = packed.data_ptr(), some, add
    call.threads = torch.get_num_threads()
    grad = None
    if grad_weight is not None:
        grad = torch.empty_like(hidden, dtype=torch.float32)
        grad_y, scratch = hidden.new_empty(some, V), _tiles(V, some)
        call.grad_x, call.grad_weight = grad.data_ptr(), grad_weight.data_ptr()
        call.grad_y, call.scratch = grad_y.data_ptr(), scratch.data_ptr()
    _library().classify(ctypes.addressof(call))
    return Judged(*found, grad)


# ---------------------------------------------------------------------------------- optimizer steps


def steps(tensors: Sequence[Tensor]) -> bool:
    """Whether `adamw` and `sum_of_squares` are in use and take these."""
    return _in_use and all(
        _is_whole(t) and t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()
        for t in tensors
    )


class Moments(NamedTuple):
    """Tensors of an AdamW step, each list one for each weight."""

    weights: Sequence[Tensor]
    grads: Sequence[Tensor]
    means: Sequence[Tensor]
    squares: Sequence[Tensor]
    averages: Sequence[Tensor]
    """Or none."""
    step: Sequence[int]
    """Which step of the weight this is, counted from 1."""


def adamw(moments: Moments, group: dict, factor: float, share: float) -> None:
    """A step of AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) with gradients times
    ``factor``, after which averages have that ``share`` of the weights in them.

    :param group: ``lr``, ``betas``, ``eps`` and ``weight_decay``, as in `torch.optim.AdamW`.
    :raises ValueError: tensors of other shapes than their weights, as a checkpoint may have.
    """
    given = [tensors for tensors in moments[:5] if tensors]
    alike = all(len({t.shape for t in of_weight}) == 1 for of_weight in zip(*given, strict=True))
    if not (alike and steps([t for tensors in given for t in tensors])):
        raise ValueError("moments or averages are not laid out as their weights are")
    lr, (beta1, beta2) = group["lr"], group["betas"]
    count = len(moments.weights)
    arrays = {"sizes": _numbers(ctypes.c_int64, (p.numel() for p in moments.weights))}
    for name, tensors in zip(Moments._fields, moments[:5]):
        if tensors:
            arrays[name] = _numbers(ctypes.c_void_p, (t.data_ptr() for t in tensors))
    of_weights = {
        "sizes_of_step": (lr / (1 - beta1**n) for n in moments.step),
        "roots": ((1 - beta2**n) ** 0.5 for n in moments.step),
        "kept": [1 - lr * group["weight_decay"]] * count,
    }
    arrays |= {name: _numbers(ctypes.c_float, of) for name, of in of_weights.items()}
    call = _Step(count, factor=factor, share=share, threads=torch.get_num_threads())
    call.beta1, call.beta2, call.eps = beta1, beta2, group["eps"]
    for name, array in arrays.items():  # which `arrays` keeps: the call has but its address
        setattr(call, name, ctypes.addressof(array))
    _library().adamw(ctypes.addressof(call))


def sum_of_squares(tensors: Sequence[Tensor]) -> float:
    """Of all numbers, added up in float64."""
    sizes = _numbers(ctypes.c_int64, (t.numel() for t in tensors))
    pointers = _numbers(ctypes.c_void_p, (t.data_ptr() for t in tensors))
    given = len(tensors), ctypes.addressof(sizes), ctypes.addressof(pointers)
    return _library().sum_of_squares(*given, torch.get_num_threads())


def _numbers(kind, values: Iterable) -> ctypes.Array:
    values = list(values)
    return (kind * len(values))(*values)


# -------------------------------------------------------------------------------------------- GELU


def gelu(x: Tensor) -> Tensor:
    """Exact GELU; of bf16 on a CPU by the kernel."""
    suited = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() > 0
    return _Gelu.apply(x) if suited and usable() else F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()
        y = torch.empty_like(x)
        ctx.save_for_backward(x)
        _library().gelu(x.numel(), x.data_ptr(), None, y.data_ptr(), torch.get_num_threads())
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        (x,) = ctx.saved_tensors
        grad_y, grad = grad_y.to(x.dtype).contiguous(), torch.empty_like(x)
        of = x.data_ptr(), grad_y.data_ptr(), grad.data_ptr()
        _library().gelu(x.numel(), *of, torch.get_num_threads())
        return grad
