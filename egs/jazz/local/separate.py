"""Separate recordings by Demucs: the lead on one side, all else on the other, sample by sample
alike.

    python local/separate.py --input mix.jsonl.gz --audio-dir stems --out-dir manifests \
        --model htdemucs_6s --lead vocals other

Writes audio-dir/lead/ID.flac and audio-dir/backing/ID.flac, of exactly equal lengths, at the rate
of the model, and out-dir/lead.jsonl.gz and backing.jsonl.gz. What is complete, and was made of the
same recording in the same way, is kept. A recording that cannot be read is listed and passed over.

A recording is separated a minute at a time, with a cross-fade between: memory does not grow with
its length, and up to a minute are what Demucs makes of the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import flac
import numpy as np
import torch
from lhotse import Recording
from lhotse.cut import Cut

from rvqlm import runtime
from rvqlm.audio.augment import copy_path
from rvqlm.audio.cuts import CutWriter, count_cuts, group_of, read_cuts, with_custom
from rvqlm.audio.parts import cut_blocks, recording_cut, source_path
from rvqlm.audio.prepare import AudioConfig, Folding, resample
from rvqlm.audio.reader import BadAudio
from rvqlm.cli import bar, counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.locks import locked

VERSION = 1  # of what is made of the same: another one makes all files anew
PIECE_SECONDS, FADE_SECONDS = 60.0, 8.0
SIDES = ("lead", "backing")


@dataclass
class Flags:
    """Separate each recording into what plays the lead and the rest, by Demucs."""

    input: str
    """Manifest of cuts (.jsonl.gz), as rvqlm audio manifest or loudness writes it."""
    audio_dir: Path
    """Folder for lead/ID.flac and backing/ID.flac."""
    out_dir: Path
    """Folder for lead.jsonl.gz and backing.jsonl.gz."""
    model: str = "htdemucs_6s"
    """A published model by name, or the path of a .th file."""
    weights: Path | None = None
    """Folder of the .th files of a named model. Default: torch's cache, where they
    are fetched to."""
    lead: tuple[str, ...] = ("vocals", "other")
    """Sources of the model that are the lead: its six know no saxophone, which ends up in these."""
    n_splits: int = 2
    """How often the lead is separated: what it still has of other sources goes to the rest."""
    n_shifts: int = 2
    """Random shifts in time over which each estimate is averaged; 0: none."""
    n_jobs: int = 1
    """Parallel jobs on a CPU, at most one a core."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the shifts."""

    def __post_init__(self) -> None:
        if self.n_splits < 1 or self.n_shifts < 0 or self.n_jobs < 1:
            raise UserError("--n-splits and --n-jobs are at least 1, --n-shifts is at least 0")


Separate = Callable[[np.ndarray, str], np.ndarray]
"""(C, S) samples and a name to draw by, as (2, C, S): lead and rest."""


