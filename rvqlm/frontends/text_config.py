"""Flags of `rvqlm text`, and which of them go together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rvqlm.cli import kebab
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends.text import TextSettings
from rvqlm.frontends.text_language import tag_of


@dataclass
class TextConfig:
    """Text for the cuts of a token directory."""

    manifest_dir: Path
    """Token directory, split and indexed (rvqlm split, rvqlm index)."""
    type: Literal["phonemes", "chars", "bpe"] | None = None
    """What a text is made of. phonemes: IPA symbols by espeak-ng, the closest to sound; chars:
    characters, for languages written as they are spoken; bpe: pieces of words (sentencepiece)."""
    like: Path | None = None
    """Instead of --type: the token directory whose table and settings to use, for data that one
    model is trained on together or evaluated on."""
    field: str = "text"
    """Where the text lies: "text" or "custom.NAME" of the cuts' supervisions."""
    phonemes_field: str | None = None
    """phonemes: take them ready from this field (IPA, words apart by spaces), without espeak. New
    texts are still spoken by espeak in generation."""
    language: str | None = None
    """phonemes: language of all texts, as espeak or ISO 639 call it (en-us, de, ru, cmn, "French"),
    instead of those that the manifest names; with --language-field that of the cuts without. None
    there and none here: en-us."""
    language_field: str | None = None
    """phonemes: the field with the language of each cut; "language" unless given. The one of most
    cuts becomes that of new texts, unless --language says it."""
    stress: bool = True
    """phonemes: keep the marks of stress."""
    punctuation: bool = True
    """phonemes: keep the punctuation at which the voice pauses."""
    lowercase: bool = False
    """chars, bpe: lower-case all letters."""
    vocab_size: int | None = None
    """bpe: number of pieces; 500 unless given."""
    unknown: Literal["drop", "error"] = "drop"
    """Symbols that the table lacks, in the other splits or with --like, and texts that cannot be
    read, as those in letters of another script than the language's. drop: leave them out, count
    them and name the cuts in text_skipped_SPLIT.jsonl; error: name them and stop. bpe has <unk>."""
    splits: tuple[str, ...] = ()
    """Only these; none given: all that have a manifest. The table needs the split "train"."""
    workers: int = 0
    """Processes that run espeak, which takes 2 ms a text. 0: one per core."""
    dry_run: bool = False
    """Say what would be done and show the first texts; write nothing."""

    def __post_init__(self):
        problems = []
        if (self.type is None) == (self.like is None):
            problems.append("give one of --type and --like")
        if self.workers < 0:
            problems.append(f"--workers {self.workers} must be 0 (automatic) or more")
        if self.vocab_size is not None and self.vocab_size < 3:
            problems.append(f"--vocab-size {self.vocab_size} is too small")
        if self.phonemes_field is not None and self.field != "text":
            problems.append("--phonemes-field and --field exclude each other")
        fixed = ("language", "stress", "punctuation", "lowercase", "vocab_size")
        wrong = [n for n in fixed if self.like is not None and self._given(n)]
        if wrong:
            problems.append(f"{self._flags(wrong)}: --like settles that")
        elif self.type is not None:
            problems += self.misfits(self.type)
        if problems:
            raise UserError("; ".join(problems))

    def _given(self, name: str) -> bool:
        return getattr(self, name) != self.__dataclass_fields__[name].default

    @staticmethod
    def _flags(names: Iterable[str]) -> str:
        return ", ".join(f"--{kebab(name)}" for name in names)

    def misfits(self, type: str) -> list[str]:
        """Complaints about flags that another type than `type` has."""
        owners = {
            **dict.fromkeys(("phonemes_field", "language", "language_field"), ("phonemes",)),
            **dict.fromkeys(("stress", "punctuation", "workers"), ("phonemes",)),
            "lowercase": ("chars", "bpe"),
            "vocab_size": ("bpe",),
            "unknown": ("phonemes", "chars"),
        }
        wrong = [n for n, types in owners.items() if type not in types and self._given(n)]
        problems = [f"{self._flags(wrong)}: not for text of type {type}"] if wrong else []
        if type == "phonemes" and self.phonemes_field is not None and self.workers:
            problems.append("--workers: ready phonemes (--phonemes-field) need no espeak")
        return problems

    @property
    def num_pieces(self) -> int:
        return 500 if self.vocab_size is None else self.vocab_size

    def settings(self) -> TextSettings:
        assert self.type is not None
        language = tag_of(self.language) if self.language else TextSettings.language
        return TextSettings(self.type, language, self.stress, self.punctuation, self.lowercase)

    def made_of(self, like: ConditionInfo | None) -> dict:
        """What decides the result, beside the data."""
        names = ("type", "field", "phonemes_field", "language", "language_field", "stress")
        names += ("punctuation", "lowercase", "unknown")
        flags = {name: getattr(self, name) for name in names}
        flags["vocab_size"] = self.num_pieces
        flags["normalization"] = TextSettings.normalization
        return {**flags, "like": None if like is None else digest(like.settings)}


def digest(value) -> str:
    """16 hex digits that tell plain values apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
