"""Statistics of a token directory: what is a problem, and what only a remark."""

from token_fixtures import INFO, make_tokens

from rvqlm.bin.main import main
from rvqlm.data.plan import PlanConfig
from rvqlm.data.stats import inspect

RATE = float(INFO.frame_rate)


def test_long_recordings_are_a_problem_only_where_a_budget_was_asked_for(tmp_path, capsys):
    make_tokens(tmp_path, [round(200 * RATE), 30])
    assert main(["validate", "--manifest-dir", str(tmp_path)]) == 0
    assert "recordings of up to 200.0" in capsys.readouterr().out
    report = inspect(tmp_path, PlanConfig())
    assert report["splits"]["train"]["plan"] is None and not report["problems"]
    assert main(["validate", "--manifest-dir", str(tmp_path), "--max-duration", "100"]) == 2
    assert "more than --max-duration 100" in capsys.readouterr().err
    cut = inspect(tmp_path, PlanConfig(max_duration=100, window_frames=round(50 * RATE)))
    assert cut["splits"]["train"]["plan"]["largest_batch_seconds"] <= 100
