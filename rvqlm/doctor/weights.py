"""Parameters and their running average: non-finite, exploded, never trained, far apart."""

from __future__ import annotations

from math import isfinite

from rvqlm.doctor.finding import START, rule, some
from rvqlm.doctor.measure import rms

MAX_RMS = 20.0
"""Root mean square of a tensor above which it has exploded. Layers start between 0.02 and 1 and
gains end at a few units; the largest tensors of trained models that we have seen are below 5."""
MAX_VALUE = 1000.0
"""The same for a single weight; outlier features of large models reach some tens."""
MAX_EMA_DISTANCE = 0.9
"""|average - weights| / the larger norm. At the peak of the learning rate a decay of 0.999 leaves
0.1 to 0.5; unrelated tensors of one size have 1.4, and an average that stood still 0.9 or more."""


@rule("unusable", "weights", "{bad:,} of {total:,} values are NaN or infinite",
      "go back to an earlier checkpoint (best.pt, archive/) with a lower --base-lr; if it is the "
      "average alone, --raw-weights uses the weights")  # fmt: skip
def non_finite(c):
    for subject, tensors in (("weights", c.weights), ("ema", c.ema or {})):
        for name, tensor in tensors.items():
            bad = ~tensor.isfinite()
            if bad.any():
                first = bad.nonzero()[0].tolist()
                facts = {"bad": int(bad.sum()), "total": tensor.numel()}
                yield {"subject": subject, "where": f"{name}{first}", **facts}


@rule("concern", "weights", "exploded: rms {rms:.3g}, largest value {top:.3g}",
      "go back to a checkpoint before the divergence; lower --base-lr, keep --clip-grad-norm "
      "above 0")  # fmt: skip
def exploded(c):
    for subject, tensors in (("weights", c.weights), ("ema", c.ema or {})):
        finite = {k: t for k, t in tensors.items() if t.isfinite().all()}
        sizes = {k: (rms(t), float(t.abs().max())) for k, t in finite.items()}
        large = {k: s for k, s in sizes.items() if s[0] > MAX_RMS or s[1] > MAX_VALUE}
        if large:
            names = sorted(large, key=large.get, reverse=True)
            size, top = map(max, zip(*large.values()))
            yield {"subject": subject, "where": some(names), "rms": size, "top": top}


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


@rule("concern", "ema", "the average is far from the weights: more than {limit:g} of their size",
      "--raw-weights uses the weights; the average recovers as training continues")  # fmt: skip
def average_far_from_weights(c):
    far = []
    for name, average in c.ema.items():
        weights = c.weights.get(name)
        # vectors and the first steps of what starts at zero move by their own size
        if weights is None or weights.shape != average.shape or weights.ndim < 2 or c.step <= 100:
            continue
        apart, size = rms(average.float() - weights.float()), max(rms(average), rms(weights))
        if isfinite(apart) and apart > MAX_EMA_DISTANCE * size:
            far.append(f"{name} ({apart / size:.2f})")
    if far:
        yield {"where": some(far), "limit": MAX_EMA_DISTANCE}
