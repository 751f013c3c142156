"""What is wrong with a training: weights, optimizer, log, as a list of findings.

`examine` runs the examinations (`doctor_*.py`, one subject a file) over what `doctor_open` could
read, and `Diagnosis` holds what they found and the tables that they measured. Nothing is printed
here; `doctor_text` and `rvqlm doctor` do that. Thresholds stand at the top of each examination with
the reason for their size: a training that goes well must pass without a word of concern.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["note", "concern", "unusable"]
STATUS: dict[str, int] = {"note": 0, "concern": 1, "unusable": 2}
"""Exit status of `rvqlm doctor` for the worst finding."""


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed."""

    severity: Severity
    """note: worth knowing; concern: look at it before training goes on; unusable: the checkpoint
    cannot be used as it is."""
    subject: str
    """file, weights, ema, optimizer, embeddings, log, replay or comparison"""
    where: str
    """tensor, level, step, file: as exactly as is known"""
    what: str
    remedy: str = ""


@dataclass
class Diagnosis:
    """Everything that was found and measured; `to_dict` is JSON-ready."""

    path: str
    facts: dict = field(default_factory=dict)
    """model, parameters, step, epoch, hours ... in the order to show them"""
    modules: list[dict] = field(default_factory=list)
    """a row for each module: tensors, parameters, rms, max, ema_distance, update_ratio"""
    log: dict = field(default_factory=dict)
    """first and last step, lowest losses, steps of spikes and of divergence"""
    comparison: dict = field(default_factory=dict)
    """the other checkpoint, change of each module, differing flags"""
    replay: dict = field(default_factory=dict)
    """what the saved batch did"""
    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        """0 healthy, 1 something of concern, 2 unusable."""
        return max((STATUS[f.severity] for f in self.findings), default=0)

    def to_dict(self) -> dict:
        return {**dataclasses.asdict(self), "status": self.status}


def examine(
    path: str | Path,
    which: str = "latest",
    compare: str | Path | None = None,
    replay: str | Path | None = None,
    precision: str = "auto",
) -> Diagnosis:
    """Examine a checkpoint, an exported model, or an experiment with its log.

    :param path: checkpoint file, experiment directory, or a directory that export made.
    :param which: ``latest``, ``best`` or the path of a checkpoint, of an experiment.
    :param compare: a second of the same kinds; the change from it to `path` is measured.
    :param replay: a batch that the trainer's guards saved, to be run through the model again.
    :param precision: of the replay: ``auto``, ``bf16``, ``fp16`` or ``fp32``; auto: as the
        training had it.
    :raises UserError: nothing there to examine. What is there but damaged is a finding.
    """
    from rvqlm.checkpoints.file import NAMES
    from rvqlm.doctor.compare import compare_states
    from rvqlm.doctor.embeddings import check_levels
    from rvqlm.doctor.log import check_log
    from rvqlm.doctor.open import open_patient
    from rvqlm.doctor.optimizer import check_optimizer
    from rvqlm.doctor.weights import check_weights, module_table

    patient = open_patient(path, which)
    named = which if which in NAMES else "latest"  # a path is that of the first
    other = open_patient(compare, named) if compare is not None else None
    out = Diagnosis(str(patient.path), patient.facts, findings=list(patient.findings))
    if patient.state is not None:
        out.findings += check_weights(patient)
        found, updates = check_optimizer(patient)
        out.findings += found + check_levels(patient)
        out.modules = module_table(patient, updates)
    if patient.log_path is not None:
        out.log, found = check_log(patient)
        out.findings += found
    if other is not None:
        out.comparison, found = compare_states(patient, other)
        out.findings += found
    if replay is not None:
        from rvqlm.doctor.replay import replay_batch

        out.replay, found = replay_batch(patient, replay, precision)
        out.findings += found
    out.findings.sort(key=lambda f: -STATUS[f.severity])
    return out


def some(items, limit: int = 5) -> str:
    """The first few of a list, and how many more there are.

    >>> some([3, 5, 8, 9], limit=2)
    '3, 5 and 2 more'
    """
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more
