"""Kernels of training in bf16 for CPUs with AVX-512 BF16, compiled from `native_training.cpp` on
the machine that runs them, as those of decoding (`rvqlm.modules.native`).

Attention turns queries and keys by their places, reads them where their projection has left them,
and writes the gradients there, so that nothing is copied, padded or transposed on the way. torch's
kernel for CPUs takes four times as long for the same in bf16, and more so backward.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.errors import UserError
from rvqlm.modules import native

SOURCE = Path(__file__).with_name("native_training.cpp")
WIDEST_HEAD = 512


class _Attention(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("items", "heads", "width", "queries", "keys")],
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


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        library = native.compiled(SOURCE, "training")
    except (UserError, OSError) as error:
        return str(error)
    library.attention.argtypes = [ctypes.c_void_p]
    library.attention.restype = None
    return library


def missing() -> str:
    """Why there are no such kernels here; empty where there are."""
    found = _library()
    return found if isinstance(found, str) else ""


def attends(qkv: Tensor, dropout: float) -> bool:
    """Whether `attend` takes them: (B, S, 3, H, D) in bf16 on a CPU."""
    if qkv.dtype != torch.bfloat16 or qkv.device.type != "cpu" or dropout:
        return False
    if torch.compiler.is_compiling() or qkv.shape[4] > WIDEST_HEAD:
        return False
    return qkv.numel() > 0 and not missing()


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_mask: Tensor | None = None,
    causal: bool = False,
    prefix: int = 0,
) -> Tensor:
    """Self-attention (B, S, H, D) of a projection (B, S, 3, H, D), bf16.

    :param cos, sin: (S, D/2) or (B, S, D/2) float32, by which queries and keys are turned.
    :param key_mask: (B, S) bool, true where a key may be seen.
    :param causal: no later step is seen, but for the first ``prefix``, which all see.
    """
    return _Attend.apply(qkv.contiguous(), cos, sin, key_mask, causal, prefix)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, key_mask, causal, prefix):
        B, S, _, H, D = qkv.shape
        y, total = qkv.new_empty(B, S, H, D), qkv.new_empty(B, H, S, dtype=torch.float32)
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        mask = None if key_mask is None else key_mask.contiguous()
        ctx.save_for_backward(qkv, cos, sin, mask, y, total)
        ctx.order = causal, prefix
        _call(ctx.order, qkv, cos, sin, mask, y, total)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        qkv, *_ = ctx.saved_tensors
        grad = torch.empty_like(qkv)
        _call(ctx.order, *ctx.saved_tensors, grad_y.to(qkv.dtype).contiguous(), grad)
        return grad, None, None, None, None, None


def _call(order, qkv, cos, sin, mask, y, total, grad_y=None, grad=None) -> None:
    B, S, _, H, D = qkv.shape
    call = _Attention(B, H, D, S, S, *_parts(qkv), S * 3 * H * D, 3 * H * D, S * 3 * H * D, 3 * H * D)
    call.cos, call.sin = cos.data_ptr(), sin.data_ptr()
    call.angles_item = S * (D // 2) if cos.ndim == 3 else 0
    call.mask = None if mask is None else mask.data_ptr()
    call.causal, call.prefix = order
    call.y, call.total = y.data_ptr(), total.data_ptr()
    if grad is not None:
        call.grad_y = grad_y.data_ptr()
        call.grad_q, call.grad_k, call.grad_v = _parts(grad)
    call.threads = torch.get_num_threads()
    _library().attention(ctypes.addressof(call))


def _parts(qkv: Tensor) -> list[int]:
    """Where queries, keys and values begin."""
    step = qkv.stride(2) * qkv.element_size()
    return [qkv.data_ptr() + i * step for i in range(3)]
