"""A bucket behind a proxy, for the tests of this room."""

import uuid

import pytest
from buckets import ENVIRONMENT, Faults, as_another_machine, new_bucket, s3_server

from rvqlm.remote import bucket, hold


@pytest.fixture(scope="session")
def proxy():
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with s3_server() as endpoint:
        found = Faults(endpoint)
        yield found
        found.close()


@pytest.fixture(scope="session")
def gs_proxy():
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="test")
    server.start()
    found = Faults(f"http://127.0.0.1:{server._api._httpd.server_port}")
    yield found
    found.close()
    server.stop()


@pytest.fixture
def store():
    """``s3``; a test that is parametrized with ``gs`` has Google's."""
    return "s3"


@pytest.fixture
def faults(store, request, monkeypatch, tmp_path):
    """The proxy; ``url`` of a new bucket or folder, ``upload`` what tells the request of one."""
    proxy = request.getfixturevalue("proxy" if store == "s3" else "gs_proxy")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for module, name, seconds in (
        (bucket, "FIRST_WAIT", 0.01),
        (hold, "SETTLE_SECONDS", 0.1),
        (hold, "BEAT_SECONDS", 0.1),
        (hold, "SILENT_SECONDS", 0.5),
        (hold, "LOOK_SECONDS", 0.1),
    ):
        monkeypatch.setattr(module, name, seconds)
    proxy.wanted, proxy.requests = lambda method, path: None, []
    if store == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.url, proxy.upload = f"s3://{new_bucket(proxy.endpoint)}", ("PUT", "metrics.jsonl")
    else:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.endpoint)
        proxy.url, proxy.upload = f"gs://test/{uuid.uuid4().hex[:12]}", ("POST", "/upload/")
    as_another_machine(monkeypatch, tmp_path / "cache")
    yield proxy
    as_another_machine(monkeypatch, tmp_path / "no-cache")
