"""Text of the cuts of a token directory as columns of symbol ids beside their codes.

`prepare_text` makes the table from the texts of the training split and writes

- ``text.json``: the `ConditionInfo`, which a `TextFrontEnd` and a model are built from
- ``tokens.txt``: the symbols, in k2's format
- ``text_SPLIT.bin``: a ragged column (`rvqlm.data.ragged`), a row a cut, in the index's order
- ``text_prepared.json``: what each was made of, so that the same command again has nothing to do

Every text is read and spoken once and memory does not grow with their number: symbols get ids in
the order in which they turn up, and final ones when all are known. ``text.json`` is the last of the
files that others read, and goes away first, so that an interruption leaves no mixture.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import islice, tee
from pathlib import Path

import numpy as np

from rvqlm.cli import bar
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.conditions import discard, load_info, save_info
from rvqlm.data.index import TokenDataset, find_splits, manifest_path, read_manifest
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json
from rvqlm.frontends import espeak, phonemes
from rvqlm.frontends.durations import estimate
from rvqlm.frontends.pieces import UNKNOWN, train_pieces
from rvqlm.frontends.symbols import SPACE, SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings, describe, lookup, require_unicode
from rvqlm.frontends.text_config import TextConfig, digest
from rvqlm.frontends.transcripts import Transcript, text_fields, transcripts
from rvqlm.runtime import num_cores

TRAIN = "train"  # the split that the table comes from
_PIECES_TEXTS = 1_000_000  # texts that sentencepiece is trained on, at most
_FEW = 256  # texts that are not worth a process
_SHOWN = 8  # unknown symbols that a message names


@dataclass
class SplitReport:
    """What was made of one split."""

    cuts: int
    symbols: int = 0
    frames: int = 0
    """of codes, of the cuts that have text"""
    without: int = 0
    """cuts without text, or with nothing to say in it"""
    unknown: int = 0
    """symbols left out, or ``<unk>``"""


@dataclass
class TextReport:
    """What `prepare_text` did."""

    info: ConditionInfo
    splits: dict[str, SplitReport]
    up_to_date: bool = False
    """nothing had to be done"""


class _Column:
    """Ids of one split on their way to its file, in a temporary file."""

    def __init__(self, dataset: TokenDataset):
        self.dataset = dataset
        self.report = SplitReport(len(dataset))
        self.sizes = array("I")
        self._file = tempfile.TemporaryFile(dir=dataset.directory)  # noqa: SIM115, lives as long

    def add(self, ids: list[int]) -> None:
        if ids:
            self.report.symbols += len(ids)
            self.report.frames += int(self.dataset.frames[len(self.sizes)])
        else:
            self.report.without += 1
        self.sizes.append(len(ids))
        self._file.write(array("i", ids).tobytes())

    def rows(self, renumber: np.ndarray | None) -> Iterator[np.ndarray]:
        self._file.seek(0)
        for size in self.sizes:
            row = np.frombuffer(self._file.read(4 * size), np.int32)
            yield row if renumber is None else renumber[row]


class _Preparation:
    """The steps of `prepare_text`."""

    def __init__(self, config: TextConfig, like: ConditionInfo | None):
        self.config = config
        self.front_end = None if like is None else TextFrontEnd.from_info(like)
        self.settings = config.settings() if like is None else self.front_end.settings
        self.unknown: Counter[str] = Counter()
        self.first: dict[str, str] = {}  # where each unknown symbol was met first
        self.languages: Counter[str] = Counter()  # of the training split
        self.workers = config.workers or num_cores()

    def texts(self, dataset: TokenDataset, note: str = "") -> Iterator[Transcript]:
        """The texts of a split, with a language each where it needs one."""
        path, config = manifest_path(dataset.directory, dataset.split), self.config
        cuts = bar(read_manifest(path), dataset.split + note, len(dataset))
        spoken = self.settings.type == "phonemes"
        source = config.phonemes_field or config.field
        for item in transcripts(cuts, source, config.language_field, str(path)):
            try:
                require_unicode(item.text)
                if spoken and item.text:
                    item = self._with_language(item)
                if spoken and config.phonemes_field is None:
                    item = item._replace(text=self.settings.words(item.text))
                yield item
            except UserError as e:
                hint = "; name the field with --phonemes-field" if "are phonemes" in str(e) else ""
                raise UserError(f"{path}: cut {item.cut!r}: {e}{hint}") from None

    def _with_language(self, item: Transcript) -> Transcript:
        config, language = self.config, item.language
        if language is None:
            if config.language_field is not None and config.language is None and not config.like:
                raise UserError(
                    f"no language in {config.language_field}; give --language for cuts without"
                )
            language = self.settings.language
        if config.phonemes_field is None or config.language or config.language_field:
            espeak.voice_of(language)  # else espeak need not be there
        return item._replace(language=language)

    def symbols(self, dataset: TokenDataset) -> Iterator[tuple[Transcript, list[str]]]:
        """(text, its symbols) of every cut, for chars and phonemes."""
        settings = self.settings
        make = settings.of_chars if settings.type == "chars" else settings.of_phonemes
        if settings.type == "chars" or self.config.phonemes_field is not None:
            for item in self.texts(dataset):
                yield item, make(item.text)
            return
        items, ahead = tee(self.texts(dataset))
        pairs = ((t.text, t.language or settings.language) for t in ahead)
        workers = min(self.workers, len(dataset) // _FEW)  # starting one takes half a second
        for item, spoken in zip(items, phonemes.speak_all(pairs, workers)):
            yield item, make(spoken)

    def train(self, dataset: TokenDataset) -> tuple[_Column, np.ndarray]:
        """Make the table from a split; its column and the final ids of those in the column."""
        column, met = _Column(dataset), {}
        for item, symbols in self.symbols(dataset):
            if item.language is not None:
                self.languages[item.language] += 1
            column.add([met.setdefault(symbol, len(met)) for symbol in symbols])
        self.require_text(column)
        order = sorted(met, key=lambda symbol: (symbol != SPACE, symbol))
        table = SymbolTable.of(order)
        self.front_end = TextFrontEnd(self._seen_settings(table), table)
        return column, np.array([table[symbol] for symbol in met], np.int32)

    def _seen_settings(self, table: SymbolTable) -> TextSettings:
        """The settings for new texts: like the texts of the table."""
        settings, config = self.settings, self.config
        if config.phonemes_field is not None:
            has = "".join(table.symbols)
            settings = replace(
                settings,
                stress=any(c in has for c in phonemes.STRESS),
                punctuation=any(c in table for c in phonemes.PUNCTUATION),
            )
        if config.language_field is not None and config.language is None and self.languages:
            settings = replace(settings, language=self.languages.most_common(1)[0][0])
        return settings

    def train_pieces(self, dataset: TokenDataset) -> None:
        step = -(-len(dataset) // _PIECES_TEXTS)
        texts = (self.settings.normalize(t.text) for t in self.texts(dataset, ": pieces") if t.text)
        model = train_pieces(islice(texts, 0, None, step), self.config.num_pieces)
        self.front_end = TextFrontEnd.of_pieces(self.settings, model)

    def encode(self, dataset: TokenDataset) -> _Column:
        """The column of a split by the finished table."""
        column, front_end = _Column(dataset), self.front_end
        if self.settings.type == "bpe":
            for item in self.texts(dataset):
                ids = front_end.encode(item.text).tolist()
                column.report.unknown += ids.count(UNKNOWN)
                column.add(ids)
        else:
            for item, symbols in self.symbols(dataset):
                ids, unknown = lookup(front_end.table, symbols)
                for symbol in unknown:
                    self.unknown[symbol] += 1
                    self.first.setdefault(symbol, f"cut {item.cut!r} of {dataset.split}")
                column.report.unknown += len(unknown)
                column.add(ids)
        self.require_text(column)
        return column

    def require_text(self, column: _Column) -> None:
        if len(column.sizes) != len(column.dataset):
            raise UserError(
                f"the manifest of {column.dataset.split} has {len(column.sizes)} cuts, its index "
                f"{len(column.dataset)}; run rvqlm index --manifest-dir {column.dataset.directory}"
            )
        if column.report.symbols:
            return
        path = manifest_path(column.dataset.directory, column.dataset.split)
        field = self.config.phonemes_field or self.config.field
        fields = ", ".join(text_fields(next(read_manifest(path)))) or "none"
        raise UserError(
            f"{path}: no cut has text in {field!r}; fields with text in the first cut: {fields}; "
            "name one with --field, or leave the split out (--splits)"
        )

    def require_known(self) -> None:
        if not self.unknown or self.config.unknown == "drop":
            return
        named = [
            f"{describe(symbol)} {count} times, first in {self.first[symbol]}"
            if count > 1
            else f"{describe(symbol)} in {self.first[symbol]}"
            for symbol, count in self.unknown.most_common(_SHOWN)
        ]
        more = f" and {len(self.unknown) - _SHOWN} more" if len(self.unknown) > _SHOWN else ""
        raise UserError(
            f"symbols that the table lacks: {', '.join(named)}{more}; correct the texts, or leave "
            "these symbols out with --unknown drop"
        )


def prepare_text(config: TextConfig) -> TextReport:
    """Write the text columns of the splits; does nothing where they are as `config` wants them.

    Raises `UserError` for missing or old indexes, splits without any text, symbols that the table
    lacks, and whatever else a user can mend, before anything is changed.
    """
    directory, datasets, like, current = _open(config)
    if current is not None:
        return current
    made_of = config.made_of(like)
    work = _Preparation(config, like)
    columns: dict[str, tuple[_Column, np.ndarray | None]] = {}
    if like is None and config.type == "bpe":
        work.train_pieces(datasets[TRAIN])
    elif like is None:
        columns[TRAIN] = work.train(datasets[TRAIN])
    for split, dataset in datasets.items():
        if split not in columns:
            columns[split] = (work.encode(dataset), None)
    work.require_known()
    if like is None:
        trained = columns[TRAIN][0].report
        info = work.front_end.info(trained.frames / trained.symbols)
    else:
        info = like

    record = _discard_old(directory, datasets, info)
    for split, (column, renumber) in columns.items():
        path = column_path(directory, "text", split)
        write_ragged(path, column.rows(renumber), 1, column.dataset.fingerprint)
        record[split] = {
            **_identity(column.dataset),
            "made_of": made_of,
            "report": vars(column.report),
        }
    if like is None:
        train = Ragged.open(column_path(directory, "text", TRAIN), datasets[TRAIN].fingerprint)
        durations, margins = estimate(datasets[TRAIN], train, info.sizes[0])
        info = replace(info, durations=durations, margins=margins)
    work.front_end.table.to_file(directory / "tokens.txt")
    save_info(directory, info)
    write_json(directory / "text_prepared.json", {"text": digest(info.to_dict()), "splits": record})
    return TextReport(info, {split: column.report for split, (column, _) in columns.items()})


def preview(config: TextConfig) -> list[str]:
    """Lines that say what `prepare_text` would do, with the first text of each split."""
    _, datasets, like, current = _open(config)
    work = _Preparation(config, like)
    work.workers = 0
    state = "all is up to date" if current is not None else "these would be written"
    lines = [f"dry run, nothing is written; {state}:"]
    for split, dataset in datasets.items():
        lines.append(f"  {split:<6} {len(dataset):>9,} cuts")
        if work.settings.type == "bpe":
            first = next(((t.cut, t.text) for t in work.texts(dataset) if t.text), None)
        else:
            known = ((t.cut, " ".join(made)) for t, made in work.symbols(dataset) if made)
            first = next(known, None)
        lines.append("         no text" if first is None else f"         {first[0]}: {first[1]}")
    return lines


def _open(config: TextConfig):
    """(directory, data sets by split, info of --like, report if there is nothing to do)."""
    directory = Path(config.manifest_dir)
    splits = find_splits(directory, config.splits)
    datasets = {split: TokenDataset.open(directory, split) for split in splits}
    like = None
    if config.like is not None:
        remedy = f"run rvqlm text --manifest-dir {config.like} first"
        like = load_info(Path(config.like), "text", remedy)
        if problems := config.misfits(like.settings.get("type", "")):
            raise UserError("; ".join(problems))
    elif TRAIN not in datasets:
        raise UserError(
            f"the table is made from the split {TRAIN!r}, which is not among {', '.join(splits)}; "
            "add it, or give --like with the directory whose table to use"
        )
    return directory, datasets, like, _current(directory, datasets, config.made_of(like))


def _identity(dataset: TokenDataset) -> dict:
    """Of the data that a column is made from; the index does not know texts, the manifest does."""
    manifest = dataset.header["manifest"]["sha256"]
    return {"fingerprint": dataset.fingerprint, "manifest": manifest}


def _current(directory: Path, datasets: dict[str, TokenDataset], made_of: dict):
    """The report of the earlier run if it made the same of the same; else None."""
    try:
        info = load_info(directory, "text", "")
        table = SymbolTable.from_file(directory / "tokens.txt")
        record = read_json(directory / "text_prepared.json", "")
        symbols = [table[id] for id in table.ids]
        if record["text"] != digest(info.to_dict()) or symbols != info.settings["symbols"]:
            return None
        reports = {}
        for split, dataset in datasets.items():
            entry = record["splits"][split]
            if entry["made_of"] != made_of or not _identity(dataset).items() <= entry.items():
                return None
            Ragged.open(column_path(directory, "text", split), dataset.fingerprint)
            reports[split] = SplitReport(**entry["report"])
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: made again
    return TextReport(info, reports, up_to_date=True)


def _discard_old(directory: Path, splits: Container[str], info: ConditionInfo) -> dict:
    """Remove what does not go with the new table; returns the record of what does."""
    path = directory / "text_prepared.json"
    try:
        same = load_info(directory, "text", "").settings == info.settings
        record = read_json(path, "", convert=lambda prepared: dict(prepared["splits"]))
    except UserError:  # missing or damaged
        same, record = False, {}
    path.unlink(missing_ok=True)
    if same:
        return {split: entry for split, entry in record.items() if split not in splits}
    discard(directory, "text")
    return {}
