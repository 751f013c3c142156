"""Schedules by epoch, epochs by hours, and several data sets in one training."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from condition_fixtures import edit_cuts, make_steps
from token_fixtures import INFO, make_tokens

from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.mixed import open_mixed
from rvqlm.data.plan import Items, PlanConfig, plan_epoch
from rvqlm.data.selection import Pool, draw, pools, take
from rvqlm.errors import UserError
from rvqlm.flags import parse_schedule, value_at

RATE = Fraction(50)
FRAMES = np.random.default_rng(0).integers(20, 400, 300).astype(np.uint32)


def items(epoch, frames=FRAMES, parts=None, world=1, **flags):
    """(rows, starts, lengths) of everything in an epoch."""
    config = PlanConfig(**{"max_duration": 30.0, **flags})
    plan = plan_epoch(frames, config, RATE, 7, epoch, world, parts=parts)
    batches = [plan.batch(r, s) for s in range(plan.num_steps) for r in range(world)]
    return tuple(np.concatenate(column).astype(int) for column in zip(*batches))


def test_schedule_text():
    schedule = parse_schedule(("0:512", "10:1024"), "--x", int)
    assert [value_at(schedule, e) for e in (0, 9, 10, 99)] == [512, 512, 1024, 1024]
    for bad in (("512",), ("0:a",), ("1:5",), ("0:5", "0:6"), ("0:5", "3:6", "2:7")):
        with pytest.raises(UserError, match="--x"):
            parse_schedule(bad, "--x", int)


@pytest.mark.parametrize("epoch", [0, 1, 2, 5])
def test_a_schedule_is_the_fixed_flag_of_each_epoch(epoch):
    window = 64 if epoch < 2 else 128
    for name, flag in (("window_schedule", "window_frames"), ("crop_schedule", "crop_frames")):
        a = items(epoch, **{name: ("0:64", "2:128")})
        b = items(epoch, **{flag: window})
        assert all(np.array_equal(x, y) for x, y in zip(a, b))
    rows, _, lengths = items(epoch, max_seconds_schedule=("0:2", "2:5"))
    limit = 100 if epoch < 2 else 250
    assert lengths.max() <= limit
    assert len(rows) == np.count_nonzero(limit >= FRAMES)


def test_hours_are_drawn_without_repetition():
    total, hours = FRAMES.sum(), 0.2
    seen = []
    for epoch in range(6):  # 0.2 h are 36,000 of about 62,000 frames
        rows, starts, lengths = items(epoch, epoch_hours=hours)
        assert (starts == 0).all() and np.array_equal(lengths, FRAMES[rows])
        assert abs(lengths.sum() - hours * 3600 * 50) <= FRAMES.max()
        seen.append(rows)
    line = np.concatenate(seen)
    passes = int(6 * hours * 3600 * 50 // total)
    counts = np.bincount(line, minlength=len(FRAMES))
    assert passes == 3 and counts.min() == 3 and counts.max() == 4
    # the first pass is over before any cut comes a second time: two epochs hold it nearly
    assert len(np.unique(np.concatenate(seen[:2]))) == len(FRAMES)


def test_a_schedule_of_durations_begins_its_passes_anew():
    flags = {"epoch_hours": 0.05, "max_seconds_schedule": ("0:2", "3:8")}
    early = [items(e, **flags)[0] for e in range(3)]
    late = [items(e, **flags)[0] for e in range(3, 6)]
    assert (FRAMES[np.concatenate(early)] <= 100).all()
    assert FRAMES[np.concatenate(late)].max() > 300
    first_pass = np.concatenate(late)
    assert len(np.unique(first_pass)) == len(first_pass)  # less than one pass: nothing twice


@pytest.mark.parametrize("hours", [0.1, 0.02, 0.0007])
def test_epochs_are_slices_of_a_line_of_passes(hours):
    """Of short cuts and tenths, so that epochs end on cuts or beside them by a rounding error."""
    rng = np.random.default_rng(1)
    frames = np.concatenate([np.ones(50, int), rng.integers(1, 4, 70), np.full(30, 2)])
    parts, weights = np.array([0, 50, 120]), ("0:1,4,5", "10:1,3,2", "13:2,1,0")
    shares = [(0.1, 0.4, 0.5)] * 10 + [(1 / 6, 3 / 6, 2 / 6)] * 3 + [(2 / 3, 1 / 3, 0)] * 7
    config = PlanConfig(epoch_hours=hours, mix_weights=weights)
    epochs = [draw(frames, pools(frames, config, RATE, e, parts), 7) for e in range(20)]
    streams = [pool.stream for pool in pools(frames, config, RATE, 0, parts)]
    for part, (low, high) in enumerate(((0, 50), (50, 120), (120, 150))):
        rows = np.arange(low, high)
        drawn = [rows[(rows >= low) & (rows < high)] for rows in epochs]
        total, line, wanted, got = int(frames[rows].sum()), [], 0.0, 0
        for number in range(1 + sum(map(len, drawn)) // len(rows)):
            pool = Pool(rows, number * total, (number + 1) * total, streams[part])
            a_pass = take(pool, frames[rows], 7)
            assert sorted(a_pass) == rows.tolist()
            line += a_pass.tolist()
        joined = np.concatenate(drawn).tolist()
        assert joined == line[: len(joined)]
        for of_epoch, share in zip(drawn, shares):
            got += frames[of_epoch].sum()
            wanted += share[part] * hours * 3600 * 50
            assert abs(got - wanted) <= frames[rows].max() + 1e-6


def test_a_far_epoch_needs_no_earlier_one():
    _, _, lengths = items(10**9, epoch_hours=0.2)
    assert abs(lengths.sum() - 0.2 * 3600 * 50) <= FRAMES.max()


def test_mixing_by_hours_and_by_epoch():
    frames = np.concatenate([FRAMES, FRAMES[:50]])
    parts = np.array([0, 300])
    weights = ("0:1,1", "2:3,1", "4:1,0")
    for epoch, share in ((0, 0.5), (1, 0.5), (2, 0.25), (3, 0.25), (4, 0.0)):
        rows, _, lengths = items(epoch, frames, parts, mix_weights=weights, epoch_hours=0.3)
        of_second = lengths[rows >= 300].sum() / (0.3 * 3600 * 50)
        assert abs(of_second - share) <= FRAMES.max() / (0.3 * 3600 * 50)
        counts = np.bincount(rows[rows >= 300] - 300, minlength=50)
        assert counts.max() - counts.min() <= 2  # an epoch has parts of passes at both ends
    # over epochs, too, each set continues where it was
    rows = np.concatenate(
        [items(e, frames, parts, mix_weights=weights, epoch_hours=0.3)[0] for e in range(4)]
    )
    for low, high in ((0, 300), (300, 350)):
        counts = np.bincount(rows[(rows >= low) & (rows < high)] - low, minlength=high - low)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"window_schedule": ("0:64",), "window_frames": 5}, "exclude each other"),
        ({"window_schedule": ("0:64",), "crop_frames": 5}, "exclude each other"),
        ({"window_schedule": ("0:0",)}, "--window-schedule 0:0"),
        ({"window_schedule": ("0:64",), "hop_frames": 65}, "would skip audio"),
        ({"window_schedule": ("1:5",), "mix_weights": ("x",)}, "--window-schedule.*--mix-weights"),
        ({"max_seconds_schedule": ("0:2",), "filter_min_duration": 3.0}, "is above"),
        ({"epoch_hours": 0.0005}, "shorter than the longest cut"),
        ({"mix_weights": ("0:1,-1",)}, "--mix-weights 0:1,-1"),
        ({"mix_weights": ("0:1,1,1",)}, "3 weights and there are 1 data sets"),
        ({"epoch_hours": -1.0}, "--epoch-hours"),
        ({"max_seconds_schedule": ("0:nan",)}, "--max-seconds-schedule"),
    ],
)
def test_mistakes(flags, message):
    with pytest.raises(UserError, match=message) as error:
        items(0, **flags)
    assert "\n" not in str(error.value)


def test_for_validation():
    plan = PlanConfig(window_schedule=("0:64", "3:128"), hop_frames=32, epoch_hours=1.0)
    held_out = plan.for_validation()
    assert held_out == PlanConfig(window_frames=128)
    assert PlanConfig(crop_schedule=("0:64",)).for_validation() == PlanConfig(window_frames=64)


def stops_early_everywhere_but(row):
    return lambda number, cut: cut["custom"].update(ends_recording=number == row)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = []
    for n, frames in enumerate(([20, 30, 40, 50] * 3, [60, 70, 80] * 2)):
        folder = tmp_path_factory.mktemp(f"tokens{n}")
        make_tokens(folder, frames, seed=n, speakers=2)
        edit_cuts(folder, stops_early_everywhere_but(2 + n))
        found.append(folder)
    return found


def test_several_directories_are_one(folders):
    parts = [TokenDataset.open(f, "train") for f in folders]
    mixed = open_mixed(folders, "train")
    assert len(mixed) == 18 and mixed.num_frames == sum(d.num_frames for d in parts)
    assert mixed.parts.tolist() == [0, 12] and mixed.hours == sum(d.hours for d in parts)
    rows = np.array([3, 17, 12, 0, 11])
    for row in rows:
        dataset, inside = (parts[0], row) if row < 12 else (parts[1], row - 12)
        assert np.array_equal(mixed.read(row, 2, 9), dataset.read(inside, 2, 9))
        assert mixed.id_of(row) == dataset.id_of(inside) and mixed.frames[row] == len(
            dataset.read(inside)
        )
    assert np.flatnonzero(mixed.ends(np.arange(18))).tolist() == [2, 12 + 3]
    assert mixed.ends(np.array([15, 3, 2])).tolist() == [True, False, True]
    assert mixed.fingerprint not in {d.fingerprint for d in parts}
    assert open_mixed(folders, "train", num_codebooks=2).read(17).shape == (80, 2)


def test_conditions_of_several_directories(folders):
    mixed = open_mixed(folders, "train")
    conditions = ConditionSet.open(mixed, ["prompt"], prompt_frames=10, seed=3)
    alone = [ConditionSet.open(d, ["prompt"], prompt_frames=10, seed=3) for d in mixed.datasets]
    rows = np.array([13, 2, 17])
    got = conditions.read(Items.whole(rows, mixed.frames), epoch=4)["prompt"]
    for n, (part, inside) in enumerate(((1, 1), (0, 2), (1, 5))):
        own = Items.whole(np.array([inside]), mixed.datasets[part].frames)
        want = alone[part].read(own, epoch=4)["prompt"]
        assert torch.equal(got.values[n, : got.lengths[n]], want.values[0])


def test_conditions_must_agree(folders):
    made = [make_steps(folder, "text", seed=n) for n, folder in enumerate(folders)]
    mixed = open_mixed(folders, "train")
    conditions = ConditionSet.open(mixed, ["text"])
    rows = np.array([14, 3])
    got = conditions.read(Items.whole(rows, mixed.frames))["text"]
    for n, want in enumerate((made[1][2], made[0][3])):
        assert np.array_equal(got.values[n, : got.lengths[n]], want)
    assert conditions.missing() == {"text": 1}
    path = folders[1] / "text.json"
    path.write_text(path.read_text().replace("at random", "otherwise"))
    with pytest.raises(UserError, match=r"condition text: made differ between .*tokens1"):
        ConditionSet.open(mixed, ["text"])


def test_codecs_must_agree(folders, tmp_path):
    make_tokens(tmp_path, [20] * 4, info=type(INFO)(**{**INFO.to_dict(), "fingerprint": "f" * 16}))
    with pytest.raises(UserError, match="codec mismatch"):
        open_mixed([folders[0], tmp_path], "train")
    with pytest.raises(UserError, match=r"has the data of"):
        open_mixed([folders[0], folders[0]], "train")
    # as after a change of the audio: ids and lengths are those of the original, codes are not
    for n in range(2):
        make_tokens(tmp_path / str(n), [20] * 4, seed=n)
    both = open_mixed([tmp_path / "0", tmp_path / "1"], "train")
    swapped = open_mixed([tmp_path / "1", tmp_path / "0"], "train")
    assert len(both) == 8 and both.fingerprint != swapped.fingerprint


def batches(loader, number):
    return [next(loader).codes for _ in range(number)]


def test_resume_across_changes_and_ranks(folders):
    mixed = open_mixed(folders, "train")
    config = PlanConfig(
        max_duration=2.0,
        window_schedule=("0:16", "1:24"),
        mix_weights=("0:1,1", "2:1,4"),
        epoch_hours=0.002,
    )
    loader = TokenLoader(mixed, config, 5)
    whole = batches(loader, 40)
    loader.close()
    for start in (1, 7, 19, 33):
        stopped, resumed = (TokenLoader(mixed, config, 5) for _ in range(2))
        batches(stopped, start)
        resumed.load_state_dict(stopped.state_dict())
        got = batches(resumed, 5)
        assert all(torch.equal(a, b) for a, b in zip(got, whole[start:]))
    assert stopped.epoch > 2
    for loader in (stopped, resumed):
        loader.close()


def test_ranks_come_and_go_where_a_schedule_changes(folders):
    """One rank into the epoch whose windows are longer, then three, then two: each item once."""
    mixed = open_mixed(folders, "train")
    config = PlanConfig(
        max_duration=2.0,
        window_schedule=("0:16", "1:24"),
        mix_weights=("0:1,1", "1:1,4"),
        epoch_hours=0.01,
    )
    plan = plan_epoch(mixed.frames, config, RATE, 5, 1, 1, parts=mixed.parts)
    items = zip(*(column.astype(int).tolist() for column in plan.items))
    expected = sorted((row, mixed.read(row, start, num).tobytes()) for row, start, num in items)
    first = TokenLoader(mixed, config, 5).epoch_steps
    seen, state = [], None
    for world, steps in ((1, first + 2), (3, 1), (2, None)):
        loaders = [TokenLoader(mixed, config, 5, rank, world) for rank in range(world)]
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
            left = loader.epoch_steps - loader.step if steps is None else steps
            for batch in (next(loader) for _ in range(left)):
                for row, codes, num in zip(batch.index, batch.codes, batch.lengths):
                    if batch.epoch == 1:
                        codes = codes[:num].numpy().astype(mixed.dtype)
                        seen.append((int(row), codes.tobytes()))
        state = loaders[0].state_dict()
        for loader in loaders:
            loader.close()
    assert state["epoch"] == 1 and [world for world, _ in state["history"]] == [1, 3, 2]
    assert sorted(seen) == expected


def test_a_state_from_before_there_were_schedules(folders):
    dataset = TokenDataset.open(folders[0], "train")
    old, new = (TokenLoader(dataset, PlanConfig(max_duration=1.0), 5) for _ in range(2))
    want = batches(old, 3)[2]
    new.load_state_dict(old.state_dict())
    state = new.state_dict()
    for name in ("window_schedule", "epoch_hours", "mix_weights"):
        del state["plan"][name]
    state["history"] = [[1, 2]]
    new.load_state_dict(state)
    assert torch.equal(next(new).codes, want)
    changed = TokenLoader(dataset, PlanConfig(max_duration=1.0, epoch_hours=0.01), 5)
    with pytest.raises(UserError, match=r"--epoch-hours was 0\.0, is 0\.01"):
        changed.load_state_dict(state)
    for loader in (old, new):
        loader.close()


def test_what_cannot_be_planned_later_is_refused_at_once(folders):
    dataset = TokenDataset.open(folders[1], "train")
    config = PlanConfig(max_duration=1.0, window_schedule=("0:8", "30:75"))
    with pytest.raises(UserError, match=r"'cut-0002' has 75 frames .* than --max-duration"):
        TokenLoader(dataset, config, 0)
    config = PlanConfig(max_duration=2.0, max_seconds_schedule=("0:1.4", "30:0.5"))
    with pytest.raises(UserError, match="none of 6 cuts"):
        TokenLoader(dataset, config, 0)
    # a cut that this epoch's hours leave out comes in another
    frames = np.where(np.arange(300) == 170, 2000, FRAMES)
    with pytest.raises(UserError, match="in row 170"):
        items(0, frames, epoch_hours=0.02)


def test_worst_batch_looks_ahead(folders):
    dataset = TokenDataset.open(folders[1], "train")
    loader = TokenLoader(dataset, PlanConfig(max_duration=2.0, window_schedule=("0:8", "3:75")), 0)
    shape = loader.worst_batch().codes.shape
    assert shape[0] * shape[1] == max(
        b * t
        for e in (0, 3)
        for b, t in zip(*plan_epoch(dataset.frames, loader.config, RATE, 0, e, 1).shapes())
    )
    assert loader.shapes() == {tuple(b.codes.shape[:2]) for b in loader.epoch_batches()}
    assert loader.step == 0
