"""Kernels of decoding for CPUs with AVX-512 BF16, compiled from `native.cpp` on the machine that
runs them.

A product of one row reads its weights as fast as memory gives them, and a step of a transformer is
a `Program`: all its operations by one call, over buffers that are allocated once. It takes a C++
compiler and some two seconds, once: the result is kept in ``~/.cache/rvqlm`` by its source, the
compiler and the CPU.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rvqlm.errors import UserError

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = (
    "-O3 -march=native -mprefer-vector-width=512 -fno-math-errno -fno-trapping-math "
    "-ffp-contract=off -std=c++17"
)
BLOCK = 64
"""Outputs that lie together."""
WIDEST_HEAD = 128
WIDEST_VECTOR = 32
"""Numbers of keys that attention takes at a time."""
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2, "relu2": 3}
NORM, PRODUCT, SWIGLU, ATTENTION = range(4)


class _Operation(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("kind", "type", "activation", "add")],
        *[(name, ctypes.c_int64) for name in ("inputs", "outputs")],
        *[(name, ctypes.c_void_p) for name in ("x", "y", "weight", "scale", "bias")],
        ("eps", ctypes.c_float),
        ("centred", ctypes.c_int32),
        *[(name, ctypes.c_int64) for name in ("heads", "kv_heads", "width", "steps")],
        *[(name, ctypes.c_int64) for name in ("of_row", "of_head", "of_step")],
        *[(name, ctypes.c_void_p) for name in ("keys", "values", "mask", "rotary")],
        ("writes", ctypes.c_int32),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("rows_at", "places", "scratch")],
        ("room", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    ]


class _Draw(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("rows", "levels", "codes")],
        *[(name, ctypes.c_void_p) for name in ("logits", "temperatures", "uniform")],
        ("of_uniform", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("drawn", "scratch")],
        ("top_k", ctypes.c_int64),
        *[(name, ctypes.c_float) for name in ("top_p", "min_p")],
    ]


class _Frame(ctypes.Structure):
    OF_STEP = ("known", "given", "frames", "threshold", "before", "place")
    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("sequences", "levels", "width", "special")],
        *[(name, ctypes.c_void_p) for name in ("column", "tables", "offsets", "x", "added")],
        ("added_steps", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("mask", "rows_at", "held", "lead", "places", "end")],
        ("guidance", ctypes.c_float),
        *[(name, ctypes.c_void_p) for name in ("lengths", "grid", "follows", *OF_STEP)],
        *[("of_" + name, ctypes.c_int64) for name in OF_STEP],
    ]


# ------------------------------------------------------------------------------- the compiled file


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "rvqlm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(f"{folder}: others can write there; make it yours alone (chmod 700)")
    return folder


def compiled(source: Path, what: str) -> ctypes.CDLL:
    """The library of a source file, compiled where it is not kept yet.

    :param what: the kernels are of.
    :raises UserError: says what is missing.
    """
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or os.name != "posix":
        raise UserError("this CPU has no AVX-512 BF16")
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")
    if compiler is None:
        raise UserError("there is no C++ compiler (g++, or what CXX names)")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        wanted = ("model name", "flags")
        lines = info.read_text().splitlines()
        cpu = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    name = hashlib.sha256("\n".join([source.read_text(), FLAGS, version, cpu]).encode()).hexdigest()
    file = _folder() / f"{source.stem}-{name[:24]}.so"
    if not file.exists():
        print(f"compiling kernels of {what} for this CPU, once", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / "made.so"
            command = [compiler, *FLAGS.split(), "-fPIC", "-shared", "-fopenmp"]
            done = subprocess.run(
                [*command, str(source), "-o", str(made)], capture_output=True, text=True
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise UserError(f"{compiler} could not compile {source.name}: {said}")
            made.replace(file)
    return ctypes.CDLL(str(file))


def _build() -> ctypes.CDLL:
    library = compiled(SOURCE, "decoding")
    library.run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    library.sample.argtypes = [ctypes.c_void_p]
    library.frame.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]
    library.run.restype = library.sample.restype = library.frame.restype = None
    return library


@functools.cache
def _library() -> ctypes.CDLL | str:
    try:
        return _build()
    except (UserError, OSError) as error:
        return str(error)


def missing() -> str:
    """Why there are no such kernels here; empty where there are."""
    found = _library()
    return found if isinstance(found, str) else ""


def usable() -> bool:
    """Whether there are such kernels here, loaded now if they were not: what is drawn must not
    depend on what this process did before."""
    return not missing()


def sample(
    logits: Tensor, uniform: Tensor, temperatures: Tensor, top_k: int, top_p: float, min_p: float
) -> Tensor:
    """`rvqlm.generation.sampling.sample` of logits (N, k, V), with temperatures (k) above 0.

    :return: (N, k) int64.
    """
    logits, uniform = logits.float().contiguous(), uniform.float().contiguous()
    (N, k, V), drawn = logits.shape, logits.new_empty(logits.shape[:2], dtype=torch.int64)
    scratch = torch.empty(2 * V + 8, dtype=torch.int64)
    given = logits.data_ptr(), temperatures.data_ptr(), uniform.data_ptr(), k
    call = _Draw(N, k, V, *given, drawn.data_ptr(), scratch.data_ptr(), top_k, top_p, min_p)
    _library().sample(ctypes.addressof(call))
    return drawn


class HugePages:
    """Memory in pages of 2 MiB where Linux gives them: weights are read half again as fast as from
    4 KiB ones."""

    CHUNK, ALIGNED, MADV_HUGEPAGE = 1 << 25, 1 << 21, 14

    def __init__(self):
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def copy(self, x: Tensor) -> Tensor:
        size = -(-x.nbytes // BLOCK) * BLOCK
        if self._used + size > len(self._chunk):
            self._chunk = self._new(max(size, self.CHUNK))
            self._used = 0
        part = self._chunk[self._used : self._used + x.nbytes]
        self._used += size
        return part.view(x.dtype).view(x.shape).copy_(x)

    def _new(self, size: int) -> Tensor:
        with torch.inference_mode(False):
            chunk = torch.empty(size + self.ALIGNED, dtype=torch.uint8)
        chunk = chunk[-chunk.data_ptr() % self.ALIGNED :]
        advise = getattr(ctypes.CDLL(None), "madvise", None)
        if advise is not None:
            length = ctypes.c_size_t(len(chunk) // self.ALIGNED * self.ALIGNED)
            advise(ctypes.c_void_p(chunk.data_ptr()), length, self.MADV_HUGEPAGE)
        return chunk


_weights = HugePages()


# ------------------------------------------------------------------------------------ the products


class NativeLinear(nn.Module):
    """x W^T (+ bias), float32 in and out.

    :param weight: (out, in) float32, bfloat16, or int8 with ``scale`` (out) of its rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: Tensor | None = None):
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        unit = 1 if weight.dtype == torch.float32 else 2
        padded = nn.functional.pad(
            weight.detach(), (0, -self.inputs % unit, 0, -self.outputs % BLOCK)
        )
        blocks = padded.view(-1, BLOCK, padded.shape[1] // unit, unit).transpose(1, 2)
        # no buffers, which a cast would change
        self.packed = _weights.copy(blocks)
        self.scale = None if scale is None else scale.detach().float().contiguous()
        self.bias = None if bias is None else bias.detach().float().contiguous()

    @classmethod
    def of(cls, linear: nn.Module) -> NativeLinear:
        """The same, in float32 where it is not packed, being too small to be worth it."""
        if isinstance(linear, cls):
            return linear
        return cls(linear.weight.float(), linear.bias)

    def with_bias(self, bias: Tensor) -> NativeLinear:
        """The same weights with another bias."""
        other = copy.copy(self)
        other.bias = bias.detach().float().contiguous()
        return other

    def operation(self, activation: str = "none", add: bool = False) -> _Operation:
        made = _Operation(PRODUCT, TYPES[self.dtype], ACTIVATIONS[activation], add)
        made.inputs, made.outputs = self.inputs, self.outputs
        made.weight, made.scale, made.bias = map(_at, (self.packed, self.scale, self.bias))
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, self.inputs).float().contiguous()
        y = rows.new_empty(len(rows), self.outputs)
        operation, threads = self.operation(), torch.get_num_threads()
        operation.x, operation.y = rows.data_ptr(), y.data_ptr()
        room = _room(len(rows), self.inputs)
        scratch = rows.new_empty(threads * room)
        call = _Call(len(rows), None, None, scratch.data_ptr(), room, threads)
        _library().run(ctypes.addressof(operation), 1, ctypes.addressof(call))
        return y.view(*x.shape[:-1], self.outputs)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _room(rows: int, width: int) -> int:
    """Numbers of scratch that a thread needs for a product."""
    return rows * (-(-width // 16) * 16 + 16) + 16


class Program:
    """Operations on at most so many rows, run in turn by one call."""

    def __init__(self, rows: int):
        self.rows = rows
        self._made: list[_Operation] = []
        self._kept: list = []  # that operations point to
        self._operations = None
        self._most = 0  # numbers of scratch that a thread needs
        self._call = _Call()
        self._scratch = torch.empty(0)

    def buffer(self, width: int) -> Tensor:
        """(rows, width) of float32 zeros."""
        with torch.inference_mode(False):  # else of no use outside of it
            return torch.zeros(self.rows, width)

    def _append(self, operation: _Operation, x: Tensor, y: Tensor, *kept) -> None:
        operation.x, operation.y = x.data_ptr(), y.data_ptr()
        operation.inputs, operation.outputs = x.shape[1], y.shape[1]
        self._most = max(self._most, _room(self.rows, x.shape[1]))
        self._made.append(operation)
        self._kept += [x, y, *kept]
        self._operations = None

    def norm(self, gain: Tensor, eps: float, centred: bool, x: Tensor, y: Tensor) -> None:
        """Layer norm, or not centred RMS norm, of x into y, which may be x."""
        gain = gain.detach().float().contiguous()
        operation = _Operation(NORM, weight=gain.data_ptr(), eps=eps, centred=centred)
        self._append(operation, x, y, gain)

    def product(
        self, linear: NativeLinear, x: Tensor, y: Tensor, activation="none", add=False
    ) -> None:
        """Of x into y, or added to it."""
        self._append(linear.operation(activation, add), x, y, linear)

    def swiglu(self, x: Tensor, y: Tensor) -> None:
        self._append(_Operation(SWIGLU), x, y)

    def attention(
        self,
        x: Tensor,
        y: Tensor,
        heads: int,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        rotary: Tensor | None,
        writes: bool,
    ) -> None:
        """:param x: (rows, (H + 2 J) D) queries, keys and values of one step, which is written;
            else (rows, H D) queries.
        :param keys: (rows, J, steps, D) in any order, float32 or bf16, as values.
        :param mask: (rows, steps), 0 or -inf.
        :param rotary: (places, 2, D) cosines and signed sines.
        """
        if keys.stride() != values.stride() or keys.stride(3) != 1 or keys.dtype != values.dtype:
            raise ValueError("keys and values must lie in the same way")
        operation = _Operation(ATTENTION, TYPES[keys.dtype], heads=heads, width=keys.shape[3])
        operation.kv_heads, operation.steps = keys.shape[1:3]
        operation.of_row, operation.of_head, operation.of_step, _ = keys.stride()
        operation.keys, operation.values = keys.data_ptr(), values.data_ptr()
        operation.mask, operation.rotary = _at(mask), _at(rotary)
        operation.writes = writes
        padded = -(-keys.shape[3] // WIDEST_VECTOR) * WIDEST_VECTOR
        self._most = max(self._most, heads * 2 * (padded + 1) + 16)
        self._append(operation, x, y, keys, values, mask, rotary)

    def then(self, more: Callable[[Program], None]) -> Program:
        """A program that does the same and what ``more`` appends."""
        other = copy.copy(self)
        other._made, other._kept = list(self._made), list(self._kept)
        other._call, other._operations = _Call(), None
        more(other)
        return other

    def run(self, rows: int, rows_at: Tensor | None = None, places: Tensor | None = None) -> None:
        """:param rows_at: (rows) int64: row * steps + the step that is written.
        :param places: (rows) int64: in the rotary table.
        """
        _library().run(*self._called(rows, rows_at, places))

    def _called(self, rows: int, rows_at: Tensor | None, places: Tensor | None) -> tuple:
        """What the library is given, for the present number of threads."""
        call, threads = self._call, torch.get_num_threads()
        if self._operations is None or call.threads != threads:
            self._operations = (_Operation * len(self._made))(*self._made)
            call.room = self._most
            self._scratch = torch.empty(threads * call.room)
            call.scratch, call.threads = self._scratch.data_ptr(), threads
        call.rows, call.rows_at, call.places = rows, _at(rows_at), _at(places)
        return ctypes.addressof(self._operations), len(self._made), ctypes.addressof(call)
