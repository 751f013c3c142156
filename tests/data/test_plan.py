"""The epoch plan against a plain reference, and its promises on hostile lengths."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from rvqlm.data.plan import EpochPlan, PlanConfig, plan_epoch
from rvqlm.errors import UserError

RATE = Fraction(50)


def lengths(kind: str, n: int, top: int, rng: np.random.Generator) -> np.ndarray:
    """Length orders that break greedy batchers."""
    if kind == "one long":
        out = np.full(n, 3)
        out[rng.integers(n)] = top
    elif kind == "alternating":
        out = np.where(np.arange(n) % 2, top, 1)
    elif kind == "rising":
        out = np.linspace(1, top, n)
    elif kind == "all top":
        out = np.full(n, top)
    elif kind == "log-normal":
        out = np.clip(np.exp(rng.normal(4, 1.2, n)), 1, top)
    else:
        out = rng.integers(1, top + 1, n)
    return out.astype(np.uint32)


KINDS = ["one long", "alternating", "rising", "all top", "log-normal", "uniform"]


def batches(plan: EpochPlan) -> list[tuple]:
    return [plan.batch(r, s) for s in range(plan.num_steps) for r in range(plan.world_size)]


def covered(plan: EpochPlan) -> Counter:
    """Every frame that the plan touches: (row, frame) -> times."""
    found = Counter()
    for rows, starts, sizes in batches(plan):
        for row, start, size in zip(rows.tolist(), starts.tolist(), sizes.tolist()):
            found.update((row, t) for t in range(start, start + size))
    return found


def items(plan: EpochPlan) -> list[tuple[int, int, int]]:
    return sorted(tuple(map(int, i)) for b in batches(plan) for i in zip(*b))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_once_equal_steps_hard_budget(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for trial, world in enumerate([1, 2, 3, 8] * 3):
        n = int(rng.integers(40, 3000))
        frames = lengths(kind, n, 500, rng)
        config = PlanConfig(
            max_duration=float(rng.choice([10.0, 15.0, 60.0])),
            shuffle_window=int(rng.choice([50, 1000, 20000])),
            max_cuts=int(rng.choice([0, 0, 7])),
            length_multiple=int(rng.choice([1, 1, 20])),
        )
        plan = plan_epoch(frames, config, RATE, seed=trial, epoch=trial, world_size=world)
        budget = int(config.max_duration * 50)
        seen = np.zeros(n, int)
        for rows, starts, sizes in batches(plan):
            padded = -(-int(sizes.max()) // config.length_multiple) * config.length_multiple
            assert len(rows) > 0 and len(rows) * padded <= budget
            assert len(rows) <= (config.max_cuts or n) and sizes[0] == sizes.max()
            seen[rows] += 1
            if kind != "all top":  # there, a cut may have to be halved: see below
                assert (starts == 0).all() and (sizes == frames[rows]).all()
        assert sum(len(b[0]) for b in batches(plan)) == int(plan.count.sum())
        if kind != "all top":
            assert (seen == 1).all() and int(plan.count.sum()) == n
        else:
            assert (seen >= 1).all() and seen.sum() < n + world
        assert len(plan.first) == plan.num_steps * world


@pytest.mark.parametrize("world", [2, 3, 8])
def test_single_cut_batches_are_halved_in_time_rather_than_dropped(world):
    frames = np.array([400, 390, 400, 380, 400], np.uint32)
    plan = plan_epoch(frames, PlanConfig(max_duration=8), RATE, 0, 0, world)
    assert len(plan.first) % world == 0
    assert covered(plan) == Counter((r, t) for r, n in enumerate(frames) for t in range(n))
    with pytest.raises(UserError, match="fewer frames than ranks"):
        plan_epoch(np.array([1, 1], np.uint32), PlanConfig(), RATE, 0, 0, 8)


def naive_plan(frames, budget, window, order, max_cuts=0):
    """The batches of one rank, in plain Python."""
    out = []
    bounds = [len(order) * w // window for w in range(window + 1)]
    for begin, end in pairwise(bounds):
        part = sorted(order[begin:end], key=lambda row: -frames[row])
        while part:
            fit = budget // frames[part[0]]
            fit = min(fit, max_cuts) if max_cuts else fit
            out.append(part[:fit])
            part = part[fit:]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_naive_reference(kind):
    rng = np.random.default_rng(5)
    frames = lengths(kind, 700, 300, rng)
    config = PlanConfig(max_duration=20, shuffle_window=200, max_cuts=11)
    plan = plan_epoch(frames, config, RATE, 3, 9, 1)
    order = np.arange(700, dtype=np.uint32)
    key = np.array([3, 9 << 8 | 1], np.uint64)
    np.random.Generator(np.random.Philox(key=key)).shuffle(order)
    expected = naive_plan(frames.tolist(), 1000, 4, order.tolist(), 11)
    got = [rows.tolist() for rows, _, _ in batches(plan)]
    assert sorted(got) == sorted(expected)
    assert got != expected  # the steps are shuffled
    grid = sum(len(b) * max(frames[b]) for b in expected)
    assert plan.padding == pytest.approx(1 - frames.sum() / grid, abs=1e-12)


def test_same_arguments_same_plan_and_epochs_differ():
    frames = np.random.default_rng(0).integers(1, 500, 999)

    def make(seed, epoch):
        plan = plan_epoch(frames, PlanConfig(), RATE, seed, epoch, 2)
        return [rows.tolist() for rows, _, _ in batches(plan)]

    assert make(1, 2) == make(1, 2)
    assert make(1, 2) != make(1, 3) and make(1, 2) != make(2, 2) and make(2, 1) != make(1, 2)


def test_more_ranks_get_the_same_batches():
    """World size changes who gets a batch, not what is in it: all but a few halved ones agree."""
    frames = np.random.default_rng(0).integers(1, 500, 5000)
    one, eight = (
        {tuple(r.tolist()) for r, _, _ in batches(plan_epoch(frames, PlanConfig(), RATE, 0, 0, w))}
        for w in (1, 8)
    )
    assert len(one - eight) <= 7 and len(eight - one) <= 14


def test_ranks_get_like_cost_at_each_step():
    frames = np.random.default_rng(0).integers(50, 1000, 20000)
    plan = plan_epoch(frames, PlanConfig(), RATE, 0, 0, 8)
    count, longest = plan.shapes()
    cost = (count.astype(int) * longest).reshape(-1, 8)
    slow = (cost.max(1) - cost.mean(1)) / cost.max(1)
    assert slow.mean() < 0.01
    firsts = [int(np.argmax([plan.batch(r, s).lengths[0] for r in range(8)])) for s in range(64)]
    assert len(set(firsts)) > 4  # not always the same rank that has the longest


def test_padding_is_small_on_realistic_lengths():
    rng = np.random.default_rng(0)
    rate = Fraction(44100, 512)
    for seconds in (rng.uniform(1, 20, 100_000), np.clip(rng.lognormal(1.8, 0.6, 100_000), 1, 30)):
        frames = np.ceil(seconds * float(rate)).astype(np.uint32)
        assert plan_epoch(frames, PlanConfig(), rate, 0, 0, 1).padding <= 0.002


@pytest.mark.parametrize("rate", [Fraction(44100, 512), Fraction(25, 2)])
def test_windows_tile_without_gap_or_overlap(rate):
    rng = np.random.default_rng(rate.numerator)
    frames = rng.integers(1, 400, 60).astype(np.uint32)
    for window, hop in ((64, 0), (64, 64), (1, 0), (399, 0), (500, 0)):
        config = PlanConfig(window_frames=window, hop_frames=hop, max_duration=60)
        plan = plan_epoch(frames, config, rate, 0, 0, 3)
        assert covered(plan) == Counter((r, t) for r, n in enumerate(frames) for t in range(n))
        # the last partial window is kept, once
        assert int(plan.count.sum()) == sum(-(-int(n) // window) for n in frames)
        assert all(size <= window for _, _, size in items(plan))


def test_overlapping_windows_reach_every_frame_at_their_hop():
    frames = np.array([1, 10, 11, 14, 15, 100], np.uint32)
    plan = plan_epoch(frames, PlanConfig(window_frames=10, hop_frames=4), RATE, 0, 0, 1)
    expected = []
    for row, n in enumerate(frames.tolist()):
        start = 0
        while True:
            expected.append((row, start, min(10, n - start)))
            if start + 10 >= n:
                break
            start += 4
    assert items(plan) == sorted(expected)


def test_crops_are_random_per_epoch_and_the_same_for_any_world_size():
    frames = np.array([20, 50, 51, 300] * 50, np.uint32)
    config = PlanConfig(crop_frames=50)
    first = items(plan_epoch(frames, config, RATE, 0, 0, 1))
    assert items(plan_epoch(frames, config, RATE, 0, 0, 2)) == first
    assert items(plan_epoch(frames, config, RATE, 0, 1, 1)) != first
    for row, start, size in first:
        assert size == min(frames[row], 50) and start + size <= frames[row]
    starts = [s for _, s, _ in first]
    assert max(starts) > 200 and {s for r, s, _ in first if frames[r] == 51} == {0, 1}


def test_filters_are_exact_at_their_bounds():
    frames = np.arange(1, 400, dtype=np.uint32)
    config = PlanConfig(filter_min_duration=1.0, filter_max_duration=2.0)  # 86.13 and 172.27 frames
    plan = plan_epoch(frames, config, Fraction(44100, 512), 0, 0, 1)
    kept = [int(frames[r]) for r, _, _ in items(plan)]
    assert (min(kept), max(kept)) == (87, 172)
    # 0.29 * 100 is below 29 in binary floats, 0.07 * 100 above 7
    config = PlanConfig(filter_min_duration=0.07, filter_max_duration=0.29, max_duration=0.29)
    plan = plan_epoch(frames, config, Fraction(100), 0, 0, 1)
    assert [int(frames[r]) for r, _, _ in items(plan)] == list(range(7, 30))
    assert config.budget(Fraction(100)) == 29


def test_quadratic_cost_makes_long_items_dearer():
    frames = np.random.default_rng(0).integers(1, 500, 3000).astype(np.uint32)
    q = 200
    plan = plan_epoch(frames, PlanConfig(quadratic_frames=q), RATE, 0, 0, 1)
    plain = plan_epoch(frames, PlanConfig(), RATE, 0, 0, 1)
    costs = [len(r) * (int(n[0]) + Fraction(int(n[0]) ** 2, q)) for r, _, n in batches(plan)]
    assert (
        max(costs)
        <= 7500
        < max(len(r) * (int(n[0]) + Fraction(int(n[0]) ** 2, q)) for r, _, n in batches(plain))
    )


def test_length_multiple_and_max_cuts_shape_the_batches():
    frames = np.random.default_rng(0).integers(1, 500, 1000).astype(np.uint32)
    plan = plan_epoch(frames, PlanConfig(length_multiple=64, max_cuts=5), RATE, 0, 0, 1)
    count, longest = plan.shapes()
    assert set(longest.tolist()) <= set(range(64, 513, 64)) and count.max() == 5


def test_shuffle_window_trades_padding_for_randomness():
    frames = np.random.default_rng(0).integers(1, 500, 20000).astype(np.uint32)
    small, large = (
        plan_epoch(frames, PlanConfig(shuffle_window=w), RATE, 0, 0, 1).padding
        for w in (200, 20000)
    )
    assert large < small / 5


def test_rest_continues_in_order_on_other_world_sizes():
    frames = np.random.default_rng(0).integers(1, 500, 4000).astype(np.uint32)
    plan = plan_epoch(frames, PlanConfig(), RATE, 0, 0, 3)
    for step in (0, 1, 17, plan.num_steps - 1, plan.num_steps):
        for world in (1, 2, 3, 8):
            rest = plan.rest(step, world)
            done = [i for s in range(step) for r in range(3) for i in plan.batch(r, s).rows]
            left = [i for b in batches(rest) for i in b[0]]
            assert sorted(done + left) == list(range(4000))
            # the same global order: first batches are those of the next steps, whole or halved
            if rest.num_steps:
                upcoming = set(plan.items.rows[plan.first[step * 3] :][: plan.count[step * 3]])
                assert set(rest.items.rows[rest.first[0] :][: rest.count[0]]) <= upcoming


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(max_duration=0), "--max-duration 0 is not positive"),
        (dict(max_duration=float("nan")), "--max-duration"),
        (dict(crop_frames=5, window_frames=5), "exclude each other"),
        (dict(hop_frames=5), "--hop-frames needs --window-frames"),
        (dict(hop_frames=6, window_frames=5), "would skip audio"),
        (dict(max_cuts=-1), "--max-cuts -1 is negative"),
        (dict(filter_min_duration=3, filter_max_duration=2), "is above --filter-max-duration 2"),
        (dict(shuffle_window=0), "--shuffle-window 0"),
        (dict(length_multiple=0), "--length-multiple 0"),
        (dict(shuffle_window=0, max_duration=-1), "--max-duration.*; --shuffle-window"),
        (dict(filter_min_duration=100), "none of 3 cuts is between"),
        (dict(max_duration=4), r"cut 'b' has 300 frames \(6.00 s\).*--max-duration 4 \(200 frames\)"
         ".*--window-frames.*--filter-max-duration"),
    ],
)  # fmt: skip
def test_contradictions_are_one_clear_line(flags, message):
    frames = np.array([100, 300, 200], np.uint32)
    with pytest.raises(UserError, match=message):
        plan_epoch(
            frames, PlanConfig(**flags), RATE, 0, 0, 1, describe=lambda row: repr("abc"[row])
        )
