"""A folder as people have them: 50 recordings of all formats, rates and channel counts, two broken.

    python tests/helpers/mixed_folder.py FOLDER

Speech by espeak-ng, 6 voices in as many folders; transcripts beside some. The same on every call.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "egs" / "mini" / "local"))

from speech import synthesize

FILES, BROKEN = 50, 2

# (suffix, libsndfile format, subtype, rates it can hold); None: made by ffmpeg from a wav
KINDS = (
    (".wav", "WAV", "PCM_16", (8000, 16000, 22050, 44100, 96000, 192000)),
    (".flac", "FLAC", "PCM_24", (16000, 48000, 88200)),
    (".mp3", "MP3", "MPEG_LAYER_III", (16000, 24000, 44100)),
    (".ogg", "OGG", "VORBIS", (22050, 44100)),
    (".opus", "OGG", "OPUS", (16000, 48000)),
    (".m4a", None, None, (44100, 48000)),
    (".aiff", "AIFF", "PCM_16", (11025, 44100)),
    (".WAV", "WAV", "FLOAT", (32000, 48000)),
)
VOICES = ("en-us", "en-gb", "de", "es", "fr-fr", "it")
SUBJECTS = ("The old clock", "A small boat", "My neighbour", "The morning train", "Every bird")
VERBS = ("waits for", "sings about", "carries", "forgets", "looks like")
OBJECTS = ("a bag of apples", "the winter sun", "seven green bottles", "an open window", "rain")


def make(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(FILES - BROKEN):
        suffix, kind, subtype, rates = KINDS[i % len(KINDS)]
        rate = rates[i // len(KINDS) % len(rates)]
        channels = 8 if i == 8 else int(rng.choice([1, 2])) if suffix != ".opus" else 1
        text = _text(rng)
        place = folder / f"voice {i % len(VOICES)}"
        place.mkdir(parents=True, exist_ok=True)
        number = 0 if i == 7 else i // 2  # of one stem with file 1, beside it
        path = place / f"{('Aufnahme', 'täke', 'song')[i % 3]} {number:02d}{suffix}"
        raw, own_rate = synthesize(text, VOICES[i % len(VOICES)], pitch=30 + 3 * (i % 10))
        audio = soxr.resample(np.asarray(raw, np.float64) / np.abs(raw).max() * 0.5, own_rate, rate)
        audio = audio[:, None] * rng.uniform(0.3, 1, channels)
        if kind is None:
            _through_ffmpeg(audio, rate, path)
        else:
            soundfile.write(path, audio, rate, subtype, format=kind)
        if i % 4 == 0:
            path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    (folder / "voice 0" / "not audio.mp3").write_bytes(b"<html>404</html>" * 40)
    (folder / "voice 1" / "empty.wav").write_bytes(b"")
    return folder


def _text(rng: np.random.Generator) -> str:
    return " ".join(
        f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}." for _ in range(3)
    )


def _through_ffmpeg(audio: np.ndarray, rate: int, path: Path) -> None:
    wav = path.with_suffix(".tmp.wav")
    soundfile.write(wav, audio, rate)
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-v", "error", "-y", "-i", str(wav), "-c:a", "aac", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    wav.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
