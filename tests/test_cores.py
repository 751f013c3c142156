"""Threads on cores that others use: the faster number is found, and found again when that changes,
at little cost."""

import pytest
import torch

from rvqlm import cores
from rvqlm.cores import FasterThreads, OtherCores, fastest


class Machine:
    """Steps on a simulated clock; ``paces``: seconds of a unit of work by number of threads, from a
    time on."""

    def __init__(self, *paces: tuple[float, dict[int, float]], noise: float = 0.0):
        self.paces, self.clock, self.noise = paces, 0.0, noise
        self.threads, self.used = 0, []
        self.generator = torch.Generator().manual_seed(0)

    def use(self, number: int) -> None:
        self.threads = number

    def train(self, threads: FasterThreads, until: float) -> float:
        """Work done until a time, as a share of what the best choice would have done."""
        done = best = 0.0
        while self.clock < until:
            pace = next(p for since, p in reversed(self.paces) if since <= self.clock)
            work = 1 + self.noise * float(torch.rand((), generator=self.generator))
            varied = 1 + self.noise * float(torch.rand((), generator=self.generator))
            seconds = pace[self.threads] * work * varied
            self.used.append(self.threads)
            self.clock += seconds
            done += work
            best += seconds / (min(pace.values()) * varied)
            threads.took(seconds, work)
        return done / best


IDLE, BUSY = {1: 1.0, 4: 0.3}, {1: 1.0, 4: 11.0}


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0.004, 0.2, 5.0])
def test_the_faster_number_is_found_again_whenever_that_changes(scale, noise):
    idle, busy = ({n: scale * p for n, p in paces.items()} for paces in (IDLE, BUSY))
    unit = max(scale, 0.03) * 1500  # short steps are timed many at once
    machine = Machine((0, idle), (unit, busy), (2 * unit, idle), noise=noise)
    threads = FasterThreads(4, machine.use)
    for end, usual in ((unit, 4), (2 * unit, 1), (3 * unit, 4)):
        machine.used.clear()
        assert machine.train(threads, end) > 0.8
        late = machine.used[len(machine.used) // 2 :]
        assert late.count(usual) > 0.8 * len(late)


def test_a_load_that_comes_and_goes_leaves_more_than_one_thread_does():
    paces = [(300.0 * n, BUSY if n % 2 else IDLE) for n in range(20)]
    machine = Machine(*paces)
    threads = FasterThreads(4, machine.use)
    machine.train(threads, 6000.0)
    assert len(machine.used) > 1.2 * 6000.0  # steps of one unit of work each


def test_one_core_has_no_choice():
    def never(number):
        raise AssertionError

    threads = FasterThreads(1, never)
    for _ in range(100):
        threads.took(1.0)
    assert fastest(never, most=1) == 1


@pytest.mark.parametrize("faster", [1, 2])
def test_the_better_of_a_few_steps_decides(monkeypatch, faster):
    clock, before = [0.0], torch.get_num_threads()
    monkeypatch.setattr(cores.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 1.0 if torch.get_num_threads() == faster else 2.0

    assert fastest(step, most=2) == faster
    assert torch.get_num_threads() == before


def test_pauses_are_no_steps(monkeypatch):
    clock, seen, told = [0.0], [], []
    monkeypatch.setattr(cores.time, "perf_counter", lambda: clock[0])
    threads = FasterThreads(2, lambda number: None)
    monkeypatch.setattr(threads, "took", lambda *step: told.append(step))
    update = threads.watching(seen.append)
    for pause in (0.1, 30.0, 0.2):
        clock[0] += pause
        update(2)
    assert seen == [2, 2, 2]
    assert [round(seconds, 3) for seconds, _ in told] == [0.1, 0.2]
    assert {steps for _, steps in told} == {2}


def test_cores_of_others(tmp_path, monkeypatch):
    """What the cores did less what this process did; of those that it may use."""
    stat, own, clock = tmp_path / "stat", [5.0], [100.0]
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    monkeypatch.setattr(cores.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cores.resource, "getrusage", lambda who: Used(own[0]))

    def write(first: int, second: int) -> None:
        lines = [f"cpu{n} {busy} 0 0 9999 7 0 0 0 0 0" for n, busy in ((0, first), (2, second))]
        stat.write_text("\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *lines, "cpu1 9 9 9 9 9 9 9 9 9 9"]))

    write(1000, 1000)
    others = OtherCores(stat)
    write(1800, 1600)  # 14 s in 10, of which 9 are our own
    own[0], clock[0] = 14.0, 110.0
    assert others.take() == pytest.approx(0.5)
    assert others.take() is None  # no time has passed
    stat.write_text("torn")
    clock[0] = 120.0
    assert others.take() is None


class Used:
    def __init__(self, seconds: float):
        self.ru_utime, self.ru_stime = seconds - 1, 1.0
