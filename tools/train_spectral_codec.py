"""Train the embedded codec and write its weights into the package.

    python tools/train_spectral_codec.py --audio-dir egs/mini/data/audio --minutes 40

The material is speech from a folder (voices on the held-out list are left out) and music-like
sound that is made here from the seed: chords, plucked strings, bass, drums. First the encoder and
decoder learn unquantised; then k-means starts the codebooks and everything trains on, with
quantizer dropout so that the first levels serve alone. One CPU core is enough. Interrupted runs
resume from the work directory; the asset is replaced atomically at the end (and every few minutes).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from scipy.signal import lfilter
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quantizer_trainer import QuantizerTrainer

from rvqlm.codecs.spectral import ASSET, save_weights
from rvqlm.codecs.spectral_model import SpectralConfig, SpectralNet
from rvqlm.errors import UserError

RATE = 16000


@dataclass
class Config:
    audio_dir: Path
    """Folder searched for .wav and .flac files, any depth; 16 kHz."""
    output: Path = ASSET
    """Weights file to write."""
    work_dir: Path = Path("/tmp/rvqlm-spectral")
    """Checkpoint and log; a run found here is continued."""
    minutes: float = 40.0
    """Training time. The learning rate falls to zero over it."""
    warmup_minutes: float = 1.5
    """Part of it without quantizer."""
    held_out: str = "/f3-,/steph-,/m3-,/Hugo-,/travis-,/sandro-"
    """Files whose path contains one of these comma-separated words are not trained on: whole
    variants of the embedded corpus, since speakers of one variant are alike."""
    max_hours: float = 4.0
    """Speech kept in memory (int16, 115 MB an hour); files are drawn at random from the seed."""
    music_minutes: float = 20.0
    """Music-like material made from the seed; about a seventh of every batch."""
    batch: int = 10
    """Items per step."""
    frames: int = 104
    """Frames of 20 ms per item."""
    lr: float = 0.02
    """Peak learning rate of Muon; AdamW for vectors and convolutions takes a tenth."""
    bark_weight: float = 1.0
    """Weight of the loudness error in Bark bands (what PESQ measures) against that of the bins."""
    smooth_weight: float = 0.05
    """Penalty on the change of latents between frames: smoother codes are easier to predict."""
    rate_weight: float = 7e-4
    """Price of a nat of code, as a share of the latents' variance, reached after half of the
    training: higher makes codes easier to predict and the sound a little worse."""
    seed: int = 0
    """Of the network, the music and the order of the material."""
    threads: int = 1
    """CPU threads."""


# ---------------------------------------------------------------- material


def load_speech(config: Config) -> list[np.ndarray]:
    """int16 recordings, at most `max_hours`, without the held-out voices."""
    words = [w for w in config.held_out.split(",") if w]
    paths = sorted(p for e in ("wav", "flac") for p in config.audio_dir.rglob(f"*.{e}"))
    paths = [p for p in paths if not any(w in str(p) for w in words)]
    if not paths:
        raise UserError(f"{config.audio_dir}: no .wav or .flac files to train on")
    np.random.default_rng(config.seed).shuffle(paths)  # type: ignore[arg-type]
    kept, samples = [], 0
    for path in tqdm(paths, desc="reading", unit="file", leave=False):
        audio, rate = soundfile.read(path, dtype="int16", always_2d=True)
        if rate != RATE:
            raise UserError(f"{path}: {rate} Hz, the codec is trained at {RATE}")
        kept.append(audio[:, 0].copy())
        samples += len(audio)
        if samples > config.max_hours * 3600 * RATE:
            break
    return kept


def pluck(rng: np.random.Generator, frequency: float, n: int) -> np.ndarray:
    """Karplus-Strong string as one recursive filter: y[t] = x[t] + g (y[t-P] + y[t-P-1]) / 2."""
    period = max(2, int(RATE / frequency))
    excitation = np.zeros(n)
    excitation[: min(n, period)] = rng.uniform(-1, 1, min(n, period))
    damping = rng.uniform(0.97, 0.999)
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -damping / 2, -damping / 2
    return lfilter([1.0], feedback, excitation)


def tone(rng: np.random.Generator, frequency: float, n: int) -> np.ndarray:
    """A held note: harmonics with a random slope, vibrato, attack and decay."""
    t = np.arange(n) / RATE
    wobble = rng.uniform(0, 0.004) * np.sin(2 * np.pi * rng.uniform(4, 7) * t)
    phase = 2 * np.pi * frequency * np.cumsum(1 + wobble) / RATE
    slope, note = rng.uniform(0.6, 2.0), np.zeros(n)
    for h in range(1, min(24, int(0.48 * RATE / frequency)) + 1):
        note += np.sin(h * phase + rng.uniform(0, 2 * np.pi)) * h**-slope * rng.uniform(0.3, 1)
    envelope = np.minimum(1, t / rng.uniform(0.005, 0.1)) * np.exp(-t * rng.uniform(0.2, 4))
    return note * envelope * 0.3


def drum(rng: np.random.Generator, n: int) -> np.ndarray:
    """A kick (falling sine), a snare (noise and sine) or a hi-hat (high-passed noise)."""
    t = np.arange(n) / RATE
    kind, noise = rng.integers(3), rng.standard_normal(n)
    if kind == 0:
        return np.sin(2 * np.pi * (50 * t + 8 * (1 - np.exp(-t * 30)))) * np.exp(-t * 12)
    if kind == 1:
        return (0.3 * noise + 0.5 * np.sin(2 * np.pi * 190 * t)) * np.exp(-t * rng.uniform(12, 25))
    return np.diff(noise, prepend=0) * np.exp(-t * rng.uniform(15, 60)) * 0.2


def hertz(root: int, scale: np.ndarray, step: int) -> float:
    """Frequency of a step (7 an octave) of a scale above the MIDI note `root`."""
    return 440 * 2 ** ((root + scale[step % 7] + 12 * (step // 7) - 69) / 12)


def make_music(minutes: float, seed: int) -> list[np.ndarray]:
    """int16 pieces of 8 seconds: chords, a plucked line, bass and drums, some of each."""
    rng, pieces, n = np.random.default_rng(seed), [], 8 * RATE
    for _ in range(int(minutes * 60 / 8)):
        mix, beat = np.zeros(n + RATE), int(RATE * 60 / rng.uniform(70, 150))
        voices = rng.random(4) < 0.6
        if not voices.any():
            voices[rng.integers(4)] = True
        root = rng.integers(40, 58)
        scale = rng.choice([[0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10]])
        for b, at in enumerate(range(0, n, beat)):
            degree = int(rng.integers(7))

            length = min(beat * int(rng.integers(1, 4)), n + RATE - at)
            if voices[0] and b % 2 == 0:
                for step in (0, 2, 4):
                    mix[at : at + length] += (
                        tone(rng, hertz(root, scale, degree + step + 7), length) * 0.5
                    )
            if voices[1]:
                for part in (0, beat // 2):
                    size = min(beat, n + RATE - at - part)
                    step = degree + int(rng.integers(7, 21))
                    line = pluck(rng, hertz(root, scale, step), size)
                    mix[at + part : at + part + size] += line
            if voices[2]:
                mix[at : at + length] += tone(rng, hertz(root, scale, degree - 7), length)
            if voices[3]:
                for part in (0, beat // 2):
                    size = min(int(0.3 * RATE), n + RATE - at - part)
                    mix[at + part : at + part + size] += drum(rng, size)
        mix = mix[:n] / (np.abs(mix[:n]).max() + 1e-9) * rng.uniform(0.2, 0.9)
        pieces.append((mix * 32767).astype(np.int16))
    return pieces


def batches(
    speech: list[np.ndarray],
    music: list[np.ndarray],
    config: Config,
    hop: int,
    rng: np.random.Generator,
) -> Iterator[Tensor]:
    """Endless (batch, frames * hop) float32: crops at random places with random gain."""
    size = config.frames * hop
    pools = []
    for pool in (speech, music):
        sizes = np.array([len(a) for a in pool], dtype=np.float64)
        pools.append((pool, sizes / sizes.sum() if len(pool) else None))
    while True:
        out = np.zeros((config.batch, size), dtype=np.float32)
        for row in out:
            pool, weights = pools[1] if music and rng.random() < 0.15 else pools[0]
            audio = pool[rng.choice(len(pool), p=weights)]
            at = int(rng.integers(-size // 4, max(1, len(audio) - size * 3 // 4)))
            piece = audio[max(0, at) : at + size]
            start = max(0, -at)
            row[start : start + len(piece)] = piece
            row *= 10 ** (rng.uniform(-12, 3) / 20) / 32768
        yield torch.from_numpy(out).clamp_(-1, 1)


# ---------------------------------------------------------------- loss


class Loss:
    """Distance of two log-magnitude spectrograms, bin by bin and as loudness in Bark bands."""

    BANDS = 49

    def __init__(self, config: SpectralConfig, bark_weight: float):
        frequency = torch.linspace(0, config.sampling_rate / 2, config.bins)
        bark = 6 * torch.asinh(frequency / 600)
        width = bark[-1] / self.BANDS
        centre = (torch.arange(self.BANDS) + 0.5) * width
        # triangles half overlapping; low bands are narrower than a bin and share theirs
        spread = torch.clamp(1 - (bark[:, None] - centre).abs() / width, min=0)
        near = (bark[:, None] - centre).abs().argmin(0)
        spread[near, torch.arange(self.BANDS)] += 1e-3
        self.bands = spread / spread.sum(0)
        self.width_hz = torch.diff(600 * torch.sinh((torch.arange(self.BANDS + 1) * width) / 6))
        # bins above 4 kHz are many and matter less
        self.bin_weight = 1 / (1 + (frequency / 3000) ** 2) + 0.15
        self.bin_weight /= self.bin_weight.mean()
        self.floor = config.floor
        self.bark_weight = bark_weight

    def loudness(self, logs: Tensor, level: Tensor) -> Tensor:
        """Natural logs (B, n, bins) -> (B, n, bands) loudness after Zwicker, level-normalised."""
        power = ((2 * logs).exp() @ self.bands) * self.width_hz / level
        return (power + 1e-5) ** 0.23 - 1e-5**0.23

    def __call__(self, guess: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Both (B, n, bins) natural logs of magnitudes."""
        logs = ((guess - truth).abs() * self.bin_weight).mean()
        with torch.no_grad():
            power = ((2 * truth).exp() @ self.bands) * self.width_hz
            level = power.sum(2, keepdim=True).mean(1, keepdim=True).clamp(min=1e-1)
            reference = level.sqrt() / 20
        compressed = (
            ((guess.exp() / reference) ** 0.3 - (truth.exp() / reference) ** 0.3).abs()
            * self.bin_weight
        ).mean()
        mine, theirs = self.loudness(guess, level), self.loudness(truth, level)
        gap = mine - theirs
        masked = F.relu(gap.abs() - 0.1 * torch.minimum(mine, theirs))
        # as PESQ: energy that was added disturbs more than energy that is missing
        frame = (masked.square().mean(2) + 1e-6).sqrt() + 0.7 * F.relu(gap).mean(2)
        bark = frame.mean() / theirs.mean().clamp(min=0.05)
        total = logs + compressed + 2 * self.bark_weight * bark
        return total, {"log": logs.item(), "pow": compressed.item(), "bark": bark.item()}


