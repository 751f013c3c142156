"""The data configuration (conf/data.yaml), checked, as an array for bash.

    declare -A data
    eval "$(python local/data_config.py --file conf/data.yaml)"
    echo "${data[n_splits]}"

Keys that SaxGPT's files have and this recipe has no use for are accepted with the values that
change nothing, and said.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import Finite, Name, Positive, read_yaml

Share = Annotated[float, Meta(ge=0, lt=1)] | Annotated[int, Meta(ge=0)]
"""A share of the hours, or so many recordings."""
Seconds = Annotated[float, Meta(gt=0, le=1e6)]


class Paths(Struct, forbid_unknown_fields=True):
    dl_dir: Name = "1_download"
    stems_dir: Name = "2_stems"
    metadata_path: Name = "3_metadata.csv"
    clips_dir: Name = "4_clips"
    aug_dir: Name = "5_aug_clips"
    codes_dir: Name = "6_codes"
    datasets_dir: str | None = None


class Intermediates(Struct, forbid_unknown_fields=True):
    keep_dl: bool = True
    keep_stems: bool = True
    keep_clips: bool = True
    keep_aug_clips: bool = True
    keep_codes: bool = True


class Demucs(Struct, forbid_unknown_fields=True):
    model: Name = "htdemucs_6s"
    weights: str | None = None
    lead: Annotated[list[Name], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["vocals", "other"]
    )
    n_splits: Positive = 2
    n_shifts: Annotated[int, Meta(ge=0)] = 2
    n_jobs: Positive = 16
    normalize_before: bool = True
    normalize_after: bool = True
    target_lufs: Finite = -16.0


class RmsWindow(Struct, forbid_unknown_fields=True):
    rms_threshold: Finite = 0.05
    min_window_size_seconds: Seconds = 30.0
    rms_frame_length_seconds: Seconds = 10.0
    rms_stride_seconds: Seconds = 0.2


class Augmentation(Struct, forbid_unknown_fields=True):
    sample_rate: Positive = 32000
    semitone_steps: list[Finite] = msgspec.field(default_factory=lambda: [-2.0, 2.0])
    tempo_ratios: list[Finite] = msgspec.field(default_factory=lambda: [0.9, 1.1])
    n_fft: Positive = 4096
    hop_length: Positive = 512


class Encodec(Struct, forbid_unknown_fields=True):
    codec: Name = "facebook/encodec_32khz"
    num_codebooks: Positive = 4
    chunk_len_s: Seconds = 25.0


class Split(Struct, forbid_unknown_fields=True):
    seed: Annotated[int, Meta(ge=0)] = 67
    test: Share = 0.1
    val: Share = 0.1


class Dataset(Struct, forbid_unknown_fields=True):
    seq_len: Positive = 1500
    stride: Positive = 300
    padding_idx: Positive | None = None


class Data(Struct, forbid_unknown_fields=True):
    url: str | None = None
    data_paths: Paths = msgspec.field(default_factory=Paths)
    intermediates: Intermediates = msgspec.field(default_factory=Intermediates)
    demucs: Demucs = msgspec.field(default_factory=Demucs)
    rms_window: RmsWindow = msgspec.field(default_factory=RmsWindow)
    augmentation: Augmentation = msgspec.field(default_factory=Augmentation)
    encodec: Encodec = msgspec.field(default_factory=Encodec)
    train_test_split: Split = msgspec.field(default_factory=Split)
    dataset: Dataset = msgspec.field(default_factory=Dataset)


@dataclass
class Flags:
    """Print the data configuration as entries of an array of bash."""

    file: Path
    """YAML file, as conf/data.yaml."""
    keep: str = ""
    """Intermediates to keep, instead of what the file says: all, none, or some of dl, stems, clips
    and aug_clips, with spaces between."""
    corpus: str = ""
    """What else the audio depends on: a folder of recordings."""


KEPT = ("dl", "stems", "clips", "aug_clips")


def read(path: Path) -> Data:
    """The configuration; `UserError` for what is none, or asks for what is not to be had."""
    data = read_yaml(path, f"--config {path}", Data)
    if not data.intermediates.keep_codes:
        raise UserError(
            f"{path}: keep_codes: false would leave nothing to train on: the codes are read where "
            "they lie, no dataset is copied from them; leave it out"
        )
    if data.dataset.padding_idx not in (None, 2048):
        raise UserError(f"{path}: padding_idx: padding is no code here; leave it out")
    return data


def entries(data: Data, keep: str = "", corpus: str = "") -> dict[str, str]:
    """The values by their keys; lists are words.

    ``settings`` is a hash of all that audio and codes depend on.
    """
    unknown = set(keep.split()) - {*KEPT, "all", "none"}
    if unknown:
        raise UserError(f"--keep {keep}: give all, none, or some of {', '.join(KEPT)}")
    values = msgspec.to_builtins(data)
    if keep:
        kept = KEPT if "all" in keep.split() else keep.split()
        values["intermediates"] = {f"keep_{name}": name in kept for name in KEPT}
    flat = {"url": values["url"]}
    for group in (g for g in values.values() if isinstance(g, dict)):
        flat |= group
    depends = {
        k: v for k, v in values.items() if k in ("demucs", "rms_window", "augmentation", "encodec")
    }
    depends["demucs"] = {
        k: v for k, v in depends["demucs"].items() if k not in ("n_jobs", "weights")
    }
    source = corpus or data.url
    flat["settings"] = hashlib.sha256(msgspec.json.encode([source, depends])).hexdigest()[:8]
    return {name: _word(value) for name, value in flat.items()}


def _word(value) -> str:
    if isinstance(value, list):
        return " ".join(map(_word, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _run(argv) -> int:
    flags = parse(Flags, "data_config.py", Flags.__doc__, argv)
    data = read(flags.file)
    for key, value in (
        ("datasets_dir", data.data_paths.datasets_dir),
        ("padding_idx", data.dataset.padding_idx),
    ):
        if value is not None:
            print(f"{flags.file}: {key} has no use here and is left out", file=sys.stderr)
    for name, value in entries(data, flags.keep, flags.corpus).items():
        print(f"data[{name}]={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_run, None, "data_config.py"))
