import json

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
    log.write("train", 3, 0, {"loss": 2.0, "nats": [1.0, 3.0], "best": True})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    value = events.Scalars("train/loss")[0]
    assert (value.step, value.value) == (3, 2.0)
    assert events.Scalars("train_nats/level_1")[0].value == 3.0


def test_other_ranks_write_nothing(tmp_path):
    log = MetricsLog(tmp_path, enabled=False)
    log.write("train", 1, 0, {"loss": 2.0})
    log.sync()
    log.close()
    assert not list(tmp_path.iterdir())
