"""Quality, code statistics and speed of the embedded codec on voices it was not trained on.

    python tools/bench/spectral_codec.py --audio-dir egs/mini/data/audio

PESQ and STOI need ``pip install pesq pystoi``. The ceiling is Griffin-Lim from the true magnitudes
with the same settings, in the same run: what no better quantizer could exceed. Entropies are
counted over the same recordings: with little audio the unigram is underestimated, while the
conditional ones, being cross-validated, are overestimated.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from pyloudnorm import Meter

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rvqlm.codecs.griffin_lim import GriffinLim
from rvqlm.codecs.spectral import ASSET, SpectralCodec, one_thread
from rvqlm.errors import UserError
from rvqlm.runtime import tune_malloc


@dataclass
class Config:
    audio_dir: Path
    """Folder of 16 kHz .wav or .flac files, any depth."""
    voices: str = "/f3-,/steph-,/m3-,/Hugo-,/travis-,/sandro-"
    """Only files whose path contains one of these comma-separated words; empty: all. The
    default is what ``tools/train_spectral_codec.py`` holds out of the embedded corpus."""
    weights: Path = ASSET
    """Weights to measure."""
    count: int = 40
    """Recordings for PESQ and STOI, spread evenly over the voices' sorted files."""
    code_count: int = 600
    """Recordings for the code statistics and the encoding speed."""
    loudness: float | None = None
    """Bring each recording to this many LUFS first; None: as it is."""
    iterations: int = 16
    """Griffin-Lim iterations."""
    json: Path | None = None
    """Also write the numbers here."""


def read(path: Path, loudness: float | None = None) -> np.ndarray:
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != 16000:
        raise UserError(f"{path}: {rate} Hz, the codec runs at 16000")
    if loudness is not None:
        audio = audio * 10 ** ((loudness - Meter(rate).integrated_loudness(audio)) / 20)
    return audio[:, 0].astype(np.float32)


def spread(paths: list[Path], count: int) -> list[Path]:
    where = np.linspace(0, len(paths) - 1, min(count, len(paths)))
    return [paths[int(i)] for i in where]


def entropy(counts: Counter) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def conditional_entropy(codes: list[np.ndarray], level: int, given: list[tuple[int, int]]) -> float:
    """Bits of code (t, level) when codes (t - lag, level') for (level', lag) in `given` are known,
    by two-fold cross-validation with back-off to the unigram (Witten-Bell): pairs never seen cost
    what they would cost a model, so the number is a bound and not an artefact of little data."""
    folds = [codes[::2], codes[1::2]]
    bits = frames = 0.0
    for train, test in (folds, folds[::-1]):
        pairs: dict[tuple, Counter] = defaultdict(Counter)
        single: Counter = Counter()
        for item in train:
            for t in range(1, len(item)):
                key = tuple(item[t - lag, k] for k, lag in given)
                pairs[key][item[t, level]] += 1
                single[item[t, level]] += 1
        total = sum(single.values())
        for item in test:
            for t in range(1, len(item)):
                seen = pairs.get(tuple(item[t - lag, k] for k, lag in given), Counter())
                here, n, kinds = item[t, level], sum(seen.values()), len(seen)
                base = (single[here] + 0.5) / (total + 512)
                bits -= math.log2((seen[here] + kinds * base) / (n + kinds) if n else base)
                frames += 1
    return bits / frames


