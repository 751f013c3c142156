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


def transcripts(
    cuts: Iterable[dict], field: str, language_field: str | None, where: str
) -> Iterator[Transcript]:
    """The texts of cuts (dictionaries of a manifest); those of several supervisions are joined.

    where: the manifest in messages. Raises `UserError` for fields that hold no text.
    """
    for number, cut in enumerate(cuts, 1):
        id = str(cut.get("id", number))
        place = f"{where}: cut {id!r}"
        text = " ".join(_values(cut, field, place))
        language = None
        if language_field is not None:
            found = list(dict.fromkeys(_values(cut, language_field, place)))
            if len(found) > 1:
                raise UserError(
                    f"{place}: {language_field} has {' and '.join(found)}; cut it so that each "
                    "part has one language"
                )
            language = found[0] if found else None
        yield Transcript(id, text, language)


def _values(cut: dict, field: str, place: str) -> list[str]:
    segments = cut.get("supervisions") or []
    if len(segments) > 1:
        segments = sorted(segments, key=lambda s: s.get("start", 0.0))
    found = [v for s in segments if (v := field_value(s, field)) is not None]
    if not found and (own := field_value(cut, field)) is not None:
        found = [own]
    for value in found:
        if not isinstance(value, str):
            raise UserError(
                f"{place}: {field} is {str(value)[:40]!r}, not text; name another field"
            )
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
