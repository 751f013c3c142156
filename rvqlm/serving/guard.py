"""What every request passes first: who asks, from where, and how much it sends how slowly."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from rvqlm.serving.config import Door, Limits, is_loopback
from rvqlm.serving.errors import ApiError
from rvqlm.serving.metrics import Metrics

log = logging.getLogger("rvqlm.serve")

OPEN = ("/", "/healthz")
"""Paths without a token: there is nothing in them."""

PROTOCOL = "rvqlm"
TOKEN_PREFIX = "rvqlm.token."
"""Subprotocols of a WebSocket: a page in a browser can send its token (base64url) in no other
way."""

LEFT = 499
"""How it is counted when a client leaves before it gets an answer."""


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, door: Door, limits: Limits, metrics: Metrics):
        self.app, self.door, self.limits, self.metrics = app, door, limits, metrics
        metrics.counter("rvqlm_requests_total", "requests by path and status")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        status = LEFT

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        body = self._bounded(scope, receive) if scope["type"] == "http" else receive
        try:
            self._admit(scope)
            if scope["type"] == "http":
                self._check_length(scope)
            await self.app(scope, body, noted)
        except ApiError as e:
            if scope["type"] == "websocket":
                with contextlib.suppress(RuntimeError):  # it has gone already
                    await WebSocket(scope, receive, noted).send_denial_response(e.response())
            else:
                await e.response()(scope, receive, noted)
        except Exception:
            log.exception("%s failed", scope["path"])
        finally:
            self._count(scope, status)

    def _count(self, scope: Scope, status: int) -> None:
        route = scope.get("route")  # not what a client made up
        path = getattr(route, "path", "other")
        self.metrics.add("rvqlm_requests_total", path=path, status=str(status))

    def _admit(self, scope: Scope) -> None:
        """:raises ApiError: the token is missing or wrong, or a page of another site asks."""
        headers = Headers(scope=scope)
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "pages of other sites may not use this server", code="origin")
        if not self.door.token:
            # a name of somebody else that leads here would make its pages ones of this site
            if not is_loopback(_name_of(host)):
                raise ApiError(
                    403, "without a token it answers to localhost and 127.0.0.1 only", code="host"
                )
        elif scope["path"] not in OPEN:
            wanted, given = self.door.token.encode(), _token_in(headers).encode()
            if not hmac.compare_digest(wanted, given):
                raise ApiError(
                    401,
                    "a token is wanted: Authorization: Bearer TOKEN",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    def _check_length(self, scope: Scope) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most(scope):
            raise self._too_large(scope)

    def _most(self, scope: Scope) -> int:
        """Bytes that a body may have: an upload with its form, or a text in JSON."""
        if scope["path"] == "/v1/audio/continuation":
            return self.limits.upload_bytes + (1 << 16)
        return 12 * self.limits.max_text + (1 << 16)

    def _too_large(self, scope: Scope) -> ApiError:
        return ApiError(413, f"a body of more than {self._most(scope):,} bytes is not taken")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Its body may not be endless, nor come for ever."""
        got = 0
        complete = False

        async def bounded() -> Message:
            nonlocal got, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.limits.stall_seconds)
            except asyncio.TimeoutError:
                raise ApiError(408, "the request did not come") from None
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                complete = not message.get("more_body")
                if got > self._most(scope):
                    raise self._too_large(scope)
            return message

        return bounded


def _name_of(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _token_in(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if (word := protocol.strip()).startswith(TOKEN_PREFIX):
            coded = word.removeprefix(TOKEN_PREFIX)
            try:
                return base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
            except (binascii.Error, UnicodeDecodeError, ValueError):
                return ""
    return ""


async def until_left(request: Request) -> None:
    """Returns when the client has gone; to be used once the body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
