"""The server as a process: uvicorn, whose connections cannot dawdle and whose stop is gentle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rvqlm.cli import counted
from rvqlm.errors import UserError, reason_of
from rvqlm.serving.app import make_app
from rvqlm.serving.service import Service

log = logging.getLogger("rvqlm.serve")
_WS_BYTES = 1 << 20


def listen(host: str, port: int) -> socket.socket:
    """:raises UserError: the address cannot be had."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(kind, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(256)
    except OSError as e:
        listening.close()
        raise UserError(
            f"--host {host} --port {port}: {reason_of(e)}; give another, or --port 0"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Server(uvicorn.Server):
    """Serves until SIGTERM or SIGINT; then what runs may end within the grace. A second signal cuts
    it off at once."""

    def __init__(self, service: Service):
        stall = service.limits.stall_seconds

        class Connection(H11Protocol):
            """Tells its requests what to let go of, and goes where none comes."""

            def connection_made(self, transport) -> None:
                super().connection_made(transport)
                self.app_state = {**self.app_state, "transport": transport}
                self.loop.call_later(stall, self._look, None)

            def _look(self, before) -> None:
                if self.transport.is_closing() or self.transport.get_protocol() is not self:
                    return
                idle = self.cycle is None or self.cycle.response_complete
                if idle and self.cycle is before:
                    self.transport.abort()
                else:
                    self.loop.call_later(stall, self._look, self.cycle)

        config = uvicorn.Config(
            make_app(service),
            http=Connection,
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            ws_max_size=_WS_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=2,
            proxy_headers=False,
        )
        super().__init__(config)
        self.service, self._signals = service, 0

    async def shutdown(self, sockets=None) -> None:
        cut = await self.service.stop(self.service.door.grace, lambda: self._signals > 1)
        if cut:
            print(f"stopped: {counted(cut, 'request')} cut off", file=sys.stderr)
        else:
            print("stopped: nothing was cut off", file=sys.stderr)
        await super().shutdown(sockets)

    def handle_exit(self, sig, frame) -> None:
        self._signals += 1
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """To stop when told to is no failure: the process ends with status 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


def serve(service: Service, listening: socket.socket) -> None:
    """Until it is stopped."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what fails is logged by ours
    asyncio.run(Server(service).serve(sockets=[listening]))
