"""A GPU that is not there: tensors that are on ``cuda:0`` to the program and hold CPU data.

    with simulated_cuda() as gpu:
        model.to("cuda")(batch.to("cuda")).loss.backward()

Programs take their GPU branches with real numbers, on any build of torch. As on a GPU:

- a CPU tensor, a CPU generator, or a tensor of another GPU beside one of `Simulated` raises;
- autocast is torch's own for CUDA; random numbers come from a stream of the GPU's;
- the host is waited for where CUDA would: ``torch.cuda.set_sync_debug_mode("warn")`` warns of it;
- what is copied to the host without waiting reads as zeros until the host has waited;
- memory is counted and runs out; so are launches, `Gpu.launches`: operations of aten that compute
  or copy, each taken for one kernel, though a few are several (sorts, fused optimizers);
- a graph (`simulated_graphs`) does again what was captured, on the same memory, and nothing else.

Not seen: kernels that lack a type, rounding (TF32, order of sums), which attention kernel is
chosen, races, streams, memory that graphs keep, compiled code, other threads and processes. Views
have no storage offset. To torch's C++, which would look for a driver, the tensors are "meta", but
for autocast.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from simulated_graphs import graphs_of
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

COPIES = ("_to_copy", "copy_", "_foreach_copy_")
WAITS = {
    "_local_scalar_dense": 1, "nonzero": 1, "masked_select": 1, "equal": 1, "_unique2": 1,
    "bincount": 2, "_ctc_loss": 2, "_ctc_loss_backward": 2, "repeat_interleave": 1,
}  # fmt: skip
"""Operations whose CUDA kernels wait, and how often."""
NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_"),
    *("_local_scalar_dense", "_fused_sdp_choice", "_unsafe_view", "set_"),
}
"""Operations that launch nothing, beside views."""
AUTOCAST = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    *("conv1d", "conv2d", "conv_transpose1d", "layer_norm", "rms_norm", "softmax", "log_softmax"),
    *("sum", "prod", "cumsum", "norm", "exp", "expm1", "log", "log1p", "pow", "rsqrt", "cat"),
    *("stack", "addcmul", "cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"),
    *("mse_loss", "l1_loss", "cosine_similarity"),
}
"""Functions that torch casts for: during these its C++ is told where the tensors are."""
MIXED = "Expected all tensors to be on the same device, but found at least two devices, {} and {}!"


class Simulated(torch.Tensor):
    """What the program holds: `held` on the CPU has the numbers, and shares them with its views."""

    held: Tensor
    number: int
    """Of the GPU."""
    shown = False
    """Whether C++ is told of the GPU."""

    @staticmethod
    def __new__(cls, held: Tensor, gpu: Gpu, number: int):
        with torch._C._DisableTorchDispatch():
            like = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made = torch.Tensor._make_subclass(
            cls, like, dispatch_device=True, device_for_backend_keys=torch.device("cuda", 0)
        )
        made.held, made.gpu, made.number = held, gpu, number
        made.block = gpu.block_of(held)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # outside of the context
        gpu = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, Simulated)).gpu
        return gpu.run(func, args, kwargs or {})

    device = property(lambda self: torch.device("cuda", self.number))
    is_cuda, is_cpu, is_meta = (property(lambda self, on=on: on) for on in (True, False, False))
    data = property(lambda self: self.detach(), lambda self, new: setattr(self, "held", new.held))

    def get_device(self) -> int:
        return self.number

    def untyped_storage(self):
        return self.block

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        return self.cpu().numpy()

    def __deepcopy__(self, memo):
        made = self.detach().clone()
        made = torch.nn.Parameter(made) if isinstance(self, torch.nn.Parameter) else made
        memo[id(self)] = made.requires_grad_(self.requires_grad)
        return made

    def __reduce_ex__(self, protocol):  # what is saved here is on the CPU when it is loaded
        return self.held.clone().__reduce_ex__(protocol)

    def __repr__(self, **how) -> str:
        return f"{self.device} {self.held!r}"


class Gpu:
    """The state of the GPUs: memory (one for all), random numbers, the current one."""

    def __init__(self, memory: int):
        self.memory, self.limit, self.allocated, self.peak = memory, memory, 0, 0
        self.blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()
        self.current, self.debug, self.meta = 0, 0, False
        self.underway: list[tuple[Tensor, Tensor]] = []
        """Copies to the host that nobody has waited for, and what they will hold."""
        self.launches: Counter[str] = Counter()
        """Operations so far that are kernels or copies, by name."""
        self.counting = True
        self.capture = None
        """The graph that what is done goes to, instead of being done."""
        self.random = torch.Generator().manual_seed(1).get_state()

    def block_of(self, held: Tensor) -> Block:
        storage = held.untyped_storage()
        block = self.blocks.get(storage.data_ptr())
        if block is None:
            block = self.blocks[storage.data_ptr()] = Block(self, storage)
        return block

    def wait(self, times: int = 1) -> None:
        """As torch warns where ``set_sync_debug_mode`` asks for it: at the program's line."""
        if times and self.capture is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if times and self.debug == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        if times:
            with torch._C._DisableTorchDispatch():
                for to, value in self.underway:
                    to.copy_(value)
            self.underway.clear()
        for _ in range(times if self.debug else 0):
            frame = sys._getframe(1)
            while frame.f_back and ("/torch/" in frame.f_code.co_filename or _mine(frame)):
                frame = frame.f_back
            text = "called a synchronizing CUDA operation"
            warnings.warn_explicit(text, UserWarning, frame.f_code.co_filename, frame.f_lineno)

    def run(self, func, args, kwargs):
        """One operation of aten."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, (Tensor, torch.Generator))]
        ours = [t for t in given if isinstance(t, Simulated)]
        if func is torch.ops.prim.device.default:
            return ours[0].device if ours[0].shown else torch.device("meta")
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        there = asked is not None and asked.type != "cpu"  # "meta" is what C++ believes us to be
        if not ours and (not there or (self.meta and asked.type == "meta")):
            return func(*args, **kwargs)
        number = ours[0].number if ours else self.current
        if there and asked.type == "cuda" and asked.index is not None:
            number = asked.index
        name = func._schema.name.removeprefix("aten::")
        self.check(name, args, given, ours, number)
        self.note(name, args, kwargs, ours, there)
        does = name not in NO_KERNEL and not _is_view(func)
        if self.counting and self.capture is None and does:
            self.launches[name] += 1
        plain, options = tree_map(lambda t: getattr(t, "held", t), (args, dict(kwargs)))
        options |= {} if asked is None else {"device": torch.device("cpu")}
        if options.get("pin_memory"):
            options["pin_memory"] = False
        with self.drawing(func), torch._C._DisableTorchDispatch():
            if self.capture is not None:
                out = self.capture.record(func, plain, options, given, _is_view(func))
            else:
                out = self.done(func, plain, options)
            if asked is not None and not there and kwargs.get("non_blocking"):
                self.underway.append((torch.zeros_like(out), out.clone()))
                out = self.underway[-1][0]
        if (asked is not None and not there) or not isinstance(out, (Tensor, tuple, list)):
            return out.clone() if isinstance(out, Tensor) and name != "_to_copy" else out
        written = {}
        for i, a in enumerate(func._schema.arguments):
            if a.alias_info is not None and a.alias_info.is_write:
                changed = kwargs.get(a.name, args[i] if i < len(args) else None)
                written[tuple(a.alias_info.before_set)] = changed
                if isinstance(changed, Simulated) and changed.held.shape != changed.shape:
                    raise NotImplementedError(f"{name} changes the shape of a simulated tensor")

        def returned(made, says):
            if says.alias_info is not None and says.alias_info.is_write:
                return written[tuple(says.alias_info.before_set)]
            # in inference mode a view of another tensor is none of inference either
            view = says.alias_info is not None and ours and not ours[0].is_inference()
            with torch.inference_mode(torch.is_inference_mode_enabled() and not view):
                return tree_map(
                    lambda t: Simulated(t, self, number) if isinstance(t, Tensor) else t, made
                )

        says = func._schema.returns
        if len(says) == 1:
            return returned(out, says[0])
        return tuple(returned(o, s) for o, s in zip(out, says))

    def done(self, func, args, options):
        """What an operation makes of CPU tensors."""
        try:
            return func(*args, **options)
        except NotImplementedError:  # kernels that only GPUs have
            return torch._decomp.decomposition_table[func](*args, **options)

    def check(self, name, args, given, ours, number) -> None:
        """Raise where tensors or generators of another device take part."""
        for t in given:
            if isinstance(t, torch.Generator):
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if name in COPIES:
            return
        for t in given:
            if isinstance(t, Simulated):
                if t.number != number:
                    raise RuntimeError(MIXED.format(f"cuda:{number}", t.device))
            elif t.ndim and not (name.startswith("index") and any(t is i for i in args[1])):
                raise RuntimeError(MIXED.format(f"cuda:{number}", t.device) + f" ({name})")

    def note(self, name, args, kwargs, ours, there) -> None:
        """Waits of an operation."""
        self.wait(WAITS.get(name, 0))
        if name == "multinomial" and (args[1] == 1 or not any(args[2:3])):
            self.wait(2)  # whether these are probabilities
        if name in ("_to_copy", "copy_"):
            source = args[name == "copy_"]
            to_gpu = there if kwargs.get("device") is not None else True
            crosses = isinstance(source, Simulated) != (
                isinstance(args[0], Simulated) if name == "copy_" else to_gpu
            )
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if crosses and blocking and isinstance(source, Tensor):
                self.wait()
        elif name.startswith("index") and isinstance(args[1], (list, tuple)):
            for i in args[1]:
                if isinstance(i, Tensor) and (
                    i.dtype == torch.bool or not isinstance(i, Simulated)
                ):
                    self.wait()

    @contextmanager
    def one_launch(self, name: str) -> Iterator[None]:
        """What is done inside is a single kernel on a GPU."""
        self.launches[name] += 1
        with patch.object(self, "counting", False):
            yield

    @contextmanager
    def drawing(self, func) -> Iterator[None]:
        """The GPU's random numbers in the place of the CPU's."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        with torch._C._DisableTorchDispatch():
            before = torch.random.default_generator.get_state()
            torch.random.default_generator.set_state(self.random)
            try:
                yield
            finally:
                self.random = torch.random.default_generator.get_state()
                torch.random.default_generator.set_state(before)

    @property
    def state(self) -> Tensor:
        """Of random numbers."""
        if self.capture is not None:
            raise RuntimeError("Cannot call CUDAGeneratorImpl during CUDA graph capture")
        return self.random

    @state.setter
    def state(self, new: Tensor) -> None:
        _ = self.state
        self.random = new.clone()

    def seed(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed % 2**62 + 1).get_state()

    def cuda(self, count: int) -> dict:
        """What is put in the place of torch.cuda's."""

        def set_device(device) -> None:
            index = device if isinstance(device, int) else torch.device(device).index
            self.current = self.current if index is None else index

        def set_fraction(fraction, *_) -> None:
            self.limit = round(fraction * self.memory)

        def reset_peak(*_) -> None:
            self.peak = self.allocated

        def set_debug(mode) -> None:
            self.debug = mode if isinstance(mode, int) else ("default", "warn", "error").index(mode)

        nothing, no = (lambda *a, **k: None), (lambda *a, **k: False)
        return {
            "is_available": lambda: True, "device_count": lambda: count, "_lazy_init": nothing,
            "is_initialized": lambda: True, "current_device": lambda: self.current,
            "set_device": set_device, "device": lambda *a: nullcontext(),
            "synchronize": lambda *a: self.wait(), "empty_cache": nothing,
            "get_device_name": lambda *a: "simulated GPU",
            "get_device_capability": lambda *a: (9, 0), "is_bf16_supported": lambda *a, **k: True,
            "memory_allocated": lambda *a: self.allocated,
            "max_memory_allocated": lambda *a: self.peak, "reset_peak_memory_stats": reset_peak,
            "mem_get_info": lambda *a: (self.memory - self.allocated, self.memory),
            "set_per_process_memory_fraction": set_fraction,
            "manual_seed_all": self.seed, "manual_seed": self.seed,
            "get_rng_state": lambda *a: self.state.clone(),
            "set_rng_state": lambda new, *a: setattr(self, "state", new),
            "set_sync_debug_mode": set_debug, "get_sync_debug_mode": lambda: self.debug,
            "Event": _Event, "_is_in_bad_fork": no, **graphs_of(self),
        }  # fmt: skip


