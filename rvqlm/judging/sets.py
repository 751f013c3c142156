"""Embeddings whose distribution over many clips is compared with the recordings': Fréchet and
kernel distances, see `rvqlm.metrics.distances`. No clip needs a counterpart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rvqlm.errors import reason_of
from rvqlm.judging.judge import Clip, Nothing, NotRun, Options, SetJudge, Sound
from rvqlm.judging.weights import given_path, load_into, packaged, state_of
from rvqlm.metrics.mel import mel_filters, spectra

_VGGISH_RATE, _CLAP_SECONDS = 16000, 10


class CodecLatents(SetJudge):
    """Of each frame, the sum of the vectors of its codes: what the codec's decoder is given."""

    name = "codec-latents"

    def __init__(self, options: Options):
        codec = options.codec
        if codec is None:
            raise NotRun("no codec: give --codec, or references with tokens")
        vectors = codec.code_vectors()
        if vectors is None:
            raise NotRun(f"the levels of {codec.info.name} are no sum of vectors; give another")
        self._codec, self._vectors = codec, vectors.float().cpu()
        self.model = f"{codec.info.name.split('/')[-1]}-{codec.info.fingerprint[:8]}"

    def vectors(self, clip: Clip) -> np.ndarray:
        from rvqlm.codecs.chunking import encode_whole

        audio = torch.from_numpy(for_codec(clip.sound, self._codec.info))
        codes = encode_whole(self._codec, audio).codes.cpu()  # (T, K)
        levels = torch.arange(codes.shape[1])
        return self._vectors[levels, codes.long()].sum(1).numpy()


def for_codec(sound: Sound, info) -> np.ndarray:
    """(C, S) float32 at the rate and with the channels of a codec."""
    audio = sound.audio
    if sound.rate != info.sampling_rate or len(audio) != info.channels:
        audio = np.repeat(sound.at(info.sampling_rate)[None], info.channels, axis=0)
    return np.ascontiguousarray(audio, dtype=np.float32)


class Vggish(nn.Module):
    """The network of VGGish (Hershey et al., 2017, arXiv:1609.09430) with the names of torchvggish:
    (B, 1, 96, 64) log mel bands -> (B, 128), before its last
    activation and its whitening, as for FAD."""

    def __init__(self):
        super().__init__()
        layers, before = [], 1
        for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        wide = nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()
        self.embeddings = nn.Sequential(*wide, nn.Linear(4096, 128))

    def forward(self, bands: Tensor) -> Tensor:
        return self.embeddings(self.features(bands).permute(0, 2, 3, 1).flatten(1))


class VggishEmbeddings(SetJudge):
    """VGGish on windows of 0.96 s, one behind the other."""

    name = "vggish"

    def __init__(self, options: Options):
        given_path(options, self.name, "a file of torchvggish, such as vggish-10086976.pth")
        data, self.model = packaged(options, self.name, "", "")
        self._net = load_into(Vggish(), state_of(data, self.model), self.model)

    def vectors(self, clip: Clip) -> np.ndarray:
        bands = vggish_bands(clip.sound.at(_VGGISH_RATE))
        if not len(bands):
            raise Nothing("less than a second, which VGGish does not take")
        with torch.no_grad():
            parts = [self._net(part[None, None]) for part in torch.from_numpy(bands)]
        return torch.cat(parts).numpy()


def vggish_bands(audio: np.ndarray) -> np.ndarray:
    """(windows, 96, 64) float32: log mel bands of frames of 25 ms every 10 ms."""
    magnitudes = spectra(audio.astype(np.float64), 400, 160, 512, center=False)
    magnitudes = magnitudes[: max(0, 1 + (len(audio) - 400) // 160)]  # whole frames
    bands = np.log(
        magnitudes @ mel_filters(_VGGISH_RATE, 512, 64, 125.0, 7500.0, htk=True).T + 0.01
    )
    count = len(bands) // 96
    return bands[: count * 96].reshape(count, 96, 64).astype(np.float32)


class ClapEmbeddings(SetJudge):
    """CLAP (Wu et al., 2022, arXiv:2211.06687) on windows of 10 s, the last repeated until it fills
    one, from a folder of transformers."""

    name = "clap"

    def __init__(self, options: Options):
        folder = given_path(options, self.name, "the folder of a CLAP model of transformers")
        from transformers import ClapFeatureExtractor, ClapModel

        try:
            self._extract = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
            net = ClapModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as e:
            raise NotRun(f"--weights clap={folder}: {reason_of(e)}") from None
        self._net, self._device = net.eval().to(options.device), options.device
        self.model = f"clap-{folder.name}"

    def vectors(self, clip: Clip) -> np.ndarray:
        rate = self._extract.sampling_rate
        audio, size = clip.sound.at(rate), _CLAP_SECONDS * rate
        parts = []
        for start in range(0, len(audio), size):
            window = np.resize(audio[start : start + size], size)
            inputs = self._extract(window, sampling_rate=rate, return_tensors="pt")
            with torch.no_grad():
                found = self._net.get_audio_features(**inputs.to(self._device))
            found = getattr(found, "pooler_output", found)
            parts.append(found.float().cpu().numpy())
        return np.concatenate(parts)


class WavlmEmbeddings(SetJudge):
    """The last layer of WavLM (Chen et al., 2021, arXiv:2110.13900), a vector every 20 ms, from a
    folder of transformers."""

    name = "wavlm-frames"

    def __init__(self, options: Options):
        folder = given_path(options, self.name, "the folder of a WavLM model of transformers")
        from transformers import AutoFeatureExtractor, WavLMModel

        try:
            self._extract = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            net = WavLMModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as e:
            raise NotRun(f"--weights wavlm-frames={folder}: {reason_of(e)}") from None
        self._net, self._device = net.eval().to(options.device), options.device
        self.model = f"wavlm-{folder.name}"

    def vectors(self, clip: Clip) -> np.ndarray:
        if clip.sound.seconds < 0.1:
            raise Nothing("less than 0.1 s")
        audio = clip.sound.at(16000)
        inputs = self._extract(audio, sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            hidden = self._net(inputs.input_values.to(self._device)).last_hidden_state[0]
        return hidden.float().cpu().numpy()
