"""What a model knows about a condition: its kind, the sizes of its vocabularies, where it lies in
time, and how its tokens are made from what a user gives.

A condition is whatever a model is given beside the codes it predicts (docs/conditions.md). Every
kind is the same thing to a model: steps of F integer fields, `(S, F)`; 1 of text, those of a note
of midi, and K, codes of another recording, of source and prompt.

Token directories and checkpoints carry a `ConditionInfo` for each, so that generation makes the
tokens of a new text exactly as training did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated

from msgspec import Meta

from rvqlm.codec_info import CodecInfo, Size
from rvqlm.errors import UserError
from rvqlm.files import Count, Finite, fits

KINDS = ("text", "midi", "source", "prompt")


MIDI_FIELDS = ("pitch", "velocity", "duration", "onset", "position", "pedal")
"""Of a note, as rvqlm/frontends/midi.py describes them."""


@dataclass(frozen=True)
class ConditionInfo:
    """One condition.

    >>> ConditionInfo("text", (40,), rate=4.5).num_fields
    1
    """

    kind: str
    sizes: Annotated[tuple[Size, ...], Meta(min_length=1)]
    """Vocabulary size of each field; ids of field f are 0 ... sizes[f] - 1."""
    rate: Annotated[float, Meta(gt=0, le=1e9)] = 1.0
    """Frames of codes per step of the condition, on average over the training data: steps are
    placed on the time axis of the frames at this rate. 1 for codes."""
    settings: dict = field(default_factory=dict)
    """How the tokens are made (plain JSON values): the front end's settings and its symbols."""
    clock: tuple[Count, Finite] | None = None
    """Where steps know their time: the field that counts it, modulo its size, and the frames of one
    count. None: steps are spread by their durations."""
    durations: tuple[Finite, ...] | None = None
    """Frames that each id of the first field takes on average; None: all `rate`."""
    margins: tuple[Finite, Finite] = (0.0, 0.0)
    """Frames before the first step and after the last, on average."""
    aligned: bool = False
    """Models are told where each step begins and ends, and learn to say it themselves."""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"condition {self.kind!r}: choose one of {', '.join(KINDS)}")
        object.__setattr__(self, "sizes", tuple(int(s) for s in self.sizes))
        for name in ("clock", "durations", "margins"):  # JSON knows lists only
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.durations is not None and len(self.durations) != self.sizes[0]:
            raise UserError(
                f"condition {self.kind}: {len(self.durations)} durations of {self.sizes[0]} ids"
            )

    @property
    def num_fields(self) -> int:
        return len(self.sizes)

    @classmethod
    def of_codes(cls, kind: str, info: CodecInfo) -> ConditionInfo:
        """``source`` or ``prompt``: codes of the model's own codec."""
        return cls(kind, (info.codebook_size,) * info.num_codebooks)

    def to_dict(self) -> dict:
        values = {**asdict(self), "sizes": list(self.sizes)}
        if not self.aligned:  # what is not aligned stays as it was before there were times
            del values["aligned"]
        return values

    @classmethod
    def from_dict(cls, values: dict) -> ConditionInfo:
        """:raises UserError: entries are missing, unknown, or of another type or size."""
        try:
            known = {f.name for f in fields(cls)}
            if unknown := [key for key in values if key not in known]:
                raise ValueError(f"unknown {unknown[0]!r}")
            return fits(values, cls)
        except (ValueError, TypeError) as e:
            said = repr(values)[:200]
            raise UserError(f"incomplete description of a condition {said}: {e}") from None

    def require_same(self, other: ConditionInfo, mine: str, theirs: str) -> None:
        """Raise `UserError` naming both sides unless tokens of the one mean the same in the other.

        Rate, durations and margins are statistics of the data and may differ, and a text may be
        aligned here and not there; the clock follows from the settings.
        """
        for name in ("kind", "sizes", "settings"):
            a, b = getattr(self, name), getattr(other, name)
            if a == b:
                continue
            if isinstance(a, dict):
                keys = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
                name = ", ".join(keys)
                a, b = ({k: str(d.get(k))[:60] for k in keys} for d in (a, b))
            raise UserError(
                f"condition {self.kind}: {name} differ between {mine} ({a}) and {theirs} ({b}); "
                "use data prepared with the same table"
            )


Infos = Mapping[str, ConditionInfo]
"""Conditions by kind."""


def room_of(frames, margins: tuple[float, float]):
    """Lead, and frames that are left for the steps: at least half of all.

    :param frames: of an item, or of several: a number, an array or a tensor.
    :param margins: as in `ConditionInfo`.
    """
    silence = sum(margins)
    room = frames - silence
    room = room + (frames / 2 - room) * (room < frames / 2)
    return (frames - room) * (margins[0] / silence if silence else 0.0), room