class Block:
    """Memory of one storage, for as long as a tensor holds it."""

    def __init__(self, gpu: Gpu, storage):
        self.gpu, self.size, self.storage = gpu, 0, storage
        if gpu.allocated + storage.nbytes() > gpu.limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {storage.nbytes():,} bytes (simulated)"
            )
        self.size = storage.nbytes()
        gpu.allocated += self.size
        gpu.peak = max(gpu.peak, gpu.allocated)

    def __del__(self):
        self.gpu.allocated -= self.size

    def __getattr__(self, name):  # to the program it is the storage
        return getattr(self.storage, name)


class _Event(SimpleNamespace):
    def __init__(self, **_):
        super().__init__(
            record=lambda *a: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0
        )


class _Attention(torch.autograd.Function):
    """Attention, which here is made of several operations, as a kernel forward and one back."""

    @staticmethod
    def forward(ctx, gpu: Gpu, attend, *qkv):
        ctx.gpu = gpu
        ctx.given = [t.detach().requires_grad_(t.requires_grad) for t in qkv]
        with gpu.one_launch("attention"), torch.set_grad_enabled(any(ctx.needs_input_grad)):
            ctx.made = attend(*ctx.given)
        return ctx.made.detach()

    @staticmethod
    def backward(ctx, grad):
        with ctx.gpu.one_launch("attention_backward"):
            found = torch.autograd.grad(ctx.made, ctx.given, grad)
        del ctx.made, ctx.given  # a kernel keeps no products
        return None, None, *found


