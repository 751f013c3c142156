import time

import numpy as np

from rvqlm.data.token_progress import ProgressLine, clock
from rvqlm.data.token_shard import Progress


def test_progress_line(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line = ProgressLine(np.array([1.0, 1.0, 2.0, 4.0]), [(0, 2), (2, 4)])
    with line:
        now[0] += 20
        line.update(0, Progress(resumed=1, items=1, skipped=1, seconds=50, wall_seconds=10))
        now[0] += 20
        line.update(1, Progress(items=1, seconds=150, encode_seconds=5, wall_seconds=10))
    first, second = capsys.readouterr().err.splitlines()
    # cost 1 of 8 is old, 1 is new in 20 s: 6 are left
    assert "25%" in first and "2/4 items" in first and "2x real time" in first
    assert "0:20 gone, 2:00 left" in first and "1 skipped" in first
    assert "50%" in second and "5x real time" in second and "0:40 gone, 0:53 left" in second
    assert line.seconds == 200 and line.encode_share == 0.25 and line.elapsed == 40
    assert clock(3723) == "1:02:03"
