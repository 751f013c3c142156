"""Where NaN and infinity come from: hooks on every module and parameter of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from torch import Tensor, nn


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold values that are not finite."""
    return [name for name, p in model.named_parameters() if not p.detach().isfinite().all()]


class Trace(contextlib.AbstractContextManager):
    """Notes where the first value that is not finite appears, in the order of execution.

    A module inside another ends before it, so the innermost is named. What a module computes
    without submodules (a fused loss, a sum) shows as what the next one is given.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.first: str | None = None
        self.first_gradient: str | None = None
        self._inside: list[str] = []
        self._handles: list = []

    @property
    def running(self) -> str:
        """The module whose forward is going on."""
        return self._inside[-1] if self._inside else "the model itself"

    def begins(self, where: str) -> None:
        if self.first is None:
            self.first = where

    def __enter__(self) -> Trace:
        for name, module in self.model.named_modules():
            name = f"{name or 'the model itself'} ({type(module).__name__})"

            def enter(module, args, kwargs, name=name) -> None:
                if module is self.model:  # a recomputation stops half-way, without leaving
                    self._inside.clear()
                # NaN only: masks of attention are -inf by right
                if self.first is None and any(t.isnan().any() for t in _floats((args, kwargs))):
                    self.begins(f"what {name} is given")
                self._inside.append(name)

            def leave(module, args, kwargs, out, name=name) -> None:
                self._inside.pop()
                if self.first is None and any(not t.isfinite().all() for t in _floats(out)):
                    self.begins(name)

            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True),
            ]
        for name, parameter in self.model.named_parameters():

            def accumulated(p, name=name) -> None:
                if self.first_gradient is None and not p.grad.isfinite().all():
                    self.first_gradient = name

            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(accumulated)
                self._handles.append(hook)
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()


def _floats(value) -> list[Tensor]:
    """Floating-point tensors in what a module takes or gives."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        value = getattr(value, "__dict__", {}).values()  # dataclasses: context, output
    return [t for v in value if isinstance(v, (Tensor, tuple, list, dict)) for t in _floats(v)]
