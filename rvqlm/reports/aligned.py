"""Samples of several experiments beside each other: those that were made of the same recording, the
same text, or the same other condition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar
from rvqlm.errors import UserError
from rvqlm.inference.files import read_sample, text_of
from rvqlm.inference.held_out import HeldOutSplit, speaker_of
from rvqlm.reports.clips import Clip, held_out_clips, sample_clip
from rvqlm.reports.compare import Row
from rvqlm.reports.recognition import Recognitions

Sample = tuple[Path, dict]
"""A wav and the JSON beside it."""


@dataclass
class Prompt:
    """What samples were made of."""

    kind: str
    """Of the samples, see `rvqlm.reports.clips`."""
    source: str
    """Id of the recording, or else the text or the file of another condition; nothing of samples
    without a prompt."""
    text: str | None
    samples: list[list[Sample]]
    """Of each experiment; nothing where it made none of this."""
    speaker: str | None = None
    clips: list[list[Clip]] = field(default_factory=list)
    """The samples as they are heard, after `Aligned.listen`."""
    references: list[Clip] = field(default_factory=list)
    """The recording, and what the codec makes of it."""

    @property
    def made(self) -> int:
        """Number of experiments that made something of it."""
        return sum(map(bool, self.samples))


@dataclass
class Aligned:
    """The prompts of several experiments, those that most of them have first."""

    rows: list[Row]
    prompts: list[Prompt]
    split: HeldOutSplit | None = None
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, rows: list[Row], manifest_dir: Path | None, split: str) -> Aligned:
        """:param rows: of `rvqlm.reports.compare.compare`.
        :param manifest_dir: tokens of the held-out recordings; None: these are not shown.
        :raises UserError: damaged samples, tokens of another codec; no samples at all.
        """
        samples = [list(_samples(row)) for row in rows]
        if not any(samples):
            raise UserError(
                f"nothing to hear: no samples in {', '.join(row.exp_dir for row in rows)}; make "
                "some: rvqlm generate --exp-dir EXP"
            )
        held_out = None
        if manifest_dir is not None:
            info = CodecInfo.from_dict(read_sidecar(manifest_dir)["codec"])
            for row in (r for r in rows if r.codec):
                own = CodecInfo.from_dict(row.codec)
                own.require_same(info, row.exp_dir, str(manifest_dir))
            held_out = HeldOutSplit(manifest_dir, split, info)
        return cls(rows, align(samples, held_out and held_out.find), held_out)

    def listen(self, number: int, max_seconds: float, download: bool = False) -> None:
        """Keep so many prompts and read their audio.

        :param max_seconds: recordings are cut to this length.
        :param download: see `HeldOutSplit.read`.
        :raises UserError: damaged samples.
        """
        if (left := len(self.prompts) - number) > 0:
            more = "prompt has" if left == 1 else "prompts have"
            self.remarks.append(f"{left:,} more {more} no room on this page; see --num-prompts.")
        self.prompts = self.prompts[:number]
        heard = [Recognitions(row.recognition) for row in self.rows]
        for prompt in self.prompts:
            prompt.clips = [
                [_clip(sample, recognitions) for sample in of]
                for of, recognitions in zip(prompt.samples, heard)
            ]
        if self.split is None:
            return
        names = dict.fromkeys(p.source for p in self.prompts if p.source in self.split.cuts)
        found, remarks = self.split.read(list(names), max_seconds, download)
        self.remarks += remarks
        recordings = {recording.cut.id: recording for recording in found}
        for prompt in self.prompts:
            if recording := recordings.get(prompt.source):
                prompt.references = held_out_clips(recording, self.split.info.sampling_rate)
                prompt.speaker = speaker_of(recording.cut)
                prompt.text = recording.text or prompt.text


def align(
    samples: Sequence[Sequence[Sample]],
    find: Callable[[str | None, str | None], str | None] | None = None,
) -> list[Prompt]:
    """The samples of each experiment by what they were made of: the prompts that most experiments
    have come first, those without any last.

    :param find: the recording that a prompt or a text is of, where it is known.
    """
    # a text that one experiment was given by its recording, another one as a text
    abouts = [about for of in samples for _, about in of]
    named = {text: a["prompt"] for a in abouts if a.get("prompt") and (text := text_of(a))}
    found: dict[tuple[str, str], Prompt] = {}
    for place, of in enumerate(samples):
        without: dict[str, int] = {}
        for wav, about in of:
            kind, text = about["kind"], text_of(about)
            prompt = about.get("prompt")
            recording = find(prompt, text) if find else None
            key = source = recording or prompt or named.get(text) or _given(about) or ""
            if not source:  # nothing tells samples of nothing apart: the first beside the first
                without[kind] = without.get(kind, 0) + 1
                key = f"\0{without[kind]}"
            beside = Prompt(kind, source, text, [[] for _ in samples])
            beside = found.setdefault((kind, key), beside)
            beside.text = beside.text or text
            beside.samples[place].append((wav, about))
    return sorted(found.values(), key=lambda p: (not p.source, -p.made))  # stable


def _given(about: dict) -> str | None:
    """What else than a recording a sample was made of; its voice does not count."""
    conditions = about.get("conditions") or {}
    return text_of(about) or next((v for k, v in conditions.items() if v and k != "prompt"), None)


def _samples(row: Row) -> Iterator[Sample]:
    """The samples of a row, which are those of one step of its training."""
    for of_kind in row.samples.values():
        for wav in map(Path, of_kind.wavs):
            about = read_sample(wav)
            if about is not None:
                yield wav, about


def _clip(sample: Sample, recognitions: Recognitions) -> Clip:
    clip = sample_clip(*sample)
    clip.heard = recognitions.heard("sample", clip.title)
    return clip
