"""Audio as answers over HTTP: whole, as it is made, or as events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rvqlm.serving.config import Limits
from rvqlm.serving.errors import ApiError
from rvqlm.serving.formats import Encoder, media_type
from rvqlm.serving.guard import until_left
from rvqlm.serving.orders import Began, Event, Order

log = logging.getLogger("rvqlm.serve")
T = TypeVar("T")

KEPT = 256
"""Descriptions of results that are kept for those who made them."""


class ClientLeft(Exception):
    """Nobody waits for the answer."""


async def unless_left(request: Request, awaited: Awaitable[T]) -> T:
    """What is awaited; :raises ClientLeft: when the client goes before. The body must be read."""
    task, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(until_left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        for each in (task, gone):
            each.cancel()


class Results:
    """Descriptions of the last results, by the ids of their requests, which nobody can guess."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict] = OrderedDict()

    def keep(self, id: str, about: dict) -> None:
        self._kept[id] = about
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def get(self, id: str) -> dict:
        """:raises ApiError: 404."""
        if id not in self._kept:
            raise ApiError(404, f"of no request that ended lately: {id[:60]!r}")
        return self._kept[id]


class Account:
    """Of one order what its description and the log say."""

    def __init__(self, order: Order, endpoint: str, about: dict, results: Results):
        self.order, self.endpoint, self.about, self.results = order, endpoint, about, results
        self.pieces: list[dict] = []
        self.first: float | None = None
        self.samples = 0

    def note(self, event: Event) -> None:
        if isinstance(event, np.ndarray):
            self.first = self.first or time.perf_counter()
            self.samples += len(event)
        elif isinstance(event, Began):
            self.pieces.append({"text": event.text} if event.text else {})
        elif self.pieces:
            self.pieces[-1] |= event.about

    def close(self) -> dict:
        """The description; kept, and a line for the log."""
        order, now = self.order, time.perf_counter()
        seconds, took = self.samples / order.worker.sampling_rate, now - order.opened
        about = {
            "id": order.id,
            **self.about,
            **(self.pieces[0] if len(self.pieces) == 1 else {"pieces": self.pieces}),
            "seconds": seconds,
            "stop": "length" if any(p.get("stop") == "length" for p in self.pieces) else "eos",
            "first_audio_seconds": None if self.first is None else self.first - order.opened,
            "generation_seconds": took,
            "real_time_factor": seconds / took,
            "underruns": order.underruns,
        }
        self.results.keep(order.id, about)
        first = 0.0 if self.first is None else self.first - order.opened
        log.info(
            "%s %s: %.2f s of audio in %.2f s, the first after %.3f s",
            self.endpoint, order.worker.name, seconds, took, first,
        )  # fmt: skip
        return about


class AudioAnswer(Response):
    """Streams an order whose first event is there already."""

    def __init__(
        self,
        order: Order,
        first: Event | None,
        account: Account,
        encoder: Encoder,
        format: str,
        limits: Limits,
        events: bool,
    ):
        super().__init__(media_type="text/event-stream" if events else media_type(format))
        del self.headers["content-length"]
        self.headers["x-request-id"] = order.id
        self.headers["cache-control"] = "no-store"
        self._order, self._first, self._account = order, first, account
        self._encoder, self._limits, self._events = encoder, limits, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_left(Request(scope, receive)))
        body = asyncio.ensure_future(self._send(send))
        transport = scope["state"]["transport"]
        try:
            await asyncio.wait((gone, body), return_when=asyncio.FIRST_COMPLETED)
            if not body.done():
                self._order.worker.lost("left")
                return
            try:
                body.result()
            except asyncio.TimeoutError:
                log.info("%s: the client takes nothing and is let go", self._account.endpoint)
                self._order.worker.lost("stalled")
                transport.abort()
            except ApiError as e:  # the end is missing, and a client sees that it is
                log.info("%s: %s", self._account.endpoint, e.message)
                transport.close()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(gone), 2.0)
                transport.abort()
        finally:
            for task in (gone, body):
                task.cancel()
            self._order.leave()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await self._timely(send(start))
        event = self._first
        while event is not None:
            self._account.note(event)
            if isinstance(event, np.ndarray) and (data := self._encoder.add(event)):
                await self._part(send, data)
            event = await self._order.next()
        data, about = self._encoder.end(), self._account.close()
        if data:
            await self._part(send, data)
        done = _sse({"type": "speech.audio.done", **about}) if self._events else b""
        await self._timely(send({"type": "http.response.body", "body": done}))

    async def _part(self, send: Send, data: bytes) -> None:
        if self._events:
            data = _sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        part = {"type": "http.response.body", "body": data, "more_body": True}
        await self._timely(send(part))

    async def _timely(self, sent: Awaitable[None]) -> None:
        await asyncio.wait_for(sent, self._limits.stall_seconds)


def _sse(event: dict) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


async def collect(order: Order, account: Account, encoder: Encoder) -> bytes:
    """All of an order as one file."""
    parts = []
    while (event := await order.next()) is not None:
        account.note(event)
        if isinstance(event, np.ndarray):
            parts.append(encoder.add(event))
    return b"".join([*parts, encoder.end()])


async def first_audio(order: Order, account: Account) -> Event | None:
    """Up to the first audio of an order, noting what comes before it; None where there is none.

    :raises ApiError: it could not be begun.
    """
    while (event := await order.next()) is not None:
        if isinstance(event, np.ndarray):
            return event
        account.note(event)
    return None
