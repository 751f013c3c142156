"""The loader: right codes, exact resume at any step, errors that surface, threads that end."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from token_fixtures import make_tokens

from rvqlm.batch import PAD
from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError

CONFIG = PlanConfig(max_duration=8, shuffle_window=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    frames = np.random.default_rng(1).integers(1, 200, 211).tolist()
    codes = make_tokens(directory, frames, num_shards=2)
    return TokenDataset.open(directory, "train"), codes


def same(a, b) -> bool:
    return (
        torch.equal(a.codes, b.codes)
        and torch.equal(a.lengths, b.lengths)
        and torch.equal(a.ends, b.ends)
        and torch.equal(a.index, b.index)
        and (a.epoch, a.step) == (b.epoch, b.step)
    )


def take(loader, n):
    return [next(loader) for _ in range(n)]


_of_other_tests = weakref.WeakSet()


@pytest.fixture(autouse=True)
def threads_of_other_tests():
    """Loaders of other files that are not collected yet, in the same process."""
    _of_other_tests.update(threading.enumerate())


def prefetch_threads():
    own = (t for t in threading.enumerate() if t not in _of_other_tests)
    return [t for t in own if t.name == "rvqlm-prefetch" and t.is_alive()]


def wait_for_no_threads():
    for thread in prefetch_threads():
        thread.join(timeout=5)
    assert not prefetch_threads()


def test_batches_hold_the_codes_of_their_rows(data):
    ds, codes = data
    loader = TokenLoader(ds, CONFIG, seed=0)
    seen = Counter()
    for step in range(loader.epoch_steps):
        batch = next(loader)
        assert batch.codes.dtype == torch.int16 and batch.lengths.dtype == torch.int64
        assert (batch.epoch, batch.step) == (0, step) and batch.ends.all()
        assert batch.codes.shape[1] == batch.lengths.max() and batch.codes[:, :, 0].numel() <= 400
        for row, length, item in zip(batch.index.tolist(), batch.lengths.tolist(), batch.codes):
            np.testing.assert_array_equal(item[:length].numpy(), codes[row])
            assert (item[length:] == PAD).all()
            seen[row] += 1
    assert seen == Counter(range(211)) and loader.step == loader.epoch_steps
    assert (next(loader).epoch, loader.step, loader.epoch) == (1, 1, 1)
    loader.close()


def test_ends_only_where_a_cut_ends(data):
    ds, codes = data
    loader = TokenLoader(ds, replace(CONFIG, window_frames=50), seed=0)
    for batch in loader.epoch_batches():
        for row, n, end, item in zip(batch.index, batch.lengths, batch.ends, batch.codes):
            last = np.array_equal(item[:n].numpy(), codes[row][-int(n) :])
            assert bool(end) == last
    crops = TokenLoader(ds, replace(CONFIG, crop_frames=10), seed=0)
    ends = torch.cat([b.ends for b in crops.epoch_batches()])
    assert 0 < ends.float().mean() < 0.5


def test_length_multiple_pads_the_grid(data):
    loader = TokenLoader(data[0], replace(CONFIG, length_multiple=40), seed=0)
    for batch in loader.epoch_batches():
        assert batch.codes.shape[1] % 40 == 0
        assert batch.codes.shape[1] - batch.lengths.max() < 40
        assert (
            (batch.codes == PAD).all(dim=2).sum(dim=1) == batch.codes.shape[1] - batch.lengths
        ).all()


@pytest.mark.parametrize(
    "flags", [{}, {"window_frames": 64, "hop_frames": 32}, {"crop_frames": 40}]
)
def test_resume_at_random_steps_equals_never_stopped(data, flags):
    ds, config = data[0], replace(CONFIG, **flags)
    steps = TokenLoader(ds, config, 7).epoch_steps
    total = steps * 2 + 9  # into the third epoch
    whole = TokenLoader(ds, config, seed=7)
    expected = take(whole, total)
    whole.close()
    rng = random.Random(0)
    for stop in [0, steps - 1, steps, steps + 1, *rng.sample(range(total), 6)]:
        first = TokenLoader(ds, config, seed=7, prefetch=rng.choice([1, 3, 16]))
        got = take(first, stop)
        state = first.state_dict()
        first.close()
        second = TokenLoader(ds, config, seed=7, prefetch=rng.choice([1, 2, 30]))
        second.load_state_dict(state)
        got += take(second, total - stop)
        assert second.state_dict() == whole.state_dict()
        second.close()
        assert all(same(a, b) for a, b in zip(got, expected)) and len(got) == total


def test_state_survives_a_weights_only_checkpoint(data, tmp_path):
    loader = TokenLoader(data[0], CONFIG, seed=0)
    take(loader, 3)
    torch.save({"loader": loader.state_dict()}, tmp_path / "x.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)["loader"]
    assert state == loader.state_dict()


def test_prefetched_batches_do_not_count(data):
    loader = TokenLoader(data[0], CONFIG, seed=0, prefetch=8)
    take(loader, 2)
    assert loader.state_dict()["history"] == [[1, 2]]
    # going back in the same loader drops what was read ahead
    state = loader.state_dict()
    ahead = take(loader, 3)
    loader.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(take(loader, 3), ahead))
    loader.close()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_an_epoch(data, world):
    ds = data[0]
    rows, steps = Counter(), set()
    for rank in range(world):
        loader = TokenLoader(ds, CONFIG, seed=3, rank=rank, world_size=world)
        steps.add(loader.epoch_steps)
        for batch in take(loader, loader.epoch_steps):
            rows.update(batch.index.tolist())
        loader.close()
    assert len(steps) == 1 and rows == Counter(range(211))


def test_changing_the_number_of_ranks_mid_epoch_loses_nothing(data):
    ds = data[0]
    rows, state = Counter(), None
    for world, steps in ((3, 4), (8, 2), (2, 5), (1, None)):
        loaders = [TokenLoader(ds, CONFIG, 3, r, world) for r in range(world)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
            left = loader.epoch_steps - loader.step
            begun = loader.step
            for number, batch in enumerate(take(loader, left if steps is None else steps), begun):
                assert (batch.epoch, batch.step) == (0, number)
                rows.update(batch.index.tolist())
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
        for loader in loaders:
            loader.close()
    assert rows == Counter(range(211))
    assert state["history"] == [[3, 4], [8, 2], [2, 5], [1, state["history"][-1][1]]]
    after = TokenLoader(ds, CONFIG, 3, 0, 4)
    after.load_state_dict(state)  # the epoch is over: the next is planned for four
    assert (after.epoch, after.step) == (1, 0)


def test_state_of_other_data_or_flags_is_refused(data, tmp_path):
    ds = data[0]
    state = TokenLoader(ds, CONFIG, seed=0).state_dict()
    with pytest.raises(UserError, match="--seed was 0, is 1"):
        TokenLoader(ds, CONFIG, seed=1).load_state_dict(state)
    with pytest.raises(UserError, match="--max-duration was 8, is 9; restore these, or start over"):
        TokenLoader(ds, replace(CONFIG, max_duration=9), seed=0).load_state_dict(state)
    make_tokens(tmp_path, [5, 6])
    with pytest.raises(UserError, match=r"the data in .* changed"):
        TokenLoader(TokenDataset.open(tmp_path, "train"), CONFIG, seed=0).load_state_dict(state)


def test_validation_order_is_fixed_and_complete(data):
    ds = data[0]
    loader = TokenLoader(ds, CONFIG, seed=0)
    before = take(loader, 2)[-1]
    first, second = (list(loader.epoch_batches()) for _ in range(2))
    assert all(same(a, b) for a, b in zip(first, second))
    assert Counter(r for b in first for r in b.index.tolist()) == Counter(range(211))
    assert next(loader).step == before.step + 1  # training went on where it was
    other = list(TokenLoader(ds, CONFIG, seed=99).epoch_batches())
    assert all(same(a, b) for a, b in zip(first, other))
    loader.close()
    iterator = loader.epoch_batches()
    next(iterator)
    iterator.close()
    wait_for_no_threads()


def test_a_cut_over_budget_is_named_before_training(data):
    loader = TokenLoader(data[0], replace(CONFIG, max_duration=1), seed=0)
    for action in (lambda: next(loader), lambda: loader.epoch_steps):
        with pytest.raises(UserError, match=r"cut 'cut-\d+' has \d+ frames .*--max-duration 1 "):
            action()


def test_errors_of_the_thread_reach_the_consumer(tmp_path):
    make_tokens(tmp_path, [50] * 40)
    ds = TokenDataset.open(tmp_path, "train")
    loader = TokenLoader(ds, PlanConfig(max_duration=2), seed=0, prefetch=2)
    take(loader, 2)
    broken = ds._shards[0]
    ds._shards[0] = None
    before = 2
    with pytest.raises(AttributeError):
        while True:
            assert next(loader).step == before
            before += 1
    ds._shards[0] = broken
    assert loader.step == before and next(loader).step == before  # nothing skipped
    loader.close()
    wait_for_no_threads()


def test_dropped_and_closed_loaders_end_their_thread(data):
    loader = TokenLoader(data[0], CONFIG, seed=0)
    next(loader)
    assert prefetch_threads()
    del loader
    gc.collect()
    wait_for_no_threads()
    loader = TokenLoader(data[0], CONFIG, seed=0)
    a = take(loader, 4)[-1]
    loader.close()
    wait_for_no_threads()
    assert next(loader).step == a.step + 1
    loader.close()


@pytest.mark.parametrize("v, expected", [(40000, torch.int32), (70000, torch.int32)])
def test_wide_codes_are_int32(tmp_path, v, expected):
    codes = make_tokens(tmp_path, [9, 4], CodecInfo("w", "b" * 16, 16000, 320, 2, v))
    loader = TokenLoader(TokenDataset.open(tmp_path, "train"), CONFIG, seed=0)
    (batch,) = loader.epoch_batches()
    assert batch.codes.dtype == expected
    np.testing.assert_array_equal(batch.codes[0].numpy(), codes[int(batch.index[0])])
    assert (batch.codes[1, 4:] == PAD).all()


def test_memory_and_files_do_not_grow(data):
    loader = TokenLoader(data[0], CONFIG, seed=0)
    take(loader, 50)
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    take(loader, 300)
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files
    assert len(prefetch_threads()) == 1
    loader.close()


def test_the_interpreter_ends_in_the_middle_of_an_epoch(tmp_path):
    """The thread is gone before the interpreter is: one that frees a tensor later aborts it."""
    make_tokens(tmp_path, [300] * 40)
    script = (
        "import atexit, sys, threading\n"
        # registered first, so called last
        "atexit.register(lambda: print([t.name for t in threading.enumerate()]))\n"
        "from rvqlm.data.index import TokenDataset\n"
        "from rvqlm.data.loader import TokenLoader\n"
        "from rvqlm.data.plan import PlanConfig\n"
        "loader = TokenLoader(TokenDataset.open(sys.argv[1], 'train'), PlanConfig(60.0), 0)\n"
        "batches = [next(loader) for _ in range(3)]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['MainThread']\n"


@pytest.fixture
def damaged(tmp_path):
    """A directory with codes that no codebook has: in row 3, negative in row 7 and in row 11."""
    codes = make_tokens(tmp_path, [20] * 16)
    shard = next((tmp_path / "codes").glob("*.rvq"))
    values = np.fromfile(shard, "<i2").reshape(16, 20, 3)
    values[3, 19, 2], values[7, 0, 0], values[11, 5, 1] = 64, -1, -32768
    values.tofile(shard)
    return TokenDataset.open(tmp_path, "train"), codes


@pytest.mark.parametrize("cuts", [1, 5])
def test_damaged_items_are_left_out_and_named(damaged, capsys, cuts):
    """The others come, in the same batches in every run, after a resume too; a batch of which
    nothing is left is replaced."""
    ds, codes = damaged
    config = PlanConfig(max_duration=8, max_cuts=cuts, shuffle_window=60)
    loader = TokenLoader(ds, config, seed=0)
    steps = 2 * loader.epoch_steps
    batches = take(loader, steps)
    for batch in batches:
        assert len(batch.codes) and batch.codes.min() >= 0 and batch.codes.max() < 64
        for row, item in zip(batch.index.tolist(), batch.codes):
            np.testing.assert_array_equal(item.numpy(), codes[row])
    seen = {row for batch in batches[: loader.epoch_steps] for row in batch.index.tolist()}
    assert seen == {*range(16)} - {3, 7, 11}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all("left out" in line for line in said)
    assert {f"'cut-{row:04d}' (row {row} of train)" for row in (3, 7, 11)} == {
        line.split("cut ", 1)[1].split(" has")[0] for line in said
    }
    first = TokenLoader(ds, config, seed=0)
    take(first, steps // 3)
    again = TokenLoader(ds, config, seed=0)
    again.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(batches[steps // 3 :], take(again, steps // 3)))
    valid = [row for batch in again.epoch_batches() for row in batch.index.tolist()]
    assert {*valid} == seen
    worst = again.worst_batch()  # of its full size: it shows what memory is needed
    assert len(worst.codes) == cuts and worst.codes.max() < 64 and worst.codes.min() >= PAD
    for each in (loader, first, again):
        each.close()


def test_a_damaged_set_ends_with_its_name(tmp_path, capsys):
    make_tokens(tmp_path, [20] * 64)
    shard = next((tmp_path / "codes").glob("*.rvq"))
    np.full(64 * 20 * 3, 99, "<i2").tofile(shard)
    loader = TokenLoader(TokenDataset.open(tmp_path, "train"), CONFIG, seed=0)
    with pytest.raises(UserError, match=f"{tmp_path}: all items"):
        next(loader)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 20 and "no more are named" in said[-1]


def test_a_shard_that_is_shortened_while_it_is_read_is_an_error(tmp_path):
    """And no SIGBUS, which ends a process without a word."""
    make_tokens(tmp_path, [20000] * 4)
    shard = next((tmp_path / "codes").glob("*.rvq"))
    ds = TokenDataset.open(tmp_path, "train")
    loader = TokenLoader(ds, PlanConfig(max_duration=400, max_cuts=1), seed=0, prefetch=1)
    next(loader)
    size = shard.stat().st_size
    os.truncate(shard, 4096)
    with pytest.raises(UserError, match=rf"{shard} is truncated: 4096 bytes, \d+ needed"):
        take(loader, 8)
    os.truncate(shard, size)
    loader.close()
