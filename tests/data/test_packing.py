"""The plan of rows that hold several cuts: every item once, rows full, ranks alike, resumed
anywhere."""

from fractions import Fraction

import numpy as np
import pytest
from condition_fixtures import make_steps, make_times
from token_fixtures import make_tokens

from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.plan import plan_epoch, rows_of
from rvqlm.data.plan_config import PlanConfig
from rvqlm.errors import UserError

RATE = Fraction(50)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("window", [60, 20000])
def test_every_cut_once_in_rows_that_are_nearly_full(world_size, window):
    frames = np.random.default_rng(0).integers(5, 120, 500)
    config = PlanConfig(max_duration=16.0, packing=200, shuffle_window=window)
    plan = plan_epoch(frames, config, RATE, seed=1, epoch=0, world_size=world_size)
    seen = []
    for step in range(plan.num_steps):
        for rank in range(world_size):
            batch = plan.batch(rank, step)
            seen += batch.rows.tolist()
            rows = rows_of(batch.lengths, 200)
            assert rows[-1] < 4  # 16 s are 800 frames
            assert np.bincount(rows, weights=batch.lengths).max() <= 200
    assert sorted(seen) == list(range(500))
    assert plan.padding < (0.03 if window > 60 else 0.15)
    assert {t for t in plan.shapes()[1].tolist()} == {200}
    again = plan_epoch(frames, config, RATE, seed=1, epoch=1, world_size=world_size)
    assert again.batch(0, 0).rows.tolist() != plan.batch(0, 0).rows.tolist()


def test_what_has_no_room_is_refused():
    config = PlanConfig(max_duration=16.0, packing=100)
    with pytest.raises(UserError, match="more than a row of --packing 100"):
        plan_epoch(np.array([50, 101]), config, RATE, 0, 0, 1)
    config = PlanConfig(max_duration=1.0, packing=100)
    with pytest.raises(UserError, match="more than --max-duration"):
        plan_epoch(np.array([50, 60]), config, RATE, 0, 0, 1)


def test_the_worst_batch_has_the_conditions_of_all_cuts_of_a_row(tmp_path):
    make_tokens(tmp_path, [30, 40, 20, 35, 10, 25])
    texts = make_steps(tmp_path, "text")
    times = make_times(tmp_path)
    data = TokenDataset.open(tmp_path, "train")
    config = PlanConfig(max_duration=200 / float(data.info.frame_rate), packing=60)
    given = ConditionSet.open(data, ["text"], aligned=True)
    loader = TokenLoader(data, config, seed=0, conditions=given)
    (batch,) = loader.epoch_batches()
    text = loader.worst_batch().conditions["text"]
    assert batch.rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    for row, (one, two) in enumerate(batch.index.view(3, 2).tolist()):
        both = np.concatenate([texts[one], texts[two]])
        assert text.lengths[row] == len(both)
        assert text.values[row, : len(both)].tolist() == both.tolist()
        assert text.times[row, : len(both)].isnan().any().item() == any(
            times[n] is None for n in (one, two)
        )
    loader.close()


def test_the_loader_says_which_items_share_a_row_and_resumes(tmp_path):
    make_tokens(tmp_path, [30, 40, 20, 35, 10, 25, 12, 44, 31])
    data = TokenDataset.open(tmp_path, "train")
    seconds = float(100 / data.info.frame_rate)
    config = PlanConfig(max_duration=seconds + 0.01, packing=50)
    first, second = (TokenLoader(data, config, seed=0) for _ in range(2))
    try:
        batches = [next(first) for _ in range(8)]
        for batch in batches:
            assert batch.row_frames == 50
            assert batch.rows[:, 1].tolist() == batch.lengths.tolist()
            assert batch.cells == 50 * (int(batch.rows[-1, 0]) + 1)
        for _ in range(3):
            next(second)
        state = second.state_dict()
        assert state["plan"]["packing"] == 50
        third = TokenLoader(data, config, seed=0)
        third.load_state_dict(state)
        for batch in batches[3:]:
            again = next(third)
            assert again.rows.tolist() == batch.rows.tolist()
            assert again.codes.equal(batch.codes)
        third.close()
        worst = first.worst_batch()
        assert worst.rows is None
        assert worst.codes.shape[:2] == (2, 50)
        with pytest.raises(UserError, match="--packing was 50, is 0"):
            TokenLoader(data, PlanConfig(max_duration=seconds + 0.01), 0).load_state_dict(state)
    finally:
        first.close()
        second.close()
