"""Speaker similarity: the cosine between embeddings of two voices."""

from __future__ import annotations

from abc import abstractmethod
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from rvqlm.errors import reason_of
from rvqlm.judging.judge import Clip, Column, Judge, Nothing, NotRun, Options, Score, Sound
from rvqlm.judging.weights import given_path, load_into, packaged, state_of
from rvqlm.metrics.mel import mel_filters, spectra

RATE = 16000
_SHORTEST = 0.4  # seconds


class SpeakerJudge(Judge):
    """How much a clip sounds like its voice, by one network."""

    columns = (Column("similarity", "higher", "cosine to the voice that it should have"),)

    def __init__(self, options: Options):
        self._known: WeakKeyDictionary[Sound, np.ndarray] = WeakKeyDictionary()
        self.load(options)

    @abstractmethod
    def load(self, options: Options) -> None:
        """Get ready; sets `model`."""

    @abstractmethod
    def embed(self, audio: np.ndarray) -> np.ndarray:
        """(D,) of (S,) float32 at `RATE`."""

    def score(self, clip: Clip) -> dict[str, Score]:
        if clip.voice is None:
            raise Nothing("no recording of the voice that it should have")
        a, b = (self._embedding(sound) for sound in (clip.sound, clip.voice))
        return {"similarity": Score(float(min(1.0, a @ b)))}

    def _embedding(self, sound: Sound) -> np.ndarray:
        if sound not in self._known:
            if sound.seconds < _SHORTEST:
                raise Nothing(f"less than {_SHORTEST:g} s, which is no voice")
            found = self.embed(sound.at(RATE)).astype(np.float64)
            norm = np.linalg.norm(found)
            if not norm:
                raise Nothing("silence, which is no voice")
            self._known[sound] = found / norm
        return self._known[sound]


class VoiceEncoder(nn.Module):
    """The network of Resemblyzer (Wan et al., 2017, "Generalized end-to-end loss for speaker
    verification"): three LSTM layers over 40 mel bands, and a projection of where the last ends."""

    WINDOW = 160  # frames of 10 ms
    STEP = 77  # 1.3 windows a second

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """(B, T, 40) -> (B, 256) of length 1, none below 0."""
        last = self.lstm(mels)[1][0][-1]
        return nn.functional.normalize(self.linear(last).relu(), dim=1)

    def windows(self, audio: np.ndarray) -> Tensor:
        """(B, 160, 40) power mel bands of a recording, the last window completed with silence where
        three quarters of it are there."""
        hop = RATE // 100
        frames = -(-(len(audio) + 1) // hop)
        starts = list(range(0, max(1, frames - self.WINDOW + self.STEP + 1), self.STEP))
        if len(starts) > 1 and len(audio) / hop - starts[-1] < 0.75 * self.WINDOW:
            starts.pop()
        audio = np.pad(audio, (0, max(0, (starts[-1] + self.WINDOW) * hop - len(audio))))
        power = spectra(audio, 400, hop) ** 2 @ mel_filters(RATE, 400, 40).T
        return torch.from_numpy(np.stack([power[s : s + self.WINDOW] for s in starts])).float()


class ResemblyzerJudge(SpeakerJudge):
    """Resemblyzer's weights, on windows of 1.6 s; quiet recordings are made louder first, as there.
    Its detector of speech is left out: it drops pauses."""

    name = "resemblyzer"

    def load(self, options: Options) -> None:
        data, self.model = packaged(options, self.name, "Resemblyzer", "resemblyzer/pretrained.pt")
        state = state_of(data, self.model, "model_state")
        self._net = load_into(VoiceEncoder(), state, self.model)

    def embed(self, audio: np.ndarray) -> np.ndarray:
        rms = np.sqrt(np.mean(audio.astype(np.float64) ** 2))
        if not rms:
            return np.zeros(256)
        audio = audio * max(1.0, 10 ** (-30 / 20) / rms)
        with torch.no_grad():
            return self._net(self._net.windows(audio)).mean(0).numpy()


class WavlmJudge(SpeakerJudge):
    """WavLM with its x-vector head (microsoft/wavlm-base-plus-sv and its kin), from a folder of
    transformers. Not the fine-tuned WavLM-large of Seed-TTS eval, which is another network."""

    name = "wavlm"

    def load(self, options: Options) -> None:
        folder = given_path(options, self.name, "the folder of a WavLM model with x-vectors")
        from transformers import AutoFeatureExtractor, WavLMForXVector

        try:
            self._extract = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            net = WavLMForXVector.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as e:
            raise NotRun(f"--weights wavlm={folder}: {reason_of(e)}") from None
        self._net = net.eval().to(options.device)
        self.model = f"wavlm-{folder.name}"

    def embed(self, audio: np.ndarray) -> np.ndarray:
        inputs = self._extract(audio, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            found = self._net(inputs.input_values.to(self._net.device)).embeddings[0]
        return found.float().cpu().numpy()
