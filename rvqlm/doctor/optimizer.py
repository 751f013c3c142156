"""The optimizer's state: learning rates, moments, steps, and how far the next update goes."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from rvqlm.doctor.finding import START, rule, some
from rvqlm.doctor.measure import rms
from rvqlm.errors import UserError
from rvqlm.training.config import OptimConfig
from rvqlm.training.optim import build_optimizer
from rvqlm.training.scaled_adam import MAX_RMS, MIN_RMS, SCALE_LR


@dataclass
class Moments:
    """State of one parameter: running means of its gradient and of the gradient's square."""

    name: str
    weights: Tensor | None
    group: dict
    """learning rate, decay rates and the like"""
    state: dict
    """as the optimizer saved it; empty if the parameter never had a gradient"""

    @property
    def first(self) -> Tensor | None:
        """Mean of the gradient: of AdamW, `ScaledAdam`, `Muon`."""
        return self._any("exp_avg", "mean", "momentum_buffer")

    @property
    def second(self) -> Tensor | None:
        """Mean of its square; Muon has none."""
        return self._any("exp_avg_sq", "square")

    @property
    def second_or_first(self) -> Tensor | None:
        """Zero or None if no gradient ever came."""
        return self.first if self.second is None else self.second

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.state.items() if torch.is_tensor(t) and t.is_floating_point()}

    def _any(self, *names: str) -> Tensor | None:
        return next((self.state[n] for n in names if n in self.state), None)

    @property
    def next_update(self) -> float | None:
        """Rms of what a step like the last ones changes; None where that is not known.

        AdamW: the update of its moments with their biases corrected (Kingma & Ba, 2015,
        arXiv:1412.6980) and the decay. `ScaledAdam`: that times the size of the tensor, and its
        change of scale. `Muon`: 0.2 times the learning rate, to which it scales.
        """
        lr, weights, first, second = self.group["lr"], self.weights, self.first, self.second
        if weights is None:
            return None
        if "momentum_buffer" in self.state:
            return 0.2 * lr
        if second is None or second.shape != weights.shape:
            return None
        steps = max(1.0, float(self.state["step"]))
        up, down = (1 - beta**steps for beta in self.group["betas"])
        change = first.float() / up
        change /= (second.float() / down).clamp(min=0).sqrt() + self.group["eps"]
        if "mean" not in self.state:
            decay = self.group.get("weight_decay", 0.0)
            return lr * rms(torch.add(change, weights.float(), alpha=decay))
        if weights.numel() == 1:
            return lr * SCALE_LR * rms(change)
        root = (max(float(self.state["scale_square"]), 0.0) / down) ** 0.5 + self.group["eps"]
        scale = float(self.state["scale_mean"]) / up / root
        size = min(max(rms(weights), MIN_RMS), MAX_RMS)
        return lr * rms(torch.add(size * change, weights.float(), alpha=SCALE_LR * scale))


def read_optimizer(
    saved, weights: dict[str, Tensor], model: nn.Module | None, config: OptimConfig
) -> list[Moments] | None:
    """Every parameter of ``Optimizers.state_dict()``; None where the training's flags make another
    optimizer than the saved one, or its model cannot be built.

    Optimizers know parameters by number only, so the same ones are built once more.
    """
    if model is None or not isinstance(saved, list):
        return None
    try:
        parts = build_optimizer(model, config).parts
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
    except (UserError, TypeError, ValueError, KeyError, AttributeError):
        return None  # flags or a state of another version
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        Moments(names[id(p)], weights.get(names[id(p)]), group, part.state.get(p, {}))
        for part in parts
        for group in part.param_groups
        for p in group["params"]
    ]


MAX_UPDATE = 0.1
"""Update over weights in one step above which a matrix is rewritten rather than trained: 1e-3 is
usual, and what starts at zero has 1 / step, so the first 100 steps are not judged."""
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
      "check --base-lr and the schedule's flags")  # fmt: skip
def learning_rate_is_no_rate(c):
    rates = {m.group["lr"] for m in c.optimizer}
    if not all(isfinite(r) and r >= 0 for r in rates):
        yield {"where": f"step {c.step:,}", "rates": some(sorted(set(map(str, rates))))}