def separator(model, flags: Flags) -> Separate:
    """What `flags` asks of a model of Demucs."""
    from demucs.apply import apply_model

    lead = [source in flags.lead for source in model.sources]
    unknown = set(flags.lead) - set(model.sources)
    if unknown or all(lead):
        raise UserError(
            f"--lead {' '.join(flags.lead)}: give some, not all, of the sources of the model: "
            f"{' '.join(model.sources)}"
        )
    device = runtime.use_device(flags.device)
    jobs = min(flags.n_jobs, runtime.num_cores()) if device.type == "cpu" else 0
    if jobs:
        torch.set_num_threads(max(1, runtime.num_cores() // jobs))
    is_lead = torch.tensor(lead)

    def stems(mix: torch.Tensor) -> torch.Tensor:
        mean, std = mix.mean(), mix.mean(0).std() + 1e-8
        made = apply_model(
            model, ((mix - mean) / std)[None], shifts=flags.n_shifts, device=device,
            num_workers=jobs if jobs > 1 else 0,
        )[0]  # fmt: skip
        return made * std  # the mean, no sound, would come back once for each source

    def separate(mix: np.ndarray, name: str) -> np.ndarray:
        random.seed(f"{flags.seed} {name}")  # the shifts: the same for the same piece
        found = torch.from_numpy(np.ascontiguousarray(mix))
        rest = torch.zeros_like(found)
        for _ in range(flags.n_splits):
            made = stems(found)
            found, rest = made[is_lead].sum(0), rest + made[~is_lead].sum(0)
        return torch.stack([found, rest]).numpy()

    return separate


def pieces(
    blocks: Iterable[np.ndarray], size: int, overlap: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Blocks (C, n) as pieces (C, size) that overlap, the last of which is shorter; and whether a
    piece is the last.

    >>> [(p[0].tolist(), last) for p, last in pieces([np.arange(7)[None]], 4, 1)]
    [([0, 1, 2, 3], False), ([3, 4, 5, 6], True)]
    """
    held, have = [], 0
    for block in blocks:
        held.append(block)
        have += block.shape[1]
        while have > size:
            whole = np.concatenate(held, axis=1)
            yield whole[:, :size], False
            held = [whole[:, size - overlap :]]
            have = held[0].shape[1]
    if have:
        yield np.concatenate(held, axis=1), True


def separated(
    blocks: Iterable[np.ndarray], size: int, overlap: int, separate: Separate, name: str
) -> Iterator[np.ndarray]:
    """Blocks (C, n) of a recording as blocks (2, C, n), as long in all: each piece on its own, from
    one to the next over a linear cross-fade of `overlap` samples."""
    rise = np.linspace(0, 1, overlap, dtype=np.float32)
    tail = None
    for number, (piece, last) in enumerate(pieces(blocks, size, overlap)):
        made = separate(piece, f"{name} {number}")
        if tail is not None:
            made[..., :overlap] = made[..., :overlap] * rise + tail * (1 - rise)
        if last:
            yield made
        else:
            yield made[..., :-overlap]
            tail = made[..., -overlap:]


def _one(cut: Cut, paths: list[Path], key: str, model, separate: Separate) -> tuple:
    """Both recordings, made unless they are there; what of the mix is damaged (None: not read)."""
    there = [flac.complete(path, cut.id, key) for path in paths]
    if all(there) and not _newer(cut.recording, paths):
        return there, None
    rate, channels, notes = int(model.samplerate), model.audio_channels, []
    folding = Folding(channels, AudioConfig(), source_path(cut.recording))
    mix = (folding(block.T) for block in cut_blocks(cut, notes=notes))
    mix = (block.T for block in resample(mix, cut.sampling_rate, rate))
    size, overlap = round(PIECE_SECONDS * rate), round(FADE_SECONDS * rate)
    writers = [flac.FlacWriter(path, rate, channels) for path in paths]
    try:
        for made in separated(mix, size, overlap, separate, cut.id):
            for writer, side in zip(writers, made):
                writer.add(side)
        if not writers[0].samples:
            raise BadAudio(source_path(cut.recording), "too short")
        return [writer.finish(cut.id, key) for writer in writers], notes
    finally:
        for writer in writers:
            writer.close()


def _newer(recording: Recording, paths: list[Path]) -> bool:
    try:
        made = os.stat(recording.sources[0].source).st_mtime
        return made > min(path.stat().st_mtime for path in paths)
    except OSError:  # the recording is gone: what was made of it is there
        return False


def _key(cut: Cut, flags: Flags, digest: str) -> str:
    """A hash of all that the stems of a cut depend on, but for the contents of its file."""
    recording = cut.recording.to_dict()
    what = [VERSION, digest, sorted(flags.lead), flags.n_splits, flags.n_shifts, flags.seed]
    what += [cut.id, recording, cut.start, cut.duration, cut.channel, PIECE_SECONDS, FADE_SECONDS]
    text = json.dumps(what, sort_keys=True, default=str).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def separate_all(flags: Flags) -> str:
    """Separate every cut of a manifest; returns the summary."""
    try:
        import demucs_models
    except ImportError as e:
        raise UserError(f"{e.name} is not installed: tools/setup.sh --extra jazz") from None
    model, digest = demucs_models.load(flags.model, flags.weights)
    separate = separator(model, flags)
    total, made = count_cuts(flags.input), 0
    outs = [str(flags.out_dir / f"{side}.jsonl.gz") for side in SIDES]
    with CutWriter(outs[0], flags.input) as lead, CutWriter(outs[1], flags.input) as backing:
        for cut in bar(read_cuts(flags.input, skip=lead.skip), "separate", total):
            paths = [copy_path(str(flags.audio_dir / side), cut.id) for side in SIDES]
            try:
                recordings, notes = _one(cut, paths, _key(cut, flags, digest), model, separate)
            except BadAudio as e:
                for writer in (lead, backing):
                    writer.skip(cut.id, e.path, e.reason)
                continue
            made += notes is not None
            lead.warn(cut.id, source_path(cut.recording), notes)
            for writer, recording in zip((lead, backing), recordings):
                writer.write(with_custom(recording_cut(recording), group=group_of(cut)))
    return lead.summary(f"{counted(made, 'recording')} separated, the others were there")


def _run(argv) -> int:
    flags = parse(Flags, "separate.py", Flags.__doc__, argv)
    with locked(flags.out_dir, "separate.py", make=True):
        print(separate_all(flags))
    return 0


if __name__ == "__main__":
    runtime.tune_malloc()
    sys.exit(run_main(_run, None, "separate.py"))
