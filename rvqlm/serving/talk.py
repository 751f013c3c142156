"""`WS /v1/audio/stream`: text comes in pieces, audio leaves as it is made, sentence by sentence.

From the client JSON: ``{"type": "start", ...}`` first, with the fields of `schemas.Start`; then
``{"type": "text", "text": "..."}`` as often as it likes, ``{"type": "flush"}`` to have said what is
there of a sentence, ``{"type": "end"}`` behind the last. To the client ``{"type": "ready",
"sampling_rate": ..., "channels": ...}``, before each sentence ``{"type": "sentence", "text": ...,
"at": SECONDS}``, its audio as binary messages of 16-bit little-endian PCM, ``{"type": "done",
...}`` with the description of all, or ``{"type": "error", "error": {...}}``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import msgspec
import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from rvqlm.frontends.text_clean import has_word
from rvqlm.serving.answers import Account
from rvqlm.serving.errors import ApiError
from rvqlm.serving.formats import Encoder
from rvqlm.serving.guard import PROTOCOL
from rvqlm.serving.orders import Began, Order
from rvqlm.serving.schemas import Say, Start, of_json
from rvqlm.serving.served import Sentences, Served, new_seed
from rvqlm.serving.service import Service
from rvqlm.serving.voices import DEFAULT

log = logging.getLogger("rvqlm.serve")
_POLICY, _FAILED, _AGAIN = 1008, 1011, 1013


class Talk:
    """One client's connection, from the handshake to its end."""

    def __init__(self, service: Service, socket: WebSocket):
        self.service, self.limits, self.socket = service, service.limits, socket

    async def run(self) -> None:
        wanted = self.socket.scope.get("subprotocols", ())
        await self.socket.accept(PROTOCOL if PROTOCOL in wanted else None)
        try:
            await self._talk()
        except WebSocketDisconnect:
            pass
        except asyncio.TimeoutError:
            log.info("stream: the client takes nothing and is let go")
            self.socket.scope["state"]["transport"].abort()
        except Exception as e:
            error = ApiError.of(e)
            if error.status == 500:
                log.exception("stream failed")
            await self._close(
                {429: _AGAIN, 503: _AGAIN, 500: _FAILED}.get(error.status, _POLICY), error
            )

    async def _close(self, code: int, error: ApiError | None = None) -> None:
        try:
            if error is not None:
                await self._send({"type": "error", "error": error.to_dict()})
            await self._timely(self.socket.close(code))
        except (WebSocketDisconnect, RuntimeError):
            pass
        except asyncio.TimeoutError:
            self.socket.scope["state"]["transport"].abort()

    async def _talk(self) -> None:
        try:
            start = of_json(
                await asyncio.wait_for(self.socket.receive_text(), self.limits.stall_seconds), Start
            )
        except asyncio.TimeoutError:
            raise ApiError(408, "the first message did not come") from None
        except KeyError:
            raise ApiError(400, "messages are JSON, as text") from None
        served = self.service.find(start.model)
        served.check_speech(start)
        seed = new_seed() if start.seed is None else start.seed
        with served.worker.open() as order:
            about = {**served.about, "seed": seed, "voice": start.voice_name or DEFAULT}
            account = Account(order, "stream", about, self.service.results)
            info = served.model.info
            await self._send(
                {
                    "type": "ready",
                    "id": order.id,
                    "sampling_rate": info.sampling_rate,
                    "channels": info.channels,
                }
            )
            reading = asyncio.ensure_future(self._read(start, served, order, seed))
            writing = asyncio.ensure_future(self._write(served, order, account))
            try:
                await asyncio.wait((reading, writing), return_when=asyncio.FIRST_EXCEPTION)
                for task in (reading, writing):
                    if task.done():
                        task.result()
            except (WebSocketDisconnect, asyncio.TimeoutError) as e:
                served.worker.lost("left" if isinstance(e, WebSocketDisconnect) else "stalled")
                raise
            finally:
                reading.cancel()
                writing.cancel()
        await self._close(1000)

    async def _read(self, start: Start, served: Served, order: Order, seed: int) -> None:
        language = start.language or served.language
        sentences, said = Sentences(language or None), 0

        async def say(text: str) -> None:
            nonlocal said
            if has_word(text):
                order.say(await self.service.prepare(served.speech, start, text, seed, said))
                said += 1

        while True:
            message = await self._next(order)
            if message.type == "text":
                served.check_text(message.text, "text")
                while len(message.text) + order.pending_text + len(sentences) > (
                    self.limits.max_text
                ) and len(order.pieces):
                    await asyncio.sleep(0.05)  # it is told to wait by TCP
                for sentence in sentences.add(message.text):
                    await say(sentence)
                served.check_text(" " * len(sentences), "text")
                continue
            await say(sentences.rest())
            if message.type == "end":
                order.close()
                return

    async def _next(self, order: Order) -> Say:
        while True:
            receiving = asyncio.ensure_future(self.socket.receive_text())
            try:
                while not receiving.done():
                    done, _ = await asyncio.wait((receiving,), timeout=self.limits.idle_seconds)
                    if not done and not order.pieces and order.slot is None:
                        raise ApiError(408, "nothing to be said for too long")
                return of_json(receiving.result(), Say)
            except KeyError:
                raise ApiError(400, "messages are JSON, as text") from None
            finally:
                receiving.cancel()

    async def _write(self, served: Served, order: Order, account: Account) -> None:
        info = served.model.info
        encoder = Encoder("pcm", info.sampling_rate, info.channels, native=True)
        while (event := await order.next()) is not None:
            account.note(event)
            if isinstance(event, np.ndarray):
                await self._timely(self.socket.send_bytes(encoder.add(event)))
            elif isinstance(event, Began):
                at = account.samples / info.sampling_rate
                await self._send({"type": "sentence", "text": event.text, "at": at})
        await self._send({"type": "done", **account.close()})

    async def _send(self, message: dict) -> None:
        await self._timely(self.socket.send_text(msgspec.json.encode(message).decode()))

    async def _timely(self, sent: Awaitable[None]) -> None:
        await asyncio.wait_for(sent, self.limits.stall_seconds)
