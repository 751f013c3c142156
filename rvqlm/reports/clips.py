"""Pieces of audio for the report: read, measured, pictured and packed into data URIs.

Five kinds, told apart everywhere: `original` (held-out recordings), `codec` (the same after a
round trip through the tokens, the best a model of these tokens could sound), `continuation` (the
model goes on from the beginning of a held-out recording), `conditioned` (made from a text or other
condition, without a beginning) and `unprompted` (the model alone).
Audio is embedded as 16-bit FLAC: Chromium, Firefox and Safari play it, it is half a wav, and unlike
MP3 or Vorbis it adds no coding noise to a page that is about coding noise.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.metrics.audio_metrics import (
    log_spectral_distance,
    repetition_ratio,
    silence_ratio,
)
from rvqlm.reports.figures import frequency_ticks, nice_ticks, spectrogram_png


@dataclass
class Clip:
    """One card of the page. `audio` is (C, S) float32 in [-1, 1]."""

    kind: str
    title: str
    audio: np.ndarray
    sampling_rate: int
    prompt_seconds: float = 0.0
    silence: float | None = None
    repetition: float | None = None
    distance: float | None = None
    """Log-spectral distance to the original in dB."""
    details: dict = field(default_factory=dict)
    text: str | None = None
    """What the model was given to say."""
    prompt: str | None = None
    """Path or id of the recording that a continuation begins with."""
    command: str | None = None
    """Command line that made it."""

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / self.sampling_rate

    def card(self) -> dict:
        """What the template draws."""
        image = spectrogram_png(self.audio, self.sampling_rate)
        seconds = max(self.seconds, 1e-3)
        return {
            "kind": self.kind,
            "title": self.title,
            "audio": data_uri(encode_flac(self.audio, self.sampling_rate), "audio/flac"),
            "image": data_uri(image, "image/png"),
            "seconds": seconds,
            "prompt_seconds": self.prompt_seconds,
            "prompt_percent": round(min(100.0, 100 * self.prompt_seconds / seconds), 2),
            "time_ticks": [(round(100 * t / seconds, 2), f"{t:g}") for t in nice_ticks(0, seconds)],
            "frequency_ticks": frequency_ticks(self.sampling_rate),
            "silence": self.silence,
            "repetition": self.repetition,
            "distance": self.distance,
            "details": self.details,
            "text": self.text,
        }


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def encode_flac(audio: np.ndarray, sampling_rate: int) -> bytes:
    """(C, S) in [-1, 1] -> 16-bit FLAC. Values outside are clipped, NaN becomes silence."""
    import soundfile

    data = io.BytesIO()
    clean = np.clip(np.nan_to_num(np.atleast_2d(audio)), -1, 1)
    soundfile.write(data, clean.T, sampling_rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def described_samples(samples_dir: Path) -> list[tuple[Path, dict]]:
    """(wav, its JSON) of the samples in a folder, newest training step first.

    A wav without its JSON (or the reverse) is left out: it was not written to the end.
    """
    found = []
    for path in sorted(samples_dir.glob("*.json")):
        wav = path.with_suffix(".wav")
        if not wav.exists():
            continue
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            about["kind"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f"{path}: not a description of a sample ({e}); delete it and generate again"
            ) from None
        found.append((wav, about))
    return sorted(found, key=lambda item: -int(item[1].get("step") or 0))  # stable


def read_samples(samples_dir: Path, limit: int) -> dict[str, list[Clip]]:
    """Clips of ``samples_dir/*.json`` and their wavs by kind, newest training step first."""
    import soundfile

    clips: dict[str, list[Clip]] = {}
    for wav, about in described_samples(samples_dir):
        kind = about["kind"]
        of_kind = clips.setdefault(kind, [])
        if len(of_kind) >= limit:
            continue
        try:
            audio, rate = soundfile.read(wav, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as e:
            raise UserError(f"{wav}: {e}; delete it and generate again") from None
        of_kind.append(
            Clip(
                kind=kind,
                title=wav.stem,
                audio=audio.T,
                sampling_rate=rate,
                prompt_seconds=float(about.get("prompt_seconds") or 0),
                silence=about.get("silence_ratio"),
                repetition=about.get("repetition_ratio"),
                details=_details(about),
                text=_said(about.get("conditions") or {}),
                prompt=about.get("prompt_id") or about.get("prompt"),
                command=about.get("command"),
            )
        )
    return clips


def _details(about: dict) -> dict[str, str]:
    """What the card of a sample says of how it was made; settings that do nothing are left out."""
    settings = about.get("settings") or {}
    stop, factor = about.get("stop"), about.get("real_time_factor")
    conditions = about.get("conditions") or {}
    files = {"midi": "midi", "source": "source", "prompt": "voice"}
    given = {name: Path(conditions[k]).name for k, name in files.items() if k in conditions}
    details = {
        **given,
        "ended": {"eos": "by itself", "length": "at the length asked for"}.get(stop, stop),
        "temperature": settings.get("temperature"),
        "top-k": settings.get("top_k") or None,
        "top-p": settings.get("top_p") if settings.get("top_p", 1) < 1 else None,
        "seed": about.get("seed"),
        "made at": f"{factor:.1f} × real time" if factor else None,
    }
    return {name: str(value) for name, value in details.items() if value is not None}


@dataclass
class HeldOut:
    """A held-out recording with its rows of the page."""

    id: str
    speaker: str | None
    text: str | None
    clips: list[Clip]
    names: set[str]

    def began(self, clip: Clip) -> bool:
        """Whether a continuation's prompt is this recording."""
        return bool(clip.prompt) and bool(_prompt_names(clip.prompt) & self.names)


def _prompt_names(prompt: str) -> set[str]:
    return {prompt, str(Path(prompt).resolve())}


def _source(cut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording.sources else ""


def _names(cut) -> set[str]:
    """What a prompt may call this cut: its id or its file."""
    source = _source(cut)
    return {cut.id, source, str(Path(source).resolve())}


def choose_cuts(candidates: dict[str, object], prompts: list[str], number: int) -> list[str]:
    """Ids of the recordings to show: the samples' prompts first, then one per further speaker.

    Among the rest, recordings of 3 to 12 seconds come first, in the manifest's order, so that the
    same directory always gives the same page.
    """
    chosen = []
    for prompt in prompts:
        wanted = _prompt_names(prompt)
        chosen += [i for i, cut in candidates.items() if i not in chosen and wanted & _names(cut)]

    seen = {_speaker(candidates[i]) or i for i in chosen}
    rest = [i for i in candidates if i not in chosen]
    rest.sort(key=lambda i: not 3 <= candidates[i].duration <= 12)  # stable
    for once in (True, False):  # new speakers, then anybody
        for i in rest:
            speaker = _speaker(candidates[i]) or i
            if i not in chosen and not (once and speaker in seen):
                seen.add(speaker)
                chosen.append(i)
    return chosen[:number]


def _candidates(manifest_dir: Path, ids: set[str], prompts: list[str]) -> dict[str, object]:
    """Audio cuts to choose from: those that prompts name and the first few hundred others."""
    import lhotse

    wanted = {name for prompt in prompts for name in _prompt_names(prompt)}
    found = {}
    for cut in lhotse.CutSet.from_jsonl_lazy(manifest_dir / "audio_cuts.jsonl.gz"):
        if cut.id in ids and (len(found) < 500 or wanted & _names(cut)):
            found[cut.id] = cut
    return found


def held_out(
    manifest_dir: Path,
    split: str,
    info: CodecInfo,
    prompts: list[str],
    number: int,
    max_seconds: float,
) -> tuple[list[HeldOut], list[str]]:
    """Originals and codec reconstructions of recordings of a split, and remarks on what is missing.

    The reconstructions are decoded from the stored tokens, so they show what a model was trained
    on. Without the codec's weights or the original audio the other half is still shown.
    """
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
        from rvqlm.codecs.registry import load_codec_like

        codec = load_codec_like(info)
    except UserError as e:
        remarks.append(f"No codec reconstructions: {e}.")

    settings = read_sidecar(manifest_dir).get("audio") or {}
    channels = AudioConfig(**{k: v for k, v in settings.items() if k in ("mono", "stereo")})
    frames = round(max_seconds * float(info.frame_rate))
    shown = []
    chosen = choose_cuts(candidates, prompts, number)
    scales = stored_scales(manifest_dir, split, info, set(chosen))
    for name in chosen:
        cut = candidates[name]
        codes = dataset.read(row_of[name])[:frames]  # (T, K)
        row = HeldOut(name, _speaker(cut), _text(cut), clips=[], names=_names(cut))
        try:
            original = _load_original(cut, info, manifest_dir, channels)
            original = original[:, : info.num_samples(len(codes))]
        except BadAudio as e:
            original = None
            remarks.append(f"No original of {name}: {e}.")
        else:
            row.clips.append(_measured("original", original, info))
        if codec is not None:
            samples = info.num_samples(len(codes)) if original is None else original.shape[1]
            decoded = _decode(codec, codes, scales.get(name))
            row.clips.append(_measured("codec", decoded[:, :samples], info))
            row.clips[-1].repetition = repetition_ratio(codes)
            if original is not None:
                row.clips[-1].distance = log_spectral_distance(
                    original, row.clips[-1].audio, info.sampling_rate
                )
        shown.append(row)
    return shown, remarks


def _speaker(cut) -> str | None:
    return next((s.speaker for s in cut.supervisions if s.speaker), None)


def _text(cut) -> str | None:
    return next((s.text for s in cut.supervisions if s.text), None)


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


def _measured(kind: str, audio: np.ndarray, info: CodecInfo) -> Clip:
    silence = silence_ratio(audio, info.sampling_rate)
    return Clip(kind, kind, audio, info.sampling_rate, silence=silence)


def _decode(codec, codes: np.ndarray, scales) -> np.ndarray:
    """(T, K) and the stored scales of the whole recording, if any -> (C, S)."""
    import torch

    from rvqlm.codecs.chunking import decode_long

    scales = codec.scales_for(len(codes), scales)
    return decode_long(codec, torch.from_numpy(codes.astype(np.int64)), scales=scales).numpy()


def _said(conditions: dict) -> str | None:
    """The text, or the phonemes, that a sample was made from."""
    return conditions.get("text") or conditions.get("phonemes")
