"""The checkpoint under test and what belongs to it, read once, whatever its state."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path

from torch import Tensor, nn

from rvqlm.checkpoints.exported import is_exported
from rvqlm.checkpoints.file import NAMES, damage, load_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, last_stage, load_model
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.doctor.embeddings import Table, read_tables
from rvqlm.doctor.finding import START, rule, some
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
    """the model that the config describes, with weights of its own"""
    build_error: str = ""
    """why there is no model"""
    exp_dir: Path | None = None
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
        names = {f.name: f.name.replace("_", "-") for f in dataclasses.fields(cls)}
        values = {k: self.config[n] for k, n in names.items() if self.config.get(n) is not None}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @property
    def facts(self) -> dict:
        """What to show of it."""
        if self.state is None:
            return {}
        facts = facts_of(self.state, sum(t.numel() for t in self.state["model"].values()))
        files = [p for p in (self.path, *self.path.rglob("*")) if p.is_file()]
        moments = [t for m in self.optimizer or () for t in m.tensors.values()]
        facts["bytes"] = sum(p.stat().st_size for p in files)
        facts["progress"] = (self.state.get("schedule") or {}).get("progress")
        facts["optimizer_bytes"] = sum(t.nbytes for t in moments) or None
        facts["codec"] = (self.state.get("codec") or {}).get("name")
        return {k: v for k, v in facts.items() if v is not None}

    @cached_property
    def weights(self) -> dict[str, Tensor] | None:
        return None if self.state is None else floating(self.state["model"])

    @cached_property
    def ema(self) -> dict[str, Tensor] | None:
        return floating((self.state or {}).get("ema")) or None

    @cached_property
    def optimizer(self) -> list[Moments] | None:
        if self.state is None:
            return None
        saved = self.state.get("optimizer")
        return read_optimizer(saved, self.weights, self.model, self.flags(OptimConfig))

    @cached_property
    def updates(self) -> dict[str, float]:
        """Rms of the next update of each tensor, where it is known and finite."""
        updates = {m.name: m.next_update for m in self.optimizer or ()}
        return {k: u for k, u in updates.items() if u is not None and isfinite(u)}

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
    if is_exported(where):
        return _open_exported(where)
    exp_dir = last_stage(where) if where.is_dir() else _experiment_of(where)
    log = exp_dir / "metrics.jsonl" if exp_dir else None
    has_log = log is not None and log.is_file()
    if where.is_dir() and which in NAMES and has_log:
        path = exp_dir / f"{which}.pt"  # if it is gone the log is left
    elif not (path := find_checkpoint(where, which)).exists():
        raise UserError(f"{path}: no checkpoint there; check the path")
    checkpoint = CheckpointUnderTest(path, exp_dir=exp_dir, log=Log(log) if has_log else None)
    try:
        checkpoint.state = load_checkpoint(path)
        checkpoint.weights_only = "averaged" in checkpoint.state
        _build(checkpoint)
    except UserError as e:
        checkpoint.load_error = str(e)
    return checkpoint


def _experiment_of(path: Path) -> Path | None:
    """Experiment that a checkpoint lies in, perhaps in its archive."""
    folders = list(path.absolute().parents)[:2]
    return next((f for f in folders if (f / "metrics.jsonl").is_file()), None)


def _open_exported(path: Path) -> CheckpointUnderTest:
    checkpoint = CheckpointUnderTest(path, weights_only=True)
    try:
        checkpoint.model, info, about = load_model(path)
    except UserError as e:
        checkpoint.load_error = str(e)
        return checkpoint
    state = {"codec": info.to_dict(), "model_name": checkpoint.model.name, **(about or {})}
    weights = dict(checkpoint.model.state_dict())
    checkpoint.state = state | {"model": weights, "ema": None, "optimizer": None}
    return checkpoint


def _build(checkpoint: CheckpointUnderTest) -> None:
    """The model of the checkpoint's config."""
    state = checkpoint.state
    try:
        conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
        info = CodecInfo.from_dict(state["codec"])
        config = state["model_config"]
        checkpoint.model = build_model(state["model_name"], config, info, conditions)
    except Exception as e:  # a config of another version, or damaged, fails in any way it likes
        checkpoint.build_error = " ".join(str(e).split())[:200]


@rule("unusable", "file", "{what}", "{remedy}")
def does_not_load(c):
    if c.state is not None:
        return
    what, remedy = c.load_error.removeprefix(f"{c.path}: "), ""
    if not c.path.exists():
        what, remedy = "no such checkpoint, only the log is left", _instead(c)
    elif c.path.is_file() and (start := _first_bytes(c.path)) and start != b"PK\x03\x04":
        what = "no checkpoint: not a file of torch.save"
        remedy = "give the path of a checkpoint"
    elif c.path.is_file() and (reason := damage(c.path)):
        what, remedy = f"damaged: {reason}", _instead(c)
    # otherwise it is whole, but of another version or program: the message has the remedy
    yield {"what": what, "remedy": remedy}


def _first_bytes(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def _instead(c) -> str:
    """Which other checkpoint of the experiment loads, the newest first."""
    folder = c.exp_dir or c.path.parent
    others = [p for p in (*folder.glob("*.pt"), *folder.glob("archive/*.pt")) if p != c.path]
    for other in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            step = load_checkpoint(other, mapped=True, gather=False)["step"]
        except UserError:
            continue
        return f"{other} (step {step:,}) is intact: resume from it with --resume {other}"
    return "no other checkpoint there is intact: train again"


@rule("unusable", "file", "the model cannot be built: {reason}",
      "use the version that wrote the checkpoint ({version})")  # fmt: skip
def model_not_built(c):
    if c.build_error:
        version = c.state.get("rvqlm_version", "unknown")
        yield {"where": "model_config", "reason": c.build_error, "version": version}


@rule("unusable", "file", "weights do not fit model {name}: {differences}",
      "use another checkpoint, or --init-from for what fits")  # fmt: skip
def weights_do_not_fit(c):
    parts = (("model", "weights"), ("ema", "ema"))
    for part, subject in parts if c.model is not None else ():
        wanted = {k: tuple(t.shape) for k, t in c.model.state_dict().items()}
        there = {k: tuple(t.shape) for k, t in (c.state.get(part) or {}).items()}
        differing = sorted(k for k in wanted | there if wanted.get(k) != there.get(k))
        if differing and there:
            said = some(f"{k} is {there.get(k, 'missing')}, not {wanted.get(k, 'of this model')}"
                        for k in differing)  # fmt: skip
            name = c.state["model_name"]
            yield {"subject": subject, "where": part, "name": name, "differences": said}
