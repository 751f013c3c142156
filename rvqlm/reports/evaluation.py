"""Results of `rvqlm evaluate` as pages and tables show them: level by level beside what needs no
training, and how a model fares that listens to itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain, repeat

from rvqlm.codec_info import CodecInfo
from rvqlm.reports.formatting import mean

KINDS = {
    "samples": "Continued by the model",
    "recordings": "As the recordings go on",
    "shuffled": "The model's frames in random order",
}
"""Of what was looked for in the training recordings."""


def conditions_of(evaluation: dict, flags: dict) -> list[str]:
    """What a model's figures were conditioned on; evaluations of older versions do not say it, and
    a model has the conditions of its training."""
    found = evaluation.get("conditions")
    return list(found if found is not None else flags.get("conditions") or [])


def given_words(conditions: Iterable[str]) -> str:
    """
    >>> given_words(["text", "prompt"]), given_words([])
    ('text and prompt', 'nothing')
    """
    return " and ".join(conditions) or "nothing"


def outdated(evaluation: dict, family: str | None) -> bool:
    """Whether an evaluation's figures of single levels depend on how often each was masked, as
    those of masked models did before evaluations had their uncertainty."""
    return family == "masked" and "uncertainty" not in evaluation


def level_table(evaluation: dict, info: CodecInfo) -> list[dict]:
    """A row a level. None where an evaluation, of an older version or of masked models, has none of
    it."""
    top = math.log(info.codebook_size)
    within = (evaluation.get("uncertainty") or {}).get("nats_intervals")
    columns = [
        *(evaluation.get(name, []) for name in ("nats", "unigram_nats", "accuracy")),
        *(_or_none(evaluation.get(n)) for n in ("previous_frame_nats", "calibration_error")),
        *(_or_none(found) for found in (evaluation.get("overconfidence"), within)),
    ]
    return [
        {
            "level": level,
            "nats": nats,
            "within": interval,
            "unigram": unigram,
            "previous": previous,
            "saved": 1 - nats / unigram if unigram else 0.0,
            "accuracy": accuracy,
            "calibration": calibration,
            "surer": surer,
            "perplexity": math.exp(min(nats, 700)),
            "width": 100 * nats / top,
            "mark": 100 * unigram / top,
        }
        for level, (nats, unigram, accuracy, previous, calibration, surer, interval) in enumerate(
            zip(*columns)
        )
    ]


def _or_none(values: Sequence | None) -> Iterable:
    return chain(values or (), repeat(None))


# ------------------------------------------------------------------------ listening to itself


def free_running(evaluation: dict, info: CodecInfo) -> dict | None:
    """What `rvqlm.inference.free_running` found, in rows; None where it was not run."""
    found = evaluation.get("free_running")
    if found is None:
        return None
    agreement = found["agreement"]
    told = agreement["teacher_forced"] or []
    positions = zip(agreement["frames"], agreement["free_running"], _or_none(told))
    return found | {
        "told": bool(told),
        "positions": [
            {
                "frame": frame,
                "seconds": frame / float(info.frame_rate),
                "alone": alone[0],
                "told": truth and truth[0],
            }
            for frame, alone, truth in positions
        ],
        "levels": _levels(found["likelihood"], found["codes"]),
        "runs": [
            (words, [of[kind] for of in found["shared_runs"].values() if kind in of])
            for kind, words in KINDS.items()
        ],
        "run_of": [name.replace("_", " ") for name in found["shared_runs"]],
    }


def _levels(likelihood: dict, codes: dict) -> list[dict]:
    own, real = likelihood["own"], likelihood["real"]
    within = _or_none(likelihood["interval"])
    return [
        {
            "own": own[level],
            "real": real[level],
            "apart": likelihood["difference"][level],
            "within": interval,
            "codes": [(codes["samples"][name][level], codes["recordings"][name][level])
                      for name in ("coverage", "entropy", "kl")],
        }
        for level, interval in zip(range(len(own)), within)
    ]  # fmt: skip


def code_divergence(found: dict) -> tuple[float | None, float | None]:
    """Mean over levels of the divergence of generated codes from the split's, and of as many
    recorded ones.

    :param found: "free_running" of an evaluation.
    """
    return tuple(mean(found["codes"][kind]["kl"]) for kind in ("samples", "recordings"))
