"""Schemas of the files of a token directory, for `rvqlm.files.read_json` and its kin.

They name what is read of each file, with types and ranges; entries beyond these are kept as they
are. A manifest may be anybody's, so of a cut only its id is required here.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.files import Count, Digest, Finite, Name, Positive

Dtype = Literal["uint8", "int16", "uint16", "uint32"]
_NO = r"\0\ud800-\udc7f\udd00-\udfff"  # NUL, and halves of characters that stand for no byte
PathName = Annotated[str, Meta(pattern=f"^[^{_NO}]*$")]
FileName = Annotated[str, Meta(pattern=f"^[^/{_NO}]+$")]
ShardName = Annotated[str, Meta(pattern=f"^codes/[^/{_NO}]+$")]


# -------------------------------------------------------------------------------- manifests


class Supervision(TypedDict, total=False):
    """Its text and language may be anything: a cut without usable ones is left out by name."""

    start: Finite
    duration: Finite
    speaker: str | int | None
    custom: dict | None


class Features(TypedDict, total=False):
    """Stored arrays; of tokens the storage key says where and how large they are."""

    type: str
    num_frames: Count
    num_features: Count
    frame_shift: Finite | None
    sampling_rate: Positive
    start: Finite
    duration: Finite
    storage_type: str
    storage_path: PathName
    storage_key: str | int
    recording_id: str | None


class Recording(TypedDict, total=False):
    id: str
    sampling_rate: Positive
    num_samples: Count
    duration: Finite


class Custom(TypedDict, total=False):
    """What this package keeps in cuts beside lhotse's fields."""

    group: str | int | None
    augmented_from: str | int | None
    num_samples: Count
    ends_recording: bool
    scales: list[Finite] | None
    orig_kbps: Finite | None
    recording_start: Finite | None
    vocab_sizes: list[Positive] | None


class _Entry(TypedDict, total=False):
    type: str | None
    start: Finite
    channel: int | list[int] | None
    supervisions: list[Supervision] | None
    features: Features | None
    recording: Recording | None
    custom: Custom | None


class _Long(_Entry, total=False):
    duration: Annotated[float, Meta(gt=0, le=1e9)]


class Cut(_Long):
    """A line of a manifest of cuts."""

    id: Name


class Entry(_Entry, total=False):
    """A line of a manifest of anything: cuts, recordings, supervisions, features."""

    duration: Finite | None
    recording_id: str | None
    sampling_rate: Positive | None
    speaker: str | int | None


# --------------------------------------------------------------------- the token directory


class StoredShard(TypedDict):
    path: ShardName
    bytes: Count


class _Checked(TypedDict, total=False):
    sha256: Digest


class SidecarShard(StoredShard, _Checked):
    pass


class _Sidecar(TypedDict, total=False):
    audio_manifest: str
    pcm_bytes: Count
    input: dict
    audio: dict
    compute_dtype: str
    rvqlm_version: str


class Sidecar(_Sidecar):
    """``tokens.json``."""

    codec: CodecInfo
    dtype: Dtype
    num_cuts: Count
    num_frames: Count
    hours: Finite
    shards: list[SidecarShard]
    skipped: Count


class Stamp(TypedDict):
    """What is recorded of a file to know it again."""

    name: FileName
    size: Count
    mtime_ns: int
    sha256: Digest


class _Splits(TypedDict, total=False):
    by: Literal["speaker", "recording"]


class Splits(_Splits):
    """``splits.json``; without a source, splitting was interrupted."""

    source: Stamp | None


class IndexHeader(TypedDict):
    """Of ``index_SPLIT.bin``."""

    manifest: Stamp
    tokens: list[SidecarShard]
    codec: CodecInfo
    dtype: Dtype
    num_cuts: Positive
    num_frames: Count
    hours: Finite
    shards: list[StoredShard]
    fingerprint: Name


class RaggedHeader(TypedDict):
    """Of ``text_SPLIT.bin`` and the other columns of conditions."""

    fingerprint: Name
    fields: Annotated[int, Meta(ge=1, le=1 << 16)]
    rows: Count
    steps: Count
    dtype: Literal["uint8", "uint16", "int32"]
    max_ids: list[Annotated[int, Meta(ge=-1, lt=1 << 31)]]


class PairsRecord(TypedDict):
    """``source.json``."""

    condition: ConditionInfo
    directory: PathName
    indexes: dict[str, str]
