"""Cards of published codecs: shapes, licence, where weights come from, and which are here.

A codec class lists its cards in `Codec.cards`. Shapes are those of the published checkpoints.
Licences are those that the publishers state for the weights, where they do; they bind whoever uses
the weights, so read them at the source.
"""

from __future__ import annotations

from dataclasses import dataclass

from rvqlm.codec_info import CodecInfo
from rvqlm.codecs.weights import HUB, cached, candidates, find_files

EMBEDDED = "in this package"
"""`Card.source` of weights that come with rvqlm."""


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
        """The codec, with an empty fingerprint: that of weights which nobody has loaded."""
        return CodecInfo(
            self.name, "", self.sampling_rate, self.hop, self.num_codebooks, self.codebook_size,
            self.channels, self.segment,
        )  # fmt: skip

    def weights_here(self) -> list[str]:
        """Where its weights lie on this machine; nothing is loaded."""
        if self.source == EMBEDDED:
            return ["embedded"]
        found = [f for f in candidates(self.name) if (f / "config.json").is_file()]
        config = _cached(self.source, "config.json")
        found += [config.parent] if config else []
        if self.native:
            file = _cached(self.native_source or self.source, self.native)
            found += find_files(self.native) + ([file] if file else [])
        return list(dict.fromkeys(map(str, found)))


def _cached(source: str, file: str):
    return cached(source.removeprefix(HUB), file) if source.startswith(HUB) else None
