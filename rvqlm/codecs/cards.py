"""What codecs there are: shapes, licences, where weights come from, and what of it is here.

Shapes are those of the published checkpoints. Licences are those that the publishers state for the
weights, where they do; they bind whoever uses the weights, so read them at the source.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.native_checkpoint import download_folders
from rvqlm.codecs.pretrained import candidates

_HUB = "https://huggingface.co/"
_DAC_FILES = "https://github.com/descriptinc/descript-audio-codec/releases"
_ENCODEC_FILES = "https://dl.fbaipublicfiles.com/encodec/v0"
_NO_STATEMENT = "the code is MIT; the project does not say whether its weights are too"


@dataclass(frozen=True)
class Card:
    """A published codec."""

    name: str
    """what --codec takes"""
    num_codebooks: int
    """levels in use unless --num-codebooks says otherwise"""
    available: int
    """levels in the weights"""
    codebook_size: int
    sampling_rate: int
    """Hz"""
    hop: int
    """samples per frame"""
    licence: str
    """of the weights, short"""
    source: str
    """where weights come from"""
    backends: tuple[str, ...]
    """what can load it, the usual one first; names as in `BACKENDS`"""
    channels: int = 1
    segment: tuple[int, int] | None = None
    native: str = ""
    """weight file in the format of the codec's own project"""
    native_source: str = ""
    """where that comes from"""
    licence_note: str = ""
    note: str = ""

    @property
    def info(self) -> CodecInfo:
        return CodecInfo(
            self.name, "", self.sampling_rate, self.hop, self.num_codebooks, self.codebook_size,
            self.channels, self.segment,
        )  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """A way of running codecs."""

    module: str
    """what must import"""
    distribution: str
    extra: str
    """of rvqlm, empty: always installed"""
    how: str
    """what to give to --codec"""

    @property
    def version(self) -> str | None:
        """The installed release, None if it is not installed."""
        try:
            if importlib.util.find_spec(self.module) is None:
                return None
        except (ImportError, ValueError):
            return None
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


BACKENDS = {
    "rvqlm": Backend("rvqlm", "rvqlm", "", "spectral, or a .safetensors file of its weights"),
    "transformers": Backend(
        "transformers", "transformers", "", "a hub name, or a folder with config.json and weights"
    ),
    "native": Backend(
        "transformers", "transformers", "",
        "a .pth, .th or .bin file as the codec's own project publishes it",
    ),
    "dac": Backend("dac", "descript-audio-codec", "dac", "package:dac:FILE.pth"),
    "encodec": Backend("encodec", "encodec", "encodec", "package:encodec:FILE.th"),
    "nemo": Backend("nemo", "nemo_toolkit", "nemo", "a hub name of nvidia's, or a .nemo file"),
}  # fmt: skip
"""By name: rvqlm itself; transformers; native files through transformers' classes; packages."""


def _dac(khz: int, K: int, hop: int, rate: int, file: str, note: str = "") -> Card:
    name = f"descript/dac_{khz}khz"
    return Card(
        name, K, K, 1024, rate, hop, "MIT", f"{_HUB}{name}",
        ("transformers", "native", "dac"), native=file, native_source=_DAC_FILES, note=note,
    )  # fmt: skip


def _encodec(khz: int, K: int, available: int, file: str, **more: Any) -> Card:
    name = f"facebook/encodec_{khz}khz"
    more = {
        "codebook_size": 1024, "hop": 320, "native_source": _ENCODEC_FILES,
        "licence": "see its card", "licence_note": _NO_STATEMENT, **more,
    }  # fmt: skip
    return Card(
        name, K, available, sampling_rate=khz * 1000, source=f"{_HUB}{name}",
        backends=("transformers", "native", "encodec"), native=file, **more,
    )  # fmt: skip


