"""The optimizer's state: learning rates, moments, steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from rvqlm.doctor.finding import START, rule, some
from rvqlm.errors import UserError
from rvqlm.training.config import OptimConfig
from rvqlm.training.optim import build_optimizer


@dataclass
class Moments:
    """State of one parameter: running means of its gradient and of the gradient's square."""

    name: str
    lr: float
    state: dict
    """as the optimizer saved it; empty if the parameter never had a gradient"""

    @property
    def second(self) -> Tensor | None:
        """Mean of the gradient's square, of AdamW and `ScaledAdam`; Muon has none."""
        return self.state.get("exp_avg_sq", self.state.get("square"))

    @property
    def had_gradient(self) -> bool:
        moment = self.state.get("momentum_buffer", self.second)
        return moment is not None and bool(moment.any())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.state.items() if torch.is_tensor(t) and t.is_floating_point()}


def read_optimizer(saved, model: nn.Module, config: OptimConfig) -> list[Moments] | None:
    """Every parameter of ``Optimizers.state_dict()``; None where the training's flags make another
    optimizer than the saved one.

    Optimizers know parameters by number only, so the same ones are built once more.
    """
    if not isinstance(saved, list):
        return None
    try:
        parts = build_optimizer(model, config).parts
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
    except (UserError, TypeError, ValueError, KeyError, AttributeError):
        return None  # flags or a state of another version
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        Moments(names[id(p)], group["lr"], part.state.get(p, {}))
        for part in parts
        for group in part.param_groups
        for p in group["params"]
    ]


MIN_APPLIED = 0.9
"""Share of the steps that the optimizer made; the guards skipped or undid the others."""
WEIGHTS_SERVE = "weights alone still serve: --init-from {path}"


@rule("concern", "weights",
      "no optimizer state that this version reads: training would resume without moments",
      WEIGHTS_SERVE)  # fmt: skip
def no_optimizer_state(c):
    if c.optimizer is None and c.model is not None and not c.weights_only:
        yield {"subject": "optimizer", "where": "optimizer"}


@rule("concern", "optimizer", "the learning rate is {rates}",
      "check --base-lr, --eta-min-ratio and the schedule; to train on after its end, give a larger "
      "budget")  # fmt: skip
def learning_rate(c):
    """It is negative or non-finite, or 0 for all parameters."""
    rates = sorted({m.lr for m in c.optimizer})
    # the schedule's factor is 0 before the first step, and after the last of a cosine
    zero = c.step > 1 and rates == [0.0]
    at_end = zero and ((c.state.get("schedule") or {}).get("progress") or 0.0) >= 1
    if zero or not all(isfinite(r) and r >= 0 for r in rates):
        yield {
            "severity": "note" if at_end else "concern",
            "where": f"step {c.step:,}",
            "rates": some(rates) + (": the schedule is at its end" if at_end else ""),
        }


@rule("concern", "optimizer", "{bad:,} of {total:,} values of {moment} are non-finite or negative",
      WEIGHTS_SERVE)  # fmt: skip
def damaged_moments(c):
    for m in c.optimizer:
        for key, value in m.tensors.items():
            negative = (value < 0) & (value is m.second)
            if bad := int((~value.isfinite() | negative).sum()):
                yield {"where": m.name, "bad": bad, "total": value.numel(), "moment": key}


@rule("concern", "optimizer",
      "no gradient reached it in {step:,} steps (its moments are zero or missing)",
      "if it is all tensors, the state is lost; parts that the training never uses, such as a "
      "condition that no cut has, are so; any other is cut off from the loss")  # fmt: skip
def no_gradient(c):
    """Matrices are of concern, vectors may serve a case that this training does not have (masked's
    `reach` without conditions)."""
    names = [m.name for m in c.optimizer if not m.had_gradient]
    if len(names) == len(c.optimizer) and c.step > 1:
        yield {"where": "all tensors"}
    elif c.step > START:
        matrices = [n for n in names if n not in c.weights or c.weights[n].ndim > 1]
        vectors = [n for n in names if n not in matrices]
        for severity, those in (("concern", matrices), ("note", vectors)):
            if those:
                yield {"severity": severity, "where": some(those)}


@rule("concern", "optimizer", "it has made {made:,} steps, the training {step:,}",
      "if more, its state is of another run: --init-from {path} takes the weights alone; if fewer, "
      "steps were skipped or rolled back: see the findings about the log")  # fmt: skip
def steps_made(c):
    """Of the parameter that has made most; Muon does not count them."""
    made = max((int(m.state["step"]) for m in c.optimizer if "step" in m.state), default=None)
    if made is not None and not MIN_APPLIED * c.step <= made <= c.step:
        yield {"where": "step", "made": made}
