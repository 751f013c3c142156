"""Which item goes to which shard, decided before anything is encoded and kept in
``parts/plan.json``; and what a token directory must have in common with the command that continues
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rvqlm.audio.cuts import make_folder
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.source import Listing
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json
from rvqlm.tokenizing.schemas import PartOf, Plan
from rvqlm.tokenizing.shard import disk_error

ITEMS_PER_SHARD = 20_000
"""More shards than processes from here on: files of a size that can be copied and checked."""


@dataclass(frozen=True)
class Identity:
    """Everything that the tokens follow from."""

    codec: CodecInfo
    path: str
    """of the input, as given"""
    items: int
    digest: str
    """of the listing"""
    audio: dict
    """what was done to the audio: `AudioConfig.to_dict`"""
    compute_dtype: str
    part: PartOf | None = None
    """where it is one of several"""

    def recorded(self) -> dict:
        """What plan and sidecar remember, beside the codec."""
        return {
            "input": {"path": self.path, "items": self.items, "digest": self.digest},
            "audio": self.audio,
            "compute_dtype": self.compute_dtype,
            **({"part": self.part} if self.part else {}),
        }

    def require_same(self, record: dict, out: Path) -> None:
        """Raise `UserError` naming the difference unless plan or sidecar are of this work.

        Directories made before there were such settings have the defaults.
        """
        CodecInfo.from_dict(record["codec"]).require_same(
            self.codec, f"--out-dir {out}", "this command's --codec"
        )
        source = record.get("input", {})
        old_audio = AudioConfig().to_dict() | record.get("audio", {})
        if "mono" in source:
            old_audio["mono"] = source["mono"]
        # the path may be spelled in another way; what was listed there counts
        pairs = [(k, source.get(k), getattr(self, k)) for k in ("items", "digest")]
        pairs += [(k.replace("_", "-"), old_audio.get(k), v) for k, v in self.audio.items()]
        pairs += [("dtype", record.get("compute_dtype", "float32"), self.compute_dtype)]
        differing = ", ".join(f"{k} {a!r} against {b!r}" for k, a, b in pairs if a != b)
        if differing:
            raise UserError(
                f"--out-dir {out} was made from another input or with other settings "
                f"({source.get('path')}: {differing}); choose another --out-dir, or remove this one"
            )


def plan_path(out: Path) -> Path:
    return out / "parts" / "plan.json"


def read_plan(out: Path, identity: Identity) -> list | None:
    """Ranges of an interrupted run; None if there is none. `UserError` if it was another job."""
    if not plan_path(out).exists():
        if (out / "cuts.jsonl.gz").exists() and not (out / "tokens.json").exists():
            raise UserError(
                f"--out-dir {out} holds a cuts.jsonl.gz that rvqlm tokenize did not make; "
                "choose another folder"
            )
        return None
    plan = read_json(plan_path(out), f"remove {out} and run again", type=Plan)
    identity.require_same(plan, out)
    return plan["ranges"]


def make_folders(out: Path) -> None:
    """The token directory with ``codes`` and ``parts``; `UserError` where that is impossible."""
    for folder in (out, out / "codes", out / "parts"):
        make_folder(folder, "--out-dir")


def make_plan(out: Path, identity: Identity, listing: Listing, workers: int) -> list:
    """Divide the items into shards of equal cost and write that down."""
    shards = workers * max(1, -(-len(listing) // (workers * ITEMS_PER_SHARD)))
    shards = min(shards, len(listing))
    ranges = [r for r in listing.split(shards) if r[1] > r[0]] if shards else []
    plan = {"codec": identity.codec.to_dict(), **identity.recorded(), "ranges": ranges}
    try:
        write_json(plan_path(out), plan, indent=None)
    except OSError as e:
        raise disk_error(e, out) from None
    return ranges
