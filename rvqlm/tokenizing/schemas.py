"""Schemas of what an unfinished token directory has in ``parts``."""

from __future__ import annotations

from typing import TypedDict

from rvqlm.codec_info import CodecInfo
from rvqlm.files import Count, Digest, Finite, Positive


class _Settings(TypedDict, total=False):
    input: dict
    audio: dict
    compute_dtype: str


class Plan(_Settings):
    """``parts/plan.json``."""

    codec: CodecInfo
    ranges: list[tuple[Count, Count]]


class DoneShard(TypedDict):
    """``parts/shard-N.done``."""

    items: Count
    bytes: Count
    sha256: Digest


class _Features(TypedDict):
    num_frames: Positive
    storage_key: str


class _Custom(TypedDict):
    num_samples: Count


class _TokenCut(TypedDict):
    id: str
    features: _Features
    custom: _Custom


class _Recording(TypedDict):
    sampling_rate: Positive


class _AudioCut(TypedDict):
    duration: Finite
    recording: _Recording
    channel: int | list[int]


class Skip(TypedDict):
    id: str
    path: str
    reason: str


class LogLine(TypedDict, total=False):
    """A line of ``parts/shard-N.jsonl``: an item that was skipped, or its two cuts."""

    skip: Skip
    cut: _TokenCut
    audio: _AudioCut
    group: tuple[Count, Positive] | None
