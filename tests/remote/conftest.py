"""A bucket behind a proxy, for the tests of this room."""

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


@pytest.fixture
def faults(proxy, monkeypatch, tmp_path):
    """The proxy; ``url`` of a new bucket."""
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
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.wanted, proxy.requests = lambda method, path: None, []
    proxy.url = f"s3://{new_bucket(proxy.endpoint)}"
    as_another_machine(monkeypatch, tmp_path / "cache")
    yield proxy
    as_another_machine(monkeypatch, tmp_path / "no-cache")
