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


def finish(
    out_dir: str, num_shards: int, info: CodecInfo, identity: dict[str, dict | str]
) -> Summary:
    """Merge the shards' logs into the manifests and write the sidecar.

    Args:
        out_dir: as the user gave it: paths in the manifests begin with it.
        num_shards: all of them done.
        info: the codec.
        identity: what the sidecar remembers of the input and of what was done to it.

    Raises `UserError`, leaving no sidecar, if not one item could be used or the disk is full.
    """
    out = Path(out_dir)
    frames = samples = cuts = skipped = warned = pcm = 0
    first = first_warned = None
    try:
        with (
            atomic_open(out / "skipped.jsonl") as skips,
            atomic_open(out / "warned.jsonl") as warnings,
            contextlib.suppress(_NothingUsable),
            atomic_open(out / "cuts.jsonl.gz", level=4) as token_cuts,
            atomic_open(out / "audio_cuts.jsonl.gz", level=4) as audio_cuts,
        ):
            for line in _logged(out_dir, num_shards):
                if "skip" in line:
                    skips.write(json_line(line["skip"]))
                    skipped, first = skipped + 1, first or line["skip"]
                    continue
                if (said := line.get("warn")) is not None:
                    warnings.write(json_line(said))
                    warned, first_warned = warned + 1, first_warned or said
                cut = line["cut"]
                token_cuts.write(json_line(cut))
                audio_cuts.write(json_line(line["audio"]))
                cuts += 1
                frames += cut["features"]["num_frames"]
                samples += cut["custom"]["num_samples"]
                pcm += pcm_bytes(line["audio"])
            if not cuts:  # the list of what was skipped stays
                raise _NothingUsable
        if not warned:  # few directories need that list
            (out / "warned.jsonl").unlink(missing_ok=True)
        if not cuts:
            clean_up(out_dir, num_shards)
            raise UserError(
                f"{out_dir}: not one of {skipped} items could be tokenized; the first, "
                f"{first['path']}: {first['reason']} (all of them in {out / 'skipped.jsonl'})"
            )
        shards = []
        for shard in range(num_shards):
            done = read_json(done_path(out, shard), _AGAIN.format(out), type=DoneShard)
            name = shard_path("", shard).as_posix()
            shards.append({"path": name, "bytes": done["bytes"], "sha256": done["sha256"]})
        sidecar = {
            "codec": info.to_dict(),
            "dtype": code_dtype(info.codebook_size),
            "num_cuts": cuts,
            "num_frames": frames,
            "hours": samples / info.sampling_rate / 3600,
            "shards": shards,
            "audio_manifest": "audio_cuts.jsonl.gz",
            "skipped": skipped,
            "warned": warned,
            "pcm_bytes": pcm,
            **identity,
            "rvqlm_version": __version__,
        }
        write_json(out / "tokens.json", sidecar, indent=2, checksum=True)
    except OSError as e:
        raise disk_error(e, out) from None
    remove_parts(out_dir)
    return Summary.of(sidecar, first, first_warned)


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
