"""Schemas of what an unfinished token directory has in ``parts``, and of one that is made in
parts."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import Meta

from rvqlm.codec_info import CodecInfo
from rvqlm.data.schemas import Sidecar
from rvqlm.files import Count, Digest, Finite, Positive


class _Settings(TypedDict, total=False):
    input: dict
    audio: dict
    compute_dtype: str


class Plan(_Settings):
    """``parts/plan.json``."""

    codec: CodecInfo
    ranges: list[tuple[Count, Count]]


MOST_PARTS = 8192
"""An index knows 32,768 shards, and files should not be tiny."""
_Parts = Annotated[int, Meta(ge=1, le=MOST_PARTS)]


class PartOf(TypedDict):
    """Of a part's ``tokens.json``: which items [first, last) it is of."""

    number: Count
    of: _Parts
    first: Count
    last: Count


class _Input(TypedDict):
    path: str
    items: Count
    digest: str


class PartSidecar(Sidecar):
    """``tokens.json`` of a part."""

    part: PartOf


class Parts(TypedDict):
    """``parts.json``: what all parts of a token directory have in common."""

    codec: CodecInfo
    input: _Input
    audio: dict
    compute_dtype: str
    of: _Parts
    command: str


class DoneShard(TypedDict):
    """``parts/shard-N.done``."""

    items: Count
    bytes: Count
    sha256: Digest


class _Features(TypedDict):
    num_frames: Positive
    storage_path: str
    storage_key: str


class _Custom(TypedDict):
    num_samples: Count


class TokenCut(TypedDict):
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
    cut: TokenCut
    audio: _AudioCut
    group: tuple[Count, Positive] | None
