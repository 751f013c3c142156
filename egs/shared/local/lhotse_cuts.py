"""What lhotse's recipe of a speech corpus finds, as cuts for `rvqlm tokenize`: `write_cuts`.

lhotse's recipes end at the first file that is no audio, and say nothing of audio without text. Here
such files are left out, listed in skipped.jsonl and counted, as by `rvqlm audio manifest`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource
from lhotse.cut import MonoCut

from rvqlm.audio.cuts import CutWriter
from rvqlm.audio.read import open_audio
from rvqlm.audio.reader import BadAudio
from rvqlm.errors import UserError, reason_of


def rows(table: Path, separator: str, columns: int) -> Iterator[list[str]]:
    """The lines of a corpus' table, in columns.

    :raises UserError: the file is missing or no UTF-8, or a line has other columns.
    """
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: {reason_of(error)}; is this the corpus' folder?") from None
    for number, line in enumerate(lines, 1):
        found = line.split(separator)
        if len(found) != columns:
            raise UserError(
                f"{table}:{number}: {len(found)} columns where the corpus has {columns}, apart by "
                f"{separator!r}; mend or remove the line"
            )
        yield found


def write_cuts(
    out: Path,
    prepare: Callable[[], dict[str, RecordingSet | SupervisionSet]],
    audio: dict[str, Path],
    texts: dict[str, Path],
    describe: Callable[[SupervisionSegment], dict],
) -> str:
    """Write `out`, a manifest of cuts in the order of their ids; returns a summary.

    :param prepare: lhotse's recipe: recordings and supervisions, one of each id.
    :param audio: the files that are there, by id.
    :param texts: by id, the table that each text is in.
    :param describe: custom fields of a cut; it may change the supervision.
    """
    damaged: dict[str, str] = {}
    found: dict = {"recordings": (), "supervisions": ()}
    if audio.keys() & texts.keys():  # lhotse asserts that
        with _tolerant(damaged):
            found = prepare()
    recordings = {r.id: r for r in found["recordings"] if r.id not in damaged}
    said = {s.id: s for s in found["supervisions"]}
    with CutWriter(str(out)) as writer:
        for id in sorted(audio.keys() | texts.keys()):
            if id not in audio:
                writer.skip(id, str(texts[id]), "a text without audio")
            elif id in damaged:
                writer.skip(id, str(audio[id]), damaged[id])
            elif id not in said:
                known = "left out by lhotse's recipe" if id in texts else "audio without a text"
                writer.skip(id, str(audio[id]), known)
            else:
                custom = describe(said[id])
                writer.write(_cut(recordings[id], said[id], custom))
        return writer.summary()


def _cut(recording: Recording, supervision: SupervisionSegment, custom: dict) -> MonoCut:
    return MonoCut(
        recording.id, 0.0, recording.duration, 0, [supervision], recording=recording, custom=custom
    )


@contextlib.contextmanager
def _tolerant(damaged: dict[str, str]) -> Iterator[None]:
    """Within the block lhotse takes a file that it can't read for a second of nothing, and the
    reason goes to `damaged`; what it would warn of, `write_cuts` counts."""
    original = Recording.from_file

    def read(path: str | Path, recording_id: str | None = None, **more) -> Recording:
        id = recording_id or Path(path).stem
        try:
            with open_audio(str(path), quick=True) as reader:  # says better what is wrong
                if reader.num_samples == 0:
                    raise BadAudio(path, "zero-length audio")
            return original(path, recording_id, **more)
        except Exception as error:  # whatever a decoder does to one file, others follow
            damaged[id] = error.reason if isinstance(error, BadAudio) else reason_of(error)
            return Recording(id, [AudioSource("file", [0], str(path))], 1, 1, 1.0)

    Recording.from_file = staticmethod(read)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        Recording.from_file = staticmethod(original)
