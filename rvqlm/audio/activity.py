"""``rvqlm audio activity``: the stretches of a recording above a level.

The definition, that of SaxGPT's data pipeline: time is divided into strides (0.2 s). A stride is
active if the RMS of the frame (10 s) around its middle reaches the threshold:

    frame      |<------------- 10 s ------------->|
    samples  0 0 0 x x x x x x x x x x x x x x x x x x ...    zeros beyond both ends
    stride                    |0.2|                           is decided by that frame

Stride k is the samples [k s, (k+1) s), its frame the samples [k s - p, k s - p + f) with
p = (f - s) // 2, where s and f are stride and frame in whole samples; a last stride that is not
complete is never active. The RMS is taken over all samples of all channels of a frame, so that
channels in opposite phase do not cancel. A window is a maximal run of active strides: it begins
with the first and ends with the last of them, and is kept if it is long enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import TimeSpan, fastcopy, overspans

from rvqlm.audio.config import ActivityConfig
from rvqlm.audio.cuts import (
    CutWriter,
    clock,
    count_cuts,
    group_of,
    in_order,
    read_cuts,
    with_custom,
)
from rvqlm.audio.parts import cut_blocks, source_path
from rvqlm.audio.prepare import CANCELLED, AudioConfig, Folding
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar, counted

SAME_LENGTH = 0.1  # seconds by which two tracks may differ without a word


def frame_rms(blocks: Iterable[np.ndarray], frame: int, stride: int) -> np.ndarray:
    """RMS of the frame around each complete stride, (K,) float64.

    blocks: consecutive (C, n) samples. frame, stride: in samples. Only the energy at the edges of
    frames is kept: 16 bytes a stride.
    """
    before = (frame - stride) // 2
    offsets = (-before, frame - before)  # of a frame's edges from the start of its stride
    at_edges: tuple[list, list] = ([], [])  # energy of all samples before the first and second edge
    position, total = 0, 0.0
    for block in blocks:
        energy = np.square(block, dtype=np.float64).mean(axis=0)
        sums = total + np.concatenate([[0.0], np.cumsum(energy)])
        for found, offset in zip(at_edges, offsets):
            # edges k * stride + offset in [position, position + n)
            first = max(0, -((offset - position) // stride))
            last = max(0, -((offset - position - len(energy)) // stride))
            edges = np.arange(first, last) * stride + offset - position
            found.append(sums[edges])
        position, total = position + len(energy), float(sums[-1])
    count = position // stride
    begin = np.concatenate([np.zeros(-(-before // stride)), *at_edges[0]])[:count]
    end = np.concatenate([np.zeros(0), *at_edges[1]])[:count]
    end = np.concatenate([end, np.full(count - len(end), total)])  # edges after the last sample
    return np.sqrt(np.maximum(end - begin, 0.0) / frame)


def active_windows(
    rms: np.ndarray, threshold: float, shortest: int, longest: int | None = None
) -> list[tuple[int, int]]:
    """Windows [first, last) of strides, from the RMS of every stride's frame.

    shortest, longest: in strides. A run longer than `longest` is divided into as few equal pieces
    (equal to within a stride) as that allows; where these were shorter than `shortest`, into
    pieces of `longest`, and the rest is dropped.

    >>> active_windows(np.array([0, 1, 1, 1, 0, 1]), 0.5, 2)
    [(1, 4)]
    """
    edges = np.flatnonzero(np.diff(rms >= threshold, prepend=False, append=False))
    windows = []
    for first, last in edges.reshape(-1, 2).tolist():
        length = last - first
        if length < shortest:
            continue
        pieces = -(-length // longest) if longest else 1
        if pieces > 1 and length // pieces < shortest:
            pieces = length // longest
            length = pieces * longest
        cuts = [first + length * i // pieces for i in range(pieces + 1)]
        windows += list(pairwise(cuts))
    return windows


def find_activity(config: ActivityConfig) -> str:
    """Write the manifest of active stretches and return the summary; see `ActivityConfig`.

    Ids are ``ID-START`` with the seconds from the beginning of the cut ID; the custom field
    ``group`` is kept, or becomes the recording's id. Cuts that cannot be read are listed as
    skipped, as are those without an active stretch, and those without the other track of a pair.
    """
    total = count_cuts(config.input)
    if (other := config.other) is not None:
        count_cuts(other[1], other[0])
    seconds, quiet = 0.0, 0
    with CutWriter(config.out, config.input) as writer:
        cuts = bar(read_cuts(config.input, skip=writer.skip), "activity", total)
        if other is None:
            pairs = ((cut, cut) for cut in cuts)
        else:
            pairs = _same_ids(cuts, read_cuts(other[1], other[0]))
        work = partial(_windows, config=config)
        for (cut, partner), found in in_order(work, pairs, config.jobs):
            if isinstance(found, BadAudio):
                writer.skip(cut.id, found.path, found.reason)
                continue
            windows, runs, cancelled, notes = found
            writer.warn(cut.id, source_path(cut.recording), notes)
            seconds += cut.duration
            quiet += not windows
            if cut.duration - partner.duration > SAME_LENGTH:
                flag = other[0]
                writer.note(cut.id, f"longer than their {flag.removeprefix('--')}, ended with it")
            if cancelled and windows:
                writer.note(cut.id, f"to be skipped by rvqlm tokenize: {CANCELLED}")
            if not windows:
                reason = f"never active for {config.min_window_seconds:g} s"
                writer.skip(cut.id, source_path(cut.recording), reason)
            for start, end in windows:
                writer.write(window(cut, start, end, runs))
    share = writer.seconds / seconds if seconds else 0.0
    return writer.summary(
        f"{share:.0%} of {clock(seconds)} active"
        + (f", {counted(quiet, 'recording')} without an active stretch" if quiet else "")
    )


def _same_ids(cuts: Iterable[Cut], references: Iterator[Cut]) -> Iterator[tuple[Cut, Cut | None]]:
    """Each cut with the reference of its id; references are held only where the order differs."""
    waiting: dict[str, Cut] = {}
    for cut in cuts:
        while cut.id not in waiting:
            following = next(references, None)
            if following is None:
                break
            waiting[following.id] = following
        yield cut, waiting.pop(cut.id, None)


Spans = list[tuple[float, float]]
"""Starts and ends in seconds."""


def _windows(
    pair: tuple[Cut, Cut | None], config: ActivityConfig
) -> tuple[Spans, Spans, bool, list]:
    """The windows to keep, from the beginning of a cut and decided by its reference; all runs of
    active strides, those included that are too short; whether the channels of what decides cancel
    each other; and what of its audio is missing or damaged.

    Of two tracks the longer is read as far as the shorter reaches, so that both, each with the
    other in its turn, get the same windows.
    """
    cut, other = pair
    if other is None:
        raise BadAudio(source_path(cut.recording), f"{config.other[0]} has no cut {cut.id!r}")
    length = min(cut.duration, other.duration)
    decides = cut if config.reference is None else other
    if decides.duration > length:
        decides = decides.truncate(duration=length, preserve_id=True)
    rate = decides.recording.sampling_rate
    stride = max(1, round(config.rms_stride_seconds * rate))
    frame = round(config.rms_frame_seconds * rate)
    folding = Folding(1, AudioConfig(), source_path(decides.recording))
    notes: list[str] = []
    blocks = cut_blocks(decides, config.outside, notes)
    rms = frame_rms(folding.watch(blocks), frame, stride)
    longest = config.max_window_seconds
    windows = active_windows(
        rms,
        config.rms_threshold,
        -(-round(config.min_window_seconds * rate) // stride),
        None if longest is None else round(longest * rate) // stride,
    )
    seconds = stride / rate

    def spans(strides: list[tuple[int, int]]) -> Spans:
        ends = [(a * seconds, min(b * seconds, length)) for a, b in strides]
        return [(a, b) for a, b in ends if b > a]

    runs = spans(active_windows(rms, config.rms_threshold, 1))
    return spans(windows), runs, decides is cut and folding.cancelled, notes


def window(cut: Cut, start: float, end: float, runs: Spans) -> Cut:
    """The stretch of a cut from `start` to `end`, seconds from its beginning.

    Supervisions that lie inside are kept, and of those that are cut speaker and language. Their
    text is kept if only silence of them is lost, nothing of the active `runs`; otherwise nobody
    knows how much of it is left.
    """
    part = cut.truncate(offset=start, duration=end - start).with_id(f"{cut.id}-{start:.3f}")
    outside = [(a - start, b - start) for a, b in runs if not start <= a < b <= end]
    part.supervisions = [_within(s, part, outside) for s in part.supervisions]
    return with_custom(part, group=group_of(cut))


def _within(supervision: SupervisionSegment, cut: Cut, outside: Spans) -> SupervisionSegment:
    """A supervision that overlaps a cut, as far as the cut reaches; `outside` are the active runs
    that the cut has not in full."""
    trimmed = supervision.trim(cut.duration)
    if overspans(TimeSpan(0, cut.duration), supervision):
        return trimmed
    start = cut.id.rsplit("-", 1)[1]  # several windows may have a part of it
    trimmed = fastcopy(trimmed, id=f"{supervision.id}-{start}", alignment=None)
    if any(a < supervision.end and b > supervision.start for a, b in outside):
        trimmed = fastcopy(trimmed, text=None)
    return trimmed
