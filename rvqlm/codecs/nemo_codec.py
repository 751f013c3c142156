"""NVIDIA NeMo's audio codecs: ``nvidia/audio-codec-44khz`` and any ``.nemo`` file, extra ``nemo``.

Convolutions around finite scalar quantization: 8 groups of 1000 codes at 44.1 kHz. The groups are
parallel, not levels of a residual, so all of them are always in use. Names: a ``.nemo`` file, the
hub name of one (looked for in ``RVQLM_CODECS`` and the Hugging Face cache, then fetched), or
``nemo:NAME`` for a file without that suffix or a model that NeMo itself knows by name.

Checked against NeMo 3.0 with random weights in the published layout (``tools/test.sh --nemo``); the
published weights have not been at hand, nor a download from the hub or NGC, nor a GPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Backend, Codec, fingerprint
from rvqlm.codecs.cards import CODECS_ENV, HUB, Card, cached, candidates, remembered
from rvqlm.errors import UserError, reason_of
from rvqlm.hub import require_asked, require_network

PREFIX = "nemo:"

_CODEC_PARTS = ("audio_encoder", "vector_quantizer", "audio_decoder", "semantic_codec")
"""What codes and audio depend on; the rest of such a model is for its training."""

_TRAINING_ONLY = {"discriminator": None, "use_scl_loss": False, "use_slm_loss": False}
"""Settings that leave out what is not needed here, a network fetched from the web among it."""


class NemoCodec(Codec):
    """`nemo.collections.tts.models.AudioCodecModel` behind our interface.

    NeMo pads by reflection, which a recording of one or two frames is too short for: such a one is
    encoded as if silence followed, and decoded as if its last frame were repeated.
    """

    cards = (
        Card(
            "nvidia/audio-codec-44khz", 8, 8, 1000, 44100, 512, "NSCLv1",
            HUB + "nvidia/audio-codec-44khz", native="audio-codec-44khz.nemo",
            licence_note="NVIDIA's, non-commercial; see its card",
            note="finite scalar quantization: parallel groups, all of them always in use",
        ),
    )  # fmt: skip

    def __init__(self, model: nn.Module, name: str, num_codebooks: int | None = None):
        K = int(model.num_codebooks)
        if num_codebooks not in (None, K):
            raise UserError(
                f"--num-codebooks {num_codebooks}: the {K} codebooks of {name} are parallel "
                f"groups, not levels of a residual; all {K} are needed"
            )
        if model.sample_rate != getattr(model, "output_sample_rate", model.sample_rate):
            raise UserError(
                f"codec {name}: decodes to {model.output_sample_rate} Hz what was "
                f"{model.sample_rate} Hz; codecs that change the rate are not supported"
            )
        super().__init__(
            CodecInfo(
                name=name,
                fingerprint=_fingerprint(model),
                sampling_rate=int(model.sample_rate),
                hop=int(model.samples_per_frame),
                num_codebooks=K,
                codebook_size=int(model.codebook_size),
            )
        )
        self.model = model.float().eval().requires_grad_(False)
        self.eval()
        self.shortest = self._shortest()
        self.context_frames, self.decode_context_frames = self._reach()

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        audio, frames = self.pad_to_hop(audio, lengths)
        return self.encode_alike(audio, frames, self._encode), frames

    def _encode(self, audio: Tensor) -> Tensor:
        """(B, 1, n * hop) -> (B, K, n)"""
        frames = audio.shape[2] // self.info.hop
        missing = max(0, self.shortest - frames) * self.info.hop
        audio = pad(audio[:, 0].float(), (0, missing))
        return self.model.encode(audio=audio, audio_len=_lengths(audio))[0][:, :, :frames]

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        if codes.shape[2] != self.info.num_codebooks:
            raise ValueError(f"{self.info.name} decodes all {self.info.num_codebooks} codebooks")
        samples = codes.shape[1] * self.info.hop
        missing = max(0, self.shortest - codes.shape[1])
        if missing:
            codes = torch.cat((codes, codes[:, -1:].expand(-1, missing, -1)), 1)
        with self.inference():
            tokens = codes.transpose(1, 2)
            audio, _ = self.model.decode(tokens=tokens, tokens_len=_lengths(tokens))
        return audio[:, None, :samples].float()

    def _shortest(self) -> int:
        """Frames that a recording needs for the layers to accept it."""
        for frames in (1, 2, 4, 8, 16, 32):
            audio = torch.zeros(1, frames * self.info.hop)
            try:
                with self.inference():
                    tokens, _ = self.model.encode(audio=audio, audio_len=_lengths(audio))
                    self.model.decode(tokens=tokens, tokens_len=_lengths(tokens))
            except RuntimeError:  # padding by more than there is
                continue
            return frames
        raise UserError(f"codec {self.info.name}: NeMo can't encode 32 frames of silence with it")

    def _reach(self) -> tuple[int | None, int | None]:
        """Frames on each side that encoder and decoder depend on, None for all of them.

        Asked of the layers themselves, whatever they are: what becomes NaN when one frame is NaN
        depends on it.
        """
        hop = self.info.hop
        for frames in (64, 256):
            middle = frames // 2
            audio = torch.zeros(1, frames * hop)
            with self.inference():
                audio[:, middle * hop : (middle + 1) * hop] = torch.nan
                latents, _ = self.model.encode_audio(audio=audio, audio_len=_lengths(audio))
                touched = latents.clone().zero_()
                touched[:, :, middle] = torch.nan
                decoded, _ = self.model.decode_audio(inputs=touched, input_len=_lengths(touched))
            ways = (
                _distance(latents.isnan().any(1)[0], middle),
                _distance(decoded[0].reshape(frames, hop).isnan().any(1), middle),
            )
            if all(way < middle - 1 for way in ways):
                return ways
        return tuple(way if way < middle - 1 else None for way in ways)


def load_nemo(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec in a ``.nemo`` file, or of a name as the module's docstring lists them."""
    models = BACKEND.require(name)
    wanted = name.removeprefix(PREFIX)
    path = _find(wanted)
    if path is None:
        require_asked(name)  # NeMo fetches it
    elif Path(wanted).expanduser().is_file():
        require_asked(name, "what is in a .nemo file says which code is run to load it")
    try:
        if path is None:
            model = models.AudioCodecModel.from_pretrained(wanted, map_location="cpu")
        else:
            model = _restore(models.AudioCodecModel, path)
    except Exception as e:  # tarfile, omegaconf and NeMo each have their own
        what = f"codec {name}: NeMo cannot load {path or wanted}"
        raise UserError(f"{what}: {reason_of(e)}") from None
    return NemoCodec(model, name if path is None else remembered(wanted, path), num_codebooks)