class _Kernels(TorchDispatchMode):
    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            with self:  # what is made of other operations arrives whole
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return self.gpu.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What C++ would do before the first operation of aten."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def numbered(self, x):
        """Any "cuda" with the number of the current GPU, which C++ would ask a driver for."""
        cuda = isinstance(x, (str, torch.device)) and str(x) == "cuda"
        return torch.device("cuda", self.gpu.current) if cuda else x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device or isinstance(func, torch._ops.OpOverload):  # of another mode
            return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        args, kwargs = tuple(map(self.numbered, args)), dict(kwargs or {})
        kwargs |= {"device": self.numbered(kwargs["device"])} if "device" in kwargs else {}
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = args[0] if isinstance(args[0], Simulated) else func(*args, **kwargs)
            return made if device is None else made.to(device, kwargs.get("dtype"))
        first = args[0] if args else None
        if func in (torch.Tensor.pin_memory, torch.Tensor.is_pinned):  # would ask a driver
            return func is torch.Tensor.is_pinned or first
        named = [
            x for x in (*args[1:2], kwargs.get("device")) if isinstance(x, (str, torch.device))
        ]
        if "meta" in map(str, named):  # the program's own word, not that of C++
            with patch.object(self.gpu, "meta", True):
                return func(*args, **kwargs)
        if func is torch.Tensor.cuda:
            device = args[1] if len(args) > 1 else kwargs.get("device")
            return first.to(self.numbered("cuda" if device is None else device))
        if func is torch.Tensor.new_tensor:
            options = {"dtype": first.dtype, "device": first.device} | kwargs
            with self:
                return torch.tensor(*args[1:], **options)
        mixed = torch.is_autocast_enabled("cuda")
        if name == "scaled_dot_product_attention" and isinstance(first, Simulated):
            low = torch.get_autocast_dtype("cuda")
            cast = [t.to(low) if mixed and t.dtype != torch.float64 else t for t in args[:3]]
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if mask is not None:
                self.gpu.launches["mask"] += _made_ready(mask)
            return _Attention.apply(self.gpu, lambda *qkv: func(*qkv, *args[3:], **kwargs), *cast)
        if not mixed:
            return func(*args, **kwargs)
        ours = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Simulated)]
        if name not in AUTOCAST or not ours:
            return func(*args, **kwargs)
        with ExitStack() as stack:
            for t in ours:
                if (
                    torch.is_grad_enabled() and t.requires_grad and t.is_leaf
                ):  # its node of the graph is made before
                    t.node = torch.autograd.graph.get_gradient_edge(t).node
                stack.enter_context(patch.object(t, "shown", True))
            return func(*args, **kwargs)


