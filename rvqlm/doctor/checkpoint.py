"""The checkpoint under test and what belongs to it, read once, whatever its state."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from rvqlm.checkpoints.exported import is_exported
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, last_stage, read
from rvqlm.cli import kebab
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.doctor.embeddings import Table, read_tables
from rvqlm.doctor.finding import START, rule
from rvqlm.doctor.log import Log
from rvqlm.doctor.measure import floating
from rvqlm.doctor.optimizer import Moments, read_optimizer
from rvqlm.errors import UserError
from rvqlm.inspection.model import facts_of
from rvqlm.models.factory import build_model
from rvqlm.training.config import OptimConfig


@dataclass
class CheckpointUnderTest:
    """What rules read; None is what is not there or cannot be read."""

    path: Path
    state: dict | None = None
    """the checkpoint, tensors on the CPU"""
    load_error: str = ""
    """why there is no state"""
    model: nn.Module | None = None
    """with a copy of the weights"""
    build_error: str = ""
    """why there is no model"""
    log: Log | None = None
    weights_only: bool = False
    """an exported model or a mean of checkpoints: no optimizer, and none is missed"""
    other: CheckpointUnderTest | None = None
    """the one to compare with"""
    comparison: dict | None = None
    """changes since, as `compare_checkpoints` measures them"""
    replay: dict | None = None
    """what a saved batch did, as `replay_batch` measures it"""

    @property
    def file(self) -> Path:
        return self.path

    @property
    def step(self) -> int:
        return (self.state or {}).get("step") or 0

    @property
    def config(self) -> dict:
        """Flags of the training, by kebab-case name."""
        return (self.state or {}).get("config") or {}

    def flags(self, cls: type):
        """A group of the trainer's flags, as the training had them."""
        values = {f.name: self.config.get(kebab(f.name)) for f in fields(cls)}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{k: v for k, v in values.items() if v is not None})

    @property
    def facts(self) -> dict:
        """What to show of it."""
        if self.state is None:
            return {}
        parameters = sum(t.numel() for t in self.state["model"].values())
        return {"codec": self.state["codec"].get("name"), **facts_of(self.state, parameters)}

    @cached_property
    def weights(self) -> dict[str, Tensor] | None:
        return None if self.state is None else floating(self.state["model"])

    @cached_property
    def ema(self) -> dict[str, Tensor] | None:
        return floating((self.state or {}).get("ema")) or None

    @cached_property
    def optimizer(self) -> list[Moments] | None:
        if self.model is None:
            return None
        return read_optimizer(self.state.get("optimizer"), self.model, self.flags(OptimConfig))

    @cached_property
    def embeddings(self) -> list[Table] | None:
        """Levels of embedding tables and classifiers that the training uses; a table that holds
        NaN is not among them."""
        if self.model is None:
            return None
        second = {m.name: m.second for m in self.optimizer or () if m.second is not None}
        if self.step <= START or not any(t.any() for t in second.values()):
            second = {}  # too early, or a rule about the optimizer says that all are zero
        # classifiers of levels to which the training's own flags give no weight in the loss
        given = self.config.get("level-weights") or []
        left_out = {f"level {k}" for k, w in enumerate(given) if not w.replace(".", "").strip("0")}
        return [
            t
            for t in read_tables(self.model, self.weights, second)
            if t.rows.isfinite().all() and not (t.classifier and t.level in left_out)
        ]


def open_checkpoint(where: str | Path, which: str = "latest") -> CheckpointUnderTest:
    """Read what is at a path; see `rvqlm.doctor.examine.examine`.

    :raises UserError: nothing is there.
    """
    where = Path(where)
    # a file lies in its experiment, or in the archive of that
    folders = [last_stage(where)] if where.is_dir() else list(where.absolute().parents)[:2]
    logs = [f / "metrics.jsonl" for f in folders if (f / "metrics.jsonl").is_file()]
    c = CheckpointUnderTest(where, log=Log(logs[0]) if logs else None)
    try:
        c.path = find_checkpoint(where, which)
        if is_exported(c.path):
            weights, state = read(c.path)
            c.state = state | {"model": weights, "ema": None, "optimizer": None}
            c.weights_only = True
        else:
            c.state = load_checkpoint(c.path)
            c.weights_only = "averaged" in c.state
    except UserError as e:
        there = c.path.is_file() or is_exported(c.path)
        if not there and not (where.is_dir() and c.log):
            raise
        c.load_error = str(e)  # damaged, or gone while the log is left
        return c
    try:
        conditions = {k: ConditionInfo.from_dict(x) for k, x in c.state["conditions"].items()}
        info = CodecInfo.from_dict(c.state["codec"])
        model = build_model(c.state["model_name"], c.state["model_config"], info, conditions)
        model.load_state_dict(c.state["model"])
        c.model = model
    except Exception as e:  # a config of another version, or damaged, fails in any way it likes
        c.build_error = " ".join(str(e).split())[:200]
    return c


@rule("unusable", "file", "{what}", "{remedy}")
def does_not_load(c):
    if c.state is None:
        what, _, remedy = c.load_error.removeprefix(f"{c.path}: ").partition("; ")
        yield {"what": what, "remedy": remedy}


@rule("unusable", "file", "no model can be built of its config and weights: {reason}",
      "use the version that wrote it ({version}), another checkpoint, or --init-from for what "
      "fits")  # fmt: skip
def model_not_built(c):
    if c.build_error:
        yield {"reason": c.build_error, "version": c.state.get("rvqlm_version", "unknown")}
