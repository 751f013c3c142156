"""From finished shards to a token directory: manifests, list of skipped files, ``tokens.json``.

The sidecar ``tokens.json`` is written last and all at once, so a directory that has one is
complete. Everything in it follows from the input: two runs over the same audio, interrupted or
not, leave the same bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rvqlm.codec_info import CodecInfo
from rvqlm.data.store import code_dtype
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line, read_json, read_jsonl, write_json
from rvqlm.tokenizing.schemas import DoneShard, LogLine
from rvqlm.tokenizing.shard import disk_error, done_path, log_path, shard_path
from rvqlm.version import __version__

_AGAIN = "remove {} and run again"


@dataclass(frozen=True)
class Summary:
    """What a finished token directory holds."""

    num_cuts: int
    num_frames: int
    hours: float
    skipped: int
    first_skipped: dict | None
    warned: int
    first_warned: dict | None
    token_bytes: int
    pcm_bytes: int
    """of the audio that was encoded, as it came: its rate and channels, 16 bit"""

    @classmethod
    def of(
        cls, sidecar: dict, first_skipped: dict | None = None, first_warned: dict | None = None
    ) -> Summary:
        """Of a ``tokens.json``."""
        return cls(
            sidecar["num_cuts"],
            sidecar["num_frames"],
            sidecar["hours"],
            sidecar["skipped"],
            first_skipped,
            sidecar.get("warned", 0),
            first_warned,
            sum(shard["bytes"] for shard in sidecar["shards"]),
            sidecar.get("pcm_bytes", 0),
        )


class Manifests:
    """The manifests of a token directory while they are written, and what has come into them."""

    def __init__(self, skips: BinaryIO, warnings: BinaryIO, cuts: BinaryIO, audio: BinaryIO):
        self._skips, self._warnings, self._cuts, self._audio = skips, warnings, cuts, audio
        self.cuts = self.frames = self.samples = self.pcm = self.skipped = self.warned = 0
        self.first: dict | None = None
        self.first_warned: dict | None = None

    def add(self, cut: dict, audio: bytes, pcm: int) -> None:
        """A cut of tokens, the line of its audio, and the bytes of that in 16 bits."""
        self._cuts.write(json_line(cut))
        self._audio.write(audio)
        self.cuts += 1
        self.frames += cut["features"]["num_frames"]
        self.samples += cut["custom"]["num_samples"]
        self.pcm += pcm

    def skip(self, item: dict) -> None:
        self._skips.write(json_line(item))
        self.skipped, self.first = self.skipped + 1, self.first or item

    def warn(self, item: dict) -> None:
        self._warnings.write(json_line(item))
        self.warned, self.first_warned = self.warned + 1, self.first_warned or item


@contextlib.contextmanager
def writing_manifests(out: Path, empty: bool = False) -> Iterator[Manifests]:
    """The manifests of a folder, each whole or not at all; those of cuts only if there are any, or
    if it may be `empty`."""
    with (
        atomic_open(out / "skipped.jsonl") as skips,
        atomic_open(out / "warned.jsonl") as warnings,
        contextlib.suppress(_NothingUsable),
        atomic_open(out / "cuts.jsonl.gz", level=4) as token_cuts,
        atomic_open(out / "audio_cuts.jsonl.gz", level=4) as audio_cuts,
    ):
        yield (made := Manifests(skips, warnings, token_cuts, audio_cuts))
        if not made.cuts and not empty:  # the list of what was skipped stays
            raise _NothingUsable
    if not made.warned:  # few directories need that list
        (out / "warned.jsonl").unlink(missing_ok=True)


def nothing_usable(out: Path, made: Manifests) -> UserError:
    return UserError(
        f"{out}: not one of {made.skipped} items could be tokenized; the first, "
        f"{made.first['path']}: {made.first['reason']} (all of them in {out / 'skipped.jsonl'})"
    )


def write_sidecar(
    out: Path, made: Manifests, shards: list[dict], info: CodecInfo, identity: dict
) -> Summary:
    """Write ``tokens.json``, last of all."""
    sidecar = {
        "codec": info.to_dict(),
        "dtype": code_dtype(info.codebook_size),
        "num_cuts": made.cuts,
        "num_frames": made.frames,
        "hours": made.samples / info.sampling_rate / 3600,
        "shards": shards,
        "audio_manifest": "audio_cuts.jsonl.gz",
        "skipped": made.skipped,
        "warned": made.warned,
        "pcm_bytes": made.pcm,
        **identity,
        "rvqlm_version": __version__,
    }
    write_json(out / "tokens.json", sidecar, indent=2, checksum=True)
    return Summary.of(sidecar, made.first, made.first_warned)


def finish(
    out_dir: str, num_shards: int, info: CodecInfo, identity: dict[str, dict | str]
) -> Summary:
    """Merge the shards' logs into the manifests and write the sidecar.

    Args:
        out_dir: as the user gave it: paths in the manifests begin with it.
        num_shards: all of them done.
        info: the codec.
        identity: what the sidecar remembers of the input and of what was done to it.

    Raises `UserError`, leaving no sidecar, if the disk is full or not one item could be used (but
    of a part: its files may all be bad without the other parts being so).
    """
    out, part = Path(out_dir), "part" in identity
    try:
        with writing_manifests(out, empty=part) as made:
            for line in _logged(out_dir, num_shards):
                if "skip" in line:
                    made.skip(line["skip"])
                    continue
                if (said := line.get("warn")) is not None:
                    made.warn(said)
                made.add(line["cut"], json_line(line["audio"]), pcm_bytes(line["audio"]))
        if not made.cuts and not part:
            clean_up(out_dir, num_shards)
            raise nothing_usable(out, made)
        shards = []
        for shard in range(num_shards):
            done = read_json(done_path(out, shard), _AGAIN.format(out), type=DoneShard)
            name = shard_path("", shard).as_posix()
            shards.append({"path": name, "bytes": done["bytes"], "sha256": done["sha256"]})
        summary = write_sidecar(out, made, shards, info, identity)
    except OSError as e:
        raise disk_error(e, out) from None
    remove_parts(out_dir)
    return summary


def pcm_bytes(audio_cut: dict) -> int:
    """Size of a cut's audio at its own rate and channels in 16 bits."""
    channels = len(audio_cut["channel"]) if isinstance(audio_cut["channel"], list) else 1
    samples = round(audio_cut["duration"] * audio_cut["recording"]["sampling_rate"])
    return 2 * channels * samples


def remove_parts(out_dir: str) -> None:
    """Drop the logs that a finished directory no longer needs."""
    shutil.rmtree(Path(out_dir) / "parts", ignore_errors=True)


def clean_up(out_dir: str, num_shards: int) -> None:
    """Drop shards and logs of a run that came to nothing, so that the next one starts afresh."""
    for shard in range(num_shards):
        shard_path(out_dir, shard).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (Path(out_dir) / "codes").rmdir()
    remove_parts(out_dir)


class _NothingUsable(Exception):
    pass


def _logged(out_dir: str, num_shards: int) -> Iterator[dict]:
    """The lines of the shards' logs."""
    for shard in range(num_shards):
        path, log = str(shard_path(out_dir, shard)), log_path(out_dir, shard)
        for line in read_jsonl(log, str(log), _AGAIN.format(out_dir), LogLine):
            if "cut" in line:  # the folder may have been renamed
                line["cut"]["features"]["storage_path"] = path
            yield line