def _find(name: str) -> Path | None:
    """The ``.nemo`` file that `name` means; None if only NeMo knows it."""
    file = f"{name.rsplit('/', 1)[-1].removesuffix('.nemo')}.nemo"
    for path in (*candidates(name), *candidates(file)):
        if path.is_file():
            return path
    if name.endswith(".nemo") or name.startswith((".", "/", "~")):
        raise UserError(
            f"codec {name}: no such file; fetch for example audio-codec-44khz.nemo from "
            "https://huggingface.co/nvidia/audio-codec-44khz"
        )
    if name.count("/") != 1:
        return None
    if found := cached(name, file):
        return found
    import huggingface_hub

    try:
        require_network(name)
        return Path(huggingface_hub.hf_hub_download(name, file))
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"codec {name}: {file} is neither in the Hugging Face cache nor to be had from the "
            f"network ({type(e).__name__}); fetch it from https://huggingface.co/{name} and give "
            f"its path with --codec, or put it into DIR with {CODECS_ENV}=DIR"
        ) from None


def _restore(model_class, path: Path) -> nn.Module:
    """The model in a ``.nemo`` file without the parts that only its training needs."""
    from omegaconf import open_dict

    config = model_class.restore_from(str(path), return_config=True)
    with open_dict(config):
        config.update(_TRAINING_ONLY)
    return model_class.restore_from(
        str(path), override_config_path=config, map_location=torch.device("cpu")
    )


def _fingerprint(model: nn.Module) -> str:
    config = {"sample_rate": model.sample_rate, "samples_per_frame": model.samples_per_frame}
    for part in _CODEC_PARTS:
        config[part] = _plain(model.cfg.get(part))
    state = {k: v for k, v in model.state_dict().items() if k.split(".")[0] in _CODEC_PARTS}
    return fingerprint(config, state)


def _plain(value):
    """A part of NeMo's configuration as dicts and lists that JSON always writes alike."""
    if hasattr(value, "items"):
        return {str(k): _plain(v) for k, v in value.items()}
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return [_plain(v) for v in value]
    return value


def _lengths(x: Tensor) -> Tensor:
    """(B,) full lengths of a batch whose last axis is time."""
    return torch.full((len(x),), x.shape[-1], device=x.device)


def _distance(touched: Tensor, middle: int) -> int:
    """The farthest that a True lies from `middle`."""
    return int((touched.nonzero()[:, 0] - middle).abs().max())


def _takes(name: str) -> bool:
    hub_name = re.fullmatch(r"nvidia/[\w.-]*codec[\w.-]*", name) and not Path(name).exists()
    return name.startswith(PREFIX) or name.endswith(".nemo") or bool(hub_name)


BACKEND = Backend(
    "nemo",
    (NemoCodec,),
    takes=_takes,
    load=load_nemo,
    give="a hub name of nvidia's, or a .nemo file",
    module="nemo.collections.tts.models",
    distribution="nemo_toolkit",
    extra="nemo",
)
