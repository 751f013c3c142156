"""Held-out recordings to compare a model with: the originals, and what the codec makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.inference.prompts import in_turns


@dataclass
class HeldOut:
    """A held-out recording; all audio is (C, S) float32 at the codec's rate."""

    id: str
    speaker: str | None
    text: str | None
    names: set[str]
    """What a prompt may call it: its id or its file."""
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

    def is_prompt(self, prompt: str | None) -> bool:
        """Whether a prompt (id or path) is this recording."""
        return bool(prompt) and bool(_prompt_names(prompt) & self.names)


def read_held_out(
    manifest_dir: Path,
    split: str,
    info: CodecInfo,
    prompts: list[str],
    number: int,
    max_seconds: float,
) -> tuple[list[HeldOut], list[str]]:
    """Recordings of a split, and remarks on what is missing.

    They are decoded from the stored tokens, so they show what a model was trained on. Without the
    codec's weights or the original audio the other half is still there.

    :param info: of the token directory, all levels.
    :param prompts: ids or paths of recordings that samples begin with; these come first.
    :param max_seconds: recordings are cut to this length.
    """
    from rvqlm.codecs.registry import load_codec_like
    from rvqlm.data.index import TokenDataset, read_sidecar
    from rvqlm.data.scales import stored_scales

    remarks: list[str] = []
    try:
        dataset = TokenDataset.open(manifest_dir, split)
        info.require_same(dataset.info, str(manifest_dir / "tokens.json"), f"index of {split}")
    except UserError as e:
        return [], [f"No held-out recordings: {e}."]
    if not (manifest_dir / "audio_cuts.jsonl.gz").exists():
        return [], [f"No held-out recordings: {manifest_dir}/audio_cuts.jsonl.gz is missing."]
    row_of = {name: row for row, name in enumerate(dataset.ids())}
    candidates = _candidates(manifest_dir, set(row_of), prompts)
    codec = None
    try:
        codec = load_codec_like(info)
    except UserError as e:
        remarks.append(f"No codec reconstructions: {e}.")

    settings = read_sidecar(manifest_dir).get("audio") or {}
    channels = AudioConfig(**{k: v for k, v in settings.items() if k in ("mono", "stereo")})
    frames = round(max_seconds * float(info.frame_rate))
    found = []
    chosen = choose_cuts(candidates, prompts, number)
    scales = stored_scales(manifest_dir, split, info, set(chosen))
    for name in chosen:
        cut = candidates[name]
        codes = dataset.read(row_of[name])[:frames]  # (T, K)
        samples = info.num_samples(len(codes))
        original = decoded = None
        try:
            original = _load_original(cut, info, manifest_dir, channels)[:, :samples]
            samples = original.shape[1]
        except BadAudio as e:
            remarks.append(f"No original of {name}: {e}.")
        if codec is not None:
            decoded = _decode(codec, codes, scales.get(name))[:, :samples]
        text = next((s.text for s in cut.supervisions if s.text), None)
        found.append(HeldOut(name, _speaker(cut), text, _names(cut), codes, original, decoded))
    return found, remarks


def choose_cuts(candidates: dict[str, object], prompts: list[str], number: int) -> list[str]:
    """Ids of the recordings to show: the samples' prompts first, then one per further speaker.

    Among the rest, recordings of 3 to 12 seconds come first, in the manifest's order, so that the
    same directory always gives the same page.
    """
    chosen = []
    for prompt in prompts:
        wanted = _prompt_names(prompt)
        chosen += [i for i, cut in candidates.items() if i not in chosen and wanted & _names(cut)]
    rest = [i for i in candidates if i not in chosen]
    rest.sort(key=lambda i: not 3 <= candidates[i].duration <= 12)  # stable

    def speakers(ids: list[str]) -> list[str]:
        return [_speaker(candidates[i]) or i for i in ids]

    return (chosen + in_turns(rest, speakers(rest), speakers(chosen)))[:number]


def _candidates(manifest_dir: Path, ids: set[str], prompts: list[str]) -> dict[str, object]:
    """Audio cuts to choose from: those that prompts name and the first few hundred others."""
    import lhotse

    wanted = {name for prompt in prompts for name in _prompt_names(prompt)}
    found = {}
    for cut in lhotse.CutSet.from_jsonl_lazy(manifest_dir / "audio_cuts.jsonl.gz"):
        if cut.id in ids and (len(found) < 500 or wanted & _names(cut)):
            found[cut.id] = cut
    return found


def _prompt_names(prompt: str) -> set[str]:
    return {prompt, str(Path(prompt).resolve())}


def _names(cut) -> set[str]:
    source = _source(cut)
    return {cut.id, source, str(Path(source).resolve())}


def _source(cut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording.sources else ""


def _speaker(cut) -> str | None:
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def _load_original(cut, info: CodecInfo, manifest_dir: Path, channels: AudioConfig) -> np.ndarray:
    """(C, S) float32 at the codec's rate: the samples that were encoded.

    A relative path in the manifest was written by a command that ran in some folder above the
    tokens; it is looked for in the current folder first, then upwards from the tokens. Raises
    `BadAudio` for a file that is not there or not what it was.
    """
    from rvqlm.audio.load import load_cut

    source = _source(cut)
    if source and not Path(source).exists():
        for folder in manifest_dir.resolve().parents:
            if (folder / source).exists():
                cut = cut.with_recording_path_prefix(str(folder))
                break
    return load_cut(cut, info.sampling_rate, info.channels, channels)


def _decode(codec, codes: np.ndarray, scales) -> np.ndarray:
    """(T, K) and the stored scales of the whole recording, if any -> (C, S)."""
    import torch

    from rvqlm.codecs.chunking import decode_long

    scales = codec.scales_for(len(codes), scales)
    return decode_long(codec, torch.from_numpy(codes.astype(np.int64)), scales=scales).numpy()
