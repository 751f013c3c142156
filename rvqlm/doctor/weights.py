"""Parameters and their running average: not a number, exploded, never trained, far apart."""

from __future__ import annotations

import re
from collections import defaultdict
from math import sqrt

from torch import Tensor

from rvqlm.doctor.examine import Finding, some
from rvqlm.doctor.open import Patient

START = 10
"""Steps after which every part has had a gradient: heads and residual branches start at zero, and
let none through in the first."""
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


def check_weights(patient: Patient) -> list[Finding]:
    """Findings about every tensor of the weights and of their average."""
    state, found = patient.state, []
    for part, subject in (("model", "weights"), ("ema", "ema")):
        tensors = floating(state.get(part))
        bad = {k: _count_bad(t) for k, t in tensors.items()}
        for name, (nans, infs) in bad.items():
            if nans or infs:
                counts = " and ".join(
                    f"{n:,} {word}" for n, word in ((nans, "NaN"), (infs, "infinite")) if n
                )
                found.append(
                    Finding(
                        "unusable",
                        subject,
                        _place(name, tensors[name]),
                        f"{counts} of {tensors[name].numel():,} values",
                        "go back to an earlier checkpoint (best.pt, archive/) with a lower "
                        "--base-lr"
                        if part == "model"
                        else "use the raw weights (--raw-weights), or an earlier checkpoint",
                    )
                )
        whole = {k: t for k, t in tensors.items() if not any(bad[k])}
        found += _exploded(whole, subject)
    found += _untrained(patient)
    return found + _ema_distance(patient)


def floating(tensors: dict | None) -> dict[str, Tensor]:
    return {k: t for k, t in (tensors or {}).items() if t.is_floating_point() and t.numel()}


def rms(tensor: Tensor) -> float:
    """Root mean square; float32 sums of squares overflow at 1e19, so the scale is taken out."""
    top = float(tensor.abs().max())
    if not 0 < top < float("inf"):
        return top
    return top * sqrt(float((tensor.float() / top).square().mean()))


def _count_bad(tensor: Tensor) -> tuple[int, int]:
    nans = int(tensor.isnan().sum())
    return nans, int((~tensor.isfinite()).sum()) - nans


def _place(name: str, tensor: Tensor) -> str:
    """The tensor and its first value that is no number."""
    first = (~tensor.isfinite()).nonzero()[0].tolist()
    return f"{name}[{', '.join(map(str, first))}]"


