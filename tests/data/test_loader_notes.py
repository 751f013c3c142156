"""Windows, crops and parts of cuts have the notes that a plain reader finds in their time."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from midi_files import performance, reference_notes, write_midi
from token_fixtures import make_tokens

from rvqlm.bin.midi import main
from rvqlm.codec_info import CodecInfo
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.mixed import MixedDataset
from rvqlm.data.notes import NoteTimes
from rvqlm.data.plan import PlanConfig
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError
from rvqlm.frontends.midi import MidiFrontEnd

INFO = CodecInfo("music", "0123456789abcdef", 44100, 512, 3, 64)  # no whole frames in 20 ms
SECONDS = 512 / 44100
FRAMES = (2500, 40, 700, 1900, 333, 1200)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Cuts of up to 29 s, one of them without notes, and the notes of each."""
    folder = tmp_path_factory.mktemp("notes")
    make_tokens(folder / "tokens", list(FRAMES), INFO)
    references = []
    for n, frames in enumerate(FRAMES):
        path, seconds = folder / f"midi/cut-{n:04d}.mid", frames * SECONDS
        notes, pedal = performance(n, max(1, seconds - 1), round(8 * seconds) + 1)
        # faster and slower by turns: what is written is not what sounds
        tempos = [(3.0 * i, 350_000 + 97_000 * ((i + n) % 4)) for i in range(10)]
        write_midi(path, notes, pedal, tempos=tempos)
        references.append(reference_notes(path))
    (folder / "midi/cut-0004.mid").unlink()
    references[4] = []
    assert main(["--manifest-dir", str(folder / "tokens"), "--midi-dir", str(folder / "midi")]) == 0
    return TokenDataset.open(folder / "tokens", "train"), references


