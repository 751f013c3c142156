"""Loudness of a signal in blocks, for tests."""

from rvqlm.audio.loudness import Meter


def measure(blocks, sampling_rate):
    """Integrated loudness in LUFS of consecutive (C, n) blocks."""
    meter = Meter(sampling_rate)
    for block in blocks:
        meter.add(block)
    return meter.loudness()
