"""A CUDA graph that is none: operations are written down without being done, and done again and
again on the memory that they were written down with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}


class Tape(TorchDispatchMode):
    """What a function does, by `capture`; as of a graph nothing else of it comes again, and what
    would have the host wait, or a number of its own copied over, is refused."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []

    @classmethod
    def capture(cls, function: Callable) -> Tape:
        tape = cls()
        with tape:
            function()
        return tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "aten":
            with self:  # what is made of other operations arrives whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        name = func._schema.name.removeprefix("aten::")
        if name in WAIT or (name == "lift_fresh" and args[0].numel()):
            raise RuntimeError(f"{name} in a graph")
        says = [r.alias_info for r in func._schema.returns]
        if any(alias is not None and alias.is_write for alias in says):
            self.operations.append((func, args, kwargs, ()))
            return args[0]
        out = func(*args, **kwargs)
        if not any(says):  # memory of its own, which views share
            made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.operations.append((func, args, kwargs, made))
            for t in made:
                t.zero_() if not t.is_floating_point() else t.fill_(torch.nan)
        return out

    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
            for t, new in zip(made, again):
                t.copy_(new)