# ---------------------------------------------------------------- training


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal (Jordan et al. 2024): about half as many
    steps as AdamW for the same loss here. For matrices only; everything else stays with AdamW."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(average, group["momentum"])
                wide = update.shape[1] >= update.shape[0]
                x = update if wide else update.t()
                x = x / (x.norm() + 1e-7)
                for a, b, c in ((3.4445, -4.7750, 2.0315),) * 5:
                    square = x @ x.t()
                    x = a * x + (b * square + c * square @ square) @ x
                x = x if wide else x.t()
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(x, alpha=-group["lr"] * scale)


def train(config: Config) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = config.work_dir / "latest.pt"
    shape = SpectralConfig()
    net = SpectralNet(shape)
    learner = QuantizerTrainer(net.quantizer, seed=config.seed)
    matrices = [p for n, p in net.named_parameters() if p.ndim == 2]
    others = [p for n, p in net.named_parameters() if p.ndim != 2]
    optimizers = (
        Muon(matrices, config.lr),
        torch.optim.AdamW(others, 0.1 * config.lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    loss_of = Loss(shape, config.bark_weight)
    rng = np.random.default_rng(config.seed + 1)
    elapsed, step, quantized = 0.0, 0, False
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        learner.load_state_dict(state["learner"])
        for optimizer, saved_state in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved_state)
        rng.bit_generator.state = json.loads(state["rng"])
        elapsed, step, quantized = state["elapsed"], state["step"], state["quantized"]
        print(f"resumed {checkpoint} at step {step}, {elapsed / 60:.1f} minutes")
    speech = load_speech(config)
    music = make_music(config.music_minutes, config.seed)
    hours = sum(map(len, speech)) / RATE / 3600
    print(
        f"{len(speech)} recordings, {hours:.2f} h; {len(music) * 8 / 60:.0f} min of music; "
        f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters and "
        f"{net.quantizer.codebooks.numel() / 1e6:.2f} M in codebooks"
    )

    def save(export: bool) -> None:
        state = {
            "net": net.state_dict(),
            "learner": learner.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers],
            "rng": json.dumps(rng.bit_generator.state),
            "elapsed": elapsed,
            "step": step,
            "quantized": quantized,
        }
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, checkpoint)
        if export and quantized:
            settings = {k: v for k, v in asdict(config).items() if not isinstance(v, Path)}
            training = settings | {"steps": step}
            save_weights(net, config.output, training=training)

    budget = config.minutes * 60
    feed = batches(speech, music, config, shape.hop, rng)
    bar = tqdm(total=int(budget), initial=int(elapsed), unit="s", desc="train")
    log = (config.work_dir / "log.jsonl").open("a")
    smooth: dict[str, float] = {}
    spread = 0.0  # running variance of the latents
    recent: list[Tensor] = []
    last, saved = time.monotonic(), time.monotonic()
    while elapsed < budget:
        if not quantized and elapsed > config.warmup_minutes * 60:
            learner.start(torch.cat(recent))
            recent, quantized = [], True
        progress = elapsed / budget
        rate = min(1.0, (step + 1) / 100) * max(0.01, math.cos(math.pi / 2 * progress) ** 2)
        for optimizer, scale in zip(optimizers, (1.0, 0.1)):
            optimizer.param_groups[0]["lr"] = config.lr * scale * rate
        audio = next(feed)
        with torch.no_grad():
            truth = net.log_magnitudes(net.stft(audio))
            features = ((truth - net.SHIFT) / net.SCALE).view(config.batch, config.frames, -1)
        latents = net.encode(features)
        if quantized:
            # one item in five is decoded from its first levels only
            levels = torch.full((config.batch,), shape.num_codebooks)
            for i in np.flatnonzero(rng.random(config.batch) < 0.2):
                levels[i] = int(rng.integers(1, shape.num_codebooks))
            variance = latents.detach().reshape(-1, shape.latent_dim).var(0).sum().item()
            spread = variance if not spread else 0.99 * spread + 0.01 * variance
            learner.price = config.rate_weight * spread * min(1.0, max(0.0, 4 * progress - 1))
            chosen, codes, commitment = learner(latents, levels)
        else:
            chosen, codes, commitment = latents, None, 1e-3 * latents.square().mean()
            recent = [*recent[-11:], latents.detach().reshape(-1, shape.latent_dim)]
        loss, parts = loss_of(net.to_logs(net.decode(chosen)), truth)
        power = latents.detach().square().mean() + 1e-6
        change = (latents[:, 1:] - latents[:, :-1]).square().mean() / power
        total = loss + 0.25 * commitment + config.smooth_weight * change
        net.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        parts |= {
            "loss": loss.item(),
            "commit": float(commitment.detach()),
            "change": change.item(),
        }
        for k, v in parts.items():
            smooth[k] = v if k not in smooth else 0.98 * smooth[k] + 0.02 * v
        now = time.monotonic()
        elapsed, last = elapsed + now - last, now
        bar.update(int(elapsed) - bar.n)
        if step % 50 == 0:
            nats = [] if codes is None else [round(n, 2) for n in learner.entropies()]
            shown = {k: f"{v:.3f}" for k, v in smooth.items()} | {"nats": f"{sum(nats):.1f}"}
            bar.set_postfix(shown, refresh=False)
            log.write(json.dumps({"step": step, "elapsed": elapsed, "nats": nats, **smooth}) + "\n")
            log.flush()
        if now - saved > 120:
            save(export=True)
            saved = now
    bar.close()
    save(export=True)
    print(f"wrote {config.output} ({config.output.stat().st_size / 1e6:.2f} MB) after {step} steps")


def main() -> int:
    import tyro

    try:
        train(tyro.cli(Config, description=__doc__))
    except UserError as e:
        print(f"train_spectral_codec: error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
