"""Recordings that samples are compared with: a folder of audio, a table, or a token directory."""

from __future__ import annotations

import csv
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from rvqlm.audio.file_source import FileSource
from rvqlm.audio.load import load_file
from rvqlm.audio.texts import texts_beside, texts_of_table
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.inference.held_out import HeldOutSplit
from rvqlm.judging.judge import Sound
from rvqlm.judging.sets import for_codec

COLUMNS = ("name", "path", "text", "language", "voice", "midi", "part")
"""Columns of a table of recordings; all but the first may be missing, or empty in a line."""
PARTS = ("new", "whole")
_LONGEST = 1e6  # seconds of a recording: all of it


@dataclass(frozen=True)
class Recording:
    """What is known of one recording before it is read."""

    name: str
    path: str | None = None
    """None where there is no recording, only what is to be said."""
    text: str | None = None
    language: str | None = None
    voice: str | None = None
    """A file of the speaker that a sample should sound like; None: the recording itself."""
    midi: str | None = None
    part: str | None = None
    """What of a sample with a prompt the text is of: ``new``, all behind the prompt, or ``whole``;
    None: not said."""


@dataclass(frozen=True)
class Heard:
    """A recording as audio."""

    recording: Recording
    original: Sound | None
    decoded: Sound | None
    """From its own codes."""
    remarks: tuple[str, ...] = ()
    """On what is missing."""


class Recordings(ABC):
    """Recordings by name."""

    label: str
    """What results call them."""
    codec: CodecInfo | None = None
    """That their tokens are of."""

    items: dict[str, Recording]

    def find(self, stem: str, prompt: str | None = None, text: str | None = None) -> str | None:
        """The name of the recording that a sample is one of: by its own name, without what rvqlm
        generate adds to it; by the path or id of its prompt; or else by its text."""
        plain = re.sub(r"-\d\d$", "", stem)
        kinds = ("", "conditioned-", "continuation-", "infilling-")
        for name in (s.removeprefix(kind) for kind in kinds for s in (stem, plain)):
            if name in self.items:
                return name
        if prompt is not None:
            if prompt in self.items:
                return prompt
            if (found := self._by_path.get(os.path.realpath(prompt))) is not None:
                return found
        return self._by_text.get(text) if text else None

    def _index(self) -> None:
        self._by_path: dict[str, str] = {}
        self._by_text: dict[str, str] = {}
        for name, item in self.items.items():
            if item.path:
                self._by_path.setdefault(os.path.realpath(item.path), name)
            if item.text:
                self._by_text.setdefault(item.text, name)

    @abstractmethod
    def read(self, name: str, rate: int, codec: Codec | None) -> Heard:
        """:param rate: Hz.
        :param codec: what to decode with; None: not at all.
        :raises UserError: it cannot be read.
        """


class FileRecordings(Recordings):
    """Audio files of a folder, or that a table names."""

    def __init__(self, label: str, items: Iterable[Recording]):
        self.label, self.items = label, {}
        for item in items:
            if item.name in self.items:
                raise UserError(f"{label}: two recordings have the name {item.name!r}; rename one")
            self.items[item.name] = item
        self._index()

    def read(self, name: str, rate: int, codec: Codec | None) -> Heard:
        item = self.items[name]
        if item.path is None:
            return Heard(item, None, None)
        original = read_sound(item.path, rate)
        return Heard(item, original, None if codec is None else through(codec, original))


class TokenRecordings(Recordings):
    """Cuts of a split of a token directory; what is decoded are their stored codes."""

    def __init__(self, directory: Path, split: str):
        info = CodecInfo.from_dict(read_sidecar(directory)["codec"])
        self._split = HeldOutSplit(directory, split, info)
        self.codec, self.label = info, split
        self.items = {
            name: Recording(
                name,
                text=next((s.text for s in cut.supervisions if s.text), None),
                language=next((s.language for s in cut.supervisions if s.language), None),
            )
            for name, cut in self._split.cuts.items()
        }
        self._index()

    def find(self, stem: str, prompt: str | None = None, text: str | None = None) -> str | None:
        return super().find(stem, prompt, text) or self._split.find(prompt, text)

    def read(self, name: str, rate: int, codec: Codec | None) -> Heard:
        (found,), remarks = self._split.read([name], _LONGEST, codec=codec)
        remarks = tuple(r for r in remarks if not r.startswith(("No codec", "No durations")))
        own = self.codec.sampling_rate
        original, decoded = (
            None if audio is None else resampled(Sound(audio, own), rate)
            for audio in (found.original, found.decoded)
        )
        return Heard(self.items[name], original, decoded if codec else None, remarks)


