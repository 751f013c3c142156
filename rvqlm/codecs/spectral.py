"""The embedded codec: 16 kHz speech or music in 8 codes of 10 bits every 20 ms (4 kbps).

    codec = SpectralCodec.load()
    codes, lengths = codec.encode(audio, None)      # (B, 1, S) -> (B, ceil(S / 320), 8)
    audio = codec.decode(codes)                     # (B, 1, T * 320)

Log-magnitude spectra are coded by a small network (`spectral_model.py`); the phase is made up
again when decoding (`griffin_lim.py`). Small enough for the repository and quick enough for a CPU,
made by ``tools/train_spectral_codec.py``; a demonstration codec, not one to publish music with.

Codes are exact: a frame's codes depend on that frame and `context_frames` neighbours on each side
and on nothing else, not on batching, chunking, padding or threads. Floating-point kernels may sum
in another order when shapes or threads change, so everything is encoded in blocks of one fixed
shape on one thread; what lies outside a recording is silence, in the first block as in any other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.base import Backend, Codec, fingerprint
from rvqlm.codecs.cards import EMBEDDED, Card
from rvqlm.codecs.chunking import decode_long
from rvqlm.codecs.griffin_lim import GriffinLim
from rvqlm.codecs.spectral_model import SpectralConfig, SpectralNet
from rvqlm.codecs.streaming import LIVE, Decoder, Pointwise, Windows
from rvqlm.errors import UserError, reason_of
from rvqlm.files import atomic_write, fits
from rvqlm.runtime import shapes_only

ASSET = Path(__file__).parent / "assets" / "spectral.safetensors"

BLOCK_FRAMES = 128
"""Frames per call of the encoder, context included. A power of two: no kernel has a remainder to
treat in another way than the rest."""

PIECE_FRAMES = 1500
"""Frames decoded at a time (30 s)."""


class SpectralCodec(Codec):
    """Log-magnitude residual vector quantization with Griffin-Lim phases.

    >>> codec = SpectralCodec.load()
    >>> codes, lengths = codec.encode(torch.zeros(1, 1, 641))
    >>> codes.shape, codec.decode(codes).shape
    (torch.Size([1, 3, 8]), torch.Size([1, 1, 960]))
    """

    cards = (
        Card(
            "spectral", 8, 8, 1024, 16000, 320, "Apache-2.0", EMBEDDED,
            note="a small one for trying things out; needs no download", look_ahead=(41, 41),
        ),
    )  # fmt: skip

    def __init__(
        self,
        net: SpectralNet,
        num_codebooks: int | None = None,
        name: str = "spectral",
        iterations: int = 16,
    ):
        """`num_codebooks`: levels in use, coarsest first; `iterations` of Griffin-Lim: more sound
        cleaner and cost time in proportion."""
        config = net.config
        levels = config.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= levels <= config.num_codebooks:
            raise UserError(f"codec {name} has 1 to {config.num_codebooks} codebooks, not {levels}")
        state = {k: v.half() for k, v in net.state_dict().items()}  # as stored
        super().__init__(
            CodecInfo(
                name=name,
                fingerprint=fingerprint(asdict(config), state),
                sampling_rate=config.sampling_rate,
                hop=config.hop,
                num_codebooks=levels,
                codebook_size=config.codebook_size,
            )
        )
        self.net = net.eval().requires_grad_(False)
        self.config = config
        self.context_frames = config.context_frames
        self.iterations = iterations
        if 2 * config.context_frames >= BLOCK_FRAMES:
            raise ValueError(f"blocks of {BLOCK_FRAMES} frames are too short for this network")

    @classmethod
    def load(
        cls, path: str | os.PathLike = ASSET, num_codebooks: int | None = None, **options
    ) -> SpectralCodec:
        """Read weights written by `save_weights`; `UserError` when the file is not that."""
        name = "spectral" if Path(path) == ASSET else os.fspath(path)
        return cls(load_net(path), num_codebooks, name, **options)

    def code_vectors(self) -> Tensor:
        books = self.net.quantizer.codebooks[: self.info.num_codebooks]
        return books - books.mean(1, keepdim=True)

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        audio, code_lengths = self.pad_to_hop(audio, lengths)
        B, T = audio.shape[0], audio.shape[2] // self.info.hop
        codes = torch.zeros(B, T, self.info.num_codebooks, dtype=torch.int64, device=audio.device)
        with self.inference():
            for item in range(B):
                frames = int(code_lengths[item])
                codes[item, :frames] = self._encode_one(audio[item], frames)
        return codes, code_lengths

    def _encode_one(self, audio: Tensor, frames: int) -> Tensor:
        """(1, >= frames * hop) -> (frames, K)"""
        hop, context = self.info.hop, self.context_frames
        step = BLOCK_FRAMES - 2 * context
        blocks = -(-frames // step)
        audio = audio[:, : frames * hop]
        padding = (context * hop, (blocks * step + context - frames) * hop)
        audio = F.pad(audio, padding)
        codes = []
        for first in range(0, blocks * step, step):
            block = audio[:, first * hop : (first + BLOCK_FRAMES) * hop]
            latents = self.net.encode(self.net.spectra(block))[0]
            block_codes = self.net.quantizer.encode(latents, self.info.num_codebooks)
            codes.append(block_codes[context : context + step])
        return torch.cat(codes)[:frames]

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return torch.stack([decode_long(self, item) for item in codes]).to(codes.device)

    def piecewise(self, step: int = LIVE, scales: Tensor | None = None) -> Decoder:
        """Pieces are of `PIECE_FRAMES`, whatever `step` is, but for `LIVE`."""
        step = step and PIECE_FRAMES
        invent = GriffinLim(self.net.window.float().cpu(), self.iterations)
        phases = invent.stages(step * self.config.spectra_per_frame)
        clamp = Pointwise(lambda audio: audio.clamp_(-1, 1))
        return Decoder(self, self._spectra_stage(step), *phases, clamp)

    @contextmanager
    def inference(self) -> Iterator[None]:
        with super().inference(), one_thread():
            yield

    def _spectra_stage(self, step: int) -> Windows:
        """Codes (1, K, t) to magnitudes (1, bins, n), on the CPU."""
        context, per_frame = self.config.decode_context_frames, self.config.spectra_per_frame
        return Windows(self._magnitudes, context, context, step, per_out=per_frame, reflects=False)

    def _magnitudes(self, codes: Tensor) -> Tensor:
        """(1, K, T) -> (1, bins, T * spectra_per_frame) on the CPU."""
        codes = codes.transpose(1, 2)
        self.check_codes(codes)
        logs = self.net.to_logs(self.net.decode(self.net.quantizer.decode(codes)))
        # what the network places at the floor was silence
        return F.relu(logs.float().cpu().exp() - 1.5 * self.config.floor).transpose(1, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever the caller's thread count; restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def save_weights(net: SpectralNet, path: str | os.PathLike, training: dict | None = None) -> None:
    """Write float16 weights with the configuration (and how they were made) in the metadata."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().half().contiguous() for k, v in net.state_dict().items()}
    metadata = {"config": json.dumps(asdict(net.config)), "training": json.dumps(training or {})}

    def write(temporary: Path) -> None:
        save_file(state, temporary, metadata)
        temporary.chmod(0o644)  # safetensors writes for the owner only

    atomic_write(path, write)


