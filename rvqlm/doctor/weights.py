"""Parameters and their running average: non-finite, exploded, never trained, far apart."""

from __future__ import annotations

import re
from collections import defaultdict
from math import inf, isfinite

from torch import Tensor

from rvqlm.doctor.finding import START, rule, some
from rvqlm.doctor.measure import distance, rms

MAX_RMS = 20.0
"""Root mean square of a tensor above which it has exploded. Layers start between 0.02 and 1 and
gains end at a few units; the largest tensors of trained models that we have seen are below 5."""
MAX_VALUE = 1000.0
"""The same for a single weight; outlier features of large models reach some tens."""
MAX_OF_SIBLINGS = 30.0
"""The same against the median of the tensors of the same name in the other layers, at least 3."""
MAX_EMA_DISTANCE = 0.9
"""|average - weights| / the larger norm. At the peak of the learning rate a decay of 0.999 leaves
0.1 to 0.5; unrelated tensors of one size have 1.4, and an average that stood still 0.9 or more."""
EMA_SLACK = 3.0
"""Times the way that weights can go in the average's memory: 1 / (1 - decay) steps of at most the
peak learning rate for each weight (updates of Adam are at most about 1)."""


@rule("unusable", "weights", "{counts} of {total:,} values",
      "go back to an earlier checkpoint (best.pt, archive/) with a lower --base-lr")  # fmt: skip
def non_finite_weights(c):
    return _non_finite(c.weights)


@rule("unusable", "ema", "{counts} of {total:,} values",
      "use the raw weights (--raw-weights), or an earlier checkpoint")  # fmt: skip
def non_finite_average(c):
    return _non_finite(c.ema)


def _non_finite(tensors: dict[str, Tensor]):
    """How many values, and the place of the first."""
    for name, tensor in tensors.items():
        bad, nans = ~tensor.isfinite(), int(tensor.isnan().sum())
        if bad.any():
            counts = ((nans, "NaN"), (int(bad.sum()) - nans, "infinite"))
            said = " and ".join(f"{n:,} {word}" for n, word in counts if n)
            where = f"{name}{bad.nonzero()[0].tolist()}"
            yield {"where": where, "counts": said, "total": tensor.numel()}


@rule("concern", "weights", "{what}", "go back to a checkpoint before the divergence; lower "
      "--base-lr, keep --clip-grad-norm above 0")  # fmt: skip
def exploded(c):
    """Tensors of large values, or far larger than those of the same name in other layers."""
    for subject, tensors in (("weights", c.weights), ("ema", c.ema or {})):
        sizes = {k: rms(t) for k, t in tensors.items() if t.isfinite().all()}
        siblings = defaultdict(list)
        for name, size in sizes.items():
            siblings[_without_layer(name)].append(size)
        found: dict[str, str] = {}
        for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
            top, others = float(tensors[name].abs().max()), sorted(siblings[_without_layer(name)])
            usual = others[len(others) // 2]
            if size > MAX_RMS or top > MAX_VALUE:
                found[name] = f"exploded: rms {size:.3g}, largest {top:.3g}"
            elif len(others) > 3 and size > MAX_OF_SIBLINGS * max(usual, 1e-3):
                found[name] = f"exploded: rms {size:.3g}, that of the other layers {usual:.3g}"
        if len(found) > 3:  # the whole model, rather
            largest = max(sizes[name] for name in found)
            found = {some(found): f"{len(found)} tensors exploded: rms up to {largest:.3g}"}
        yield from ({"subject": subject, "where": k, "what": what} for k, what in found.items())


def _without_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


@rule("concern", "weights",
      "all zero after {step:,} steps: no gradient reaches it, or it was erased",
      "an earlier checkpoint shows which; rvqlm doctor --compare EARLIER")  # fmt: skip
def untrained(c):
    """Matrices that are zero throughout. Heads and residual branches start so and leave zero with
    their first update; a zero matrix after many updates is cut off from the loss."""
    if c.step <= START or c.model is None:
        return
    trained = {k for k, p in c.model.named_parameters() if p.requires_grad and p.ndim > 1}
    yield from ({"where": k} for k, t in c.weights.items() if k in trained and not t.any())


@rule("concern", "ema", "{what}",
      "--raw-weights uses the weights instead; the average recovers in {recovers}")  # fmt: skip
def average_far_from_weights(c):
    """Further than the weights can have moved in its memory, or unlike them."""
    memory, config, reach = _ema_memory(c), c.config, inf
    # of optimizers whose updates have the size of the learning rate
    if config.get("optimizer") in ("adamw", "muon") and memory and config.get("base-lr"):
        reach = EMA_SLACK * memory * max(config["base-lr"], config.get("embedding-lr") or 0.0)
    beyond = (
        f"further from the weights than {memory:,.0f} steps at the peak learning rate can take "
    )
    beyond += f"them (rms above {reach:.2g})"
    unlike = (
        f"the average is unlike the weights (distance above {MAX_EMA_DISTANCE:g} of their size)"
    )
    far: dict[str, list[str]] = {beyond: [], unlike: []}
    for name, average in c.ema.items():
        weights = c.weights.get(name)
        if weights is None or weights.shape != average.shape:
            continue
        apart, size = distance(average, weights), max(rms(average), rms(weights))
        if not size or not isfinite(apart):
            continue
        if apart > reach:
            far[beyond].append(f"{name} ({apart:.2g})")
        elif weights.ndim > 1 and c.step > 100 and apart > MAX_EMA_DISTANCE * size:
            # vectors and the first steps of what starts at zero move by their own size
            far[unlike].append(f"{name} ({apart / size:.2f})")
    recovers = f"{3 * memory:,.0f} steps of training" if memory else "training"
    for what, names in far.items():
        if names:
            yield {"where": some(names), "what": what, "recovers": recovers}


def _ema_memory(c) -> float:
    """Steps that the average looks back: 1 / (1 - decay), and less while the decay warms up."""
    decay, updates = c.config.get("ema-decay"), c.state.get("ema_updates")
    if not decay:
        return 0.0
    if updates is not None and c.config.get("ema-warmup", True):
        decay = min(decay, (1 + updates) / (10 + updates))
    return 1 / (1 - decay)
