import pytest
from toy import toy_flags

from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError
from rvqlm.training.config import check


def test_all_problems_in_one_message(tmp_path):
    flags = toy_flags(
        tmp_path,
        warmup_ratio=0.1,
        accum=0,
        ema_decay=1.0,
        betas=(0.9, 1.5),
        valid_every_steps=5,
        valid_every_minutes=1.0,
        data=PlanConfig(filter_min_duration=5, filter_max_duration=3),
    )
    with pytest.raises(UserError) as error:
        check(flags)
    for part in (
        *("no budget", "--warmup-steps and --warmup-ratio", "--accum 0", "--ema-decay 1.0"),
        *("--betas 0.9 1.5", "--valid-every-steps and --valid-every-minutes"),
        "--filter-min-duration",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_steps": 3}, "--warmup-steps 3 is not below --max-steps 3"),
        ({"schedule": "constant", "eta_min_ratio": 0.1}, "--eta-min-ratio"),
        ({"base_lr": float("nan")}, "--base-lr nan"),
        ({"max_minutes": -1.0}, "--max-minutes -1.0"),
        ({"weight_decay": float("inf")}, "--weight-decay inf"),
    ],
)
def test_contradictions(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        check(toy_flags(tmp_path, **values))


def test_good_flags_pass(tmp_path):
    check(toy_flags(tmp_path, max_minutes=7.0))
