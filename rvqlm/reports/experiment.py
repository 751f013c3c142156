"""What the commands left in an experiment directory."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rvqlm.cli import counted, flatten
from rvqlm.cores import SHARED
from rvqlm.errors import UserError
from rvqlm.files import parse_yaml, read_text
from rvqlm.metrics.log import by_kind, read_log, read_run
from rvqlm.metrics.schemas import Extent
from rvqlm.models.factory import model_entry
from rvqlm.training.config import flags_class

REMEDY = "run the command that writes it again"
"""Where a JSON file of an experiment is damaged."""


_STAGE = re.compile(r"([0-9]{1,6})\t([0-9]{1,12}(?:\.[0-9]*)?)\t(.*)", re.ASCII)

_Named = TypedDict("_Named", {"model-name": str})
_BUDGET = ("num-epochs", "max-steps", "max-minutes", "accum")
_Budget = TypedDict("_Budget", dict.fromkeys(_BUDGET, Extent), total=False)


class Flags(_Named, _Budget):
    """``config.yaml``: of its flags those that are read one by one."""


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
        config, log = (folder / name for name in ("config.yaml", "metrics.jsonl"))
        return cls(
            folder=folder,
            about=read_run(folder),
            config=read_text(config) if config.exists() else "",
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

    @property
    def throughput(self) -> float | None:
        """Frames a second of the whole training, validations and all other pauses included."""
        last = self.train[-1] if self.train else {}
        frames, seconds = last.get("total_frames"), last.get("elapsed")
        return frames / seconds if frames and seconds else None

    @property
    def shared(self) -> str:
        """When others used a good part of the cores, in words; empty where they did not, or where
        the log does not know."""
        cores = (self.about.get("machine") or {}).get("cores") or 1
        known = [r for r in self.train if r.get("other_cores") is not None]
        found = [r for r in known if r["other_cores"] >= SHARED * cores]
        if not found:
            return ""
        used = statistics.fmean(r["other_cores"] for r in found)
        return (
            f"shared in {len(found)} of {counted(len(known), 'line')} of the log (steps "
            f"{found[0]['step']:,} to {found[-1]['step']:,}): others used {used:.1f} of "
            f"{counted(cores, 'core')}"
        )

    def flags(self) -> dict:
        """The flags of config.yaml, by kebab-case name.

        :raises UserError: it holds something else.
        """
        what = f"{self.folder / 'config.yaml'}: not flags of rvqlm trainer"
        return parse_yaml(self.config, what, Flags)


def median_speed(records: Iterable[dict]) -> float | None:
    """Median of the frames a second that single lines of a log have."""
    speeds = [r.get("frames_per_second") or math.nan for r in records]
    return statistics.median_high(known) if (known := [*filter(math.isfinite, speeds)]) else None


def default_flags(family: str) -> dict:
    """All flags of a family as they are when none is given."""
    return flatten(flags_class(model_entry(family)[0])(exp_dir="", manifest_dir=""))


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
    for number, line in enumerate(read_text(path).splitlines(), 1):
        found = _STAGE.fullmatch(line)
        if found is None:
            raise UserError(
                f"{path}, line {number}: not a number, seconds and a title; delete that line"
            )
        stage = int(found[1])
        longest[stage] = max(longest.get(stage, (-1.0, "")), (float(found[2]), found[3]))
    return [(title, seconds) for _, (seconds, title) in sorted(longest.items())]
