"""An experiment in an emulator of Google's store; faults of both stores are in test_mirror."""

from pathlib import Path

import pytest
from buckets import as_another_machine

from rvqlm.locks import locked
from rvqlm.remote.bucket import Bucket
from rvqlm.remote.mirror import LOCK
from rvqlm.remote.session import localize


@pytest.mark.parametrize("store", ["gs"])
def test_an_experiment_there_and_back(faults, tmp_path, monkeypatch):
    url = f"{faults.url}/exp"
    folder = Path(localize(url))
    with locked(folder, "rvqlm train", make=True):
        assert Bucket(url).entry(LOCK) is not None
        (folder / "metrics.jsonl").write_text("1\n")
        (folder / "latest.pt").write_bytes(bytes(range(256)) * 1000)
    as_another_machine(monkeypatch, tmp_path / "machine-2")
    other = Path(localize(url))
    assert (other / "latest.pt").read_bytes() == bytes(range(256)) * 1000
    assert Bucket(url).list().keys() == {"metrics.jsonl", "latest.pt"}