def _made_ready(mask: Tensor) -> int:
    """What torch launches before its memory-efficient kernel reads a mask: numbers are made of
    booleans (a scalar and a choice), rows that do not begin at multiples of 16 are padded (zeros
    and a copy)."""
    booleans = mask.dtype == torch.bool
    places = mask.shape[-1:] if booleans else mask.stride()[:-1]
    return 2 * booleans + 2 * any(n % 16 for n in places)


def _is_view(func) -> bool:
    """Whether it returns what it was given, seen otherwise."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _mine(frame) -> bool:
    return frame.f_code.co_filename in (__file__, ExitStack.__init__.__code__.co_filename)


@contextmanager
def simulated_cuda(count: int = 2, memory: int = 8 << 30) -> Iterator[Gpu]:
    """`count` GPUs in this thread while the context lasts, with `memory` bytes among them."""
    gpu = Gpu(memory)
    future = (
        torch.__future__
    )  # modules that move swap their parameters, which stay the same objects
    swapped = future.get_swap_module_params_on_conversion()
    future.set_swap_module_params_on_conversion(True)
    with ExitStack() as stack:
        stack.callback(future.set_swap_module_params_on_conversion, swapped)
        stack.enter_context(patch.multiple(torch.cuda, create=True, **gpu.cuda(count)))
        amp, clip = torch.cuda.amp.common, sys.modules["torch.nn.utils.clip_grad"]
        always = lambda *a: True  # noqa: E731
        stack.enter_context(patch.object(clip, "_has_foreach_support", always))
        optimizer = torch.optim.Optimizer
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(optimizer, name):  # asks the driver, and has its name from the release
                stack.enter_context(patch.object(optimizer, name, lambda self: None))
        stack.enter_context(patch.object(torch.backends.cudnn, "is_acceptable", lambda t: False))
        stack.enter_context(patch.object(amp, "amp_definitely_not_available", lambda: False))
        functions, engine = _Functions(gpu), torch.autograd._engine_run_backward

        def backward(*args, **kwargs):  # what is recomputed in it is functions too
            with functions:
                return engine(*args, **kwargs)

        stack.enter_context(patch.object(torch.autograd, "_engine_run_backward", backward))
        stack.enter_context(_Kernels(gpu))
        stack.enter_context(functions)
        yield gpu
