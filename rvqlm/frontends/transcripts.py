"""What is said in a cut: its text, ready phonemes and language, from the fields of a manifest.

A field is ``text``, ``language`` or any other of lhotse's supervisions, ``custom.NAME`` for one of
their custom fields. It is looked up in the supervisions of a cut, in the order of their time, and,
where none of them has it, in the cut itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rvqlm.errors import UserError


class Transcript(NamedTuple):
    """The text of one cut."""

    cut: str
    """Id of the cut."""
    text: str
    """Empty where it has none."""
    language: str | None
    problem: str | None = None
    """Why its text cannot be used."""


def transcripts(
    cuts: Iterable[dict], field: str, language_field: str | None
) -> Iterator[Transcript]:
    """The texts of cuts (dictionaries of a manifest); those of several supervisions are joined.

    A cut whose fields hold no text, or several languages, has a
    `problem`.
    """
    for number, cut in enumerate(cuts, 1):
        id = str(cut.get("id", number))
        try:
            text = " ".join(_values(cut, field))
            languages = _values(cut, language_field) if language_field is not None else []
        except UserError as e:
            yield Transcript(id, "", None, str(e))
            continue
        if len(set(languages)) > 1:
            named = " and ".join(dict.fromkeys(languages))
            problem = f"{language_field} has {named}; cut it so that each part has one language"
            yield Transcript(id, "", None, problem)
            continue
        yield Transcript(id, text, languages[0] if languages else None)


def _values(cut: dict, field: str) -> list[str]:
    segments = cut.get("supervisions") or []
    if len(segments) > 1:
        segments = sorted(segments, key=lambda s: s.get("start", 0.0))
    found = [v for s in segments if (v := field_value(s, field)) is not None]
    if not found and (own := field_value(cut, field)) is not None:
        found = [own]
    for value in found:
        if not isinstance(value, str):
            raise UserError(f"{field} is {str(value)[:40]!r}, not text; name another field")
    return [value for value in (v.strip() for v in found) if value]


def field_value(holder: dict, field: str):
    """The field, such as "custom.NAME", of a cut or of a supervision; None where it is not."""
    for name in field.split("."):
        holder = holder.get(name) if isinstance(holder, dict) else None
    return holder


def text_fields(cut: dict) -> list[str]:
    """Fields of a cut that hold text, as `transcripts` takes them."""
    names: list[str] = []
    for holder in [*(cut.get("supervisions") or []), cut]:
        for prefix, fields in (("", holder), ("custom.", holder.get("custom") or {})):
            names += [prefix + name for name, value in fields.items() if isinstance(value, str)]
    plain = {"id", "type", "recording_id"}  # names of things, no texts
    return [name for name in dict.fromkeys(names) if name not in plain]
