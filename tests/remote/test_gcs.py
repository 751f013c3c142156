"""The same against an emulator of Google's store."""

from pathlib import Path

import pytest
from buckets import as_another_machine

from rvqlm.locks import locked
from rvqlm.remote import hold
from rvqlm.remote.bucket import Bucket
from rvqlm.remote.mirror import LOCK
from rvqlm.remote.session import localize

pytest.importorskip("gcsfs")
emulator = pytest.importorskip("gcp_storage_emulator.server")


@pytest.fixture
def url(monkeypatch, tmp_path):
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="test")
    server.start()
    port = server._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(hold, "BEAT_SECONDS", 0.1)
    as_another_machine(monkeypatch, tmp_path / "machine-1")
    yield "gs://test"
    as_another_machine(monkeypatch, tmp_path / "no-cache")
    server.stop()


def test_an_experiment_there_and_back(url, tmp_path, monkeypatch):
    folder = Path(localize(f"{url}/exp"))
    with locked(folder, "rvqlm train", make=True):
        assert Bucket(f"{url}/exp").entry(LOCK) is not None
        (folder / "metrics.jsonl").write_text("1\n")
        (folder / "latest.pt").write_bytes(bytes(range(256)) * 1000)
    as_another_machine(monkeypatch, tmp_path / "machine-2")
    other = Path(localize(f"{url}/exp"))
    assert (other / "latest.pt").read_bytes() == bytes(range(256)) * 1000
    assert Bucket(f"{url}/exp").list().keys() == {"metrics.jsonl", "latest.pt"}
