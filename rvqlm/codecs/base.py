"""What every codec is to the rest of the package: audio in, integer codes out, and back.

A backend subclasses `Codec`, fills `info` and says how far its encoder and decoder look to each
side, or, where that is no finite number, what state it carries from piece to piece; long files are
then cut into chunks by `rvqlm.codecs.chunking` without changing a code. Nothing is hidden inside:
no loudness normalisation, no resampling, no chunking. The file of a backend ends with a `Backend`,
which `rvqlm.codecs.registry` lists.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.cards import Card
from rvqlm.codecs.streaming import LIVE, WHOLE, Decoder, Encoded, Windows, encode_staged
from rvqlm.errors import UserError, reason_of
from rvqlm.runtime import without_tf32


class Codec(torch.nn.Module, ABC):
    """A neural audio codec with residual (or parallel) codebooks.

    Subclasses call ``super().__init__(info)``, implement `encode` and `decode`, and set
    `context_frames` and `decode_context_frames` where these are finite, or else override
    `encode_blocks` and `piecewise` if they can carry a state. Inference only: all methods
    run without gradients and independently of ``train()``/``eval()``.
    """

    cards: ClassVar[tuple[Card, ...]] = ()
    """Published codecs that this class is for, as ``rvqlm codecs`` lists them."""

    info: CodecInfo
    """Rates, shapes and fingerprint; `info.num_codebooks` is the number of levels in use, which may
    be fewer than the weights hold."""

    context_frames: int | None = None
    """Frames on each side of a chunk that `encode` must see for the chunk's codes to equal those of
    the whole file. None: no finite number (a recurrent or global encoder); files go in whole unless
    `encode_blocks` is overridden."""

    decode_context_frames: int | None = None
    """The same for `decode`, in frames of codes. None: no finite number."""

    decode_reflects: bool = True
    """Whether the decoder may pad its beginning by reflection: see `Windows`."""

    default_scale: float | None = None
    """Scale that segments are decoded with where none is known (generated codes); None for codecs
    without scales, which is all whose `info.segment` is None."""

    dtype: torch.dtype = torch.float32
    """What the network computes in; see `set_dtype`."""

    def __init__(self, info: CodecInfo):
        super().__init__()
        self.info = info

    def train(self, mode: bool = True) -> Codec:
        """Codecs stay in inference mode: quantizer dropout would make codes random."""
        return super().train(False)

    @abstractmethod
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Turn audio into codes.

        Args:
            audio: (B, C, S) float32 in [-1, 1] at `info.sampling_rate`, zeros past `lengths`.
            lengths: (B,) valid samples per item; None means S for all.

        Returns:
            codes (B, T, K) int64 with T = ceil(S / hop), arbitrary past an item's length, and
            code_lengths (B,) int64 = ceil(lengths / hop). The last frame of an item is completed
            with zeros.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Turn codes (B, T, K) into audio (B, C, T * hop) float32.

        K may be smaller than `info.num_codebooks` where the quantizer is residual: the coarse
        levels alone give a rougher reconstruction.
        """

    def code_vectors(self) -> Tensor | None:
        """What each code adds to what the decoder is given, (K, V, D) float32, less the mean of its
        level: codes that sound alike lie near to each other. None where the levels are no sum."""
        return None

    def encode_blocks(self, blocks: Iterable[Tensor], step: int) -> Iterator[Encoded]:
        """One recording in blocks (C, n) float32 of any length, to the codes of `encode` on the
        whole; see `rvqlm.codecs.chunking.encode_stream`.

        With a finite `context_frames` that needs memory for about `step` frames and the context;
        without, the recording goes in whole, unless a subclass knows better.
        """
        context, hop = self.context_frames, self.info.hop

        def run(audio: Tensor) -> Tensor:
            return self.encode(audio.to(self.device))[0].transpose(1, 2)

        size = WHOLE if context is None else step
        window = Windows(run, context or 0, context or 0, size, per_in=hop)
        return encode_staged(self, blocks, window)

    def decode_blocks(self, codes: Tensor, step: int, scales: Tensor | None) -> Iterator[Tensor]:
        """Codes (T, K) of one recording to the audio of `decode`, piece by piece; see
        `rvqlm.codecs.chunking.decode_stream`. Only codecs with segments are given `scales`."""
        decoder = self.piecewise(step, scales)
        for piece in [*codes.split(step), None]:
            if (audio := decoder(piece, piece is None)) is not None:
                yield audio

    def piecewise(self, step: int = LIVE, scales: Tensor | None = None) -> Decoder:
        """What decodes one recording whose codes arrive in pieces, to the audio of `decode`.

        With a finite `decode_context_frames` that needs memory for about `step` frames and the
        context, and says with `LIVE` at once what can be said; without, the recording goes through
        whole, at its end, unless a subclass knows better.

        Args:
            step: frames in a call of the network, about.
            scales: (n,) of the first segments, for codecs that have any; the last holds on.
        """
        context, hop = self.decode_context_frames, self.info.hop

        def run(codes: Tensor) -> Tensor:
            return self.decode(codes.transpose(1, 2))

        size = WHOLE if context is None else step
        reflects = self.decode_reflects
        window = Windows(run, context or 0, context or 0, size, per_out=hop, reflects=reflects)
        return Decoder(self, window)

    @property
    def look_ahead(self) -> tuple[int, int] | None:
        """Frames of codes that must follow a frame for all of it to be heard, and frames that there
        must be for the first sample; None: all of a recording."""
        decoder, hop, far = self.piecewise(), self.info.hop, 1000
        if (first := decoder.needs(1)) >= WHOLE:
            return None
        if self.info.segment is not None:  # what begins one waits longest
            return first - 1, first
        return decoder.needs(far * hop) - far, first

    @property
    def bounded_memory(self) -> bool:
        """Whether an hour of audio is encoded in the memory that a minute needs."""
        return self.context_frames is not None or (
            type(self).encode_blocks is not Codec.encode_blocks
        )

    def encode_pieces(self, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Windows or segments of equal length, a row each: (B, C, n) -> codes (B, ceil(n / hop), K)
        and (B,) float32 scales where the codec has any; None otherwise."""
        return self.encode(audio)[0], None

    def set_dtype(self, dtype: torch.dtype) -> Codec:
        """Compute in another type than float32, where a codec can; returns itself.

        bfloat16 and float16 are faster on a GPU and sound the same, but they change 7 to 20 % of
        the codes (measured on DAC): decode in them as you like, encode in float32. The fingerprint
        stays that of the weights.

        Raises `UserError` where the codec computes in float32 only.
        """
        if dtype != torch.float32:
            raise UserError(
                f"--dtype {str(dtype).removeprefix('torch.')}: codec {self.info.name} computes in "
                "float32 only; use --dtype float32"
            )
        return self

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The settings of torch that the networks of this codec run under: no gradients, and no
        autocast and no TF32, which would change codes."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), without_tf32():
            yield

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are expected there too."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def scales_for(self, frames: int, known: Tensor | None = None) -> Tensor | None:
        """Scales to decode `frames` frames with of which only the first segments' are known.

        The last of `known` (n,) holds to the end, or `default_scale` where none is. None for
        codecs without scales.
        """
        if self.info.segment is None:
            return None
        count = self.info.num_scales(frames)
        known = torch.empty(0) if known is None else known.float()[:count]
        last = known[-1:] if len(known) else torch.tensor([self.default_scale])
        return torch.cat((known, last.expand(count - len(known))))

    def frames_in(self, seconds: float) -> int:
        """Frames in a chunk of about `seconds`, at least one; ValueError for no seconds."""
        if seconds <= 0:
            raise ValueError(f"chunk_seconds must be positive, got {seconds}")
        return max(1, int(seconds * self.info.sampling_rate / self.info.hop))

    def pad_to_hop(self, audio: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check an input of `encode` and complete its last frame with zeros.

        Args:
            audio: (B, C, S) float32.
            lengths: (B,) or None.

        Returns:
            audio (B, C, ceil(S / hop) * hop), silent past each item's length, and the code lengths
            (B,) int64 on the host.
        """
        if audio.ndim != 3 or audio.shape[1] != self.info.channels or audio.shape[2] == 0:
            raise ValueError(
                f"{self.info.name} encodes (batch, {self.info.channels}, samples > 0), "
                f"got {tuple(audio.shape)}"
            )
        B, _, S = audio.shape
        if lengths is None:
            lengths = torch.full((B,), S)
        lengths = lengths.to("cpu", torch.int64)
        if lengths.shape != (B,) or int(lengths.min()) < 1 or int(lengths.max()) > S:
            raise ValueError(f"lengths {lengths.tolist()} do not fit audio {tuple(audio.shape)}")
        hop = self.info.hop
        audio = torch.nn.functional.pad(audio, (0, -S % hop))
        if int(lengths.min()) < S:  # what lies past an item must not leak into its last frames
            valid = torch.arange(audio.shape[2]) < lengths[:, None]
            audio = audio * valid[:, None].to(audio.device)
        return audio, -(-lengths // hop)

    def encode_alike(
        self, audio: Tensor, frames: Tensor, encode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Codes (B, T, K) of items of unequal lengths, those of one length together.

        Zeros behind an item's end are not what a network pads with there, so that an item's codes
        would depend on what it is batched with.

        Args:
            audio: (B, C, T * hop) as `pad_to_hop` returns it.
            frames: (B,) of each item, on the host.
            encode: (b, C, n * hop) -> (b, >= K, n) codes.
        """
        hop, K = self.info.hop, self.info.num_codebooks
        T = audio.shape[2] // hop
        codes = torch.zeros(len(audio), T, K, dtype=torch.int64, device=audio.device)
        with self.inference():
            for n in frames.unique().tolist():
                rows = (frames == n).nonzero()[:, 0].to(audio.device)
                part = encode(audio[rows, :, : n * hop])
                if part.shape[2] != n:
                    raise RuntimeError(
                        f"{self.info.name}: {part.shape[2]} frames from {n * hop} samples, not {n}"
                    )
                codes[rows, :n] = part[:, :K].transpose(1, 2).to(torch.int64)
        return codes

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless `codes` is something `decode` can take: (B, T, K) in range."""
        K, V = self.info.num_codebooks, self.info.codebook_size
        if codes.ndim != 3 or not 1 <= codes.shape[2] <= K:
            raise ValueError(f"{self.info.name} decodes (batch, frames, <= {K}), got {codes.shape}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= V):
            raise ValueError(
                f"codes between {int(codes.min())} and {int(codes.max())}, outside 0..{V - 1} of "
                f"{self.info.name}"
            )


def fingerprint(config: Mapping, state: Mapping[str, Tensor]) -> str:
    """16 hex digits identifying a codec: a hash of what its codes depend on.

    Args:
        config: JSON-able values that shape the computation (not names or versions).
        state: weights; order does not matter, names, dtypes, shapes and every byte do.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # viewed as bytes: numpy has no bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Backend:
    """A way of loading codecs: a row of `rvqlm.codecs.registry.BACKENDS`."""

    name: str
    classes: tuple[type[Codec], ...]
    """what it makes; their cards say which published codecs it loads"""
    takes: Callable[[str], bool] | None
    """whether a name is this backend's, by its looks; None: if it is no other's"""
    load: Callable[[str, int | None], Codec]
    """from the name and the number of codebooks (None: the usual one); `UserError` naming the file
    looked for, where it can be had and how to point to it"""
    give: str
    """what to give to --codec, for people"""
    module: str = "rvqlm"
    """what `require` imports"""
    distribution: str = "rvqlm"
    """what brings that module"""
    extra: str = ""
    """of rvqlm, which installs it; empty: always installed"""

    @property
    def cards(self) -> tuple[Card, ...]:
        """Published codecs that it loads."""
        return tuple(dict.fromkeys(card for made in self.classes for card in made.cards))

    @property
    def installed(self) -> str | None:
        """The package that brings the module, with its release; None if it is not installed."""
        try:
            return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
        except importlib.metadata.PackageNotFoundError:
            return None

    def require(self, codec: str, instead: str = "") -> ModuleType:
        """Import the module, or say with a `UserError` how to get it.

        Args:
            codec: what was asked for, for the message.
            instead: how to do without, for the message.
        """
        try:
            return importlib.import_module(self.module)
        except Exception as e:  # torchaudio raises OSError where its libraries don't fit torch
            raise UserError(
                f"codec {codec} needs the package {self.distribution}, and importing it failed ("
                f"{reason_of(e)}); pip install 'rvqlm[{self.extra}]'{instead and ', or ' + instead}"
            ) from None
