"""Text of the cuts of a token directory as columns of symbol ids beside their codes.

`prepare_text` makes the table from the texts of the training split and writes

- ``text.json``: the `ConditionInfo`, which a `TextFrontEnd` and a model are built from
- ``tokens.txt``: the symbols, in k2's format
- ``text_SPLIT.bin``: a ragged column (`rvqlm.data.ragged`), a row a cut, in the index's order
- ``text_skipped_SPLIT.jsonl``: the cuts without text or with one that cannot be used, and why
- ``text_prepared.json``: what each was made of, so that the same command again has nothing to do

Every text is read and spoken once and memory does not grow with their number: symbols get ids in
the order in which they turn up, and final ones when all are known. ``text.json`` is the last of the
files that others read, and goes away first, so that an interruption leaves no mixture.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
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
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.files import fits, read_json, write_json
from rvqlm.frontends import phonemes
from rvqlm.frontends.durations import estimate
from rvqlm.frontends.pieces import train_pieces
from rvqlm.frontends.symbols import SPACE, SymbolTable
from rvqlm.frontends.text import (
    TextFrontEnd,
    TextSettings,
    describe,
    lookup,
    require_unicode,
    shorten,
)
from rvqlm.frontends.text_column import Column, SplitReport, skipped_path
from rvqlm.frontends.text_config import TextConfig, digest
from rvqlm.frontends.text_language import tag_of
from rvqlm.frontends.transcripts import Transcript, text_fields, transcripts
from rvqlm.runtime import num_cores

TRAIN = "train"  # the split that the table comes from
_PIECES_TEXTS = 1_000_000  # texts that sentencepiece is trained on, at most
_FEW = 256  # texts that are not worth a process
_SHOWN = 8  # unknown symbols that a message names


@dataclass
class TextReport:
    """What `prepare_text` did."""

    info: ConditionInfo
    splits: dict[str, SplitReport]
    up_to_date: bool = False
    """nothing had to be done"""


class _Preparation:
    """The steps of `prepare_text`."""

    def __init__(self, config: TextConfig, like: ConditionInfo | None):
        self.config = config
        self.front_end = None if like is None else TextFrontEnd.from_info(like)
        self.settings = config.settings() if like is None else self.front_end.settings
        self.workers = config.workers or num_cores()

    def texts(self, column: Column, note: str = "") -> Iterator[Transcript]:
        """The texts of a split as its symbols are made of them, with the tag of a language where
        they are spoken; empty ones with a `problem` where they cannot be used."""
        dataset, config = column.dataset, self.config
        path = manifest_path(dataset.directory, dataset.split)
        cuts = bar(read_manifest(path), dataset.split + note, len(dataset))
        field = config.phonemes_field or config.field
        language = None
        if self.settings.type == "phonemes" and (not config.language or config.language_field):
            language = config.language_field or "language"
        for item in transcripts(cuts, field, language):
            if item.text and item.problem is None:
                try:
                    item = self._prepared(item, column)
                except UserError as e:
                    item = item._replace(text="", language=None, problem=str(e))
            if item.problem and config.unknown == "error" and self.settings.type != "bpe":
                raise UserError(f"{path}: cut {item.cut!r}: {self._hint(item.problem)}")
            yield item

    def _prepared(self, item: Transcript, column: Column) -> Transcript:
        settings, config = self.settings, self.config
        require_unicode(item.text)
        tag = None
        if settings.type == "phonemes":
            tag = self._language(item, column)
        if config.phonemes_field is not None:
            return item._replace(language=tag)
        if settings.type == "phonemes":
            text = settings.words(item.text, tag, column.said)
        else:
            text = settings.normalize(item.text, column.said)
        problem = None if text else f"no word in {shorten(item.text)}"
        return Transcript(item.cut, text, tag if text else None, problem)

    def _language(self, item: Transcript, column: Column) -> str:
        config, language = self.config, item.language
        if language is None:
            if config.language_field is not None and config.language is None and not config.like:
                raise UserError(
                    f"no language in {config.language_field}; give --language for cuts without"
                )
            column.report.assumed += not config.language and not config.like
            language = self.settings.language
        if config.phonemes_field is not None and not config.language_field:
            return language  # nothing is spoken, and espeak need not be there
        return tag_of(language)

    @staticmethod
    def _hint(problem: str) -> str:
        phonemic = "are phonemes" in problem
        return problem + ("; name the field with --phonemes-field" if phonemic else "")

    def symbols(self, column: Column) -> Iterator[tuple[Transcript, list[str]]]:
        """(text, its symbols) of every cut, for chars and phonemes."""
        settings = self.settings
        make = settings.of_chars if settings.type == "chars" else settings.of_phonemes
        if settings.type == "chars" or self.config.phonemes_field is not None:
            for item in self.texts(column):
                yield item, make(item.text)
            return
        items, ahead = tee(self.texts(column))
        pairs = ((t.text, t.language or settings.language) for t in ahead)
        workers = min(self.workers, len(column.dataset) // _FEW)  # one takes half a second to start
        spoken = phonemes.speak_all(pairs, workers, plain=bool(settings.normalization))
        for item, said in zip(items, spoken):
            yield item, make(said)

    def train(self, dataset: TokenDataset) -> tuple[Column, np.ndarray]:
        """Make the table from a split; its column and the final ids of those in the column."""
        column, met = Column(dataset), {}
        for item, symbols in self.symbols(column):
            column.add(item, [met.setdefault(symbol, len(met)) for symbol in symbols])
        self.finish(column)
        order = sorted(met, key=lambda symbol: (symbol != SPACE, symbol))
        table = SymbolTable.of(order)
        settings = self._seen_settings(table, column.report.languages)
        self.front_end = TextFrontEnd(settings, table)
        return column, np.array([table[symbol] for symbol in met], np.int32)

    def _seen_settings(self, table: SymbolTable, languages: dict[str, int]) -> TextSettings:
        """The settings for new texts: like the texts of the table."""
        settings, config = self.settings, self.config
        if config.phonemes_field is not None:
            has = "".join(table.symbols)
            settings = replace(
                settings,
                stress=any(c in has for c in phonemes.STRESS),
                punctuation=any(c in table for c in phonemes.PUNCTUATION),
            )
        if config.language is None and languages:
            settings = replace(settings, language=max(languages, key=languages.get))
        return settings

    def train_pieces(self, dataset: TokenDataset) -> None:
        step = -(-len(dataset) // _PIECES_TEXTS)
        texts = (t.text for t in self.texts(Column(dataset), ": pieces") if t.text)
        model = train_pieces(islice(texts, 0, None, step), self.config.num_pieces)
        self.front_end = TextFrontEnd.of_pieces(self.settings, model)

    def encode(self, dataset: TokenDataset) -> Column:
        """The column of a split by the finished table."""
        column, front_end = Column(dataset), self.front_end
        if self.settings.type == "bpe":
            for item in self.texts(column):
                column.add(item, *front_end.encode_pieces(item.text))
        else:
            for item, symbols in self.symbols(column):
                column.add(item, *lookup(front_end.table, symbols))
        self.finish(column)
        return column

    def finish(self, column: Column) -> None:
        """Complete the report of a column; `UserError` where there is no text at all."""
        dataset, report = column.dataset, column.report
        if len(column.sizes) != len(dataset):
            raise UserError(
                f"the manifest of {dataset.split} has {len(column.sizes)} cuts, its index "
                f"{len(dataset)}; run rvqlm index --manifest-dir {dataset.directory}"
            )
        report.said = {what: count for what, count in sorted(column.said.items()) if count}
        for symbol, count in column.unknown.most_common(_SHOWN):
            item = column.first[symbol]
            tag = None
            if self.settings.type == "phonemes" and self.config.phonemes_field is None:
                tag = item.language or self.settings.language
            word = self.settings.word_with(symbol, item.text, tag)
            where = f"the word {word!r} of " if word else ""
            times = f"{count} times, first in " if count > 1 else "in "
            report.named.append(f"{describe(symbol)} {times}{where}cut {item.cut!r}")
        if report.symbols:
            return
        path = manifest_path(dataset.directory, dataset.split)
        if report.left_out:
            assumed = f"; {report.assumed:,} name no language: give --language"
            raise UserError(
                f"{path}: none of its texts can be used; the first of {report.left_out:,}: "
                f"{self._hint(report.examples[0])}{assumed if report.assumed else ''}"
            )
        field = self.config.phonemes_field or self.config.field
        fields = ", ".join(text_fields(next(read_manifest(path)))) or "none"
        raise UserError(
            f"{path}: no cut has text in {field!r}; fields with text in the first cut: {fields}; "
            "name one with --field, or leave the split out (--splits)"
        )

    def require_known(self, columns: Iterable[Column]) -> None:
        if self.config.unknown == "drop" or self.settings.type == "bpe":
            return
        named = [f"{text} of {c.dataset.split}" for c in columns for text in c.report.named]
        if not named:
            return
        more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        raise UserError(
            f"symbols that the table lacks: {', '.join(named[:_SHOWN])}{more}; correct the texts, "
            "or leave these symbols out with --unknown drop"
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
    columns: dict[str, tuple[Column, np.ndarray | None]] = {}
    if like is None and config.type == "bpe":
        work.train_pieces(datasets[TRAIN])
    elif like is None:
        columns[TRAIN] = work.train(datasets[TRAIN])
    for split, dataset in datasets.items():
        if split not in columns:
            columns[split] = (work.encode(dataset), None)
    work.require_known(column for column, _ in columns.values())
    if like is None:
        trained = columns[TRAIN][0].report
        info = work.front_end.info(trained.frames / trained.symbols)
    else:
        info = like

    record = _discard_old(directory, datasets, info)
    for split, (column, renumber) in columns.items():
        path = column_path(directory, "text", split)
        TextTimes.path(directory, split).unlink(missing_ok=True)  # of what was there before
        write_ragged(path, column.rows(renumber), 1, column.dataset.fingerprint)
        column.write_skipped()
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
    prepared = {"text": digest(info.to_dict()), "splits": record}
    write_json(directory / "text_prepared.json", prepared, checksum=True)
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
        column = Column(dataset)
        if work.settings.type == "bpe":
            first = next(((t.cut, t.text) for t in work.texts(column) if t.text), None)
        else:
            known = ((t.cut, " ".join(made)) for t, made in work.symbols(column) if made)
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
            if not _same(entry["made_of"], made_of, entry["report"]):
                return None
            if not _identity(dataset).items() <= entry.items():
                return None
            Ragged.open(column_path(directory, "text", split), dataset.fingerprint)
            reports[split] = fits(entry["report"], SplitReport)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: made again
    return TextReport(info, reports, up_to_date=True)


def _same(before: dict, now: dict, report: dict) -> bool:
    """Whether a column was made as it would be now; one of an earlier version stays as it is, so
    that trainings with it go on, unless the language of its texts was not asked for then."""
    if "normalization" in before:
        return before == now
    rest = {k: v for k, v in now.items() if k not in ("normalization", "unknown")}
    known = now["language"] or now["language_field"] or now["phonemes_field"]
    return (
        rest == {k: v for k, v in before.items() if k != "unknown"}
        and (known or now["type"] != "phonemes" or now["like"])
        and (now["unknown"] == "drop" or not report["unknown"])
    )


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
    for skipped in directory.glob(skipped_path(directory, "*").name):
        skipped.unlink()
    return {}
