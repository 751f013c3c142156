"""What the rest of the package knows about a codec: shapes, rates and a fingerprint.

Manifests, checkpoints, samples and exports carry a ``CodecInfo``. Training and generation of
tokens need nothing more, so they never import a codec.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from math import log2
from typing import Annotated

from msgspec import Meta

from rvqlm.errors import UserError
from rvqlm.files import fits

Size = Annotated[int, Meta(ge=1, lt=1 << 31)]


@dataclass(frozen=True)
class CodecInfo:
    """Identity and geometry of a codec.

    >>> info = CodecInfo("descript/dac_44khz", "0" * 16, 44100, 512, 9, 1024)
    >>> float(info.frame_rate), round(info.bitrate)
    (86.1328125, 7752)
    """

    name: str
    fingerprint: str
    """16 hex digits: hash of configuration and weights."""
    sampling_rate: Size
    """Hz"""
    hop: Size
    """Samples per frame."""
    num_codebooks: Annotated[int, Meta(ge=1, le=1 << 12)]
    codebook_size: Size
    channels: Annotated[int, Meta(ge=1, le=1 << 10)] = 1
    segment: tuple[Size, Size] | None = None
    """(frames, stride in samples) of a codec that encodes a recording as segments which overlap a
    little (EnCodec 48 kHz: 150 frames every 47,520 samples), each with a float32 scale; None for
    all others."""

    def __post_init__(self):
        if self.segment is not None:  # JSON knows lists only
            object.__setattr__(self, "segment", tuple(self.segment))

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second of audio, exact; where segments overlap, more than rate / hop."""
        if self.segment is not None:
            frames, stride = self.segment
            return Fraction(frames * self.sampling_rate, stride)
        return Fraction(self.sampling_rate, self.hop)

    @property
    def bitrate(self) -> float:
        """Bits per second of the codes stored plainly: K * log2(V) * frame rate."""
        return self.num_codebooks * log2(self.codebook_size) * float(self.frame_rate)

    def num_frames(self, samples: int) -> int:
        """Frames that cover `samples` samples: ceil(samples / hop), or more where segments overlap.

        A segmented codec begins a segment every `stride` samples as long as samples are left that
        the segment before does not hold; all segments but the last are full.
        """
        if self.segment is None or samples <= 0:
            return -(-samples // self.hop)
        frames, stride = self.segment
        before = max(0, -(-(samples - frames * self.hop) // stride))  # segments before the last
        return before * frames - (-(samples - before * stride) // self.hop)

    def num_samples(self, frames: int) -> int:
        """Samples that `frames` frames decode to: frames * hop, or fewer where segments overlap."""
        if self.segment is None or frames <= 0:
            return frames * self.hop
        size, stride = self.segment
        before = (frames - 1) // size  # full segments before the last, which the last may not outdo
        overlap = size * self.hop - stride if before else 0
        return before * stride + max(overlap, (frames - before * size) * self.hop)

    def num_scales(self, frames: int) -> int:
        """Scales that belong to `frames` frames: one per segment begun, 0 without segments."""
        return 0 if self.segment is None else -(-frames // self.segment[0])

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> CodecInfo:
        """:raises UserError: entries are missing, or of another type or size than a codec has."""
        try:
            return fits(values, cls)
        except ValueError as e:
            said = repr(values)[:200]
            raise UserError(f"incomplete or impossible codec description {said}: {e}") from None

    def require_same(self, other: CodecInfo, mine: str, theirs: str) -> None:
        """Raise `UserError` naming both sides unless the two describe the same codec.

        `mine` and `theirs` say where each description comes from (a path, usually).
        """
        differing = [
            f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)
        ]
        if set(differing) - {"name"}:  # the same weights under another name are the same codec
            details = ", ".join(
                f"{n} {getattr(self, n)!r} against {getattr(other, n)!r}" for n in differing
            )
            raise UserError(
                f"codec mismatch between {mine} ({self.name}) and {theirs} ({other.name}): "
                f"{details}; use the codec that the tokens were made with, or tokenize again"
            )
