"""Notes in time: the fields of a note that depend on where its recording is cut.

Of the six fields (`rvqlm.frontends.midi`) the position counts from the beginning of what is read,
and the onset of the first note does; a note that sounds from before has what is left of it.
``midi-times_SPLIT.bin`` beside the notes has the times of each, from the beginning of its cut, so
that a window has the tokens that a file cut there would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rvqlm.condition_info import MIDI_FIELDS
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.ragged import Ragged
from rvqlm.errors import UserError

SECOND = 10_000
"""Times of notes are whole numbers of 0.1 ms: 59 hours in 31 bits."""
_ONSET, _POSITION = MIDI_FIELDS.index("onset"), MIDI_FIELDS.index("position")
_TIMED = slice(MIDI_FIELDS.index("duration"), None)
TIMES = 4
"""Of a note: when it begins, how long before the cut it did, its release, and when it is silent."""


_GRID = ("position_step", "positions", "seconds_bins", "seconds_unit", "seconds_steps")


def check_grid(settings: Mapping, where: Path, remedy: str) -> None:
    """Raise `UserError` unless all bins that times need are positive numbers."""
    for name in _GRID:
        value = settings.get(name)
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise UserError(f"{where}: {name} is {str(value)[:40]!r}, not a number; {remedy}")


def on_grid(seconds: np.ndarray) -> np.ndarray:
    """The nearest whole 0.1 ms, from 0 on; seconds, float64."""
    return np.maximum(np.rint(np.asarray(seconds) * SECOND), 0) / SECOND


def bins(seconds: np.ndarray, settings: Mapping) -> np.ndarray:
    """Ids (S,) int64 of durations, onsets or pedals; `settings` as in `MidiSettings`."""
    scaled = np.log1p(np.maximum(seconds, 0.0) / settings["seconds_unit"])
    ids = np.rint(settings["seconds_steps"] * scaled)
    return np.minimum(ids, settings["seconds_bins"] - 1).astype(np.int64)


def positions(time: np.ndarray, settings: Mapping) -> np.ndarray:
    """Ids (S,) int64 of times in seconds; a note on the edge of a step belongs to that step."""
    steps = np.floor(np.asarray(time) / settings["position_step"] + 1e-6)
    return steps.astype(np.int64) % settings["positions"]


def sounding(age: np.ndarray, held: np.ndarray, pedal: np.ndarray, settings: Mapping) -> np.ndarray:
    """Ids (S, 4) of duration, onset, position and pedal of notes that sound from before.

    :param age: (S,) seconds since each began.
    :param held: seconds that its key is held from now on, 0 or less: it is released.
    :param pedal: seconds that it sounds after that.
    """
    place = np.full(len(age), settings["positions"])
    columns = bins(held, settings), bins(age, settings), place, bins(pedal, settings)
    return np.stack(columns, axis=1)


class NoteTimes:
    """When the notes of the cuts of a split begin and end.

    :param settings: of the `ConditionInfo` of the notes.
    """

    def __init__(self, column: Ragged, settings: Mapping):
        self.column, self.settings = column, settings

    @staticmethod
    def path(directory: Path, split: str) -> Path:
        return column_path(directory, "midi-times", split)

    @classmethod
    def open(
        cls, dataset: TokenDataset, notes: Ragged, settings: Mapping, remedy: str
    ) -> NoteTimes | None:
        """None beside notes of a version that kept no times.

        Raises `UserError` ending in `remedy` for a file that does not belong to `notes`.
        """
        path = cls.path(dataset.directory, dataset.split)
        if not path.exists():
            return None
        column = Ragged.open(path, None, remedy)
        if column.fingerprint != notes.mark() or column.num_fields not in (1, TIMES):
            raise UserError(f"{path} does not belong to {notes.path}; {remedy}")
        return cls(column, settings)

    def part(self, row: int, tokens: np.ndarray, start: float, end: float) -> np.ndarray:
        """The notes of a cut that sound in [start, end) seconds, in time from `start` on; of an
        earlier version, which knew no ends, those that begin there.

        :param tokens: (S, 6) int32, all of the cut.
        """
        time, *more = self.column.read(row).T / SECOND
        old = np.arange(0)
        if more:
            age, release, silent = more
            time = time - age
        first, last = np.searchsorted(time, [start, end])
        if more:
            old = np.flatnonzero(silent[:first] > start)
        found = tokens[np.append(old, np.arange(first, last))]
        since, new = time[first:last] - start, len(old)
        found[new:, _POSITION] = positions(since, self.settings)
        found[new : new + 1, _ONSET] = bins(since[:1], self.settings)
        if new:
            rest = silent[old] - np.maximum(release[old], start)
            left = start - time[old], release[old] - start, rest
            found[:new, _TIMED] = sounding(*left, self.settings)
        return found
