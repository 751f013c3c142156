"""What there is to hear on a page, in the order in which one wants to hear it: sentences of the
user's own, what was made of held-out recordings beside these, and the rest by kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.inference.files import read_samples
from rvqlm.inference.held_out import HeldOut, HeldOutSplit, folder_of, speaker_of
from rvqlm.reports.clips import Clip, held_out_clips, sample_clip, voice_clip
from rvqlm.reports.formatting import mean
from rvqlm.reports.recognition import Recognitions

BESIDE = ("continuation", "conditioned")
"""Kinds of samples that stand beside the recording that they continue or whose text they say."""


@dataclass
class Article:
    """What was made of one text or one recording, beside what it can be compared with."""

    samples: list[Clip]
    recording: HeldOut | None = None
    references: list[Clip] = field(default_factory=list)
    """The recording, what the codec makes of it, the voice that was asked for."""

    def card(self) -> dict:
        """What the template draws."""
        recording = self.recording
        return {
            "id": recording and recording.cut.id,
            "speaker": recording and speaker_of(recording.cut),
            "text": recording.text if recording else self.samples[0].text,
            "speaks": any(clip.text for clip in self.samples),
            "samples": [clip.card() for clip in self.samples],
            "references": [clip.card() for clip in self.references],
        }


@dataclass
class Listening:
    """Clips of a page."""

    own: list[Article] = field(default_factory=list)
    """Sentences of the user's own."""
    recordings: list[Article] = field(default_factory=list)
    others: dict[str, list[Clip]] = field(default_factory=dict)
    """Samples of no recording of the split, by kind."""
    left_out: int = 0
    """Samples that the page has no room for."""
    remarks: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, list[Clip]]:
        """All clips by kind, those of recordings first."""
        articles = [*self.own, *self.recordings]
        clips = [c for article in articles for c in article.references]
        clips += [c for article in articles for c in article.samples]
        clips += [c for of_kind in self.others.values() for c in of_kind]
        order = ["original", "codec", *BESIDE, *(c.kind for c in clips)]
        kinds = {kind: [c for c in clips if c.kind == kind] for kind in dict.fromkeys(order)}
        return {kind: of_kind for kind, of_kind in kinds.items() if kind != "voice"}

    def table(self) -> list[dict]:
        """Number of clips, mean silence and mean repetition per kind."""
        return [
            {
                "kind": kind,
                "clips": len(of_kind),
                "seconds": sum(c.seconds - c.prompt_seconds for c in of_kind),
                "silence": mean(c.silence for c in of_kind),
                "repetition": mean(c.repetition for c in of_kind),
            }
            for kind, of_kind in self.kinds().items()
            if of_kind
        ]

    @property
    def commands(self) -> list[str | None]:
        return [c.command for of_kind in self.kinds().values() for c in of_kind]


@dataclass
class _Sample:
    wav: Path
    about: dict
    recording: str | None
    """Id of the cut that it continues, or whose text it says."""
    own: bool
    """Says a text that the user gave."""

    @classmethod
    def of(cls, wav: Path, about: dict, split: HeldOutSplit | None) -> _Sample:
        prompt, text = about.get("prompt"), (about.get("conditions") or {}).get("text")
        beside = split is not None and about["kind"] in BESIDE
        continued = split.find(prompt) if beside else None
        is_file = prompt and (Path(prompt).exists() or folder_of(prompt, wav.parent))
        own = bool(text) and continued is None and bool(prompt is None or is_file)
        return cls(wav, about, split.find(prompt, text) if beside else None, own)

    @property
    def text(self) -> str:
        return self.about["conditions"]["text"]

    @property
    def voice(self) -> str | None:
        return (self.about.get("conditions") or {}).get("prompt")


class Listener:
    """Chooses and reads the clips of a page."""

    def __init__(
        self,
        samples_dir: Path,
        info: CodecInfo,
        recognitions: Recognitions,
        number: int,
        max_seconds: float,
    ):
        """:param number: own sentences, recordings, and samples of each further kind, at most.
        :param max_seconds: originals, reconstructions and voices are cut to this length.
        """
        self.samples_dir, self.info, self.recognitions = samples_dir, info, recognitions
        self.number, self.max_seconds = number, max_seconds

    def listen(self, split: HeldOutSplit | None, download: bool = False) -> Listening:
        """:param split: None: the recordings are not there.
        :param download: fetch the codec from the hub where it is not on this machine.
        :raises UserError: damaged samples.
        """
        samples = [_Sample.of(*found, split) for found in read_samples(self.samples_dir)]
        texts = list(dict.fromkeys(s.text for s in samples if s.own))[: self.number]
        own = {text: [s for s in samples if s.own and s.text == text] for text in texts}
        of_own = [s.recording for of in own.values() for s in of if s.recording]
        named = [s.recording for s in samples if s.recording and not s.own]
        page, recordings = Listening(), {}
        if split is not None:
            chosen = split.choose(dict.fromkeys(named), self.number)
            names = list(dict.fromkeys([*of_own, *chosen]))
            found, page.remarks = split.read(names, self.max_seconds, download)
            recordings = {recording.cut.id: recording for recording in found}
        taken: list[_Sample] = []
        for of in own.values():
            name = next((s.recording for s in of if s.recording), None)
            of += [s for s in samples if name and s.recording == name and s not in of]
            page.own.append(self._article(page, of, recordings.pop(name, None)))
            taken += of
        for name, recording in recordings.items():
            of = [s for s in samples if s.recording == name and s not in taken]
            page.recordings.append(self._article(page, of, recording))
            taken += of
        for sample in samples:
            if sample in taken:
                continue
            of_kind = page.others.setdefault(sample.about["kind"], [])
            if sample.recording or sample.own or len(of_kind) == self.number:
                page.left_out += 1
            else:
                of_kind.append(self._clip(sample))
        page.others = {kind: of_kind for kind, of_kind in page.others.items() if of_kind}
        return page

    def _article(
        self, page: Listening, samples: list[_Sample], recording: HeldOut | None
    ) -> Article:
        shown = samples[: self.number]
        page.left_out += len(samples) - len(shown)
        references = []
        if recording is not None:
            references = held_out_clips(recording, self.info.sampling_rate)
            for clip in references:
                clip.heard = self.recognitions.heard(clip.kind, recording.cut.id)
        references += self._voices(page, shown)
        return Article([self._clip(s) for s in shown], recording, references)

    def _voices(self, page: Listening, samples: Iterable[_Sample]) -> list[Clip]:
        found = []
        for path in dict.fromkeys(s.voice for s in samples if s.voice):
            try:
                found.append(voice_clip(path, self.samples_dir, self.max_seconds, self.info))
            except UserError as e:
                page.remarks.append(f"No voice that was asked for: {e}.")
        return found

    def _clip(self, sample: _Sample) -> Clip:
        clip = sample_clip(sample.wav, sample.about)
        clip.heard = self.recognitions.heard("sample", clip.title)
        return clip
