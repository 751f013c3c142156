"""Schemas of the files of an experiment, for `rvqlm.files.read_json` and its kin.

Numbers that a model computed may be infinite, NaN or, in the log, null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from rvqlm.codec_info import CodecInfo
from rvqlm.files import Count, Finite

Number = float | None
Share = Annotated[float, Meta(ge=0, lt=1)]
Extent = Annotated[float, Meta(ge=0, le=1e12)]
Interval = Annotated[list[Finite], Meta(min_length=2, max_length=2)]


class _Record(TypedDict, total=False):
    epoch: Count
    elapsed: Extent
    seconds: Extent
    frames: Count
    total_frames: Count
    padding: Share | None
    nats: list[Number]
    accuracy: list[Number]
    loss: Number
    valid_loss: Number
    perplexity: Number
    bits_per_second: Number
    bits_per_token: Number
    lr: Number
    grad_norm: Number
    frames_per_second: Number
    mfu: Number
    memory_mb: Number
    rollbacks: Count | None
    skipped_nonfinite: Count | None
    skipped_outlier: Count | None
    skipped_overflow: Count | None
    time_data: Share | None
    time_forward: Number
    time_backward: Number
    time_step: Number
    threads: Count
    other_cores: Extent


class Record(_Record):
    """A line of ``metrics.jsonl``."""

    kind: str
    step: Count


class _Machine(TypedDict, total=False):
    cpu: str | None
    cores: Count | None
    gpus: list[str] | None
    torch: str | None
    python: str | None


class _Hours(TypedDict, total=False):
    hours: Extent


class _Data(TypedDict, total=False):
    codec: CodecInfo | None
    batches_per_epoch: Count | None
    train: _Hours
    valid: _Hours


class Ended(TypedDict):
    outcome: str


class Run(TypedDict, total=False):
    """``run.json``."""

    commands: list[str]
    started: list[str]
    ended: list[Ended]
    commit: str | None
    machine: _Machine | None
    model: str | None
    parameters: Count | None
    ranks: Count | None
    data: _Data | None


class Rank(TypedDict):
    """``ranks/rank-N.json``, what a process is doing."""

    rank: Count
    where: str


class _Uncertainty(TypedDict, total=False):
    plus_minus: Number
    nats_intervals: list[list[Number] | None]


class _Gain(TypedDict):
    bits_per_second: Finite
    interval: Interval


class _Agreement(TypedDict):
    frames: list[Count]
    teacher_forced: list[list[Number]] | None
    free_running: list[list[Number]]


class _Divergence(TypedDict):
    median_frames: Extent
    median_seconds: Extent
    never: Count


class _Likelihood(TypedDict):
    own: list[Number]
    real: list[Number]
    difference: list[Number]
    interval: list[list[Number]] | None


class _Codes(TypedDict):
    coverage: list[Finite]
    entropy: list[Finite]
    kl: list[Finite]


class _Shared(TypedDict):
    longest: Count
    mean: Extent
    of: str
    shared_with: str | None


class _FreeRunning(TypedDict):
    recordings: Count
    prompt_seconds: Extent
    frames: Count
    settings: dict[str, Any]
    agreement: _Agreement
    first_divergence: _Divergence
    likelihood: _Likelihood
    codes: dict[Literal["samples", "recordings"], _Codes]
    shared_runs: dict[str, dict[str, _Shared]]


class _Evaluation(TypedDict, total=False):
    uncertainty: _Uncertainty | None
    gain: _Gain | None
    previous_frame_nats: list[Finite] | None
    previous_frame_bits_per_second: Finite | None
    calibration_error: list[Number]
    overconfidence: list[Number]
    free_running: _FreeRunning
    eval_draws: Count | None
    without: list[str]
    weights: str
    command: str | None
    prompt_fraction: Share
    unigram_bits_per_second: Finite
    unigram_nats: list[Finite]
    accuracy: list[Finite]
    step: Count


class Evaluation(_Evaluation):
    """``eval_SPLIT.json``."""

    cuts: Count
    frames: Count
    nats: list[float]
    bits_per_second: Number
    bound: bool


class _Settings(TypedDict, total=False):
    temperature: Number
    top_k: int | None
    top_p: float
    speed: Finite
    duration_temperature: Finite


class _Sample(TypedDict, total=False):
    step: Count | None
    codec: CodecInfo | None
    settings: _Settings | None
    seed: int | None
    command: str | None
    prompt: str | None
    conditions: dict[str, str | None] | None
    prompt_seconds: Extent | None
    seconds: Extent
    stop: str | None
    alignment: list[tuple[str, Finite, Finite]]
    silence_ratio: Number
    repetition_ratio: Number
    batch_size: Count | None
    passes: Count
    generation_seconds: Extent
    real_time_factor: Number
    first_audio_seconds: Extent | None
    alignment: list[tuple[str, Finite, Finite]] | None


class Sample(_Sample):
    """The JSON beside a wav."""

    kind: str


class _Durations(TypedDict):
    p0: Extent
    p50: Extent
    p95: Extent
    p100: Extent


class _Plan(TypedDict):
    batches: Count
    padding: Extent


class SplitStats(TypedDict):
    cuts: Count
    hours: Extent
    duration: _Durations
    codes_used: list[Count]
    entropy_bits: list[Extent]
    unigram_bits_per_second: Extent
    plan: _Plan | None


class _Stats(TypedDict, total=False):
    by: str | None


class Stats(_Stats):
    """``stats.json`` of a token directory."""

    splits: dict[str, SplitStats]
