"""Pieces of audio for the report: read, measured, pictured and packed into data URIs.

Kinds, told apart everywhere: `original` (held-out recordings), `codec` (the same after a
round trip through the tokens, the best a model of these tokens could sound), `voice` (whose voice
was asked for), and those of samples: `continuation` (the model continues the beginning of a
held-out recording), `conditioned` (made from a text or other condition, without a beginning),
`infilling` (a part of a recording is made anew) and `unprompted` (the model was given nothing).
Audio is embedded as 16-bit FLAC: Chromium, Firefox and Safari play it, it is half a wav, and unlike
MP3 or Vorbis it adds no coding noise to a page that is about coding noise.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rvqlm.audio.load import load_file
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.inference.files import text_of
from rvqlm.inference.held_out import HeldOut, folder_of
from rvqlm.metrics.audio_metrics import log_spectral_distance, repetition_ratio, silence_ratio
from rvqlm.reports.figures import frequency_ticks, nice_ticks, spectrogram_png
from rvqlm.reports.speech import Heard, boxes

RECORDED = ("original", "codec")
"""Kinds of clips that no model made."""


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
    alignment: list = field(default_factory=list)
    """Symbols that it says: each with begin and end in seconds."""
    heard: Heard | None = None
    """What a recogniser wrote down of it."""
    command: str | None = None
    """Command line that made it."""

    @property
    def seconds(self) -> float:
        return self.audio.shape[-1] / self.sampling_rate

    def card(self) -> dict:
        """What the template draws."""
        image = spectrogram_png(self.audio, self.sampling_rate)
        seconds = max(self.seconds, 1e-3)
        return vars(self) | {
            "audio": data_uri(encode_flac(self.audio, self.sampling_rate), "audio/flac"),
            "image": data_uri(image, "image/png"),
            "seconds": seconds,
            "prompt_percent": round(min(100.0, 100 * self.prompt_seconds / seconds), 2),
            "time_ticks": [(round(100 * t / seconds, 2), f"{t:g}") for t in nice_ticks(0, seconds)],
            "frequency_ticks": frequency_ticks(self.sampling_rate),
            "boxes": boxes(self.alignment, seconds, self.heard),
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


def held_out_clips(recording: HeldOut, sampling_rate: int) -> list[Clip]:
    """The original and what the codec makes of it, as far as they are there."""
    clips = {
        kind: Clip(kind, kind, audio, sampling_rate, silence=silence_ratio(audio, sampling_rate))
        for kind, audio in recording.audio().items()
    }
    if "codec" in clips:
        clips["codec"].repetition = repetition_ratio(recording.codes)
    if len(clips) == 2:
        clips["codec"].distance = log_spectral_distance(
            recording.original, recording.decoded, sampling_rate
        )
    if recording.original is not None:
        clips["original"].alignment = recording.alignment
    return list(clips.values())


def sample_clip(wav: Path, about: dict, max_seconds: float = math.inf) -> Clip:
    """Clip of a sample, or of its beginning.

    :raises UserError: audio that cannot be read.
    """
    import soundfile

    try:
        audio, rate = soundfile.read(wav, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as e:
        raise UserError(f"{wav}: {e}; delete it and generate again") from None
    whole, audio = len(audio) / rate, audio[: int(min(len(audio), max_seconds * rate))]
    cut = f" (the first {max_seconds:g} of {whole:.0f} s)" if whole > max_seconds else ""
    return Clip(
        kind=about["kind"],
        title=wav.stem + cut,
        audio=audio.T,
        sampling_rate=rate,
        prompt_seconds=float(about.get("prompt_seconds") or 0),
        silence=about.get("silence_ratio"),
        repetition=about.get("repetition_ratio"),
        details=_details(about),
        text=text_of(about),
        alignment=about.get("alignment") or [],
        command=about.get("command"),
    )


def voice_clip(path: str, near: Path, max_seconds: float, info: CodecInfo) -> Clip:
    """Clip of the recording whose voice a sample was asked for.

    :param near: folder of the samples, see `folder_of`.
    :raises UserError: it is not there, or no audio.
    """
    found = (folder_of(path, near) or Path()) / path
    most = round(max_seconds * info.sampling_rate)
    audio = load_file(str(found), info.sampling_rate, info.channels, max_samples=most, notes=[])
    silence = silence_ratio(audio, info.sampling_rate)
    return Clip("voice", Path(path).name, audio, info.sampling_rate, silence=silence)


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
