"""What the commands left in an experiment directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvqlm.errors import UserError
from rvqlm.files import read_json
from rvqlm.metrics.log import by_kind, read_log

REMEDY = "run the command that writes it again"
"""Where a JSON file of an experiment is damaged."""


@dataclass
class Training:
    """One training: that of an experiment directory, or a stage of it. What is missing is empty."""

    folder: Path
    about: dict
    """run.json"""
    config: str
    """config.yaml"""
    log: dict[str, list[dict]]
    """Records of metrics.jsonl by kind, ordered by step."""

    @classmethod
    def read(cls, folder: Path) -> Training:
        """:raises UserError: damaged files."""
        names = ("run.json", "config.yaml", "metrics.jsonl")
        about, config, log = (folder / name for name in names)
        return cls(
            folder=folder,
            about=read_json(about, REMEDY) if about.exists() else {},
            config=config.read_text(encoding="utf-8") if config.exists() else "",
            log=by_kind(read_log(log)) if log.exists() else {},
        )

    @property
    def family(self) -> str | None:
        """Name of the model's family, where run.json says it."""
        return self.about.get("model")

    @property
    def scores_hidden_codes(self) -> bool:
        """Whether figures of training are of random hidden codes alone, and so compare with no
        figure of held-out recordings, which are of all codes."""
        return self.family == "masked"

    @property
    def recognizes(self) -> bool:
        """Whether the model writes down what it hears and predicts no codes."""
        return self.family == "recognizer"

    @property
    def train(self) -> list[dict]:
        return self.log.get("train", [])

    @property
    def valid(self) -> list[dict]:
        return self.log.get("valid", [])

    def flags(self) -> dict:
        """The flags of config.yaml, by kebab-case name.

        :raises UserError: it holds something else.
        """
        import yaml

        try:
            flags = yaml.safe_load(self.config)
            flags["model-name"]
        except (yaml.YAMLError, KeyError, TypeError) as e:
            reason, path = " ".join(str(e).split()), self.folder / "config.yaml"
            raise UserError(f"{path}: not flags of rvqlm trainer ({reason})") from None
        return flags


def stage_folders(exp_dir: Path) -> list[Path]:
    """EXP/stageN of a model that is trained in stages, in order."""
    found = [p for p in exp_dir.glob("stage[0-9]*") if p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("stage")))


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