def quality(codec: SpectralCodec, paths: list[Path], config: Config) -> dict[str, tuple]:
    try:
        from pesq import pesq
        from pystoi import stoi
    except ImportError as e:
        raise UserError(f"{e.name} is missing: pip install pesq pystoi") from None
    scores: dict[str, list] = defaultdict(list)
    for path in paths:
        audio = read(path, config.loudness)
        whole = torch.from_numpy(audio)[None, None]
        codes, _ = codec.encode(whole)
        padded, _ = codec.pad_to_hop(whole, None)
        made = {f"{k} levels": codec.decode(codes[..., :k])[0, 0] for k in (8, 4, 2)}
        with one_thread(), torch.inference_mode():
            true = codec.net.stft(padded[0])[0].abs()
            made["true magnitudes"] = GriffinLim(codec.net.window, config.iterations)(true)
        for name, wave in made.items():
            guess = wave[: len(audio)].numpy()
            scores[name].append((pesq(16000, audio, guess, "wb"), stoi(audio, guess, 16000)))
    return {k: tuple(np.mean(v, axis=0)) for k, v in scores.items()}


def measure(config: Config) -> dict:
    torch.set_num_threads(1)
    words = [w for w in config.voices.split(",") if w]
    paths = sorted(p for e in ("wav", "flac") for p in config.audio_dir.rglob(f"*.{e}"))
    paths = [p for p in paths if not words or any(w in str(p) for w in words)]
    if not paths:
        raise UserError(f"{config.audio_dir}: no recordings of {config.voices or 'any voice'}")
    codec = SpectralCodec.load(config.weights, iterations=config.iterations)
    K, V = codec.info.num_codebooks, codec.info.codebook_size
    result: dict = {"weights": str(config.weights), "fingerprint": codec.info.fingerprint}
    result["megabytes"] = config.weights.stat().st_size / 1e6
    print(f"{config.weights} ({result['megabytes']:.2f} MB), {codec.info.bitrate / 1000:g} kbps")

    recordings = [read(p, config.loudness) for p in spread(paths, config.code_count)]
    seconds = sum(map(len, recordings)) / 16000
    codec.encode(torch.zeros(1, 1, 16000))
    start, codes = time.process_time(), []
    for audio in recordings:
        codes.append(codec.encode(torch.from_numpy(audio)[None, None])[0][0].numpy())
    result["encode_rate"] = seconds / (time.process_time() - start)
    some = codes[:: max(1, len(codes) // 20)]
    start = time.process_time()
    for item in some:
        codec.decode(torch.from_numpy(item)[None])
    spent = time.process_time() - start
    result["decode_rate"] = sum(map(len, some)) / 50 / spent

    grid = np.concatenate(codes)
    print(f"{len(codes)} recordings, {seconds / 60:.1f} min. Per level: codes used; bits: unigram,")
    print("given the code before, given that and level 0 of the same frame (cross-validated)")
    result["levels"] = []
    for k in range(K):
        used = Counter(grid[:, k].tolist())
        given = [(k, 1)] if k == 0 else [(0, 0), (k, 1)]
        row = (
            len(used),
            entropy(used),
            conditional_entropy(codes, k, [(k, 1)]),
            conditional_entropy(codes, k, given),
        )
        result["levels"].append(row)
        print(f"  {k}  {row[0]:4d} of {V}  {row[1]:5.2f}  {row[2]:5.2f}  {row[3]:5.2f}")
    fps = float(codec.info.frame_rate)
    sums = [sum(r[i] for r in result["levels"]) * fps for i in (1, 2, 3)]
    result["bits_per_second"] = sums
    print("  bits/s: unigram {:.0f}, given before {:.0f}, given both {:.0f}".format(*sums))

    chosen = spread(paths, config.count)
    result["quality"] = quality(codec, chosen, config)
    print(f"PESQ-wb and STOI over {len(chosen)} recordings")
    for name, (p, s) in result["quality"].items():
        print(f"  {name:16s} {p:.3f}  {s:.3f}")
    print(
        f"one core (CPU time): encode {result['encode_rate']:.0f} x, "
        f"decode {result['decode_rate']:.0f} x real time"
    )
    return result


def main() -> int:
    import tyro

    tune_malloc()
    config = tyro.cli(Config, description=__doc__)
    try:
        result = measure(config)
    except UserError as e:
        print(f"spectral_codec: error: {e}", file=sys.stderr)
        return 2
    if config.json:
        config.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
