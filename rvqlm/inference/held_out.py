"""Held-out recordings to compare a model with: the originals, and what the codec makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import lhotse
import numpy as np
import torch

from rvqlm.audio.load import load_cut
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long
from rvqlm.codecs.registry import load_codec_like
from rvqlm.data.index import TokenDataset, read_sidecar
from rvqlm.data.scales import stored_scales
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.inference.align import open_texts
from rvqlm.inference.aligner import SplitTexts
from rvqlm.inference.prompts import in_turns


@dataclass
class HeldOut:
    """A held-out recording; all audio is (C, S) float32 at the codec's rate."""

    cut: lhotse.MonoCut
    codes: np.ndarray
    """(T, K) as stored."""
    original: np.ndarray | None
    """None where the audio is missing."""
    decoded: np.ndarray | None
    """The codes through the codec, the best a model of these codes could sound; None where the
    codec's weights are missing."""
    alignment: list[tuple[str, float, float]] = field(default_factory=list)
    """Symbols of its text with begin and end in seconds, where rvqlm align found them."""

    def audio(self) -> dict[str, np.ndarray]:
        """What there is to listen to, by kind: ``original``, ``codec``."""
        kinds = {"original": self.original, "codec": self.decoded}
        return {kind: audio for kind, audio in kinds.items() if audio is not None}

    @property
    def text(self) -> str | None:
        return text_of(self.cut)


class HeldOutSplit:
    """The recordings of a split, by the ids of their cuts."""

    def __init__(self, manifest_dir: Path, split: str, info: CodecInfo):
        """:param info: of the token directory, all levels.

        :raises UserError: no such split, tokens of another codec, or no manifest of the audio.
        """
        self.directory, self.split, self.info = manifest_dir, split, info
        self.dataset = TokenDataset.open(manifest_dir, split)
        info.require_same(self.dataset.info, str(manifest_dir / "tokens.json"), f"index of {split}")
        manifest = manifest_dir / "audio_cuts.jsonl.gz"
        if not manifest.exists():
            raise UserError(f"{manifest} is missing")
        self.rows = {name: row for row, name in enumerate(self.dataset.ids())}
        stored = lhotse.CutSet.from_jsonl_lazy(manifest)
        self.cuts: dict[str, lhotse.MonoCut] = {c.id: c for c in stored if c.id in self.rows}

    @cached_property
    def _sources(self) -> dict[Path, str]:
        """First cut of each audio file."""
        cuts = sorted(self.cuts.values(), key=lambda cut: -cut.start)
        return {Path(_source(cut)).resolve(): cut.id for cut in cuts}

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {text: cut.id for cut in reversed(self.cuts.values()) if (text := text_of(cut))}

    def find(self, prompt: str | None, text: str | None = None) -> str | None:
        """Id of the recording that a sample continues, by its id or path, or else of the first one
        whose text it says; None where there is none."""
        if prompt in self.cuts:
            return prompt
        return (prompt and self._sources.get(Path(prompt).resolve())) or self._texts.get(text)

    @cached_property
    def _times(self) -> tuple[SplitTexts, TextTimes] | None:
        """The texts and the times of their symbols; None where rvqlm align has made none."""
        if not TextTimes.path(self.directory, self.split).exists():
            return None
        texts = open_texts(self.directory, self.split)
        return texts, TextTimes.open(self.dataset, texts.column)

    def _alignment(self, name: str) -> list[tuple[str, float, float]]:
        texts, stored = self._times
        row = self.rows[name]
        times, ids = stored.read(row), texts.column.read(row)[:, 0].tolist()
        table = texts.labels.front_end.table
        return [] if times is None else [(table[i], *t) for i, t in zip(ids, times.tolist())]

    def choose(self, wanted: Iterable[str], number: int) -> list[str]:
        """Ids of so many recordings to show: those that are wanted first, the second of a speaker
        after the first of everybody, then others in the same way.

        Among the others, recordings of 3 to 12 seconds come first, in the manifest's order, so that
        the same directory always gives the same page.
        """
        chosen = list(dict.fromkeys(wanted))
        rest = [name for name in self.cuts if name not in chosen]
        rest.sort(key=lambda name: not 3 <= self.cuts[name].duration <= 12)  # stable

        def speakers(ids: list[str]) -> list[str]:
            return [speaker_of(self.cuts[name]) or name for name in ids]

        first = in_turns(chosen, speakers(chosen))
        return (first + in_turns(rest, speakers(rest), speakers(chosen)))[:number]

    def read(
        self,
        names: list[str],
        max_seconds: float,
        download: bool = False,
        codec: Codec | None = None,
    ) -> tuple[list[HeldOut], list[str]]:
        """Recordings, and remarks on what is missing.

        They are decoded from the stored tokens, so they show what a model was trained on. Without
        the codec's weights or the original audio the other half is still there.

        :param max_seconds: recordings are cut to this length.
        :param download: fetch the codec from the hub where it is not on this machine.
        :param codec: that of the tokens where it is loaded already.
        """
        info, remarks = self.info, []
        try:
            # by its remembered name: from this machine only
            codec = codec or load_codec_like(info, info.name if download else None)
        except UserError as e:
            hint = "" if download else " (--download looks on the hub, too)"
            remarks.append(f"No codec reconstructions: {e}{hint}.")
        settings = read_sidecar(self.directory).get("audio") or {}
        channels = AudioConfig(**{k: v for k, v in settings.items() if k in ("mono", "stereo")})
        scales = stored_scales(self.directory, self.split, info, set(names))
        most = round(max_seconds * float(info.frame_rate))
        try:
            spoken = self._times is not None
        except UserError as e:
            spoken = False
            remarks.append(f"No durations of recordings: {e}.")
        found = []
        for name in names:
            codes = self.dataset.read(self.rows[name])[:most]  # (T, K)
            samples = info.num_samples(len(codes))
            original = decoded = None
            try:
                cut = _with_audio(self.cuts[name], self.directory)
                original = load_cut(cut, info.sampling_rate, info.channels, channels)[:, :samples]
                samples = original.shape[1]
            except BadAudio as e:
                remarks.append(f"No original of {name}: {e}.")
            if codec is not None:
                its_scales = codec.scales_for(len(codes), scales.get(name))
                on_device = torch.from_numpy(codes.astype(np.int64)).to(codec.device)
                decoded = decode_long(codec, on_device, scales=its_scales)
                decoded = decoded.numpy()[:, :samples]
            alignment = self._alignment(name) if spoken else []
            found.append(HeldOut(self.cuts[name], codes, original, decoded, alignment))
        return found, remarks


def speaker_of(cut: lhotse.MonoCut) -> str | None:
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def text_of(cut: lhotse.MonoCut) -> str | None:
    return next((s.text for s in cut.supervisions if s.text), None)


def _source(cut: lhotse.MonoCut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording.sources else ""


def _with_audio(cut: lhotse.MonoCut, manifest_dir: Path) -> lhotse.MonoCut:
    """The cut with a path that exists, if there is one."""
    source = _source(cut)
    folder = folder_of(source, manifest_dir)
    return cut.with_recording_path_prefix(str(folder)) if source and folder else cut


def folder_of(path: str, below: Path) -> Path | None:
    """Where a relative path begins that was written by a command that ran in some folder above
    `below`; None where it is there as it is, from the current folder, or nowhere."""
    if Path(path).exists():
        return None
    return next((f for f in below.resolve().parents if (f / path).exists()), None)
