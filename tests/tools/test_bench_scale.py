"""tools/bench/scale.py runs all of its stages at a small size."""

import re

import pytest
import scale
from buckets import ENVIRONMENT, another_endpoint, as_another_machine, s3_server


def test_every_stage_at_a_small_size(tmp_path, capfd):
    folder = tmp_path / "scale"
    args = scale.Args(folder, cuts=400, parts=3, batches=3, tile=2)
    for stage in scale.STAGES[:-1]:
        scale.run_stage(stage, args)
    words = ["--folder", str(folder), "--cuts", "400", "--parts", "3", "--batches", "3"]
    assert scale.main([*words, "--stages", "loader"]) == 0  # in a process of its own
    shown = capfd.readouterr().out
    assert re.findall(r"^(\w+) +[\d.]+ s ", shown, re.M) == list(scale.STAGES)
    assert re.search(r"combine .* 400 cuts, 1 h", shown)
    assert re.search(r"tile .* 794 cuts", shown)
    assert re.search(r"open .* 24 shards", shown)
    assert not folder.exists()


def test_the_loader_reads_from_a_bucket_and_from_the_cache(tmp_path, monkeypatch, capfd):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    small = ["--decoder-dim", "16", "--num-decoder-layers", "1", "--max-duration", "19"]
    monkeypatch.setattr(scale, "TRAINER", [*scale.TRAINER, *small])
    args = scale.Args(tmp_path / "scale", cuts=400, parts=1, batches=2, steps=3)
    with another_endpoint(), s3_server() as endpoint:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        for stage in ("make", "combine", "split", "index", *scale.BUCKET_STAGES):
            as_another_machine(monkeypatch, args.folder / "cache")  # as in a process of its own
            scale.run_stage(stage, args)
        as_another_machine(monkeypatch, tmp_path / "no-cache")
    shown = capfd.readouterr().out
    rows = dict(re.findall(r"^(cold|warm) .*?([\d.]+) s, [\d,]+ frames/s, ", shown, re.M))
    assert float(rows["warm"]) < float(rows["cold"])  # nothing is fetched again
    assert re.search(r"^upload .* 15 objects", shown, re.M)
    assert re.search(r"^trainer .* frames/s, the median of 2 steps", shown, re.M)


def test_its_bucket_is_a_server_of_its_own(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL", "RVQLM_CACHE"):
        monkeypatch.setenv(name, "")  # and so given back
    with another_endpoint(), scale.bucket_server(scale.Args(tmp_path)):
        bucket = scale.Bucket(scale.URL)
        bucket.fs.mkdir("s3://scale")
        assert bucket.write("a", b"a") and bucket.read("a") == b"a"
