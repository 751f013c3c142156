import json
import os

import pytest
import torch

from rvqlm.training import logger
from rvqlm.training.logger import MetricsLog


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_resuming_takes_back_later_and_torn_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {n}}}\n' for n in (2, 4, 4, 6)) + '{"step": 4, "lo')
    MetricsLog(tmp_path, step=4).close()
    assert steps(path) == [2, 4, 4]


def test_a_new_run_begins_a_new_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    log = MetricsLog(tmp_path, step=0)
    log.write("train", 1, 0, {"loss": 2.0, "nats": [1.0, 3.0]})
    log.close()
    assert steps(tmp_path / "metrics.jsonl") == [1]


def test_log_deleted_while_running(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("train", 1, 0, {"loss": 2.0})
    (tmp_path / "metrics.jsonl").unlink()
    log.sync()
    log.write("train", 2, 0, {"loss": 1.0})
    log.close()
    assert steps(tmp_path / "metrics.jsonl") == [2]


def test_tensorboard_has_the_same_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path)
    log.write("train", 3, 0, {"loss": 2.0, "nats": [1.0, None, 3.0], "mfu": None, "rollbacks": 1})
    log.write("train", 6, 0, {"loss": 1.25, "nats": [0.5, 2.5, None], "mfu": 0.5})
    log.write("valid", 6, 1, {"loss": 1.5, "best": True})
    log.close()
    expected = set()
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        kind, step, _ = (line.pop(k) for k in ("kind", "step", "epoch"))
        for name, value in line.items():
            if isinstance(value, list):
                levels = {f"{kind}_{name}/level_{n}": v for n, v in enumerate(value)}
            else:
                levels = {f"{kind}/{name}": value}
            expected |= {(k, step, float(v)) for k, v in levels.items() if v is not None}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {
        (tag, event.step, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    assert found == expected and len(found) == 10


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_costs_a_line_and_later_lines_are_whole(tmp_path, capfd, monkeypatch):
    log = MetricsLog(tmp_path)
    opened, open_board = [], MetricsLog._open_board
    monkeypatch.setattr(
        MetricsLog, "_open_board", lambda self, step: (opened.append(step), open_board(self, step))
    )
    now = [1000.0]
    monkeypatch.setattr(logger.time, "monotonic", lambda: now[0])
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    log.board.close()  # its thread would begin its file anew in the next
    (tmp_path / "tensorboard").rename(tmp_path / "elsewhere")
    (tmp_path / "tensorboard").write_text("in the way")
    for step in range(1, 50):
        log.write("train", step, 0, {"loss": 2.0})
        log.audio("a", step, torch.zeros(100), 8000)
        log.histogram("h", step, torch.arange(3), 3)
        log.sync()
    assert opened == [0]  # one try, not one a call
    err = capfd.readouterr().err
    assert err.count("cannot be written") == 1 and str(tmp_path) in err
    path.unlink()
    path.write_text('{"step": 49, "lo')  # what fitted
    (tmp_path / "tensorboard").unlink()
    now[0] += 61
    log.write("train", 50, 0, {"loss": 2.0})
    log.write("train", 51, 0, {"loss": 2.0})
    log.close()
    whole = path.read_text().splitlines()[1:]
    assert [json.loads(line)["step"] for line in whole] == [50, 51]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1 and opened == [0, 49]


def test_other_ranks_write_nothing(tmp_path):
    log = MetricsLog(tmp_path, enabled=False)
    log.write("train", 1, 0, {"loss": 2.0})
    log.sync()
    log.close()
    assert not list(tmp_path.iterdir())
