"""Cut both tracks of each pair to a window, and write them as files of exactly equal lengths.

    python local/clips.py --lead lead.jsonl.gz --backing backing.jsonl.gz --audio-dir clips \
        --out-dir manifests --metadata windows.csv

The windows are those of `rvqlm audio activity` with --partner for the one and --reference for the
other: equal ids, equal starts and ends. What is in a clip is what the codec hears: one channel,
gains applied, at --sample-rate. A pair of which one track cannot be used is left out and listed,
both of it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flac
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples

from rvqlm.audio.augment import copy_path
from rvqlm.audio.cuts import CutWriter, count_cuts, group_of, in_order, read_cuts, with_custom
from rvqlm.audio.parts import cut_blocks, recording_cut, source_path
from rvqlm.audio.prepare import AudioConfig, Folding, resample
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import write_text
from rvqlm.locks import locked

VERSION = 1  # of what is made of the same: another one makes all files anew


@dataclass
class Flags:
    """Cut both tracks of each pair to a window, and write them as files."""

    lead: str
    """Manifest of windows of the lead (.jsonl.gz)."""
    backing: str
    """Manifest of the same windows of the rest."""
    audio_dir: Path
    """Folder for lead/ID.flac and backing/ID.flac."""
    out_dir: Path
    """Folder for lead.jsonl.gz and backing.jsonl.gz."""
    metadata: Path
    """Table of the windows to write (.csv)."""
    sample_rate: int = 32000
    """Of the clips: that of the codec."""
    jobs: int = 0
    """Processes; 0 is one per core."""


Pair = tuple[Cut, Cut | None]


def _pairs(flags: Flags, skip) -> Iterator[Pair]:
    """Each window of the lead with that of the backing track, by id, in the order of the lead."""
    backing = {cut.id: cut for cut in read_cuts(flags.backing, "--backing")}
    for cut in bar(
        read_cuts(flags.lead, "--lead", skip), "clips", count_cuts(flags.lead, "--lead")
    ):
        yield cut, backing.get(cut.id)


def _samples(cut: Cut) -> tuple[int, int, int]:
    """Rate, first sample and number of samples of a window."""
    rate = cut.sampling_rate
    return rate, compute_num_samples(cut.start, rate), compute_num_samples(cut.duration, rate)


def _clips(pair: Pair, flags: Flags):
    """The recordings of both tracks, made unless they are there."""
    lead, backing = pair
    path = source_path(lead.recording)
    if backing is None:
        raise BadAudio(path, f"--backing has no window {lead.id!r}")
    if _samples(lead) != _samples(backing):
        raise BadAudio(
            path,
            f"(rate, first sample, samples) are {_samples(lead)} in the lead and "
            f"{_samples(backing)} in the rest",
        )
    made = [_clip(cut, side, flags) for cut, side in ((lead, "lead"), (backing, "backing"))]
    if made[0].num_samples != made[1].num_samples:
        lengths = " and ".join(str(r.num_samples) for r in made)
        raise BadAudio(path, f"the two tracks have {lengths} samples")
    return made


def _clip(cut: Cut, side: str, flags: Flags):
    path = copy_path(str(flags.audio_dir / side), cut.id)
    stem = Path(source_path(cut.recording)).stat()
    what = [VERSION, cut.recording.to_dict(), *_samples(cut), cut.channel, flags.sample_rate]
    what += [stem.st_size, stem.st_mtime_ns]
    text = json.dumps(what, sort_keys=True, default=str).encode(errors="surrogateescape")
    key = hashlib.blake2b(text, digest_size=12).hexdigest()
    if (there := flac.complete(path, cut.id, key)) is not None:
        return there
    folding = Folding(1, AudioConfig(), source_path(cut.recording))
    blocks = (folding(block.T) for block in cut_blocks(cut))
    blocks = (b.T for b in resample(blocks, cut.sampling_rate, flags.sample_rate))
    made = flac.write(path, cut.id, key, flags.sample_rate, blocks)
    folding.require_sound()
    return made


def make_clips(flags: Flags) -> str:
    """Write clips, manifests and the table of windows; returns the summary."""
    outs = [str(flags.out_dir / f"{side}.jsonl.gz") for side in ("lead", "backing")]
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["clip", "recording", "start_seconds", "end_seconds"])
    with CutWriter(outs[0], flags.lead) as lead, CutWriter(outs[1], flags.backing) as backing:
        pairs = _pairs(flags, lead.skip)
        for (cut, _), made in in_order(partial(_clips, flags=flags), pairs, flags.jobs):
            if isinstance(made, BadAudio):
                for writer in (lead, backing):
                    writer.skip(cut.id, made.path, made.reason)
                continue
            rows.writerow([cut.id, cut.recording.id, f"{cut.start:.3f}", f"{cut.end:.3f}"])
            for writer, recording in zip((lead, backing), made):
                writer.write(with_custom(recording_cut(recording), group=group_of(cut)))
    write_text(flags.metadata, table.getvalue())
    return lead.summary(f"pairs at {flags.sample_rate} Hz; windows in {flags.metadata}")


def _run(argv) -> int:
    flags = parse(Flags, "clips.py", Flags.__doc__, argv)
    if flags.sample_rate < 1000:
        raise UserError(f"--sample-rate {flags.sample_rate}: give that of the codec, 32000")
    with locked(flags.out_dir, "clips.py", make=True):
        print(make_clips(flags))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_run, None, "clips.py"))
