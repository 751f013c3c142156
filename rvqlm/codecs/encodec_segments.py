"""EnCodec at 48 kHz stereo in transformers: segments of one second, each with its loudness.

The codec cuts a recording into segments that overlap by 1 %, divides each by its loudness (the RMS
of the mix of its channels), encodes them apart, and adds the decoded segments up with triangular
weights. What it needs besides codes is one float32 per segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.encodec import EncodecCodec
from rvqlm.codecs.streaming import LIVE, Decoder, Encoded
from rvqlm.errors import UserError


class EncodecSegmentCodec(EncodecCodec):
    """EnCodec at 48 kHz. A segment's frames never depend on another segment.

    The last segment ends with the recording, in the middle of a frame if need be: that one is
    completed by the network's own padding, as the published class and package do. Up to 480 samples
    (the overlap) behind a full segment begin no new one, since that segment holds them: there, and
    only there, the published ones make one more, or fail.
    """

    usual_codebooks = None
    default_scale = 0.1
    """-20 dBFS, a usual loudness of speech and music: segments are normalised to an RMS of 1."""

    @classmethod
    def fits(cls, config) -> bool:
        return super().fits(config) and bool(config.normalize or config.chunk_length_s is not None)

    @staticmethod
    def _segment(config, name: str) -> tuple[int, int] | None:
        size, stride, hop = config.chunk_length, config.chunk_stride, config.hop_length
        if not config.normalize or size is None or stride is None or size % hop or stride > size:
            raise UserError(
                f"codec {name}: this EnCodec has normalize={config.normalize}, "
                f"chunk_length_s={config.chunk_length_s} and overlap={config.overlap}; supported "
                "are those without any (24 and 32 kHz), and segments of whole frames that are "
                "normalised (48 kHz: true, 1.0 and 0.01)"
            )
        return size // hop, stride

    def segments(self, samples: int) -> list[tuple[int, int]]:
        """(offset, size) of the segments of a recording, in samples."""
        frames, stride = self.info.segment
        count = self.info.num_scales(self.info.num_frames(samples))
        size = frames * self.info.hop
        return [(i * stride, min(size, samples - i * stride)) for i in range(count)]

    def encode_pieces(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        audio = audio.contiguous()  # sums are rounded differently in another layout
        with self.inference():
            mono = audio.sum(1, keepdim=True) / audio.shape[1]
            scales = mono.pow(2).mean(dim=-1, keepdim=True).sqrt() + 1e-8  # (B, 1, 1)
            latents = self.model.encoder(self.to_model(audio / scales))
            return self._quantize(latents).transpose(1, 2), scales[:, 0, 0]

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.encode_with_scales(audio, lengths)[:2]

    def encode_with_scales(
        self, audio: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`encode`, and scales (B, n) float32 of the longest item's n segments, 0 past an item's
        own ceil(frames / 150)."""
        samples = [audio.shape[-1]] * len(audio) if lengths is None else lengths.tolist()
        audio, _ = self.pad_to_hop(audio, lengths)  # for its checks: segments end with the audio
        # one by one: no item depends on what it is batched with
        made = [encode_whole(self, item[:, :n].float()) for item, n in zip(audio, samples)]
        codes = pad_sequence([one.codes for one in made], batch_first=True)
        scales = pad_sequence([one.scales for one in made], batch_first=True)
        frames = torch.tensor([len(one.codes) for one in made])
        return codes.to(audio.device), frames, scales.to(audio.device)

    def decode(self, codes: Tensor, scales: Tensor | None = None) -> Tensor:
        """Codes (B, T, K) -> audio (B, C, `num_samples(T)`) float32.

        Args:
            codes: as `encode` lays them out.
            scales: (B, ceil(T / 150)); None: `default_scale` for all segments.
        """
        self.check_codes(codes)
        known = [None] * len(codes) if scales is None else scales
        items = zip(codes, known, strict=True)
        return torch.stack([decode_long(self, c, scales=s) for c, s in items]).to(codes.device)

    def _decode_segment(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        """(B, t, K) and (B,) -> (B, C, t * hop)"""
        if scale is None:
            scale = torch.full((len(codes),), self.default_scale)
        with self.inference():
            audio = self.model.decoder(self._dequantize(codes.transpose(1, 2))).float()
            return audio * scale.to(audio.device, torch.float32)[:, None, None]

    def _count(self, step: int) -> int:
        """Segments in one call for chunks of about so many frames, at most 32.

        One on a CPU: four together take a fifth less time there (the LSTM, a third of it, reads its
        weights once for all), but bits differ from those of one by one.
        """
        if self.device.type == "cpu":
            return 1
        return min(32, max(1, round(step / self.info.segment[0])))

    def encode_blocks(self, blocks: Iterable[Tensor], step: int) -> Iterator[Encoded]:
        count, (frames, stride) = self._count(step), self.info.segment
        size = frames * self.info.hop
        held = torch.empty(self.info.channels, 0)
        for block in blocks:
            held = torch.cat((held.to(block.device), block), 1)
            # more than is encoded: what begins after these is not the tail of the last of them
            while held.shape[1] > (count - 1) * stride + size:
                yield self._encoded(held.unfold(1, size, stride)[:, :count].transpose(0, 1))
                held = held[:, count * stride :]
        for at, n in self.segments(held.shape[1]):
            yield self._encoded(held[None, :, at : at + n])

    def _encoded(self, pieces: Tensor) -> Encoded:
        codes, scales = self.encode_pieces(pieces.to(self.device))
        return Encoded(codes.flatten(0, 1).cpu(), scales.cpu())

    def decode_blocks(self, codes: Tensor, step: int, scales: Tensor | None) -> Iterator[Tensor]:
        segments = self.info.num_scales(len(codes))
        if scales is not None and len(scales) != segments:
            raise ValueError(f"{segments} segments, but {len(scales)} scales")
        return super().decode_blocks(codes, step, scales)

    def piecewise(self, step: int = LIVE, scales: Tensor | None = None) -> Decoder:
        return Decoder(self, Segments(self, self._count(step), scales))


class Segments:
    """A stage that decodes segment by segment: codes (1, K, t) to audio (1, C, n).

    Args:
        count: segments in a call of the network.
        scales: (n,) of the first; the last of them, or `default_scale`, holds on.
    """

    STATE = ("held", "adder")

    def __init__(self, codec: EncodecSegmentCodec, count: int, scales: Tensor | None):
        self.codec, self.count, self.scales = codec, count, scales
        self.held: Tensor | None = None
        self.done = 0
        self.adder = OverlapAdd(codec)

    def __call__(self, x: Tensor | None, last: bool) -> Tensor | None:
        codec, made = self.codec, []
        if x is not None:
            self.held = x if self.held is None else torch.cat((self.held, x), 2)
        size = codec.info.segment[0] * self.count
        while self.held is not None and self.held.shape[2] >= (1 if last else size):
            group, self.held = self.held[..., :size], self.held[..., size:]
            made += self._decoded(group[0].T)
        if last and self.done:
            made.append(self.adder.rest())
        return torch.cat(made, -1)[None] if made else None

    def needs(self, samples: int) -> int:
        """Frames without which the first `samples` cannot be said."""
        frames, stride = self.codec.info.segment
        return -(-samples // stride) * frames

    def _decoded(self, codes: Tensor) -> list[Tensor]:
        """(t, K) of whole segments, or of less than one."""
        frames = self.codec.info.segment[0]
        full = len(codes) // frames * frames
        made = []
        for group in (codes[:full].unflatten(0, (-1, frames)), codes[None, full:]):
            if group.numel():
                self.codec.check_codes(group)
                scale = None
                if self.scales is not None and len(self.scales):
                    last = len(self.scales) - 1
                    at = torch.arange(self.done, self.done + len(group)).clamp(max=last)
                    scale = self.scales[at]
                self.done += len(group)
                made += [self.adder.add(s) for s in self.codec._decode_segment(group, scale)]
        return made


class OverlapAdd:
    """Adds up decoded segments with triangular weights, as far as they are known.

    Where one segment is alone it is as it was; where two overlap, one fades linearly into the
    other. The arithmetic is that of transformers' `_linear_overlap_add`, in the same order.
    """

    def __init__(self, codec: EncodecSegmentCodec):
        self.stride = codec.info.segment[1]
        self.weight: Tensor | None = None  # of the first segment, which may be the only one
        self.sum = self.weights = None  # of the samples that the next segment still adds to

    def add(self, segment: Tensor) -> Tensor:
        """The next segment (C, n); returns what no later one will change, (C, <= stride)."""
        n = segment.shape[-1]
        if self.weight is None:
            ramp = torch.linspace(0, 1, n + 2, device=segment.device)[1:-1]
            self.weight = 0.5 - (ramp - 0.5).abs()
        total, weights = self.weight[:n] * segment, self.weight[:n].clone()
        if self.sum is not None:
            m = self.sum.shape[-1]
            if m > n:  # generated codes may end with a frame or two
                total = nn.functional.pad(total, (0, m - n))
                weights = nn.functional.pad(weights, (0, m - n))
            total[..., :m] += self.sum
            weights[:m] += self.weights
        self.sum, self.weights = total[..., self.stride :], weights[self.stride :]
        return total[..., : self.stride] / weights[: self.stride]

    def rest(self) -> Tensor:
        """What the last segment holds beyond one stride."""
        return self.sum / self.weights