def resampled(sound: Sound, rate: int) -> Sound:
    return sound if sound.rate == rate else Sound(sound.at(rate)[None], rate)


def read_sound(path: str, rate: int) -> Sound:
    """A file as (1, S) at a rate; what of it is missing or damaged is said on stderr.

    :raises UserError: it cannot be read.
    """
    notes: list[str] = []
    sound = Sound(load_file(path, rate, 1, notes=notes), rate)
    if notes:
        print(f"{path}: {'; '.join(notes)}", file=sys.stderr)
    return sound


def audio_files(path: str, flag: str) -> FileSource:
    """The audio below a folder; `UserError`, which names the flag, where there is none."""
    try:
        return FileSource([path])
    except UserError as e:
        raise UserError(str(e).replace("--input", flag, 1)) from None


def through(codec: Codec, sound: Sound) -> Sound:
    """What a codec makes of a recording, as long and at the rate of it."""
    encoded = encode_whole(codec, torch.from_numpy(for_codec(sound, codec.info)))
    audio = decode_long(codec, encoded.codes, scales=encoded.scales).numpy()
    made = resampled(Sound(audio, codec.info.sampling_rate), sound.rate)
    return Sound(made.audio[:, : sound.audio.shape[1]], sound.rate)


def open_recordings(path: str, split: str, texts: str) -> Recordings:
    """Recordings of a token directory, a table (.tsv), or a folder of audio.

    :param split: of a token directory.
    :param texts: of a folder: a table of transcripts as rvqlm audio reads it, or the suffix of a
        text file beside each recording; empty: none.
    :raises UserError: none of these, or nothing in it.
    """
    place = Path(path)
    if (place / "tokens.json").exists():
        if texts:
            raise UserError(f"--texts {texts}: the texts of {path} are its own")
        return TokenRecordings(place, split)
    if place.suffix.lower() == ".tsv":
        if texts:
            raise UserError(f"--texts {texts}: the texts are in {path}")
        return FileRecordings(place.stem, read_table(place))
    source = audio_files(path, "--references")
    ids = list(source.ids())
    if not texts:
        found = {}
    elif texts.startswith("."):
        found = texts_beside(source.files, texts).found
    else:
        found = texts_of_table(texts, source.files, ids).found
    items = []
    for number, (id, file) in enumerate(zip(ids, source.files)):
        said = found.get(number)
        items.append(Recording(id, file, said and said.text, said and said.language))
    return FileRecordings(place.resolve().stem, items)


def read_table(path: Path) -> list[Recording]:
    """Recordings of a table with the names of its columns (`COLUMNS`) in the first line, apart by
    tabs; paths are relative to its folder.

    :raises UserError: columns of other names, lines of other lengths, an empty table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: {reason}; give a table with columns {', '.join(COLUMNS)}") from e
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if "name" not in header or len(set(header)) < len(header) or not set(header) <= {*COLUMNS}:
        raise UserError(
            f"{path}: the first line is {header}; it names columns out of {', '.join(COLUMNS)}, "
            "name among them, each once"
        )
    found = []
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise UserError(f"{path}:{number}: {len(row)} columns, not {len(header)}")
        cells = {k: v.strip() or None for k, v in zip(header, row)}
        if not cells["name"]:
            raise UserError(f"{path}:{number}: no name")
        for column in ("path", "voice", "midi"):
            if cells.get(column):
                cells[column] = os.path.join(path.parent, cells[column])
        if cells.get("part") not in (None, *PARTS):
            raise UserError(f"{path}:{number}: part {cells['part']!r}: {' or '.join(PARTS)}")
        found.append(Recording(**cells))
    if not found:
        raise UserError(f"{path}: no line in this table")
    return found
