"""``rvqlm audio loudness``: one gain for each recording, so that all are equally loud.

Measured is what a codec will hear: the channels of the cuts, folded as `rvqlm tokenize` does it.
(Stereo is up to 3 dB louder than its average: the energies of the channels are added.)

The gain is attached to the recording as lhotse's ``Volume`` transform, a factor that every reader
multiplies the samples with: `cut.load_audio()` and `rvqlm tokenize` give the same samples, nothing
is copied, and windows of one recording keep their relations. (lhotse's ``LoudnessNormalization``
is not used: it measures whatever piece happens to be loaded, so that each window would get a gain
of its own, and it needs the piece in memory.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from lhotse.augmentation import Volume
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from rvqlm.audio.config import LoudnessConfig
from rvqlm.audio.cuts import CutWriter, count_cuts, in_order, read_cuts
from rvqlm.audio.loudness import Meter, gain_to
from rvqlm.audio.parts import cut_blocks, source_path, transforms_of
from rvqlm.audio.prepare import AudioConfig, Folding
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar, counted

Span = tuple[float, float]
"""Start and end in seconds."""


@dataclass(frozen=True)
class Gain:
    """What was measured of a recording, and the gain that follows."""

    lufs: float
    peak: float
    decibels: float
    held: bool
    """by the peak"""
    notes: tuple[str, ...] = ()
    """what of the recording is missing or damaged"""


def normalize_loudness(config: LoudnessConfig) -> str:
    """Measure, write the manifest and return the summary; see `LoudnessConfig`.

    Recordings that cannot be read, or whose channels cancel each other, are listed as skipped and
    their cuts left out; those with nothing to measure (silence, less than 400 ms) keep their level.
    Where cuts take different channels of a recording, these are measured apart. Memory grows with
    the
    number of recordings (about 200 bytes each, with ``--over cuts`` 150 more for each cut).
    """
    total = count_cuts(config.input)
    covered: dict[int, list[Span]] = defaultdict(list)
    if config.over == "cuts":
        for cut in read_cuts(config.input):
            covered[_key(cut)].append((cut.start, cut.end))
    gains: dict[int, Gain | None] = {}
    with CutWriter(config.out, config.input) as writer:

        def recordings() -> Iterator[tuple[int, Cut, list[Span]]]:
            seen = set()
            for cut in bar(read_cuts(config.input, skip=writer.skip), "loudness", total):
                key = _key(cut)
                if key not in seen:
                    seen.add(key)
                    whole = [(0.0, cut.recording.duration)]
                    yield key, cut, _joined(covered[key]) if covered else whole

        for (key, cut, _), result in in_order(
            partial(_measure, config=config), recordings(), config.jobs
        ):
            if isinstance(result, BadAudio):
                writer.skip(cut.recording.id, source_path(cut.recording), result.reason)
            else:
                writer.warn(cut.recording.id, source_path(cut.recording), result.notes)
            gains[key] = None if isinstance(result, BadAudio) else result
        for cut in bar(read_cuts(config.input), "writing", total):
            gain = gains[_key(cut)]
            if gain is not None:
                writer.write(_louder(cut, gain.decibels))
    return writer.summary(_describe([g for g in gains.values() if g is not None], config))


def _key(cut: Cut) -> int:
    """The same for equal channels of equal recordings; ids alone may repeat in manifests that were
    joined."""
    what = [cut.recording.to_dict(), cut.channel]
    text = json.dumps(what, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _joined(spans: list[Span]) -> list[Span]:
    """Those that touch as one, in the order of their starts."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            start, before = joined.pop()
            end = max(before, end)
        joined.append((start, end))
    return joined


def _measure(item: tuple[int, Cut, list[Span]], config: LoudnessConfig) -> Gain:
    """Of some stretches of the recording that a cut is of, in the channels of the cut."""
    _, cut, spans = item
    meter = Meter(cut.recording.sampling_rate)
    fold = Folding(config.channels, AudioConfig(mono=config.mono), source_path(cut.recording))
    notes: list[str] = []
    for start, end in spans:
        part = fastcopy(cut, start=start, duration=end - start)
        for block in cut_blocks(part, config.outside, notes):
            meter.add(fold(block.T).T)
        meter.restart()
    fold.require_sound()
    lufs = meter.loudness()
    gain = gain_to(lufs, meter.peak, config.target_lufs, config.peak_dbfs)
    return Gain(lufs, meter.peak, *gain, tuple(dict.fromkeys(notes)))


def _louder(cut: Cut, decibels: float) -> Cut:
    """The cut with a gain on its recording; ids stay, gains that were there are multiplied."""
    if decibels == 0:
        return cut
    transforms = transforms_of(cut.recording)
    factor = 10 ** (decibels / 20)
    if transforms and isinstance(transforms[-1], Volume):
        factor *= transforms.pop().factor
    recording = fastcopy(cut.recording, transforms=[*transforms, Volume(factor)])
    return fastcopy(cut, recording=recording)


def _describe(gains: list[Gain], config: LoudnessConfig) -> str:
    measured = sorted(g.lufs for g in gains if math.isfinite(g.lufs))
    said = [f"{counted(len(measured), 'recording')} brought to {config.target_lufs:g} LUFS"]
    if measured:
        said[0] += f" (before: {measured[0]:.1f} to {measured[-1]:.1f})"
    if held := [g for g in gains if g.held]:
        least = min(g.lufs + g.decibels for g in held)
        said.append(
            f"{len(held)} of them stay below it, down to {least:.1f}, for their peaks "
            f"({config.peak_dbfs:g} dBFS)"
        )
    if silent := len(gains) - len(measured):
        said.append(f"{silent} silent or shorter than 400 ms, left as they are")
    return "; ".join(said)