CARDS = (
    Card(
        "spectral", 8, 8, 1024, 16000, 320, "Apache-2.0", "in this package", ("rvqlm",),
        note="a small one for trying things out; needs no download",
    ),
    _dac(
        44, 9, 512, 44100, "weights_44khz_8kbps_0.0.1.pth",
        "weights_44khz_16kbps_1.0.0.pth, with more levels, exists as a native file only",
    ),
    _dac(24, 32, 320, 24000, "weights_24khz_8kbps_0.0.4.pth"),
    _dac(16, 12, 320, 16000, "weights_16khz_8kbps_0.0.5.pth"),
    _encodec(24, 8, 32, "encodec_24khz-d7cc33bc.th", note="causal; 2 to 32 levels, 0.75 kbps each"),
    _encodec(
        32, 4, 4, "compression_state_dict.bin", codebook_size=2048, hop=640,
        licence="CC-BY-NC-4.0", licence_note="as all weights of MusicGen",
        native_source=_HUB + "facebook/musicgen-small",
        note="MusicGen's",
    ),
    _encodec(
        48, 16, 16, "encodec_48khz-7e698e3e.th", channels=2, segment=(150, 47520),
        note="stereo; segments of one second, each with a scale that is stored beside the codes",
    ),
    Card(
        "kyutai/mimi", 8, 32, 2048, 24000, 1920, "CC-BY-4.0", _HUB + "kyutai/mimi",
        ("transformers",), note="causal; the first level is semantic",
    ),
    Card(
        "nvidia/audio-codec-44khz", 8, 8, 1000, 44100, 512, "NSCLv1",
        _HUB + "nvidia/audio-codec-44khz", ("nemo",),
        native="audio-codec-44khz.nemo", licence_note="NVIDIA's, non-commercial; see its card",
        note="finite scalar quantization: parallel groups, all of them always in use",
    ),
)  # fmt: skip

# Model types that transformers maps for audio tokenization or that encode and decode audio, and
# what became of each with small random weights.
TRANSFORMERS_TYPES = {
    "dac": "works",
    "encodec": "works",
    "mimi": "works",
    "xcodec": "works; files go in whole (it holds a speech model that hears everything)",
    "higgs_audio_v2_tokenizer": "works where torchaudio is installed; files go in whole",
    "xcodec2": "no: its encoder also wants mel features that torchaudio has to compute",
    "neucodec": "no: it changes the rate, and its encoder wants features computed by torchaudio",
    "pocket_tts_audio_tokenizer": "no: its latents are continuous, there are no codes",
    "vibevoice_acoustic_tokenizer": "no: its latents are continuous, there are no codes",
}


def transformers_types() -> dict[str, str]:
    """`TRANSFORMERS_TYPES` and what an installed, newer transformers maps beside these."""
    from transformers.models.auto import modeling_auto as auto

    mapped = getattr(auto, "MODEL_FOR_AUDIO_TOKENIZATION_NAMES", {})
    new = {kind: "untried; taken if it has (B, K, T) codes" for kind in mapped}
    return {**TRANSFORMERS_TYPES, **{k: v for k, v in new.items() if k not in TRANSFORMERS_TYPES}}


def card_of(name: str) -> Card | None:
    """The card of a codec by its name, with or without the owner."""
    for card in CARDS:
        if name in (card.name, card.name.split("/")[-1]):
            return card
    return None


def weights_here(card: Card) -> list[str]:
    """Where weights of a codec lie on this machine; nothing is loaded."""
    if card.name == "spectral":
        return ["embedded"]
    found = [f for f in candidates(card.name) if (f / "config.json").is_file()]
    config = _cached(card.source, "config.json") if "transformers" in card.backends else None
    found += [config.parent] if config else []
    if card.native:
        folders = [folder / card.native for folder in download_folders()]
        found += [f for f in (*candidates(card.native), *folders) if f.is_file()]
        file = _cached(card.native_source or card.source, card.native)
        found += [file] if file else []
    return list(dict.fromkeys(map(str, found)))


def _cached(source: str, file: str) -> Path | None:
    """A file of the repository at the hub's address `source`, in the Hugging Face cache."""
    if not source.startswith(_HUB):
        return None
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(source.removeprefix(_HUB), file)
    return Path(path) if isinstance(path, str) else None
