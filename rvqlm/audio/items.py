"""What of a manifest is let in: items that can be what they say, and audio that lies in files.

A manifest may come from anybody. lhotse would run what it names as a command, fetch what it names
as a URL, and stumble over a duration that is no number; here each item is looked at first, so that
a bad one is skipped with its reason and nothing else happens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from rvqlm.audio.reader import HIGHEST_RATE, LOWEST_RATE
from rvqlm.errors import UserError
from rvqlm.files import Count, Name, fits

if TYPE_CHECKING:  # it takes seconds to import, and flags do not need it
    from lhotse import Recording
    from lhotse.cut import Cut

OVERSHOOT_SECONDS = 0.5
"""How far a cut may reach beyond its recording (as in Kaldi); it ends with that then."""

_Seconds = Annotated[float, Meta(ge=0, le=1e9)]
_Channels = Annotated[list[Count], Meta(min_length=1)] | Count


class _Source(TypedDict):
    type: Name
    channels: Annotated[list[Count], Meta(min_length=1)]
    source: str


class _Recording(TypedDict):
    id: Name
    sources: Annotated[list[_Source], Meta(min_length=1)]
    sampling_rate: Annotated[int, Meta(ge=LOWEST_RATE, le=HIGHEST_RATE)]
    num_samples: Count
    duration: _Seconds


class _Cut(TypedDict):
    id: Name
    start: _Seconds
    duration: _Seconds
    channel: _Channels
    recording: _Recording
    supervisions: NotRequired[list[dict] | None]


@dataclass(frozen=True)
class Outside:
    """Where audio may come from beside files. Nothing by default: a manifest is data."""

    allow_commands: bool = False
    """Run the shell commands that a lhotse manifest names as sources of its audio (type command,
    and URLs that begin with pipe:). Only for manifests that you trust like programs of your own."""
    allow_urls: bool = False
    """Fetch the audio that a lhotse manifest names by URL (http, s3, ...; needs smart_open)."""

    def refusal(self, recording: Recording) -> str | None:
        """Why some of the audio of a recording is not to be touched; None if all of it may be."""
        for kind, source in _sources(recording.to_dict()):
            if kind == "command" or (kind == "url" and source.startswith("pipe:")):
                if not self.allow_commands:
                    return "its audio comes from a shell command, run with --allow-commands only"
            elif kind == "url":
                if not self.allow_urls:
                    return "its audio lies behind a URL, fetched with --allow-urls only"
            elif kind != "file":
                return f"its audio is of type {kind!r}; only files are read"
        return None


FILES_ONLY = Outside()


def _sources(value: Any) -> Iterator[tuple[str, str]]:
    """(type, source) of all that is to be read for a recording, its transforms included: the
    impulse response of a room is a recording too."""
    if isinstance(value, dict):
        if "source" in value and "channels" in value:
            yield str(value.get("type")), str(value["source"])
        for inner in value.values():
            yield from _sources(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _sources(inner)


def entry_of(line: bytes, where: str) -> dict:
    """The named values of a line of a manifest, an id at least; `UserError` that begins with
    `where` if it is none."""
    what = f"{where} is no lhotse recording or cut"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{what}: not JSON: {e}") from None
    id = fields.get("id") if isinstance(fields, dict) else None
    if not (type(id) is int or (isinstance(id, str) and id)):
        raise UserError(f"{what}: it has no id")
    return fields


def item_of(fields: dict) -> Recording | Cut:
    """The recording or cut that an entry of a manifest is; `ValueError` with the reason if it is
    none that can be read. Whole numbers as ids become text."""
    from lhotse.serialization import deserialize_item

    kind, id = fields.get("type"), fields.get("id")
    if kind == "MixedCut":
        raise ValueError(
            f"cut {id!r} mixes several recordings (a MixedCut), and a cut here lies in one; write "
            "the mixtures as files first (lhotse: CutSet.save_audios) and give their manifest"
        )
    if "sources" not in fields and not (isinstance(kind, str) and fields.get("recording")):
        found = "a supervision" if kind is None else f"a {kind} without a recording"
        raise ValueError(
            f"{found}; give recordings, or cuts that each lie in one recording, as `rvqlm audio "
            "manifest` writes them"
        )
    fields = _text_ids(fields)
    _require(fields, _Recording if "sources" in fields else _Cut)
    if "sources" not in fields:
        start, whole = fields["start"], fields["recording"]["duration"]
        if start >= whole:
            raise ValueError(f"begins at {start:g} s, its recording ends at {whole:g} s")
        if (end := start + fields["duration"]) > whole + OVERSHOOT_SECONDS:
            raise ValueError(f"ends at {end:g} s, its recording at {whole:g} s")
    if not fields["duration"]:
        raise ValueError("zero-length audio")
    try:
        item = deserialize_item(fields)
        item.to_dict()
    except Exception as e:  # lhotse asserts, and looks up what is not there
        why = f"{type(e).__name__} {e}".splitlines()[0]
        raise ValueError(f"not what lhotse understands: {why}") from None
    return item


def _require(fields: dict, schema: Any) -> None:
    """Raise `ValueError` with the place and what is there, unless the entry fits the schema."""
    try:
        fits(fields, schema)
    except ValueError as e:
        place, _, what = str(e).removeprefix("$.").partition(": ")
        found: Any = fields
        for name in place.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        shown = "" if isinstance(found, (dict, list, type(None))) else f" is {found!r:.40}"
        raise ValueError(f"{place}{shown}: {what}") from None


def _text_ids(fields: dict) -> dict:
    """The entry with its ids, and those of what is in it, as text where they are whole numbers."""
    made = dict(fields)
    for name in ("id", "recording_id"):
        if type(made.get(name)) is int:
            made[name] = str(made[name])
    if isinstance(made.get("recording"), dict):
        made["recording"] = _text_ids(made["recording"])
    if isinstance(made.get("supervisions"), list):
        made["supervisions"] = [
            _text_ids(s) if isinstance(s, dict) else s for s in made["supervisions"]
        ]
    return made


def cost_of(fields: dict) -> float:
    """Seconds of audio that an entry speaks of, 0 where that is no number."""
    duration = fields.get("duration")
    number = isinstance(duration, (int, float)) and math.isfinite(duration) and duration > 0
    return min(float(duration), 1e9) if number else 0.0
