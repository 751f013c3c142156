"""Buckets on loopback: moto's S3, and a proxy before it that fails as it is told."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
import time
import uuid

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing-key-id",
    "AWS_SECRET_ACCESS_KEY": "testing-secret-of-the-bucket",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def another_endpoint():
    """Clients that are made in the block, or after it, ask the endpoint that is set then: fsspec
    keeps those that it has made."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def s3_server():
    """Its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str) -> str:
    """A bucket of its own; its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    return name


class Faults:
    """A proxy that passes requests on, except for those that `wanted` names.

    wanted: called with the method and the path of a request; None: it passes; ``503``; ``late``:
        answered after `delay` seconds; ``cut``: the connection ends within the body of the answer;
        ``short``: so does the body, without its length being told; ``gone``: no answer at all;
        ``lost``: what was asked for is done, the answer does not come.
    """

    def __init__(self, endpoint: str):
        self.target = endpoint.removeprefix("http://")
        self.wanted = lambda method, path: None
        self.delay = 0.2
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path))
                fault = outer.wanted(self.command, self.path)
                self.close_connection = True
                if fault == "gone":
                    return
                if fault == "503":
                    text = b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
                    self.send_response(503)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                    return
                if fault == "late":
                    time.sleep(outer.delay)
                connection = http.client.HTTPConnection(outer.target)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read()
                if fault == "lost":
                    return
                self.send_response(answer.status)
                size = len(content)
                for key, value in answer.getheaders():
                    if key.lower() == "content-length" and self.command == "HEAD":
                        size = int(value)
                    if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(key, value)
                if fault == "short":
                    content, size = content[: size // 2], size // 2
                self.send_header("Content-Length", str(size))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(content[: size // 2] if fault == "cut" else content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def first(self, times: int, fault: str, method: str, name: str) -> None:
        """Fail the first so many requests of a method for an object."""
        left = [times]

        def wanted(how: str, path: str) -> str | None:
            if how != method or name not in path or not left[0]:
                return None
            left[0] -= 1
            return fault

        self.wanted = wanted

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def as_another_machine(monkeypatch, folder) -> None:
    """From here on another cache, and nothing that this process knows of buckets."""
    from rvqlm.remote import session

    for mirror in session._mirrors.values():
        mirror.close()
    session._mirrors.clear()
    session._before.clear()
    monkeypatch.setenv("RVQLM_CACHE", str(folder))
