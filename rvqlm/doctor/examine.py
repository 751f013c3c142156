"""What is wrong with a training: weights, optimizer, log, as a list of findings.

A new check is a function with `@rule` in the file of what it reads, and a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvqlm.checkpoints.file import NAMES
from rvqlm.doctor import checkpoint, comparison, embeddings, log, optimizer, replay, weights
from rvqlm.doctor.checkpoint import open_checkpoint
from rvqlm.doctor.comparison import compare_checkpoints
from rvqlm.doctor.finding import STATUS, Finding, Rule
from rvqlm.doctor.measure import module_table
from rvqlm.doctor.replay import replay_batch
from rvqlm.errors import UserError

RULES: list[Rule] = [
    found
    for part in (checkpoint, weights, optimizer, embeddings, log, comparison, replay)
    for found in vars(part).values()
    if isinstance(found, Rule)
]
"""All rules, in the order in which they run."""


@dataclass
class Diagnosis:
    """Everything that was found and measured; empty dictionaries where there was nothing to."""

    path: str
    facts: dict
    """model, parameters, step, epoch, hours ... in the order to show them"""
    modules: list[dict]
    """a row for each module: tensors, parameters, rms, max, ema_distance"""
    log: dict
    """lowest losses, steps of spikes and of divergence, skipped steps"""
    comparison: dict
    """the other checkpoint, change of each module, differing flags"""
    replay: dict
    """what the saved batch did"""
    findings: list[Finding]
    """the worst first"""

    @property
    def status(self) -> int:
        """0 healthy, 1 something of concern, 2 unusable."""
        return max((STATUS[f.severity] for f in self.findings), default=0)


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
    :raises UserError: nothing there to examine, or to compare or replay with. What is at `path`
        but damaged is a finding.
    """
    c = open_checkpoint(path, which)
    if compare is not None:
        # a path is that of the first
        c.other = open_checkpoint(compare, which if which in NAMES else "latest")
        if c.other.state is None:
            raise UserError(c.other.load_error)
        if c.state is not None:
            c.comparison = compare_checkpoints(c, c.other)
    if replay is not None:
        c.replay = replay_batch(c, replay, precision)
    found = [f for r in RULES for f in r.findings(c)]
    return Diagnosis(
        str(c.path),
        c.facts,
        module_table(c.weights or {}, c.ema or {}),
        c.log.summary if c.log else {},
        c.comparison or {},
        c.replay or {},
        sorted(found, key=lambda f: -STATUS[f.severity]),
    )
