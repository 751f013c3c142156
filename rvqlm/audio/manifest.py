"""``rvqlm audio manifest``: audio files, what is said in them and by whom, as lhotse manifests.

Files are found and named by the code of `rvqlm tokenize`, so that ids agree; their lengths are
those of the samples that will be read, taken from headers where these are exact, else counted by
decoding.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from rvqlm.audio.config import ManifestConfig
from rvqlm.audio.cuts import CutWriter, clock, in_order, make_folder
from rvqlm.audio.parts import read_recording, recording_cut, source_path
from rvqlm.audio.reader import BadAudio
from rvqlm.audio.source import Item
from rvqlm.audio.sources import open_source
from rvqlm.audio.texts import Texts, Transcript, texts_beside, texts_of_table
from rvqlm.cli import bar, counted
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line


def make_manifest(config: ManifestConfig) -> str:
    """Write the three manifests and return the summary; see `ManifestConfig`.

    Files that cannot be used are listed in ``skipped.jsonl``, transcripts without audio and audio
    without transcript in ``texts_unmatched.jsonl``.
    """
    items = _files(config.input)
    ids, files = [item.id for item in items], [item.audio for item in items]
    texts = (
        texts_of_table(config.texts, files, ids)
        if config.texts
        else texts_beside(files, config.text_suffix)
    )
    # files that lie in the input itself have no speaker
    speaker_of = _rule(config.speaker_from, "none", lambda folder: folder.name)
    group_of = _rule(config.group_by, "file", str)
    out, said = Path(config.out_dir), Counter()
    make_folder(out, "--out-dir")
    speakers, groups = set(), set()
    with contextlib.ExitStack() as stack:
        unmatched = stack.enter_context(atomic_open(out / "texts_unmatched.jsonl"))
        for place, why in texts.problems:
            unmatched.write(json_line({"text": place, "reason": why}))
        recordings, supervisions = (
            stack.enter_context(atomic_open(out / f"{name}.jsonl.gz"))
            for name in ("recordings", "supervisions")
        )
        # last in, first out: where it finds no cut at all, nothing else appears either
        writer = stack.enter_context(CutWriter(str(out / "cuts.jsonl.gz")))
        work = in_order(_recording, bar(items, "files", len(items)), config.jobs)
        for number, (item, found) in enumerate(work):
            if isinstance(found, BadAudio):
                writer.skip(item.id, found.path, found.reason)
                continue
            recording, notes = found
            writer.warn(item.id, source_path(recording), notes)
            transcript = texts.found.get(number, Transcript(None))
            speaker = transcript.speaker or speaker_of(item.id)
            language = transcript.language or config.language
            cut = _cut(recording, transcript.text, speaker, language, group_of(item.id) or item.id)
            writer.write(cut)
            recordings.write(json_line(recording.to_dict()))
            for supervision in cut.supervisions:
                supervisions.write(json_line(supervision.to_dict()))
            said["text" if transcript.text else "no text"] += 1
            said["no speaker"] += speaker is None
            speakers.add(speaker)
            groups.add(cut.custom["group"])
            if texts.found and not transcript.text:
                path = os.fspath(item.audio)
                unmatched.write(json_line({"audio": path, "reason": "no transcript"}))
    _report_texts(texts, said, out)
    parts = [f"{said['text']} with transcript"] if said["text"] else ["no transcripts"]
    if named := speakers - {None}:
        without = f" ({counted(said['no speaker'], 'file')} without)" if said["no speaker"] else ""
        parts.append(f"{counted(len(named), 'speaker')}{without}")
    if config.group_by != "file":
        parts.append(counted(len(groups), "group"))
    return f"{out}: {counted(writer.cuts, 'file')}, {clock(writer.seconds)}; {', '.join(parts)}"


def _files(path: str) -> list[Item]:
    """The items of a source of files, by the code of ``rvqlm tokenize``."""
    source = open_source(path)
    items = list(source.items(0, len(source.scan())))
    if not all(isinstance(item.audio, str) for item in items):
        raise UserError(f"--input {path} is a manifest already; give a folder of audio")
    return items


def _recording(item: Item) -> tuple[Recording, list[str]]:
    """The recording of a file, of exactly as many samples as can be read, and what is missing."""
    if item.unusable is not None:
        raise BadAudio(item.audio, item.unusable)
    return read_recording(item.id, item.audio)


def _cut(
    recording: Recording, text: str | None, speaker: str | None, language: str | None, group: str
) -> Cut:
    cut = recording_cut(recording)
    cut.custom = {"group": group}
    if text is not None or speaker is not None:
        supervision = SupervisionSegment(
            id=recording.id,
            recording_id=recording.id,
            start=0.0,
            duration=recording.duration,
            channel=cut.channel,
            text=text,
            language=language,
            speaker=speaker,
        )
        cut.supervisions = [supervision]
    return cut


def _rule(rule: str, unset: str, folder: Callable[[PurePosixPath], str]) -> Callable:
    """What "folder", or the first group (else the whole) of a regular expression, finds in an id;
    None where that is nothing, and where the rule is `unset`."""
    expression = re.compile(rule)

    def of(id: str) -> str | None:
        if rule == unset:
            return None
        if rule == "folder":
            return folder(PurePosixPath(id).parent) or None
        found = expression.search(id)
        return (found[1] if expression.groups else found[0]) or None if found else None

    return of


def _report_texts(texts: Texts, said: Counter, out: Path) -> None:
    """Name the texts without audio, and the audio without text where others have one."""
    listed = out / "texts_unmatched.jsonl"
    if texts.problems:
        place, why = texts.problems[0]
        print(
            f"{counted(len(texts.problems), 'transcript')} not used, listed in {listed}; "
            f"the first: {place}: {why}",
            file=sys.stderr,
        )
    if texts.found and said["no text"]:
        print(
            f"{counted(said['no text'], 'file')} without transcript, listed in {listed}",
            file=sys.stderr,
        )
