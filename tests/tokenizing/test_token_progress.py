"""The progress line and the summary at the end."""

import re
import time

import numpy as np
import pytest
from tokenize_fixtures import config, spoil

from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing.reporting import ProgressLine, size
from rvqlm.tokenizing.shard import Progress


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


def table(text):
    """Numbers of the lines per file by id."""
    found = re.findall(
        r"^ *([\d.]+) +([\d.]+) +(\d+) +(\d+) +([\d.]+) +([\d.-]+)  (.*)$", text, re.M
    )
    return {id: [float(n) for n in (*numbers[:5],)] for *numbers, id in found}


def test_a_line_for_every_file_and_a_total(peaks, corpus, tmp_path, capsys):
    spoil(corpus)
    summary = tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))
    shown = capsys.readouterr().out
    assert "codec peaks [llllllllllllllll]: 8000 Hz, 2 x 256, 200.00 frames/s, 3.20 kbps" in shown
    rows = table(shown)
    assert len(rows) == summary.num_cuts == 25
    frames, seconds, stored, pcm, ratio = np.array(list(rows.values())).T
    assert frames.sum() == summary.num_frames and stored.sum() == summary.token_bytes
    assert np.allclose(stored, frames * 2 * 2) and pcm.sum() == summary.pcm_bytes
    assert np.allclose(ratio, pcm / stored, atol=0.06)
    assert seconds.sum() == pytest.approx(summary.hours * 3600, abs=0.2)
    mono = [id for id in rows if id != "speaker2/e_stereo"]
    assert all(abs(rows[i][3] - rows[i][1] * 16000) < 160 for i in mono)  # 16 bit at 8 kHz
    assert rows["speaker2/e_stereo"][3] == 400
    assert re.search(r"[\d.]+x real time in 0:0\d, [\d.]+% of the time outside the codec", shown)
    kbps = summary.token_bytes * 8 / 1000 / (summary.hours * 3600)
    assert f"{kbps:.2f} kbps as stored" in shown and "- " not in shown


def test_who_gets_a_line(peaks, corpus, tmp_path, capsys, monkeypatch):
    for setting, few, shown in (("auto", 24, 24), ("auto", 23, 0), ("yes", 5, 24), ("no", 99, 0)):
        monkeypatch.setattr("rvqlm.tokenizing.reporting.FEW_FILES", few)
        tokenize.tokenize(config(corpus, tmp_path / f"{setting}{few}", per_file=setting))
        assert len(table(capsys.readouterr().out)) == shown


def test_sizes():
    assert [size(n) for n in (0, 999, 1000, 1234567, 999_999_999_999_999)] == [
        "0 B", "999 B", "1 kB", "1.23 MB", "1000000 GB",
    ]  # fmt: skip
