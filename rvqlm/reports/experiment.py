"""What the commands left in an experiment directory and of its data, and the command lines that
make what is not there."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypedDict

from rvqlm.cli import command_line, counted, flatten
from rvqlm.cores import SHARED
from rvqlm.errors import UserError
from rvqlm.files import parse_yaml, read_jsonl, read_text
from rvqlm.metrics.log import by_kind, read_log, read_run
from rvqlm.metrics.schemas import Extent
from rvqlm.models.factory import model_entry
from rvqlm.training.config import flags_class

REMEDY = "run the command that writes it again"
"""Where a JSON file of an experiment is damaged."""
SHOWN = 3
"""Examples of what was left out of the data."""
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


@dataclass
class Commands:
    """Command lines of an experiment, to be pasted into a shell."""

    exp_dir: Path | str
    tokens: Path | str = "TOKENS"
    split: str = "test"

    def _line(self, name: str, *argv: object) -> str:
        return command_line(name, [*map(str, argv)])

    @property
    def _data(self) -> tuple:
        return "--manifest-dir", self.tokens, "--split", self.split

    def evaluate(self, *more: str) -> str:
        return self._line("evaluate", "--exp-dir", self.exp_dir, *self._data, *more)

    def run_freely(self, prompt_fraction: float = 0.0) -> str:
        """:param prompt_fraction: of the evaluation that is there, which is written anew."""
        given = ("--prompt-fraction", f"{prompt_fraction:g}") if prompt_fraction else ()
        return self.evaluate("--free-running", "16", *given)

    def generate(self, *more: str) -> str:
        return self._line("generate", "--exp-dir", self.exp_dir, *more)

    def recognize(self, samples: Path) -> str:
        return self._line("recognize", "--recognizer", "RECOGNIZER", "--samples", samples)

    def recognize_recordings(self) -> str:
        """Of an experiment that is a recogniser."""
        return self._line("recognize", "--recognizer", self.exp_dir, *self._data)

    def judge(self) -> str:
        data = "--references", self.tokens, "--split", self.split
        return self._line("judge", "--samples", self.exp_dir, *data)

    def check(self, recognizer: Path | str | None) -> str:
        """:param recognizer: of what is said; None: the model says nothing."""
        heard = ("--recognizer", recognizer) if recognizer else ()
        return self._line("check", self.exp_dir, *self._data, *heard)

    def grid(self, recognizer: Path | str | None) -> str:
        heard = ("--recognizer", recognizer) if recognizer else ()
        return self._line(
            "grid", "--exp-dir", self.exp_dir, "--manifest-dir", self.tokens, *heard,
            "--temperature", "0.6", "0.8", "1",
        )  # fmt: skip

    def listen(self) -> str:
        out = Path(self.exp_dir) / "listening.html"
        return self._line(
            "listen", "make", "--exp-dirs", self.exp_dir, *self._data, "--recordings", "--out", out
        )


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


# ------------------------------------------------------------------------- left out of the data


@dataclass
class LeftOut:
    """A list of items that a command skipped, or kept with a warning."""

    path: Path
    number: int
    examples: list[str]
    """The first ones with their reasons."""

    @property
    def skipped(self) -> bool:
        return self.path.stem.endswith("skipped")

    def words(self) -> str:
        what = "left out" if self.skipped else "kept with a warning"
        more = "; ..." if self.number > len(self.examples) else ""
        return (
            f"{counted(self.number, 'item')} {what} ({self.path}): "
            + "; ".join(self.examples)
            + more
        )


def left_out(manifest_dir: Path, sidecar: dict) -> list[LeftOut]:
    """The lists of skipped and of doubtful items beside the tokens and beside the manifest that
    they were made from, where rvqlm audio writes them; lists of nothing are left out.

    :param sidecar: tokens.json.
    """
    source = (sidecar.get("input") or {}).get("path")
    folders = [manifest_dir] + ([Path(source).parent] if source else [])
    found, seen = [], set()
    for folder in folders:
        if not folder.is_dir() or (place := folder.resolve()) in seen:
            continue
        seen.add(place)
        for ending in ("skipped", "warned"):
            for path in sorted(folder.glob(f"*{ending}.jsonl")):
                entries = read_jsonl(path, str(path), REMEDY)
                examples = [_reason(entry) for entry in islice(entries, SHOWN)]
                if examples:
                    found.append(LeftOut(path, len(examples) + sum(1 for _ in entries), examples))
    return found


def _reason(entry: dict) -> str:
    name = entry.get("path") or entry.get("id") or "?"
    return f"{name}: {entry.get('reason') or entry.get('warning') or 'no reason given'}"
