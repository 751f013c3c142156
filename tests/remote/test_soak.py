"""tools/bench/soak.py in short: a training that is preempted and moves ends with equal weights."""

import os
import socket
from functools import partial

import soak
from buckets import as_another_machine
from forked import fork, wait

from rvqlm.bin import trainer


class Ranks:
    """What `soak.begin` starts, in forked processes, which have imported all already."""

    def __init__(self, machine, ranks: int, flags: list[str], log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ |= {"RVQLM_CACHE": str(machine)}
        self.pids = [fork(partial(self._run, n, ranks, port, flags)) for n in range(ranks)]
        self.returncode = None

    def _run(self, rank: int, ranks: int, port: int, flags: list[str]) -> int:
        if ranks > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
            numbers["LOCAL_WORLD_SIZE"] = ranks
            os.environ |= {name: str(number) for name, number in numbers.items()}
        return trainer.main(flags)

    def poll(self) -> int | None:
        """The status, where all have ended; a rank that has is left for `wait`."""
        ended = [os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in self.pids]
        return self.wait() if all(ended) else None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = max(wait(pid) for pid in self.pids)
        return self.returncode

    def send_signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)


def test_preemptions_and_fewer_ranks_change_no_weight(faults, tmp_path, monkeypatch, capsys):
    import torch._dynamo  # optimizers do, which takes seconds: once, here  # noqa: F401

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(soak, "begin", Ranks)
    args = soak.Args(preemptions=2, ranks=(2, 1, 1), steps=8)
    assert soak.soak(args, tmp_path, faults.endpoint) <= soak.CLOSE
    as_another_machine(monkeypatch, tmp_path / "no-cache")
    lives = [row.split("|")[3:5] for row in capsys.readouterr().out.splitlines()[2:]]
    assert [int(ranks) for ranks, _ in lives] == [2, 1, 1]
    edges = [tuple(map(int, steps.split(" to "))) for _, steps in lives]
    assert [a for a, _ in edges] == [0, edges[0][1], edges[1][1]]  # each goes on where one ended
    assert edges[-1][1] == 24