def load_net(path: str | os.PathLike) -> SpectralNet:
    """The network of a weights file, float32, in inference mode."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"codec {path}: no such file; give --codec spectral for the embedded weights, or the "
            "path of weights written by tools/train_spectral_codec.py"
        )
    try:
        with safe_open(path, framework="pt") as file:
            config = fits(json.loads((file.metadata() or {})["config"]), SpectralConfig)
            state = {k: file.get_tensor(k).float() for k in file.keys()}  # noqa: SIM118
        require_size(config, state)
        net = SpectralNet(config)
        net.load_state_dict(state)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise UserError(f"{path}: not weights of the spectral codec ({reason_of(e)})") from None
    net.quantizer.prepare()
    return net.eval()


def require_size(config: SpectralConfig, state: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError`, before memory is taken, for a config that is not of these weights."""
    layers = max(config.encoder_layers, config.decoder_layers, config.num_codebooks)
    sizes = (v for v in vars(config).values() if isinstance(v, int))
    if layers <= len(state) and max(sizes) <= 1 << 20:
        with shapes_only():
            wanted = SpectralNet(config).state_dict()
        if {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in state.items()}:
            return
    raise ValueError("its config is of other weights")


BACKEND = Backend(
    "rvqlm",
    (SpectralCodec,),
    takes=lambda name: name == "spectral" or name.endswith(".safetensors"),
    load=lambda name, levels: SpectralCodec.load(ASSET if name == "spectral" else name, levels),
    give="spectral, or a .safetensors file of its weights",
)
