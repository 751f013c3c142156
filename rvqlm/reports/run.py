"""What the commands left in an experiment directory, read once for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.checkpoints.file import last_stage
from rvqlm.errors import UserError
from rvqlm.metrics.log import by_kind, read_log


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e}); run the command that writes it again") from None


@dataclass
class Run:
    """What an experiment directory holds, read once."""

    exp_dir: Path
    about: dict
    """run.json"""
    config: str
    train: list[dict]
    valid: list[dict]
    evaluations: dict[str, dict]
    """by split"""
    stages: list[tuple[str, float]] = field(default_factory=list)
    """(title, seconds) of a recipe's stages"""

    @classmethod
    def read(cls, exp_dir: Path) -> Run:
        training = last_stage(exp_dir)  # evaluation and samples lie beside the stages
        metrics = training / "metrics.jsonl"
        if not metrics.exists():
            raise UserError(
                f"{exp_dir} holds no training (no metrics.jsonl); "
                f"train first: rvqlm trainer --exp-dir {exp_dir}"
            )
        records = by_kind(read_log(metrics))
        run_json, config = training / "run.json", training / "config.yaml"
        evaluations = {}
        for path in sorted(exp_dir.glob("eval_*.json")):
            evaluations[path.stem.removeprefix("eval_")] = read_json(path)
        return cls(
            exp_dir=exp_dir,
            about=read_json(run_json) if run_json.exists() else {},
            config=config.read_text(encoding="utf-8") if config.exists() else "",
            train=records.get("train", []),
            valid=records.get("valid", []),
            evaluations=evaluations,
            stages=read_stages(exp_dir / "stages.tsv"),
        )


def read_stages(path: Path) -> list[tuple[str, float]]:
    """(title, seconds) per stage of a recipe's stages.tsv.

    Of a stage that ran several times the longest counts: later ones find their work done.
    """
    if not path.exists():
        return []
    longest: dict[int, tuple[float, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        stage, seconds, title = line.split("\t", 2)
        longest[int(stage)] = max(longest.get(int(stage), (-1.0, "")), (float(seconds), title))
    return [(title, seconds) for _, (seconds, title) in sorted(longest.items())]
