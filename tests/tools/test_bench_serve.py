"""The bench of the server measures what is there, and a request that fails is none."""

import json

import serve as bench
from served import SYMBOLS, fake_server


def plain(text: str) -> str:
    """With the letters of the stand-in alone."""
    return "".join(c if c in SYMBOLS else "a" for c in text if c.isalpha() or c == ".")


def test_what_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "TEXTS", tuple(plain(text) for text in bench.TEXTS))
    words = ["--concurrency", "1", "3", "--requests", "2", "--json", str(tmp_path / "a.json")]
    with fake_server(step_seconds=0.001) as (server, _):
        assert bench.run(["--url", server.url.rstrip("/"), *words]) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(r["clients"], r["requests"], r["failed"]) for r in rows] == [(1, 2, 0), (3, 6, 0)]
    assert all(0 < r["first_p50"] <= r["first_p99"] and r["real_time_factor"] > 0 for r in rows)
    # a frame of 20 ms every 50 ms comes too late
    with fake_server(step_seconds=0.05) as (server, _):
        late = bench.asyncio.run(bench.speak(bench.Args(server.url), "abba.", 0))
    assert round(late.seconds, 3) == 0.2 and 0 < late.underruns < 10 and not late.error
    assert late.with_head <= late.underruns
    with fake_server(slots=1, queue=0) as (server, _):
        assert bench.run(["--url", server.url.rstrip("/"), *words]) == 1
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert rows[1]["failed"] > 0 and rows[1]["continuity"] < 1
    capsys.readouterr()
    lost = bench.asyncio.run(bench.speak(bench.Args(server.url), "abba.", 0))
    assert lost.error  # nobody listens there any more


def test_quantiles():
    values = [float(n) for n in range(1, 201)]
    assert bench.quantile(values, 0.5) == 100 and bench.quantile(values, 0.99) == 198
    assert bench.quantile([3.0], 0.99) == bench.quantile([3.0], 0.5) == 3.0
