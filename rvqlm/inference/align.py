"""`rvqlm align`: makes the times of texts, measures them against others, and hands them out."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from rvqlm.cli import bar
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import Ragged
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.exchange.alignments import Supervisions, TextGrids, open_items
from rvqlm.files import Count, Finite, atomic_open, json_line, read_json, read_jsonl, write_json
from rvqlm.frontends.aligned import UNITS, Labels
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.frontends.transcripts import transcripts
from rvqlm.inference.aligner import Aligned, ByRecognizer, SplitTexts
from rvqlm.inference.model_args import ModelArgs
from rvqlm.models.recognizer import Recognizer


@dataclass
class AlignConfig:
    """Flags of `rvqlm align`."""

    manifest_dir: Path
    """Token directory with text (rvqlm text)."""
    recognizer: str = ""
    """Align by this recogniser, of the directory's codec and table: an experiment of rvqlm train
    --model-name recognizer, or a checkpoint file."""
    import_from: str = ""
    """Or take the alignments of another aligner: "supervisions", those that the cuts carry
    (lhotse's alignment items), or a folder of TextGrids, named as the cuts or their recordings."""
    against: str = ""
    """Measure the alignments against others, given in the same way."""
    tier: str = ""
    """Which items of --import-from and --against: word, or the name of those that are symbols of
    the text, phone (of phonemes), char or piece unless given."""
    export: Literal["lhotse", "textgrid", "srt", "vtt"] | None = None
    """Write the alignments into --out-dir. lhotse: manifests of the cuts with alignment items;
    textgrid: tiers of symbols and words; srt, vtt: subtitles."""
    out_dir: Path | None = None
    """Folder for --export."""
    splits: tuple[str, ...] = ()
    """Only these; none given: all that have a manifest."""
    batch_seconds: float = 120.0
    """Seconds of audio, padding included, that the recogniser hears at a time."""
    worst: float = 0.05
    """Share of the cuts that align_outliers_SPLIT.jsonl lists with their scores; 1: all."""
    dry_run: bool = False
    """Say which splits would be aligned; write nothing."""
    model: ModelArgs = field(default_factory=ModelArgs)

    def check(self) -> None:
        problems = []
        if self.recognizer and self.import_from:
            problems.append("give one of --recognizer and --import-from")
        if not (self.recognizer or self.import_from or self.against or self.export):
            problems.append("give --recognizer or --import-from, --against or --export")
        if (self.export is None) != (self.out_dir is None):
            problems.append("--export and --out-dir go together")
        elif self.out_dir is not None and self.out_dir.resolve() == self.manifest_dir.resolve():
            problems.append("--out-dir is the token directory; give another")
        if self.dry_run and not (self.recognizer or self.import_from):
            problems.append("--dry-run is for --recognizer and --import-from")
        if self.tier and not (self.import_from or self.against):
            problems.append("--tier is for --import-from and --against")
        if not 0 < self.worst <= 1:
            problems.append(f"--worst {self.worst:g}: above 0, at most 1")
        if not 0 < self.batch_seconds < float("inf"):
            problems.append(f"--batch-seconds {self.batch_seconds:g}: a positive number")
        if problems:
            raise UserError("; ".join(problems))


def open_texts(directory: Path, split: str) -> SplitTexts:
    """A split with its text; `UserError` as `ConditionSet.open`."""
    dataset = TokenDataset.open(directory, split)
    info = ConditionSet.open(dataset, ["text"]).infos["text"]
    column = Ragged.open(column_path(directory, "text", split), dataset.fingerprint)
    return SplitTexts(dataset, column, info, Labels(TextFrontEnd.from_info(info)))


class ByItems:
    """Alignments of another aligner."""

    def __init__(self, items: Supervisions | TextGrids, given: str, tier: str):
        self.items, self.given, self.tier = items, given, tier

    def about(self) -> dict:
        return {"imported_from": self.given, "tier": self.tier}

    def align(self, texts: SplitTexts) -> Iterator[Aligned]:
        for row, cut in enumerate(texts.dataset.cuts()):
            ids = texts.column.read(row)[:, 0]
            try:
                yield Aligned(self.place(cut, ids, texts.labels).times if len(ids) else None)
            except UserError as e:
                yield Aligned(None, None, str(e))

    def place(self, cut: dict, ids: np.ndarray, labels: Labels):
        """`Labels.place` of the items of a cut; `UserError` where they are not those of the text,
        or there are none."""
        tier = self.tier or UNITS[labels.type]
        return labels.place(ids, self.items.items(cut, tier), tier, cut["duration"])


# ------------------------------------------------------------------------------------ making


class Scores(TypedDict):
    """Nats a symbol, over the cuts of a split."""

    mean: Finite
    median: Finite
    worst: Finite
    """of those that are listed, the highest"""
    share: Finite
    """of the cuts that are listed"""


class Entry(TypedDict):
    """What the record says of a split; beside it where the alignments come from."""

    made_by: dict
    """`about` of the aligner"""
    cuts: Count
    aligned: Count
    without_text: Count
    not_aligned: Count
    score: NotRequired[Scores]


class Outlier(TypedDict):
    """A line of ``align_outliers_SPLIT.jsonl``."""

    id: str
    text: str
    symbols: str
    problem: NotRequired[str]
    score: NotRequired[Finite]


class Record:
    """``align.json``: how the alignments of each split were made."""

    def __init__(self, directory: Path):
        self.path = directory / "align.json"
        self.splits: dict[str, Entry] = {}
        if self.path.exists():
            remedy = "remove it and run rvqlm align again"
            found = read_json(self.path, remedy, type=dict[str, dict[str, Entry]])
            self.splits = dict(found.get("splits", {}))

    def put(self, split: str, entry: Entry | None) -> None:
        """Write the entry of a split; None: it is about to be made again."""
        self.splits.pop(split, None)
        if entry is not None:
            self.splits[split] = entry
        write_json(self.path, {"splits": self.splits})


def open_aligner(config: AlignConfig) -> tuple[ByRecognizer | ByItems, dict]:
    """What makes the alignments, and what is recorded of where it comes from."""
    if config.import_from:
        return ByItems(open_items(config.import_from), config.import_from, config.tier), {}
    model, path, state, _ = config.model.load(config.recognizer)
    if not isinstance(model, Recognizer):
        raise UserError(
            f"--recognizer {path}: this is a {model.name}; train a recogniser with rvqlm train "
            "--model-name recognizer"
        )
    about = {"recognizer": str(path), "step": int(state["step"])}
    return ByRecognizer(model, str(path), config.batch_seconds), about


def up_to_date(
    record: Record, aligner: ByRecognizer | ByItems, texts: SplitTexts, share: float
) -> bool:
    """Whether a split was aligned by the same recogniser, from the same codes and text, and so many
    outliers listed. What is imported may have changed."""
    entry = record.splits.get(texts.dataset.split)
    if isinstance(aligner, ByItems) or entry is None or entry["made_by"] != aligner.about():
        return False
    if "score" in entry and entry["score"]["share"] != share:
        return False
    try:
        TextTimes.open(texts.dataset, texts.column)
    except UserError:
        return False
    return outliers_path(texts.dataset).exists()


def read_outliers(dataset: TokenDataset) -> list[Outlier]:
    """What `align_split` listed: first the texts without alignment, then the worst."""
    path = outliers_path(dataset)
    return list(read_jsonl(path, str(path), "run rvqlm align again", Outlier))


def outliers_path(dataset: TokenDataset) -> Path:
    return dataset.directory / f"align_outliers_{dataset.split}.jsonl"


def align_split(aligner: ByRecognizer | ByItems, texts: SplitTexts, share: float) -> dict:
    """Write the times of a split and its outliers, a share of the cuts; returns counts and scores
    for the record."""
    dataset, column = texts.dataset, texts.column
    scores, problems, aligned = array("d"), {}, 0

    def rows() -> Iterator[np.ndarray | None]:
        nonlocal aligned
        for row, found in enumerate(bar(aligner.align(texts), dataset.split, len(dataset))):
            scores.append(float("nan") if found.score is None else found.score)
            if found.problem:
                problems[row] = found.problem
            aligned += found.times is not None
            yield found.times

    TextTimes.write(dataset, column, rows())
    values = np.array(scores)
    scored = np.flatnonzero(~np.isnan(values))
    worst = scored[np.argsort(values[scored], kind="stable")][: int(np.ceil(share * len(scored)))]
    _write_outliers(texts, values, worst.tolist(), problems)
    summary = {
        "cuts": len(dataset),
        "aligned": aligned,
        "without_text": int((column.lengths == 0).sum()),
        "not_aligned": len(problems),
    }
    if len(scored):
        summary["score"] = {
            "mean": float(values[scored].mean()),
            "median": float(np.median(values[scored])),
            "worst": float(values[worst[-1]]),
            "share": share,
        }
    return summary


def _write_outliers(
    texts: SplitTexts, scores: np.ndarray, worst: list[int], problems: dict[int, str]
) -> None:
    """What has no alignment, in the order of the index, then the worst scores, worst first."""
    wanted = {*problems, *worst}
    lines = {}
    for row, cut in enumerate(texts.dataset.cuts()) if wanted else ():
        if row in wanted:
            about = {"problem": problems[row]} if row in problems else {"score": scores[row]}
            symbols = texts.labels.front_end.decode(texts.column.read(row)[:, 0])
            about |= {"text": next(transcripts([cut], "text", None)).text}
            about["symbols"] = symbols
            lines[row] = json_line({"id": cut["id"], **about})
    with atomic_open(outliers_path(texts.dataset)) as file:
        file.writelines(lines[row] for row in [*sorted(problems), *worst])


# --------------------------------------------------------------------------------- measuring


class BoundaryErrors(NamedTuple):
    """How far begins and ends of symbols are from those that others found."""

    boundaries: int
    cuts: int
    left_out: int
    """cuts that one of the two has not, or not of the same symbols"""
    median_ms: float
    p90_ms: float
    bias_ms: float
    """median of what they are late"""


def compare(texts: SplitTexts, times: TextTimes, other: ByItems) -> BoundaryErrors:
    """Boundaries that the other aligner does not give, as within a diphthong, are not compared.

    Raises `UserError` where there is nothing to compare, with the reason of the first cut.
    """
    errors, left_out, why = [], 0, ""
    for row, cut in enumerate(bar(texts.dataset.cuts(), texts.dataset.split, len(texts.dataset))):
        ids, mine = texts.column.read(row)[:, 0], times.read(row)
        if not len(ids):
            continue
        try:
            if mine is None:
                raise UserError("it was not aligned")
            placed = other.place(cut, ids, texts.labels)
        except UserError as e:
            left_out, why = left_out + 1, why or f"cut {cut['id']!r}: {e}"
            continue
        errors.append((mine - placed.times)[placed.known].astype(np.float32))
    if not errors:
        raise UserError(f"--against: no cut of split {texts.dataset.split!r} has both; {why}")
    late = np.concatenate(errors) * 1000
    median, p90 = np.percentile(abs(late), [50, 90]).tolist()
    return BoundaryErrors(len(late), len(errors), left_out, median, p90, float(np.median(late)))
