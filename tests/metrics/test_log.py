"""Reading logs of trainings that were killed or resumed."""

import json

import pytest

from rvqlm.errors import UserError
from rvqlm.metrics.log import by_kind, read_log, scan_log


def line(step, **values):
    return json.dumps({"kind": "train", "step": step, **values}) + "\n"


def test_a_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [(1, 5), (2, 4), (3, 9), (2, 4.5)]
    path.write_text("".join(line(s, loss=x) for s, x in steps) + '{"kind": "tra')  # killed
    assert [r["step"] for r in read_log(path)] == [1, 2, 3, 2]
    train = by_kind(read_log(path))["train"]
    assert [(r["step"], r["loss"]) for r in train] == [(1, 5), (2, 4.5), (3, 9)]


@pytest.mark.parametrize("broken", ['{"kind": "tra', "[]", '{"kind": "train"}', '{"step": 1}', ""])
def test_a_damaged_line_is_named_unless_it_is_the_last(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + broken + "\n" + line(2))
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is not a record"):
        read_log(path)
    assert [(n, r and r["step"]) for n, r in scan_log(path)] == [(1, 1), (2, None), (3, 2)]
    path.write_text(line(1) + broken)
    assert [r["step"] for r in read_log(path)] == [1]
