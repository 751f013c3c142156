"""Sentences without repetition from a vocabulary and a grammar, both plain text beside this file.

`vocabulary.txt` holds words by part of speech and meaning, `grammar.txt` the ways to join them;
each file explains its own format. The sentences say nothing of importance: they give the
embedded corpus many words in many orders, and the same seed gives the same sentences.

    python egs/mini/local/sentences.py --count 5
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError

HERE = Path(__file__).resolve().parent
# classes whose words are inflected as verbs; all others as nouns
VERB_CLASSES = {
    *("handle", "meet", "rest", "go", "say", "believe", "eat"),
    *("make", "like", "want", "grow", "beast", "shine"),
}
_VOWELS = "aeiou"
_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")
# spelling and sound part ways: "an hour", "a useful"
_AN = re.compile(r"\b([Aa]) (?=(?:[aeioAEIO]|u(?!se|ni)|U(?!se|ni)|hour|honest))")


@dataclass
class Flags:
    count: int = 20
    """How many sentences."""
    seed: int = 0
    """Another seed gives other sentences."""


def load_vocabulary(path: Path = HERE / "vocabulary.txt") -> dict[str, list[dict[str, str]]]:
    """Classes of words; each word is its forms by name, `base` first."""
    classes: dict[str, list[dict[str, str]]] = {}
    for name, line in _sections(path):
        inflect = _verb if name in VERB_CLASSES else _noun
        classes.setdefault(name, []).extend(inflect(word) for word in line.split())
    return classes


def load_grammar(path: Path = HERE / "grammar.txt") -> dict[str, tuple[list[str], np.ndarray]]:
    """Rules; each is its templates and the cumulative probability of choosing them."""
    rules: dict[str, list[tuple[float, str]]] = {}
    for name, line in _sections(path):
        weight, star, template = line.partition(" * ")
        if not star:
            weight, template = "1", line
        rules.setdefault(name, []).append((float(weight), template.strip()))
    loaded = {}
    for name, ways in rules.items():
        weights = np.array([weight for weight, _ in ways])
        loaded[name] = [template for _, template in ways], np.cumsum(weights / weights.sum())
    return loaded


class SentenceMaker:
    """Endless unique sentences: `next(maker)` never gives the same text twice."""

    def __init__(self, seed: int, min_words: int = 5, max_words: int = 30):
        self._rng = np.random.default_rng([seed, 0x5E17])
        self._words = load_vocabulary()
        self._rules = load_grammar()
        both = self._words.keys() & self._rules.keys()
        if both:
            raise UserError(f"grammar.txt: {', '.join(sorted(both))}: also a class of words")
        self._said: set[str] = set()
        self._limits = min_words, max_words
        self._pool = np.empty(0)
        self._used = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        low, high = self._limits
        while True:
            text = _finish(self._expand("sentence"))
            if low <= text.count(" ") + 1 <= high and text not in self._said:
                self._said.add(text)
                return text

    def _uniform(self) -> float:
        if self._used == len(self._pool):  # one draw at a time is slow
            self._pool, self._used = self._rng.random(4096), 0
        self._used += 1
        return self._pool[self._used - 1]

    def _expand(self, rule: str) -> str:
        templates, cumulative = self._rules[rule]
        choice = min(int(np.searchsorted(cumulative, self._uniform())), len(templates) - 1)
        return _SLOT.sub(self._fill, templates[choice])

    def _fill(self, slot: re.Match) -> str:
        name, form = slot.group(1), slot.group(2)
        if name in self._rules:
            return self._expand(name)
        words = self._words[name]
        return words[int(self._uniform() * len(words))][form or "base"]


def _sections(path: Path) -> Iterator[tuple[str, str]]:
    """(name of the section, line) of every line with content."""
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
        elif line and not line.startswith("#"):
            yield name, line


def _finish(text: str) -> str:
    text = _AN.sub(r"\1n ", text)
    text = re.sub(r"([.!?])[\"]?\.$", r"\1", text)
    return re.sub(r"^(\W*)(\w)", lambda m: m.group(1) + m.group(2).upper(), text)


def _noun(entry: str) -> dict[str, str]:
    base, *given = entry.replace("_", " ").split(":")
    return {"base": base, "plural": given[0] if given else _add_s(base)}


def _verb(entry: str) -> dict[str, str]:
    base, *given = entry.replace("_", " ").split(":")
    past = given[0] if given else _stem(base, "ed") + "ed"
    return {
        "base": base,
        "past": past,
        "participle": given[1] if len(given) > 1 else past,
        "ing": given[2] if len(given) > 2 else _stem(base, "ing") + "ing",
        "third": _add_s(base),
    }


def _add_s(base: str) -> str:
    return base[:-1] + "ies" if _consonant_y(base) else base + _s_ending(base)


def _s_ending(base: str) -> str:
    return "es" if base.endswith(("s", "x", "z", "ch", "sh", "go")) else "s"


def _consonant_y(base: str) -> bool:
    return len(base) > 2 and base.endswith("y") and base[-2] not in _VOWELS


def _stem(base: str, ending: str) -> str:
    if base.endswith("e") and not (ending == "ing" and base.endswith(("ee", "ye"))):
        return base[:-1]
    if _consonant_y(base) and ending == "ed":
        return base[:-1] + "i"
    # one syllable, consonant-vowel-consonant: "wrap", "wrapped"
    if re.fullmatch(r"[^aeiou]+[aeiou][^aeiouwxy]", base):
        return base + base[-1]
    return base


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "sentences.py", "Print unique sentences, one a line.", argv)
    maker = SentenceMaker(flags.seed)
    for _ in range(flags.count):
        print(next(maker))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
