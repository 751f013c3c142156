"""Copies of what lies in buckets: brought, kept, evicted, and what goes wrong on the way."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from buckets import as_another_machine
from token_fixtures import make_tokens

from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.remote.bucket import TRIES, Bucket
from rvqlm.remote.session import finish, localize, named


def upload(url: str, folder: Path) -> None:
    bucket = Bucket(url)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.put(path, path.relative_to(folder).as_posix())


@pytest.fixture
def tokens(faults, tmp_path):
    codes = make_tokens(tmp_path / "made", [30, 20, 40, 10], num_shards=2)
    upload(f"{faults.url}/tokens", tmp_path / "made")
    return codes


def shards_of(folder: str) -> list[str]:
    return sorted(p.name for p in (Path(folder) / "codes").glob("*.rvq"))


def test_training_data_from_a_bucket(faults, tokens):
    folder = localize(f"{faults.url}/tokens")
    assert Path(folder, "tokens.json").is_file() and not Path(folder, "codes").exists()
    dataset = TokenDataset.open(folder, "train")
    assert shards_of(folder) == ["shard-00000.rvq", "shard-00001.rvq"]
    for row, codes in enumerate(tokens):
        assert np.array_equal(dataset.read(row), codes)
    assert named(f"{folder}/tokens.json") == f"{faults.url}/tokens/tokens.json"


def test_what_is_here_is_not_fetched_again(faults, tokens, monkeypatch, tmp_path):
    TokenDataset.open(f"{faults.url}/tokens", "train")
    as_another_machine(monkeypatch, tmp_path / "cache")  # the same cache, another process
    faults.requests.clear()
    TokenDataset.open(f"{faults.url}/tokens", "train")
    assert {method for method, path in faults.requests if "list-type" not in path} <= {"HEAD"}


both_stores = pytest.mark.parametrize("store", ["s3", "gs"])


@both_stores
@pytest.mark.parametrize("fault", ["503", "late", "cut", "short", "gone"])
def test_a_store_that_fails_for_a_while(faults, tokens, fault, capsys):
    faults.first(3, fault, "GET", "shard-00001.rvq")
    dataset = TokenDataset.open(f"{faults.url}/tokens", "train")
    assert np.array_equal(dataset.read(1), tokens[1])
    told = capsys.readouterr().err
    assert (f"try 2 of {TRIES}" in told) == (fault != "late")


@both_stores
@pytest.mark.parametrize("fault", ["503", "cut", "gone"])
def test_a_store_that_fails_for_good_costs_one_line_and_leaves_nothing(faults, tokens, fault):
    faults.first(999, fault, "GET", "shard-00001.rvq")
    with pytest.raises(UserError, match=rf"shard-00001.rvq: .*, {TRIES} times") as raised:
        TokenDataset.open(f"{faults.url}/tokens", "train")
    assert "\n" not in str(raised.value)
    folder = localize(f"{faults.url}/tokens")
    assert "shard-00001.rvq" not in shards_of(folder)
    assert not [p for p in Path(folder).rglob(".*")]
    faults.wanted = lambda method, path: None
    assert np.array_equal(TokenDataset.open(folder, "train").read(1), tokens[1])


def test_a_damaged_shard_is_refused_by_its_checksum(faults, tokens, tmp_path):
    other = tmp_path / "other"
    size = (tmp_path / "made" / "codes" / "shard-00000.rvq").stat().st_size
    other.write_bytes(bytes(size))
    Bucket(f"{faults.url}/tokens").put(other, "codes/shard-00000.rvq")
    with pytest.raises(UserError, match=r"shard-00000.rvq is damaged .checksum"):
        TokenDataset.open(f"{faults.url}/tokens", "train")
    assert "shard-00000.rvq" not in shards_of(localize(f"{faults.url}/tokens"))


def read_all(url: str, found) -> None:
    dataset = TokenDataset.open(url, "train")
    found.put((os.getpid(), [int(dataset.read(row).sum()) for row in range(len(dataset))]))


def test_ranks_of_a_machine_share_one_copy(faults, tokens):
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    ranks = [
        context.Process(target=read_all, args=(f"{faults.url}/tokens", found)) for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    sums = [found.get(timeout=60)[1] for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sums == [[int(codes.sum()) for codes in tokens]] * 3
    gets = [path for method, path in faults.requests if method == "GET" and ".rvq" in path]
    assert len(gets) == len(set(gets)) == 2


def test_the_cache_is_bounded(faults, tokens, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_bytes(bytes(300_000))
        upload(f"{faults.url}/{name}", tmp_path / name)
    monkeypatch.setenv("RVQLM_CACHE_GB", "0.0005")
    a = Path(localize(f"{faults.url}/a"))
    with pytest.raises(UserError, match="RVQLM_CACHE_GB"):  # both are in use
        localize(f"{faults.url}/b")
    assert (a / "data").exists()
    as_another_machine(monkeypatch, tmp_path / "cache")  # the first process has ended
    b = Path(localize(f"{faults.url}/b"))
    assert (b / "data").stat().st_size == 300_000 and not (a / "data").exists()
    as_another_machine(monkeypatch, tmp_path / "cache")
    assert (Path(localize(f"{faults.url}/a")) / "data").stat().st_size == 300_000


def test_what_never_reached_the_bucket_is_not_evicted(faults, tokens, tmp_path, monkeypatch):
    folder = Path(localize(f"{faults.url}/tokens"))
    (folder / "written").write_bytes(bytes(400_000))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data").write_bytes(bytes(300_000))
    upload(f"{faults.url}/b", tmp_path / "b")
    as_another_machine(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("RVQLM_CACHE_GB", "0.0005")
    with pytest.raises(UserError, match="RVQLM_CACHE_GB"):
        localize(f"{faults.url}/b")
    assert (folder / "written").exists()


def test_what_commands_write_goes_to_the_bucket(faults, tokens, monkeypatch, tmp_path):
    folder = Path(localize(f"{faults.url}/tokens"))
    (folder / "stats.json").write_text("{}")
    finish()
    as_another_machine(monkeypatch, tmp_path / "elsewhere")
    assert Path(localize(f"{faults.url}/tokens"), "stats.json").read_text() == "{}"


def test_the_bucket_wins_where_both_have_changed(faults, tokens, monkeypatch, tmp_path):
    url = f"{faults.url}/tokens"
    folder = Path(localize(url))
    (folder / "stats.json").write_text("left by a process that was killed")
    as_another_machine(monkeypatch, tmp_path / "cache")
    assert (Path(localize(url)) / "stats.json").exists()  # to be continued
    finish()  # by who left it, not by who only reads
    assert Bucket(url).read("stats.json") is None
    Bucket(url).write("splits.json", b"{}")
    as_another_machine(monkeypatch, tmp_path / "cache")
    folder = Path(localize(url))
    assert (folder / "splits.json").exists() and not (folder / "stats.json").exists()


def test_an_object_and_its_bucket_that_are_not_there(faults):
    assert not Path(localize(f"{faults.url}/nothing")).exists()
    path = Path(localize("s3://no-such-bucket-anywhere/exp"))
    path.mkdir()
    (path / "a").write_text("a")
    with pytest.raises(UserError, match="no such bucket"):
        finish()


def test_a_single_object(faults, tmp_path):
    Bucket(faults.url).write("a/cuts.jsonl.gz", b"lines")
    assert Path(localize(f"{faults.url}/a/cuts.jsonl.gz")).read_bytes() == b"lines"


@both_stores
@pytest.mark.parametrize("fault", ["503", "lost", "gone"])
def test_uploads_are_whole_or_not_there(faults, fault, tmp_path):
    folder = Path(localize(f"{faults.url}/exp"))
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("line\n" * 1000)
    faults.first(2, fault, *faults.upload)
    finish()
    assert not faults.wanted(*faults.upload)  # both have failed
    assert Bucket(f"{faults.url}/exp").read("metrics.jsonl") == b"line\n" * 1000
