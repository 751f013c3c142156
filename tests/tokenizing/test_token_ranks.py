"""Several ranks of torchrun, or of srun, on one output folder."""

import os
import signal
import time

import pyloudnorm  # noqa: F401 - once, not in every process
import pytest
from lhotse import CutSet
from tokenize_fixtures import Peaks, config, contents, in_a_process, lines, spoil

from rvqlm.errors import UserError
from rvqlm.tokenizing import ranks as token_ranks
from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing.ranks import Ranks, lock_path

pytestmark = pytest.mark.usefixtures("peaks")


def rank_of(cfg, rank, world_size):
    return in_a_process(cfg, RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))


def task_of(cfg, rank, world_size):
    """As Slurm tells a task of its step."""
    number = {"PROCID": rank, "LOCALID": rank, "NODEID": 0, "JOB_ID": 7, "STEP_ID": 0}
    given = number | {"STEP_NUM_TASKS": world_size, "STEP_NODELIST": "node1"}
    return in_a_process(cfg, **{f"SLURM_{name}": str(value) for name, value in given.items()})


def run_ranks(cfg, world_size, start=rank_of):
    ranks = [start(cfg, r, world_size) for r in reversed(range(world_size))]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0


def be_rank(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world_size))


@pytest.mark.parametrize("start", [rank_of, task_of])
def test_ranks_share_the_shards(start, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "isatty", lambda number: False)
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    run_ranks(config(corpus, tmp_path / "out", jobs=0), 2, start)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_any_number_of_ranks_makes_the_same_tokens(corpus, tmp_path):
    spoil(corpus)
    made = []
    for world_size in (1, 2, 3):
        out = tmp_path / str(world_size)
        run_ranks(config(corpus, out, jobs=2 if world_size == 3 else 1, loudness=-20.0), world_size)
        shards = list((out / "codes").iterdir())
        assert len(shards) == {1: 1, 2: 2, 3: 6}[world_size]
        assert not (out / "parts").exists()
        cuts = CutSet.from_file(out / "cuts.jsonl.gz")
        made.append((
            [(cut.id, cut.custom, cut.duration, cut.load_features().tolist()) for cut in cuts],
            lines(out / "audio_cuts.jsonl.gz"),
            lines(out / "skipped.jsonl"),
        ))  # fmt: skip
    assert made[0] == made[1] == made[2] and len(made[0][0]) == 25 and len(made[0][2]) == 6


def test_a_killed_rank_is_noticed_and_its_work_done_next_time(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    monkeypatch.setattr(token_ranks, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(Peaks, "delay", 0.05)
    other = rank_of(config(corpus, out), 1, 2)
    be_rank(monkeypatch, 0, 2)

    def kill(self, *args):
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        wait(self, *args)

    wait = Ranks.wait
    monkeypatch.setattr(Ranks, "wait", kill)
    monkeypatch.setattr(Peaks, "delay", 0.0)
    with pytest.raises(
        UserError, match=r"rank 1 (stopped|has not started) and its share is missing"
    ):
        monkeypatch.setattr(token_ranks, "START_SECONDS", 0.3)
        tokenize.tokenize(config(corpus, out))
    monkeypatch.setattr(Ranks, "wait", wait)
    assert not (out / "tokens.json").exists()
    run_ranks(config(corpus, out), 2)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_first_rank_that_is_gone(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(token_ranks, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(token_ranks, "START_SECONDS", 0.4)
    be_rank(monkeypatch, 1, 2)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="rank 0 has not started and its plan is missing"):
        tokenize.tokenize(config(corpus, out))
    assert not out.exists()
    (out / "parts").mkdir(parents=True)
    lock_path(out / "parts", 0).touch()
    with pytest.raises(UserError, match=r"rank 0 stopped and its plan is missing; .* run the same"):
        tokenize.tokenize(config(corpus, out))


def test_locks_of_an_earlier_run_mean_nothing(corpus, tmp_path, monkeypatch):
    """A rank may come late although the lock of its predecessor has been free for long."""
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    for rank in (0, 1):
        lock_path(out / "parts", rank).touch()
    monkeypatch.setattr(token_ranks, "GONE_SECONDS", 0.1)
    first = rank_of(config(corpus, out), 0, 2)
    time.sleep(1.0)
    assert first.is_alive()
    second = rank_of(config(corpus, out), 1, 2)
    for process in (second, first):
        process.join(60)
        assert process.exitcode == 0
    be_rank(monkeypatch, 1, 2)  # one that comes even later finds all done
    assert tokenize.tokenize(config(corpus, out)) is None
    assert not (out / "parts").exists()


def test_one_process_a_rank(tmp_path, monkeypatch):
    ranks = Ranks(1, 2)
    lock = ranks.sign_in(tmp_path)
    monkeypatch.setattr(token_ranks, "LOCK_SECONDS", 0.1)
    with pytest.raises(UserError, match="another process is rank 1 of this folder"):
        ranks.sign_in(tmp_path)
    lock.close()
    ranks.sign_in(tmp_path).close()
    assert ranks.sign_in(tmp_path / "gone") is None


def test_cuda_is_each_ranks_own(monkeypatch):
    assert Ranks(3, 4, 1).device("cuda") == "cuda:1"
    assert Ranks(3, 4, 1).device("cuda:0") == "cuda:0"
    assert Ranks(3, 4, 1).device("cpu") == Ranks().device("cpu") == "cpu"
    assert Ranks().device("cuda") == "cuda" and Ranks().device("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "6")
    assert Ranks.from_environment() == Ranks(6, 8, 2)