def tokens_of(reference, begin: float, end: float) -> list[list[int]]:
    def bin_of(seconds: float) -> int:
        return min(127, round(20 * math.log(1 + seconds / 0.05)))

    def grid(seconds: float) -> float:
        return round(seconds * 10_000) / 10_000  # kept in whole 0.1 ms

    found, before = [], 0.0
    for n, (time, duration, pitch, velocity, pedal) in enumerate(reference):
        time, release = grid(time), grid(time + duration)
        if time < begin:
            struck = [note[0] for note in reference[n + 1 :] if note[2] == pitch]
            silent = min([time + duration + pedal, *(max(s, time + duration) for s in struck)])
            if begin < grid(silent):  # by its key or by the pedal
                held, rest = max(release - begin, 0), grid(silent) - max(release, begin)
                row = [pitch, velocity // 2, bin_of(held), bin_of(begin - time), 1024, bin_of(rest)]
                found.append(row)
        elif time < end:
            since = time - begin
            position = int(since / 0.02 + 1e-6) % 1024
            onset = bin_of(since - before)
            row = [pitch, velocity // 2, bin_of(duration), onset, position, bin_of(pedal)]
            found.append(row)
            before = since
    return found


def check(ds, references, batches, longest) -> int:
    """Every item's notes against the reference; how many items there were."""
    count = 0
    codes = [ds.read(row) for row in range(len(ds))]
    for batch in batches:
        values, lengths, _ = batch.conditions["midi"]
        for row, frames, item, steps, n in zip(
            batch.index.tolist(), batch.lengths.tolist(), batch.codes, values, lengths.tolist()
        ):
            assert frames <= longest
            starts = [
                s
                for s in range(len(codes[row]) - frames + 1)
                if (codes[row][s : s + 6] == item[:6].numpy()).all()
                and np.array_equal(codes[row][s : s + frames], item[:frames])
            ]
            assert len(starts) == 1  # codes are random
            begin, end = starts[0] * SECONDS, (starts[0] + frames) * SECONDS
            wanted = tokens_of(references[row], begin, end)
            assert steps[:n, [0, 1, 3, 4]].tolist() == [w[:2] + w[3:5] for w in wanted]
            # the ends of notes are exact in the file and in 0.1 ms in windows
            off = abs(steps[:n].numpy() - np.array(wanted).reshape(-1, 6))
            assert off.max(initial=0) <= 1 and off.sum() <= 1 + n / 25
            count += n
    return count


PLANS = {
    "windows": {"window_frames": 400},
    "overlapping": {"window_frames": 301, "hop_frames": 150},
    "crops": {"crop_frames": 500},
    "schedule": {"window_schedule": ("0:200", "1:900")},
}


@pytest.mark.parametrize("flags", PLANS.values(), ids=PLANS)
def test_windows_have_the_notes_of_their_time(data, flags):
    ds, references = data
    config = PlanConfig(max_duration=30, shuffle_window=9, **flags)
    loader = TokenLoader(ds, config, seed=0, conditions=ConditionSet.open(ds, ["midi"]))
    found = [next(loader) for _ in range(2 * loader.epoch_steps)]
    longest = max(900 if config.window_schedule else 0, config.window_frames, config.crop_frames)
    assert check(ds, references, found, longest) > 200
    sounding = [b.conditions["midi"].values[..., 4] == 1024 for b in found]
    assert sum(int(s.sum()) for s in sounding) > 30
    loader.close()
    # held-out data: every note begins in one window, and sounds on in others
    held_out = TokenLoader(
        ds, config.for_validation(), seed=0, conditions=ConditionSet.open(ds, ["midi"])
    )
    total = sum(
        sum(round(note[0] * 10_000) / 10_000 < frames * SECONDS for note in reference)
        for reference, frames in zip(references, FRAMES)
    )
    batches = list(held_out.epoch_batches())
    check(ds, references, batches, longest)
    places = torch.cat([b.conditions["midi"].values[..., 4].flatten() for b in batches])
    assert int(((places >= 0) & (places < 1024)).sum()) == total


def test_resuming_anywhere_gives_the_same_notes(data):
    ds = data[0]
    config = PlanConfig(max_duration=12, window_frames=150)

    def loader():
        return TokenLoader(ds, config, seed=3, conditions=ConditionSet.open(ds, ["midi"]))

    whole = loader()
    total = whole.epoch_steps + 4
    expected = [next(whole) for _ in range(total)]
    for stop in random.Random(1).sample(range(total), 3):
        first, second = loader(), loader()
        for _ in range(stop):
            next(first)
        second.load_state_dict(first.state_dict())
        for batch in expected[stop:]:
            again = next(second)
            assert torch.equal(again.codes, batch.codes)
            notes, wanted = again.conditions["midi"], batch.conditions["midi"]
            assert torch.equal(notes.values, wanted.values)
            assert torch.equal(notes.lengths, wanted.lengths)
        first.close()
        second.close()
    whole.close()


def test_batches_are_those_without_notes(data):
    """What fits in a batch is a matter of frames alone."""
    ds = data[0]
    config = PlanConfig(max_duration=12, window_frames=150)
    opened = ConditionSet.open(ds, ["midi"])
    loaders = [TokenLoader(ds, config, seed=3, conditions=c) for c in (None, opened)]
    assert loaders[0].shapes() == loaders[1].shapes()
    for _ in range(loaders[0].epoch_steps):
        a, b = map(next, loaders)
        assert torch.equal(a.codes, b.codes) and torch.equal(a.index, b.index)
    for loader in loaders:
        loader.close()


def test_more_ranks_than_cuts(data):
    ds, references = data
    config = PlanConfig(max_duration=30)
    count = 0
    for rank in range(13):
        opened = ConditionSet.open(ds, ["midi"])
        loader = TokenLoader(ds, config, 0, rank, 13, conditions=opened)
        count += check(ds, references, [next(loader) for _ in range(loader.epoch_steps)], 2500)
        loader.close()
    assert count > 400


def test_data_sets_together(data):
    ds, references = data
    both = MixedDataset([ds, ds])
    config = PlanConfig(max_duration=30, window_frames=400)
    loader = TokenLoader(both, config, seed=0, conditions=ConditionSet.open(both, ["midi"]))
    batches = list(loader.epoch_batches())
    for batch in batches:
        batch.index.remainder_(len(ds))
    assert check(ds, references, batches, 400) > 400


def test_notes_of_the_first_version_are_those_that_begin(data, tmp_path):
    """Its files have one time a note, and no place for what sounds from before."""
    ds = data[0]
    opened = ConditionSet.open(ds, ["midi"])._readers["midi"]
    begin = opened.times.column.read(0)[:, :1]
    write_ragged(tmp_path / "times.bin", [begin], 1, "0" * 16)
    settings = MidiFrontEnd(version=1).info(1.0).settings
    times = NoteTimes(Ragged.open(tmp_path / "times.bin"), settings)
    part = times.part(0, opened.column.read(0), 5.0, 9.0)
    both = opened.times.part(0, opened.column.read(0), 5.0, 9.0)
    old = both[:, 4] == 1024
    assert 0 < old.sum() < len(both) and part.tolist() == both[~old].tolist()


def test_notes_without_times_are_for_whole_cuts(data):
    """Of an earlier version, which wrote no times."""
    ds = data[0]
    path = NoteTimes.path(ds.directory, "train")
    away = path.rename(path.with_suffix(".away"))
    try:
        opened = ConditionSet.open(ds, ["midi"])
        with pytest.raises(
            UserError, match=r"--window-frames .* kept no times .* rvqlm midi .* ag"
        ):
            TokenLoader(ds, PlanConfig(window_frames=9), seed=0, conditions=opened)
        TokenLoader(ds, PlanConfig(), seed=0, conditions=opened)
    finally:
        away.rename(path)
