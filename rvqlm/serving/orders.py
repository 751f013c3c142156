"""An order: what one client wants said or played, and what was made of it so far, on its way from
the thread of the model to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from rvqlm.inference.generate import OutputArgs
from rvqlm.inference.prompts import Prompt
from rvqlm.serving.errors import ApiError
from rvqlm.serving.metrics import PlayClock


class Desk(Protocol):
    """Where orders are taken: `rvqlm.serving.worker.Worker`."""

    name: str
    sampling_rate: int

    def say(self, order: Order, pieces: Iterable[Piece]) -> None: ...

    def close(self, order: Order) -> None: ...

    def leave(self, order: Order) -> None: ...

    def taken(self, order: Order, samples: int) -> None: ...

    def lost(self, why: str) -> None: ...


@dataclass
class Piece:
    """What the model makes in one go: a sentence, a continuation."""

    prompt: Prompt
    output: OutputArgs
    options: dict = field(default_factory=dict)
    """`sampling`, `demask`, `speech` and `row` of a `Streamer`."""
    text: str = ""


class Began(NamedTuple):
    """The model is at a piece; its audio follows."""

    text: str


class Ended(NamedTuple):
    """All audio of a piece is there."""

    about: dict
    """As the JSON beside a sample."""


Event = Began | Ended | np.ndarray
"""Audio is (n, C) float32."""


class Order:
    """Made by `Worker.open`; give it pieces, `close` it behind the last, take its events, and
    `leave` in any case.

    :param budget: seconds of audio in all; None: only each piece has a limit.
    """

    def __init__(self, worker: Desk, budget: float | None):
        self.id = secrets.token_hex(16)
        self.worker, self.budget = worker, budget
        self.opened = time.perf_counter()
        # of both threads, under the worker's lock
        self.pieces: deque[Piece] = deque()
        self.slot: int | None = None
        self.queued = self.closed = self.done = self.left = False
        self.waiting = 0
        """samples that the client has not taken"""
        # of the worker's thread
        self.clock = PlayClock()
        self.samples = self.piece_samples = self.underruns = 0
        self.began = 0.0
        # of the event loop
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event | ApiError | None] = deque()
        self._there = asyncio.Event()

    @property
    def pending_text(self) -> int:
        """Characters of the pieces that are not begun."""
        return sum(len(piece.text) for piece in list(self.pieces))

    def say(self, *pieces: Piece) -> None:
        """More to be made, behind what there is."""
        self.worker.say(self, pieces)

    def close(self) -> None:
        """No more pieces will come."""
        self.worker.close(self)

    def leave(self) -> None:
        """The client has all, or has gone; a slot is freed at once."""
        self.worker.leave(self)

    def put(self, event: Event | ApiError | None) -> None:
        """From the worker's thread; None: the end."""
        self._events.append(event)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._there.set)

    async def next(self) -> Event | None:
        """The next event; None behind the last.

        :raises ApiError: the order could not be carried out, or only a part of it.
        """
        while not self._events:
            self._there.clear()
            await self._there.wait()
        event = self._events.popleft()
        if isinstance(event, ApiError):
            raise event
        if isinstance(event, np.ndarray):
            self.worker.taken(self, len(event))
        return event

    def __enter__(self) -> Order:
        return self

    def __exit__(self, *args) -> None:
        self.leave()