def _exploded(tensors: dict[str, Tensor], subject: str) -> list[Finding]:
    sizes = {k: rms(t) for k, t in tensors.items()}
    siblings = defaultdict(list)
    for name, size in sizes.items():
        siblings[_kind(name)].append(size)
    exploded: dict[str, str] = {}
    for name, tensor in tensors.items():
        top, size = float(tensor.abs().max()), sizes[name]
        others = sorted(siblings[_kind(name)])
        usual = others[len(others) // 2]
        what = None
        if size > MAX_RMS or top > MAX_VALUE:
            what = f"exploded: rms {size:.3g}, largest {top:.3g}"
        elif len(others) > 3 and size > MAX_OF_SIBLINGS * max(usual, 1e-3):
            what = f"exploded: rms {size:.3g}, that of the other layers {usual:.3g}"
        if what:
            exploded[name] = what
    names = sorted(exploded, key=lambda k: -sizes[k])
    if len(names) > 3:  # the whole model, rather
        worst = f"{len(names)} tensors exploded: rms up to {sizes[names[0]]:.3g}"
        names, exploded = [some(names)], {some(names): worst}
    remedy = "go back to a checkpoint before the divergence; lower --base-lr, keep "
    remedy += "--clip-grad-norm above 0"
    return [Finding("concern", subject, k, exploded[k], remedy) for k in names]


def _kind(name: str) -> str:
    """Name without the numbers of layers."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _untrained(patient: Patient) -> list[Finding]:
    """Matrices that are zero throughout. Heads and residual branches start so and leave zero with
    their first update; a zero matrix after many updates is cut off from the loss."""
    if patient.step <= START or patient.model is None:
        return []
    trained = {k for k, p in patient.model.named_parameters() if p.requires_grad and p.ndim > 1}
    zero = [k for k, t in floating(patient.state["model"]).items() if k in trained and not t.any()]
    return [
        Finding(
            "concern",
            "weights",
            name,
            f"all zero after {patient.step:,} steps: no gradient reaches it, or it was erased",
            "an earlier checkpoint shows which; rvqlm doctor --compare EARLIER",
        )
        for name in zero
    ]


def _ema_distance(patient: Patient) -> list[Finding]:
    state = patient.state
    average, weights = floating(state.get("ema")), floating(state["model"])
    steps, memory = patient.step, ema_memory(state, patient.config)
    far, beyond = {}, {}
    for name, a in average.items():
        w = weights.get(name)
        if w is None or w.shape != a.shape or not (a.isfinite().all() and w.isfinite().all()):
            continue
        apart, size = rms(a.float() - w.float()), max(rms(a), rms(w))
        if not size:
            continue
        limit = _reach(patient.config, memory)
        if limit is not None and apart > limit:
            beyond[name] = f"{name} ({apart:.2g})"
        elif w.ndim > 1 and steps > 100 and apart > MAX_EMA_DISTANCE * size:
            # vectors and the first steps of what starts at zero move by their own size
            far[name] = f"{name} ({apart / size:.2f})"
    remedy = "--raw-weights uses the weights instead; the average mends itself in "
    remedy += f"{3 * memory:,.0f} steps of training" if memory else "training"
    found = []
    if beyond:
        found.append(
            Finding(
                "concern",
                "ema",
                some(beyond.values()),
                f"further from the weights than {memory:,.0f} steps at the peak learning rate can "
                f"take them (rms above {_reach(patient.config, memory):.2g})",
                remedy,
            )
        )
    if far:
        found.append(
            Finding(
                "concern",
                "ema",
                some(far.values()),
                f"the average is unlike the weights (distance above {MAX_EMA_DISTANCE:g} of their "
                "size)",
                remedy,
            )
        )
    return found


def ema_memory(state: dict, config: dict) -> float:
    """Steps that the average looks back: 1 / (1 - decay), and less while the decay warms up."""
    decay, updates = config.get("ema-decay"), state.get("ema_updates")
    if not decay:
        return 0.0
    if updates is not None and config.get("ema-warmup", True):
        decay = min(decay, (1 + updates) / (10 + updates))
    return 1 / (1 - decay)


def _reach(config: dict, memory: float) -> float | None:
    """How far a weight can be from its average; None where updates are of another size."""
    if config.get("optimizer") not in ("adamw", "muon") or not memory or not config.get("base-lr"):
        return None
    peak = max(config["base-lr"], config.get("embedding-lr") or 0.0)
    return EMA_SLACK * memory * peak


def module_table(patient: Patient, updates: dict[str, float]) -> list[dict]:
    """A row for each module: tensors, parameters, rms, largest value, distance of the average over
    the norm, and update over weights in one step (both rms over the module).

    :param updates: rms of the next update of each tensor, where known.
    """
    weights, average = floating(patient.state["model"]), floating(patient.state.get("ema"))
    groups: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        groups[module_of(name)].append(name)
    rows = []
    for module, names in groups.items():
        count = sum(weights[n].numel() for n in names)
        square = sum(rms(weights[n]) ** 2 * weights[n].numel() for n in names)
        row = {
            "module": module,
            "tensors": len(names),
            "parameters": count,
            "rms": sqrt(square / count),
            "max": max(float(weights[n].abs().max()) for n in names),
        }
        shared = [n for n in names if n in average and average[n].shape == weights[n].shape]
        if shared:
            apart = sum(
                rms(average[n].float() - weights[n].float()) ** 2 * weights[n].numel()
                for n in shared
            )
            row["ema_distance"] = sqrt(apart / square) if square else 0.0
        moved = [n for n in names if n in updates]
        if moved:
            change = sum(updates[n] ** 2 * weights[n].numel() for n in moved)
            size = sum(rms(weights[n]) ** 2 * weights[n].numel() for n in moved)
            row["update_ratio"] = sqrt(change / size) if size else 0.0
        rows.append(row)
    return rows


def module_of(name: str) -> str:
    """Row of the tables that a tensor belongs to: a layer, or what is outside of layers.

    >>> module_of("network.transformer.layers.3.attention.qkv.weight"), module_of("heads.weight")
    ('network.transformer.layers.3', 'heads')
    """
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: at + 1])
    return ".".join(parts[:-1][:3]) or name
