"""lhotse manifests of the embedded corpus, from the transcripts that synthesize.py wrote.

Writes mini_recordings, mini_supervisions and mini_cuts (.jsonl.gz) into the manifest folder.
Audio paths begin with --audio-dir as given: run it from egs/mini with a relative folder and the
manifests hold wherever the recipe is. No audio is opened, since lengths are in the transcripts;
that every file exists with its full size is checked.

    python egs/mini/local/prepare_mini.py --audio-dir data/audio --manifest-dir data/manifests
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lhotse import (
    CutSet,
    MonoCut,
    Recording,
    RecordingSet,
    SupervisionSegment,
    SupervisionSet,
)
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem
from synthesize import TRANSCRIPTS, WAV_HEADER

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError


@dataclass
class Flags:
    audio_dir: Path = Path("data/audio")
    """Folder that synthesize.py filled."""
    manifest_dir: Path = Path("data/manifests")
    """Where the manifests go."""


def prepare_mini(audio_dir: Path, output_dir: Path) -> dict[str, RecordingSet | SupervisionSet]:
    """Write the manifests into `output_dir`; returns recordings, supervisions and cuts.

    The speaker of a supervision is the espeak variant, the vocal tract: voices of one variant
    differ in accent, pace and pitch only, so splits by speaker keep them together. `custom` has
    the phonemes (IPA), the espeak voice and the accented speaker, which names the folder. Raises
    `UserError` where transcripts or audio are missing or cut short.
    """
    entries = _read_transcripts(audio_dir)
    _check_audio(audio_dir, entries)
    cuts = [_cut(audio_dir, entry) for entry in entries]
    manifests = {
        "recordings": RecordingSet.from_recordings(cut.recording for cut in cuts),
        "supervisions": SupervisionSet.from_segments(cut.supervisions[0] for cut in cuts),
        "cuts": CutSet.from_cuts(cuts),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    for name, manifest in manifests.items():
        path = output_dir / f"mini_{name}.jsonl.gz"
        temporary = path.with_name(f".tmp-{path.name}")  # lhotse goes by the ending of the name
        manifest.to_file(temporary)
        os.replace(temporary, path)
    return manifests


def _read_transcripts(audio_dir: Path) -> list[dict]:
    path = audio_dir / TRANSCRIPTS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run local/synthesize.py first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); run local/synthesize.py again") from None
    if not entries:
        raise UserError(f"{path} is empty; run local/synthesize.py again")
    return entries


def _check_audio(audio_dir: Path, entries: list[dict]) -> None:
    sizes = {}
    for speaker in {entry["speaker"] for entry in entries}:
        folder = audio_dir / speaker
        if folder.is_dir():
            with os.scandir(folder) as files:
                sizes.update({f"{speaker}/{file.name}": file.stat().st_size for file in files})
    bad = [e["path"] for e in entries if sizes.get(e["path"]) != WAV_HEADER + 2 * e["num_samples"]]
    if bad:
        raise UserError(
            f"{audio_dir / bad[0]} is missing or incomplete ({len(bad)} such files); "
            "run local/synthesize.py again, which makes only what is missing"
        )


def _cut(audio_dir: Path, entry: dict) -> MonoCut:
    recording = Recording(
        id=entry["id"],
        sources=[AudioSource("file", [0], (audio_dir / entry["path"]).as_posix())],
        sampling_rate=entry["sampling_rate"],
        num_samples=entry["num_samples"],
        duration=entry["duration"],
    )
    supervision = SupervisionSegment(
        id=entry["id"],
        recording_id=entry["id"],
        start=0.0,
        duration=entry["duration"],
        channel=0,
        text=entry["text"],
        language="English",
        speaker=entry["variant"],
        gender=entry["gender"],
        custom={"accented": entry["speaker"]} | {key: entry[key] for key in ("phonemes", "voice")},
        alignment={"phone": [AlignmentItem(*item) for item in entry.get("alignment", ())]},
    )
    return MonoCut(
        id=entry["id"],
        start=0.0,
        duration=entry["duration"],
        channel=0,
        supervisions=[supervision],
        recording=recording,
    )


def main(argv: list[str] | None = None) -> int:
    flags = parse(Flags, "prepare_mini.py", "Write lhotse manifests of the embedded corpus.", argv)
    cuts = prepare_mini(flags.audio_dir, flags.manifest_dir)["cuts"]
    hours = sum(cut.duration for cut in cuts) / 3600
    print(f"{len(cuts)} cuts, {hours:.2f} hours: {flags.manifest_dir}/mini_cuts.jsonl.gz")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
