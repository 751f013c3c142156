"""Opening of what the doctor is to look at, whatever its state.

A damaged checkpoint is a finding that says what is damaged and which other files of the experiment
are whole; the log beside it is examined all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.checkpoints.exported import is_exported
from rvqlm.checkpoints.file import NAMES, damage, load_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, last_stage, load_model
from rvqlm.doctor.examine import Finding, some
from rvqlm.errors import UserError


@dataclass
class Patient:
    """What could be read."""

    path: Path
    state: dict | None = None
    """the checkpoint, tensors on the CPU; None where it is damaged"""
    model: object = None
    """the model that its config describes, with weights of its own; None where none can be
    built"""
    exp_dir: Path | None = None
    log_path: Path | None = None
    weights_only: bool = False
    """an exported model or a mean of checkpoints: nothing to go on from, and none is missed"""
    findings: list[Finding] = field(default_factory=list)
    facts: dict = field(default_factory=dict)

    @property
    def step(self) -> int:
        return (self.state or {}).get("step") or 0

    @property
    def config(self) -> dict:
        """Flags of the training, by kebab-case name."""
        return (self.state or {}).get("config") or {}


def open_patient(where: str | Path, which: str = "latest") -> Patient:
    """Read what is at a path; see `rvqlm.doctor.examine.examine`.

    :raises UserError: nothing is there.
    """
    where = Path(where)
    if is_exported(where):
        return _exported(where)
    path = _locate(where, which)
    folder = where if where.is_dir() else path.parent
    patient = Patient(path, exp_dir=last_stage(folder) if where.is_dir() else _experiment_of(path))
    log = patient.exp_dir / "metrics.jsonl" if patient.exp_dir else None
    patient.log_path = log if log is not None and log.is_file() else None
    if path.is_file():
        try:
            patient.state = load_checkpoint(path)
            patient.weights_only = "averaged" in patient.state
        except UserError as e:
            patient.findings.append(_unreadable(path, str(e), patient.exp_dir))
    else:  # an experiment whose checkpoint is gone: its log remains
        patient.findings.append(
            Finding(
                "unusable",
                "file",
                str(path),
                "no such checkpoint, only the log is left",
                _instead(path, patient.exp_dir),
            )
        )
    if patient.state is not None:
        _build(patient)
        patient.facts = _facts(patient)
    return patient


def _locate(where: Path, which: str) -> Path:
    if where.is_dir() and which in NAMES:
        folder = last_stage(where)
        path = folder / f"{which}.pt"
        if path.exists() or (folder / "metrics.jsonl").is_file():
            return path
    path = find_checkpoint(where, which)
    if not path.exists():
        raise UserError(f"{path}: no checkpoint there; check the path")
    return path


def _experiment_of(path: Path) -> Path | None:
    """Experiment that a checkpoint lies in, perhaps in its archive."""
    for folder in (path.absolute().parent, path.absolute().parent.parent):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None


def _exported(where: Path) -> Patient:
    patient = Patient(where, weights_only=True)
    try:
        model, info, state = load_model(where)
    except UserError as e:
        patient.findings.append(Finding("unusable", "file", str(where), str(e)))
        return patient
    weights = dict(model.state_dict())
    patient.state = {"codec": info.to_dict(), "model_name": model.name, **(state or {})}
    patient.state |= {"model": weights, "ema": None, "optimizer": None}
    patient.model, patient.facts = model, _facts(patient)
    return patient


def _build(patient: Patient) -> None:
    """The model of the checkpoint's config, and whether the weights are its."""
    from rvqlm.codec_info import CodecInfo
    from rvqlm.condition_info import ConditionInfo
    from rvqlm.models.factory import build_model

    state = patient.state
    try:
        conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
        info = CodecInfo.from_dict(state["codec"])
        model = build_model(state["model_name"], state["model_config"], info, conditions)
    except Exception as e:  # a config of another version, or damaged, fails in any way it likes
        patient.findings.append(
            Finding(
                "unusable",
                "file",
                "model_config",
                f"the model cannot be built: {' '.join(str(e).split())[:200]}",
                "use the version that wrote the checkpoint "
                f"({state.get('rvqlm_version', 'unknown')})",
            )
        )
        return
    patient.model = model
    wanted = {k: tuple(t.shape) for k, t in model.state_dict().items()}
    for part in ("model", "ema"):
        if state.get(part) is None:
            continue
        there = {k: tuple(t.shape) for k, t in state[part].items()}
        differences = [f"{k} is missing" for k in wanted.keys() - there.keys()]
        differences += [f"{k} is not of this model" for k in there.keys() - wanted.keys()]
        differences += [
            f"{k} is {there[k]}, not {wanted[k]}"
            for k in wanted.keys() & there.keys()
            if wanted[k] != there[k]
        ]
        if differences:
            patient.findings.append(
                Finding(
                    "unusable",
                    "weights" if part == "model" else "ema",
                    part,
                    f"weights do not fit model {state['model_name']}: {some(sorted(differences))}",
                    "use another checkpoint, or --init-from for what fits",
                )
            )


def _unreadable(path: Path, message: str, exp_dir: Path | None) -> Finding:
    """What is wrong with a file that does not load."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start and start != b"PK\x03\x04":
        what, remedy = "no checkpoint: not a file of torch.save", "give the path of a checkpoint"
        return Finding("unusable", "file", str(path), what, remedy)
    if reason := damage(path):
        return Finding("unusable", "file", str(path), f"damaged: {reason}", _instead(path, exp_dir))
    # whole, but of another version or program: the message has the remedy
    return Finding("unusable", "file", str(path), message.removeprefix(f"{path}: "))


def _instead(path: Path, exp_dir: Path | None) -> str:
    """Which other checkpoint of the experiment loads, the newest first."""
    folder = exp_dir or path.parent
    others = [p for p in (*folder.glob("*.pt"), *folder.glob("archive/*.pt")) if p != path]
    for other in sorted(others, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            step = load_checkpoint(other, mapped=True, gather=False)["step"]
        except UserError:
            continue
        return f"{other} (step {step:,}) is intact: go on from it with --resume {other}"
    return "no other checkpoint there is intact: train again"


def _facts(patient: Patient) -> dict:
    state = patient.state
    elapsed, schedule = state.get("elapsed"), state.get("schedule") or {}
    facts = {
        "model": state["model_name"],
        "parameters": sum(t.numel() for t in state["model"].values()),
        "bytes": _bytes(patient.path),
        "step": state.get("step"),
        "epoch": state.get("epoch"),
        "progress": schedule.get("progress"),
        "frames_trained": state.get("total_frames"),
        "hours_of_training": elapsed / 3600 if elapsed else None,
        "best": state.get("best"),
        "averaged_weights": state.get("ema") is not None,
        "optimizer_bytes": _tensor_bytes(state.get("optimizer")) or None,
        "codec": (state.get("codec") or {}).get("name"),
        "rvqlm_version": state.get("rvqlm_version"),
    }
    return {k: v for k, v in facts.items() if v is not None}


def _bytes(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files)


def _tensor_bytes(value) -> int:
    if isinstance(value, dict):
        return sum(_tensor_bytes(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensor_bytes(v) for v in value)
    return value.numel() * value.element_size() if hasattr(value, "element_size") else 0
