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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rvqlm.audio.texts import Texts, Transcript, texts_beside, texts_of_table
from rvqlm.errors import UserError

if TYPE_CHECKING:
    from lhotse import Recording, SupervisionSegment
    from lhotse.cut import Cut


@dataclass(frozen=True)
class ManifestConfig:
    input: str
    """Your audio: a folder (searched at any depth), a quoted glob such as "music/**/*.mp3", or a
    text file with one path a line."""
    out_dir: str
    """Folder for recordings.jsonl.gz, supervisions.jsonl.gz and cuts.jsonl.gz."""
    texts: str | None = None
    """Table of transcripts, a line for each file: path, tab, text, and if known tab, speaker. The
    path may be short: below the input, or the name alone. Default: text files beside the audio."""
    text_suffix: str = ".txt"
    """Ending of the text files beside the audio, without --texts: a.txt goes with a.wav."""
    speaker_from: str = "none"
    """Who speaks: none; folder, the name of the folder that a file lies in; or a regular
    expression for the path below the input, whose first group is the speaker: "([^/]+)/" is the
    first folder. A speaker in the table of --texts comes first."""
    group_by: str = "file"
    """What must not be divided between training and test: file; folder, all files of one; or a
    regular expression for the path below the input, whose first group is what such files share."""
    language: str | None = None
    """Language of the transcripts, such as en."""
    jobs: int = 0
    """Processes; 0 is one per core."""

    def __post_init__(self) -> None:
        for flag, pattern in (("speaker-from", self.speaker_from), ("group-by", self.group_by)):
            try:
                re.compile(pattern)
            except re.error as e:
                raise UserError(f"--{flag} {pattern}: no regular expression: {e}") from None
        if not self.text_suffix.startswith("."):
            raise UserError(f"--text-suffix {self.text_suffix}: give an ending such as .txt")


def make_manifest(config: ManifestConfig) -> str:
    """Write the three manifests and return the summary; see `ManifestConfig`.

    Files that cannot be used are listed in ``skipped.jsonl``, transcripts without audio and audio
    without transcript in ``texts_unmatched.jsonl``.
    """
    from rvqlm.audio.cuts import (
        BadAudio,
        CutWriter,
        atomic,
        bar,
        clock,
        in_order,
        json_line,
        make_folder,
        pick_jobs,
    )

    jobs, items = pick_jobs(config.jobs), _files(config.input)
    ids, files = [item.id for item in items], [item.audio for item in items]
    texts = (
        texts_of_table(config.texts, files, ids)
        if config.texts
        else texts_beside(files, config.text_suffix)
    )
    speaker_of = _speaker_rule(config.speaker_from)
    group_of = _group_rule(config.group_by)
    out, said = Path(config.out_dir), Counter()
    make_folder(out, "--out-dir")
    speakers, groups = set(), set()
    with contextlib.ExitStack() as stack:
        unmatched = stack.enter_context(atomic(out / "texts_unmatched.jsonl"))
        for place, why in texts.problems:
            unmatched.write(json_line({"text": place, "reason": why}))
        recordings, supervisions = (
            stack.enter_context(atomic(out / f"{name}.jsonl.gz"))
            for name in ("recordings", "supervisions")
        )
        # last in, first out: where it finds no cut at all, nothing else appears either
        writer = stack.enter_context(CutWriter(str(out / "cuts.jsonl.gz")))
        work = in_order(_recording, bar(items, "files", len(items)), jobs)
        for number, (item, recording) in enumerate(work):
            if isinstance(recording, BadAudio):
                writer.skip(item.id, recording.path, recording.reason)
                continue
            transcript = texts.found.get(number, Transcript(None))
            speaker = transcript.speaker or speaker_of(item.id)
            cut = _cut(recording, transcript.text, speaker, config.language, group_of(item.id))
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
    writer.report_skipped()
    _report_texts(texts, said, out)
    parts = [f"{said['text']} with transcript"] if said["text"] else ["no transcripts"]
    if named := speakers - {None}:
        without = f" ({said['no speaker']} files without)" if said["no speaker"] else ""
        parts.append(f"{len(named)} speakers{without}")
    if config.group_by != "file":
        parts.append(f"{len(groups)} groups")
    return f"{out}: {writer.cuts} files, {clock(writer.seconds)}; {', '.join(parts)}"


def _files(path: str) -> list:
    """The items of a source of files, by the code of ``rvqlm tokenize``."""
    from rvqlm.audio.sources import open_source

    source = open_source(path)
    items = list(source.items(0, len(source.scan())))
    if not all(isinstance(item.audio, str) for item in items):
        raise UserError(f"--input {path} is a manifest already; give a folder of audio")
    return items


def _recording(item) -> Recording:
    """The recording of a file, of exactly as many samples as can be read."""
    from lhotse import AudioSource, Recording

    from rvqlm.audio.cuts import BLOCK_SAMPLES, BadAudio, open_audio

    if (reason := getattr(item, "unusable", None)) is not None:
        raise BadAudio(item.audio, reason)
    with open_audio(item.audio) as reader:
        rate, channels, samples = reader.sampling_rate, reader.num_channels, reader.num_samples
        if samples is None:
            samples = 0
            while num := len(reader.read(BLOCK_SAMPLES)):
                samples += num
    if samples == 0:
        raise BadAudio(item.audio, "zero-length audio")
    return Recording(
        id=item.id,
        sources=[AudioSource(type="file", channels=list(range(channels)), source=item.audio)],
        sampling_rate=rate,
        num_samples=samples,
        duration=samples / rate,
    )


def _cut(
    recording: Recording, text: str | None, speaker: str | None, language: str | None, group: str
) -> Cut:
    from lhotse import SupervisionSegment

    from rvqlm.audio.cuts import recording_cut

    cut = recording_cut(recording)
    cut.custom = {"group": group}
    if text is not None or speaker is not None:
        supervision: SupervisionSegment = SupervisionSegment(
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


def _matched(pattern: str) -> Callable[[str], str | None]:
    """What the first group (else the whole) of a regular expression finds in a path."""
    expression = re.compile(pattern)

    def of(id: str) -> str | None:
        found = expression.search(id)
        return (found[1] if expression.groups else found[0]) or None if found else None

    return of


def _speaker_rule(rule: str) -> Callable[[str], str | None]:
    if rule == "none":
        return lambda id: None
    if rule == "folder":  # files that lie in the input itself have none
        return lambda id: PurePosixPath(id).parent.name or None
    return _matched(rule)


def _group_rule(rule: str) -> Callable[[str], str]:
    if rule == "file":
        return lambda id: id
    if rule == "folder":
        return lambda id: str(PurePosixPath(id).parent)
    matched = _matched(rule)
    return lambda id: matched(id) or id


def _report_texts(texts: Texts, said: Counter, out: Path) -> None:
    """Name the texts without audio, and the audio without text where others have one."""
    listed = out / "texts_unmatched.jsonl"
    if texts.problems:
        place, why = texts.problems[0]
        print(
            f"{len(texts.problems)} transcripts not used, listed in {listed}; the first: "
            f"{place}: {why}",
            file=sys.stderr,
        )
    if texts.found and said["no text"]:
        print(f"{said['no text']} files without transcript, listed in {listed}", file=sys.stderr)
