"""A band that plays for a minute, as files of a playlist would lie there, and a small random model
of Demucs in its published format: to run every stage offline.

    python local/stand_in.py --recordings-dir data/1_download --demucs-dir data/stand-in/demucs

The band is a walking bass, chords and a ride cymbal, and a lead in phrases with rests between. The
model has the six sources of htdemucs_6s and hardly any weights: what it makes of audio is noise.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from rvqlm.cli import counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import atomic_folder, atomic_write, write_text

RATE = 48000  # that of what a playlist gives
NAME, SIGNATURE = "htdemucs_6s", "5c90dfd2"
SOURCES = ["drums", "bass", "other", "vocals", "guitar", "piano"]
SCALE = (0, 2, 3, 5, 7, 9, 10)  # dorian


@dataclass
class Flags:
    """Make a few recordings of a band, and a random model of Demucs."""

    recordings_dir: Path
    """Folder of the recordings, which is kept if it is there."""
    demucs_dir: Path
    """Folder of the model: its .th file and htdemucs_6s.yaml."""
    recordings: int = 5
    """How many."""
    seconds: float = 8.0
    """How long each is."""
    seed: int = 0
    """Another seed, other music."""


def _tone(pitch: float, seconds: float, partials: int, vibrato: float = 0.0) -> np.ndarray:
    """A note of a MIDI pitch, harmonics falling off, with soft ends."""
    time = np.arange(round(seconds * RATE)) / RATE
    phase = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time
    phase += vibrato * np.sin(2 * np.pi * 5.5 * time)
    wave = sum(np.sin(n * phase) / n for n in range(1, partials + 1))
    edge = np.minimum(1, np.minimum(time, time[::-1]) / 0.02)
    return wave * edge


def band(seconds: float, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lead and rest, each (S,), of so many seconds."""
    samples, beat = round(seconds * RATE), 60 / draw.uniform(110, 160)
    lead, rest = np.zeros(samples), np.zeros(samples)
    root = 38 + int(draw.integers(0, 12))

    def add(track: np.ndarray, at: float, wave: np.ndarray, level: float) -> None:
        begin = round(at * RATE)
        part = track[begin : begin + len(wave)]
        part += level * wave[: len(part)]

    for n in range(int(seconds / beat)):
        degree = SCALE[int(draw.integers(7))]
        add(rest, n * beat, _tone(root + degree, 0.9 * beat, 3), 0.15)
        for swing in (0.0, 0.66) if n % 2 else (0.0,):
            fall = np.exp(-np.arange(RATE // 8) / (RATE / 40))
            add(rest, (n + swing) * beat, draw.standard_normal(RATE // 8) * fall, 0.04)
        if n % 4 == 0:
            for third in (0, 2, 4, 6):
                add(rest, n * beat, _tone(root + 24 + SCALE[third], 1.5 * beat, 2), 0.04)
        if n % 8 < 6:  # a phrase of six beats, a rest of two
            pitch = root + 24 + SCALE[int(draw.integers(7))] + 12 * int(draw.integers(2))
            breath = 0.02 * draw.standard_normal(round(0.95 * beat * RATE))
            add(lead, n * beat, _tone(pitch, 0.95 * beat, 9, 0.6) + breath, 0.2)
    return lead, rest


def write_recordings(folder: Path, number: int, seconds: float, seed: int) -> None:
    """NUMBER-ID.opus in stereo, the lead a little to the left."""
    draw = np.random.default_rng(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as made:
        for n in range(1, number + 1):
            lead, rest = band(seconds, draw)
            mix = np.stack([lead + 0.8 * rest, 0.7 * lead + rest], axis=1)
            mix *= draw.uniform(0.3, 0.9) / np.abs(mix).max()  # as loud as each happens to be
            soundfile.write(
                made / f"{n:05d}-standin{n:04d}.opus", mix, RATE, format="OGG", subtype="OPUS"
            )


def write_model(folder: Path, seed: int) -> Path:
    """A random HTDemucs of few weights as a published package, and the list that names it."""
    import hashlib
    import io
    import warnings
    from fractions import Fraction

    import torch
    from demucs.htdemucs import HTDemucs

    settings = dict(channels=4, bottom_channels=8, t_layers=1, t_heads=2, dconv_depth=1,
                    dconv_comp=4, segment=Fraction(39, 10))  # fmt: skip
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HTDemucs(SOURCES, **settings).eval()
    with torch.no_grad():  # each source about as loud as half of the mix
        noise = torch.randn(1, 2, int(model.segment * model.samplerate))
        louder = 0.5 / model(noise).std()
        for last in (model.decoder[-1].conv_tr, model.tdecoder[-1].conv_tr):
            last.weight *= louder
            last.bias *= louder
    state = {name: weight.half() for name, weight in model.state_dict().items()}
    package = dict(klass=HTDemucs, args=(SOURCES,), kwargs=settings, state=state, training_args={})
    buffer = io.BytesIO()
    torch.save(package, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
    path = folder / f"{SIGNATURE}-{digest}.th"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda to: to.write_bytes(buffer.getvalue()))
    write_text(folder / f"{NAME}.yaml", f"models: ['{SIGNATURE}']\n")
    return path


def _run(argv) -> int:
    flags = parse(Flags, "stand_in.py", Flags.__doc__, argv)
    if flags.recordings < 3 or not 1 <= flags.seconds <= 600:
        raise UserError("--recordings is at least 3, one for each split; --seconds is 1 to 600")
    if not flags.recordings_dir.exists():
        write_recordings(flags.recordings_dir, flags.recordings, flags.seconds, flags.seed)
    if not (flags.demucs_dir / f"{NAME}.yaml").exists():
        write_model(flags.demucs_dir, flags.seed)
    print(f"{flags.recordings_dir}: {counted(flags.recordings, 'recording')} of the stand-in band")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_run, None, "stand_in.py"))
