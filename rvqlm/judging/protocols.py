"""Lists of the field's protocols: what is to be generated, and what it is then compared with.

NAME.prompts.tsv is for ``rvqlm generate --prompts``, NAME.tsv for ``rvqlm judge --references``; the
name says the protocol, and results carry it on.
"""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rvqlm.audio.reader import printable
from rvqlm.cli import counted
from rvqlm.errors import UserError
from rvqlm.files import write_text
from rvqlm.judging.recordings import Recording, Recordings
from rvqlm.judging.samples import Sample

PROMPT_SECONDS = 3.0
"""Of the beginning that a continuation is given, as in VALL-E."""
_WHOLE = 60.0  # seconds that no prompt of Seed-TTS is longer than


@dataclass(frozen=True)
class Task:
    """One sample to make, and what to compare it with."""

    recording: Recording
    text: str
    """What the model is told: with a prompt, what that says and the rest."""
    prompt: str | None = None
    """File to continue."""
    prompt_seconds: float | None = None
    """How much of it is given."""
    voice: str | None = None
    """File of a speaker to sound like."""


def write_lists(folder: Path, name: str, tasks: Sequence[Task]) -> tuple[Path, Path]:
    """NAME.prompts.tsv, with absolute paths, and NAME.tsv, where files below the folder are as seen
    from it."""
    folder.mkdir(parents=True, exist_ok=True)
    given = [
        {
            "name": task.recording.name,
            "prompt": task.prompt and os.path.abspath(task.prompt),
            "prompt_seconds": task.prompt_seconds and f"{task.prompt_seconds:g}",
            "text": task.text,
            "language": task.recording.language,
            "voice": task.voice and os.path.abspath(task.voice),
        }
        for task in tasks
    ]
    wanted = [
        {f.name: getattr(task.recording, f.name) for f in fields(Recording)}
        | {k: _from(folder, getattr(task.recording, k)) for k in ("path", "voice", "midi")}
        for task in tasks
    ]
    paths = folder / f"{name}.prompts.tsv", folder / f"{name}.tsv"
    for path, rows in zip(paths, (given, wanted)):
        used = [k for k in rows[0] if any(row[k] for row in rows)]
        lines = [used, *([row[k] or "" for k in used] for row in rows)]
        write_text(path, "".join("\t".join(_cell(c) for c in line) + "\n" for line in lines))
    return paths


def _from(folder: Path, path: str | None) -> str | None:
    if path is None:
        return None
    near = os.path.relpath(path, folder)
    return near if not near.startswith("..") else os.path.abspath(path)


def _cell(text: str) -> str:
    return " ".join(text.split())


# --------------------------------------------------------------------------------- LibriSpeech


def librispeech(
    corpus: Path,
    task: str,
    give: str = "voice",
    shortest: float = 4.0,
    longest: float = 10.0,
    seed: int = 0,
) -> list[Task]:
    """Tasks of a part of LibriSpeech, such as ``LibriSpeech/test-clean``, as VALL-E's evaluation
    takes them (arXiv:2301.02111): utterances of 4 to 10 s.

    :param task: ``continuation``: an utterance by its beginning and its whole text; ``cross``: by
        the voice of another utterance of the speaker, drawn by the seed.
    :param give: how that voice is given for ``cross``: as ``voice``, or as a ``prompt`` to
        continue, whose text then precedes the utterance's.
    :raises UserError: no transcripts of this layout, or nothing of such length.
    """
    import soundfile

    texts = {}
    for listing in sorted(corpus.rglob("*.trans.txt")):
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            id, _, text = line.partition(" ")
            path = listing.parent / f"{id}.flac"
            if not re.fullmatch(r"\d+-\d+-\d+", id) or not text.strip() or not path.exists():
                raise UserError(f"{listing}:{number}: not `ID TEXT` of a .flac beside it")
            texts[id] = (path, text.strip())
    if not texts:
        raise UserError(
            f"{corpus}: no SPEAKER/CHAPTER/*.trans.txt; give a part of LibriSpeech: .../test-clean"
        )
    speakers = defaultdict(list)
    for id, (path, _) in texts.items():
        if shortest <= soundfile.info(str(path)).duration <= longest:
            speakers[id.split("-")[0]].append(id)
    tasks, drawn = [], random.Random(seed)
    for ids in speakers.values():
        for id in ids:
            path, text = texts[id]
            if task == "continuation":
                mine = Recording(id, str(path), text, "en", str(path), part="whole")
                tasks.append(Task(mine, text, str(path), PROMPT_SECONDS))
                continue
            others = [other for other in ids if other != id]
            if not others:
                continue  # the speaker has said nothing else of that length
            voice, before = texts[drawn.choice(others)]
            mine = Recording(id, str(path), text, "en", str(voice), part="new")
            if give == "prompt":
                tasks.append(Task(mine, f"{before} {text}", str(voice), longest))
            else:
                tasks.append(Task(mine, text, voice=str(voice)))
    if not tasks:
        raise UserError(
            f"{corpus}: no utterance of {shortest:g} to {longest:g} s to make a task of"
        )
    return tasks