@rule("concern", "optimizer", "the learning rate is 0: {why}", "{remedy}")
def learning_rate_is_zero(c):
    # the schedule's factor is 0 before the first step, and after the last of a cosine
    if c.step <= 1 or any(m.group["lr"] != 0 for m in c.optimizer):
        return
    facts = {"where": f"step {c.step:,}", "why": "nothing is learned"}
    facts["remedy"] = "check --base-lr, --eta-min-ratio and the schedule; a finished schedule was "
    facts["remedy"] += "perhaps resumed"
    if ((c.state.get("schedule") or {}).get("progress") or 0.0) >= 1:
        facts |= {"severity": "note", "why": "the schedule is at its end"}
        facts["remedy"] = "to train on, give a larger budget"
    yield facts


@rule("concern", "optimizer", "{bad:,} of {total:,} values of {moment} are NaN or infinite",
      WEIGHTS_SERVE)  # fmt: skip
def non_finite_moments(c):
    for m in c.optimizer:
        for key, value in m.tensors.items():
            if bad := int((~value.isfinite()).sum()):
                yield {"where": m.name, "bad": bad, "total": value.numel(), "moment": key}


@rule("concern", "optimizer", "negative second moments: the state is damaged", WEIGHTS_SERVE)
def negative_moments(c):
    for m in c.optimizer:
        if m.second is not None and bool((m.second < 0).any()):
            yield {"where": m.name}


def _without_gradient(c) -> list[str]:
    """Parameters whose moments are zero or missing."""
    return [m.name for m in c.optimizer if m.second_or_first is None or not m.second_or_first.any()]


@rule("concern", "optimizer",
      "all moments are zero or missing: training would resume as if it began",
      WEIGHTS_SERVE)  # fmt: skip
def cold_optimizer(c):
    if c.step > 1 and len(_without_gradient(c)) == len(c.optimizer):
        yield {"where": "all tensors"}


@rule("concern", "optimizer",
      "no gradient reached it in {step:,} steps (its moments are zero or missing)",
      "parts that the training never uses, such as a condition that no cut has, are so; any other "
      "is cut off from the loss")  # fmt: skip
def no_gradient(c):
    """Matrices are of concern, vectors may serve a case that this training does not have (masked's
    `reach` without conditions)."""
    names = _without_gradient(c)
    if c.step <= START or len(names) == len(c.optimizer):
        return
    vectors = [n for n in names if n in c.weights and c.weights[n].ndim < 2]
    matrices = [n for n in names if n not in vectors]
    for severity, those in (("concern", matrices), ("note", vectors)):
        if those:
            yield {"severity": severity, "where": some(those)}


@rule("concern", "optimizer", "its gradient has been exactly zero for some hundred steps",
      "look for activations that died or overflow: rvqlm doctor --replay a bad batch")  # fmt: skip
def gradient_stopped(c):
    with_second = [m for m in c.optimizer if m.second is not None and m.second.any()]
    stopped = [m.name for m in with_second if not m.first.any()]
    if stopped and c.step > 1:
        yield {"where": some(stopped)}


def _steps_made(c) -> int | None:
    """Steps of the parameter that has made most; None if the optimizer does not count them."""
    made = [int(float(m.state["step"])) for m in c.optimizer if "step" in m.state]
    return max(made, default=None)


@rule("concern", "optimizer", "it has made {made:,} steps, the training {step:,}: of another run?",
      WEIGHTS_SERVE)  # fmt: skip
def steps_of_another_run(c):
    if c.step and (made := _steps_made(c) or 0) > c.step:
        yield {"where": "step", "made": made}


@rule("concern", "optimizer",
      "only {made:,} of {step:,} steps were applied, the others were skipped or rolled back",
      "see the findings about the log")  # fmt: skip
def steps_not_applied(c):
    if (made := _steps_made(c)) is not None and made < MIN_APPLIED * c.step:
        yield {"where": "step", "made": made}


@rule("concern", "optimizer", "a step changes it by more than {limit:g} of its size",
      "lower --base-lr")  # fmt: skip
def large_update(c):
    ratios = {
        name: update / rms(c.weights[name])
        for name, update in c.updates.items()
        if c.step > 100 and c.weights[name].ndim > 1 and c.weights[name].any()
    }
    large = {k: r for k, r in ratios.items() if isfinite(r) and r > MAX_UPDATE}
    if large:
        ordered = sorted(large.items(), key=lambda item: -item[1])
        yield {"where": some(f"{k} ({r:.2g})" for k, r in ordered), "limit": MAX_UPDATE}
