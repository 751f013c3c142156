import json
import os
import signal
import subprocess
import sys

import pytest

from rvqlm.training import watchdog
from rvqlm.training.watchdog import StopSignals, Watchdog

SCRIPT = """
import ctypes, pathlib, sys, threading, time
from rvqlm.training import watchdog

def waits_for_the_others():
    threading.Event().wait()

def reads_a_disk_that_is_gone():
    threading.Event().wait()

def holds_the_lock_of_python():
    ctypes.PyDLL(None).sleep(1000)

exp_dir, rank, world_size, hang, before, together = sys.argv[1:]
watchdog.BACKSTOP_SECONDS = 0.3
minutes = 0.015 if int(together) > 1 else 0.005
dog = watchdog.Watchdog(exp_dir, int(rank), int(world_size), minutes)
dog.start()
ready = pathlib.Path(exp_dir, "ready")
ready.mkdir(exist_ok=True)
(ready / rank).touch()
while len(list(ready.iterdir())) < int(together):
    dog.beat(0, "start")
    time.sleep(0.01)
for step in range(int(before)):
    dog.beat(step, "forward/backward")
    time.sleep(0.05)
dog.beat(int(before), hang)
globals()[hang]()
"""


def start(tmp_path, hang, rank=0, world_size=1, before=2, together=1):
    args = [str(a) for a in (tmp_path, rank, world_size, hang, before, together)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *args], stderr=subprocess.PIPE, text=True
    )


def test_a_hang_ends_the_process_after_it_has_said_where(tmp_path):
    process = start(tmp_path, "waits_for_the_others")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "no progress of rank 0" in said and "step 2, waits_for_the_others since" in said
    stacks = (tmp_path / "hang-rank-0.txt").read_text()
    assert "rank 0 of 1, step 2: waits_for_the_others for" in stacks
    assert "in waits_for_the_others" in stacks and "is MainThread" in stacks
    assert "in _give_up" in stacks  # all threads


def test_a_hang_that_lets_no_thread_run_ends_too(tmp_path):
    process = start(tmp_path, "holds_the_lock_of_python")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "in holds_the_lock_of_python" in said


def test_the_first_rank_to_give_up_speaks_for_all_and_all_write_stacks(tmp_path):
    lost = start(tmp_path, "reads_a_disk_that_is_gone", 1, world_size=3, before=2, together=2)
    waiting = start(tmp_path, "waits_for_the_others", 0, world_size=3, before=5, together=2)
    said = [p.communicate(timeout=60)[1] for p in (waiting, lost)]
    assert waiting.returncode == lost.returncode == 75
    reports = [s for s in said if "no progress of rank" in s]
    assert len(reports) == 1
    assert "rank 0: step 5, waits_for_the_others" in reports[0]
    assert "rank 1: step 2, reads_a_disk_that_is_gone" in reports[0]
    assert "rank 2: unknown" in reports[0]
    assert "in waits_for_the_others" in (tmp_path / "hang-rank-0.txt").read_text()
    assert "in reads_a_disk_that_is_gone" in (tmp_path / "hang-rank-1.txt").read_text()


class Ended(BaseException):
    pass


@pytest.fixture
def ended(monkeypatch):
    def end(status):
        raise Ended(status)

    monkeypatch.setattr(watchdog.os, "_exit", end)
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
    yield
    watchdog.faulthandler.cancel_dump_traceback_later()


def test_the_limit_counts_from_the_last_beat(tmp_path, ended):
    now = [1000.0]
    dog = Watchdog(tmp_path, 0, 1, minutes=2, clock=lambda: now[0])
    for step in range(10):
        now[0] += 119
        dog._look()
        dog.beat(step, "data")
    assert not list(tmp_path.iterdir())
    now[0] += 121
    with pytest.raises(Ended, match="75"):
        dog._look()
    assert "step 9: data for 121 s" in (tmp_path / "hang-rank-0.txt").read_text()


def test_never(tmp_path, ended):
    now = [0.0]
    dog = Watchdog(tmp_path, 0, 1, minutes=0, clock=lambda: now[0])
    dog.start()
    now[0] = 1e9
    dog._look()
    dog.stop()
    assert not list(tmp_path.iterdir())


def test_each_rank_says_where_it_is_and_the_report_names_the_longest(tmp_path, ended, capfd):
    now = [0.0]
    dogs = [Watchdog(tmp_path, rank, 2, minutes=5, clock=lambda: now[0]) for rank in (0, 1)]
    for dog in dogs:
        dog.start()
        dog._stop.set()  # looks are taken by hand
        dog._thread.join()
    dogs[1].beat(6, "data")
    dogs[0].beat(6, "forward/backward")
    dogs[0].beat(6, "reduce")
    for dog in dogs:
        dog._look()
    places = [json.loads((tmp_path / f"ranks/rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert [(p["rank"], p["step"], p["where"]) for p in places] == [
        (0, 6, "reduce"),
        (1, 6, "data"),
    ]
    assert places[1]["since"] <= places[0]["since"]
    now[0] = 301.0
    dogs[0]._claim()  # the other rank was first
    with pytest.raises(Ended):
        dogs[1]._look()
    assert capfd.readouterr().err == ""
    dogs[0].start()  # a new run: the marker of the old one is gone
    dogs[0].stop()
    now[0] = 602.0
    with pytest.raises(Ended):
        dogs[0]._look()
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if line.endswith(", the longest")] == [
        line for line in said if line.startswith("rank 1: step 6, data")
    ]
    assert "for 5 min (--hang-minutes 5)" in said[1]
    for dog in dogs:
        dog.stop()


def test_a_disk_that_refuses_hinders_neither_training_nor_the_end(tmp_path, ended, capfd):
    now = [0.0]
    dog = Watchdog(tmp_path / "gone", 1, 2, minutes=1, clock=lambda: now[0])
    dog._look()  # no folder to write to
    (tmp_path / "gone").write_text("not a folder")
    now[0] = 61.0
    with pytest.raises(Ended, match="75"):
        dog._look()
    said = capfd.readouterr().err
    assert "no progress of rank 1" in said and "could not be written" in said


def test_after_stop_nothing_ends(tmp_path, ended):
    dog = Watchdog(tmp_path, 0, 1, minutes=1)
    dog.start()
    dog.poll = 0.01
    dog.stop()
    assert dog._thread is None and not list(tmp_path.iterdir())


def test_a_second_signal_stops_at_once_unless_it_is_an_echo(capfd):
    before, stop = signal.getsignal(signal.SIGINT), StopSignals()
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # from the terminal and from torchrun
        assert stop.number == signal.SIGINT
        stop._came -= 3.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nSIGINT: saving at the end of this step\n"
    assert signal.getsignal(signal.SIGINT) == before