# ------------------------------------------------------------------------------------ Seed-TTS


def seed_tts(listing: Path, language: str, give: str = "voice") -> list[Task]:
    """Tasks of a list of Seed-TTS eval (arXiv:2406.02430): lines ``name|prompt text|prompt
    wav|text``, some with the recording as a fifth field; paths are relative to the list.

    :raises UserError: a line of another form, or a file that is not there.
    """
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{listing}: no text file; give the meta.lst of Seed-TTS eval") from None
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) not in (4, 5) or not all(cells[i] for i in (0, 2, 3)):
            raise UserError(
                f"{listing}:{number}: {len(cells)} fields, not `name|prompt text|prompt wav|text`"
            )
        name, before, voice, text = cells[:4]
        paths = [str(listing.parent / cell) for cell in (voice, *cells[4:]) if cell]
        for path in paths:
            if not os.path.exists(path):
                raise UserError(f"{listing}:{number}: no file {printable(path)}")
        name = name.removesuffix(".wav").replace("/", "_")
        recording = paths[1] if len(paths) > 1 else None
        mine = Recording(name, recording, text, language, paths[0], part="new")
        if give == "prompt":
            tasks.append(Task(mine, f"{before} {text}".strip(), paths[0], _WHOLE))
        else:
            tasks.append(Task(mine, text, voice=paths[0]))
    if not tasks:
        raise UserError(f"{listing}: no line in this list")
    return tasks


# --------------------------------------------------------------------------------------- versa


def write_scp(folder: Path, samples: Sequence[Sample], recordings: Recordings | None) -> list[str]:
    """Lists for the toolkit versa: pred.scp, and gt.scp and text of those samples whose recording
    and text are known; lines ``name value`` with absolute paths. Returns what was written.

    :raises UserError: two samples of one name.
    """
    lines: dict[str, list[str]] = {"pred.scp": [], "gt.scp": [], "text": []}
    names = set()
    for sample in samples:
        name = "_".join(sample.name.split())
        if name in names:
            raise UserError(f"two samples have the name {name!r}; give one folder at a time")
        names.add(name)
        known = recordings.items.get(sample.recording) if recordings else None
        lines["pred.scp"].append(f"{name} {os.path.abspath(sample.path)}")
        if known and known.path:
            lines["gt.scp"].append(f"{name} {os.path.abspath(known.path)}")
        if text := sample.text(known, True):
            lines["text"].append(f"{name} {_cell(text)}")
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    for file, content in lines.items():
        if content:
            write_text(folder / file, "\n".join(content) + "\n")
            said.append(f"{folder / file}: {counted(len(content), 'line')}")
    return said


def describe(tasks: Iterable[Task]) -> str:
    """
    >>> describe([Task(Recording("a"), "x")])
    '1 sample to make; 0 with a recording'
    """
    tasks = list(tasks)
    known = sum(task.recording.path is not None for task in tasks)
    return f"{counted(len(tasks), 'sample')} to make; {known:,} with a recording"
