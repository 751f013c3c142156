"""Held-out recordings to compare a model with: the originals, and what the codec makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lhotse
import numpy as np
import torch

from rvqlm.audio.load import load_cut
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.chunking import decode_long
from rvqlm.codecs.registry import load_codec_like
from rvqlm.data.index import TokenDataset, read_sidecar
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
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

    def audio(self) -> dict[str, np.ndarray]:
        """What there is to listen to, by kind: ``original``, ``codec``."""
        kinds = {"original": self.original, "codec": self.decoded}
        return {kind: audio for kind, audio in kinds.items() if audio is not None}

    @property
    def text(self) -> str | None:
        return next((s.text for s in self.cut.supervisions if s.text), None)


def read_held_out(
    manifest_dir: Path,
    split: str,
    info: CodecInfo,
    prompts: list[str],
    number: int,
    max_seconds: float,
    download: bool = False,
) -> tuple[list[HeldOut], list[str]]:
    """Recordings of a split, and remarks on what is missing.

    They are decoded from the stored tokens, so they show what a model was trained on. Without the
    codec's weights or the original audio the other half is still there.

    :param info: of the token directory, all levels.
    :param prompts: ids or paths of recordings that samples begin with; these come first.
    :param max_seconds: recordings are cut to this length.
    :param download: fetch the codec from the hub where it is not on this machine.
    """
    try:
        dataset = TokenDataset.open(manifest_dir, split)
        info.require_same(dataset.info, str(manifest_dir / "tokens.json"), f"index of {split}")
    except UserError as e:
        return [], [f"No held-out recordings: {e}."]
    manifest = manifest_dir / "audio_cuts.jsonl.gz"
    if not manifest.exists():
        return [], [f"No held-out recordings: {manifest} is missing."]
    row_of = {name: row for row, name in enumerate(dataset.ids())}
    cuts = {c.id: c for c in lhotse.CutSet.from_jsonl_lazy(manifest) if c.id in row_of}
    codec, remarks = None, []
    try:
        # by its remembered name: from this machine only
        codec = load_codec_like(info, info.name if download else None)
    except UserError as e:
        hint = "" if download else " (--download looks on the hub, too)"
        remarks.append(f"No codec reconstructions: {e}{hint}.")

    settings = read_sidecar(manifest_dir).get("audio") or {}
    channels = AudioConfig(**{k: v for k, v in settings.items() if k in ("mono", "stereo")})
    found = []
    chosen = choose_cuts(cuts, prompts, number)
    scales = stored_scales(manifest_dir, split, info, set(chosen))
    for name in chosen:
        codes = dataset.read(row_of[name])[: round(max_seconds * float(info.frame_rate))]  # (T, K)
        samples = info.num_samples(len(codes))
        original = decoded = None
        try:
            cut = _with_audio(cuts[name], manifest_dir)
            original = load_cut(cut, info.sampling_rate, info.channels, channels)[:, :samples]
            samples = original.shape[1]
        except BadAudio as e:
            remarks.append(f"No original of {name}: {e}.")
        if codec is not None:
            its_scales = codec.scales_for(len(codes), scales.get(name))
            decoded = decode_long(
                codec, torch.from_numpy(codes.astype(np.int64)), scales=its_scales
            )
            decoded = decoded.numpy()[:, :samples]
        found.append(HeldOut(cuts[name], codes, original, decoded))
    return found, remarks


def choose_cuts(cuts: dict[str, lhotse.MonoCut], prompts: list[str], number: int) -> list[str]:
    """Ids of the recordings to show: the samples' prompts first, then one per further speaker.

    Among the rest, recordings of 3 to 12 seconds come first, in the manifest's order, so that the
    same directory always gives the same page.
    """
    chosen = [name for p in prompts for name, cut in cuts.items() if is_prompt(cut, p)]
    chosen = list(dict.fromkeys(chosen))
    rest = [name for name in cuts if name not in chosen]
    rest.sort(key=lambda name: not 3 <= cuts[name].duration <= 12)  # stable

    def speakers(ids: list[str]) -> list[str]:
        return [speaker_of(cuts[name]) or name for name in ids]

    return (chosen + in_turns(rest, speakers(rest), speakers(chosen)))[:number]


def is_prompt(cut: lhotse.MonoCut, prompt: str | None) -> bool:
    """Whether a prompt (id or path) is this recording."""
    if not prompt:
        return False
    return prompt == cut.id or Path(prompt).resolve() == Path(_source(cut)).resolve()


def speaker_of(cut: lhotse.MonoCut) -> str | None:
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def _source(cut: lhotse.MonoCut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording.sources else ""


def _with_audio(cut: lhotse.MonoCut, manifest_dir: Path) -> lhotse.MonoCut:
    """The cut with a path that exists, if there is one.

    A relative path in the manifest was written by a command that ran in some folder above the
    tokens; it is looked for in the current folder first, then upwards from the tokens.
    """
    source = _source(cut)
    if source and not Path(source).exists():
        for folder in manifest_dir.resolve().parents:
            if (folder / source).exists():
                return cut.with_recording_path_prefix(str(folder))
    return cut
