"""The thread that owns a model: orders wait in a queue, take a slot of the running batch as soon as
one is free, and give it back when they end or their client leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from rvqlm.errors import UserError, reason_of
from rvqlm.inference.generate import OutputArgs
from rvqlm.inference.prompts import Prompt
from rvqlm.serving.config import Limits
from rvqlm.serving.errors import ApiError
from rvqlm.serving.metrics import BUCKETS, FACTORS, Metrics
from rvqlm.serving.orders import Began, Ended, Order, Piece

log = logging.getLogger("rvqlm.serve")
BETWEEN = -1
"""Slot of an order of which a piece begins or ends, lest the next begins beside it."""


class Streams(Protocol):
    """What it drives: `rvqlm.inference.stream.Streamer`."""

    free: int

    def add(self, prompt: Prompt, output: OutputArgs, **options) -> int: ...

    def step(self) -> list: ...

    def remove(self, slot: int) -> None: ...


def declare(metrics: Metrics) -> None:
    """What a worker counts."""
    metrics.histogram("rvqlm_first_audio_seconds", "from a request to its first audio", BUCKETS)
    metrics.histogram(
        "rvqlm_real_time_factor", "seconds of audio per second, of sentences in a slot", FACTORS
    )
    metrics.counter("rvqlm_audio_seconds_total", "audio made")
    metrics.counter("rvqlm_working_seconds_total", "time in which the model worked")
    metrics.counter("rvqlm_underruns_total", "audio that came later than it would have been played")
    metrics.counter("rvqlm_lost_total", "requests whose client left or stalled before their end")


class Worker:
    """One model's batch.

    :param make: makes the `Streams`; again after a failure.
    :param sampling_rate: of the audio.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Streams],
        sampling_rate: int,
        limits: Limits,
        metrics: Metrics,
    ):
        self.name, self.sampling_rate, self.limits = name, sampling_rate, limits
        self.failure: str | None = None
        """why it can do no more"""
        self._make, self._metrics = make, metrics
        self._changed = threading.Condition()
        self._queue: deque[Order] = deque()
        self._orders: set[Order] = set()
        self._running: dict[int, Order] = {}
        self._gone: set[int] = set()  # slots of those who left
        self._refusing = self._stopped = False
        self._piece_seconds = 1.0  # how long one takes, about
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        metrics.gauge("rvqlm_queue", "requests that wait", lambda: len(self._queue), model=name)
        metrics.gauge("rvqlm_slots", "slots of the batch", lambda: limits.slots, model=name)
        metrics.gauge("rvqlm_slots_busy", "slots at work", lambda: len(self._running), model=name)
        metrics.gauge(
            "rvqlm_open_requests", "requests under way", lambda: len(self._orders), model=name
        )

    # ------------------------------------------------------------------------- from the event loop

    def start(self) -> None:
        """Ready when it returns; raises what making the `Streams` raises."""
        self._streams = self._make()
        self._thread.start()

    def open(self, budget: float | None = None) -> Order:
        """A place for an order; before anything is done for it.

        :raises ApiError: 429 where there is none, 503 where the worker does not take any.
        """
        with self._changed:
            if self.failure:
                raise ApiError(503, f"model {self.name} has failed: {self.failure}")
            if self._refusing:
                raise ApiError(503, "the server is being stopped")
            if len(self._orders) >= self.limits.slots + self.limits.queue:
                turns = 1 + len(self._orders) // self.limits.slots
                wait = min(60, max(1, round(turns * self._piece_seconds)))
                raise ApiError(
                    429,
                    f"{len(self._orders)} requests are under way or wait; try again in {wait} s",
                    code="queue_full",
                    headers={"Retry-After": str(wait)},
                )
            order = Order(self, budget)
            self._orders.add(order)
            return order

    def say(self, order: Order, pieces: Iterable[Piece]) -> None:
        with self._changed:
            order.pieces.extend(pieces)
            self._offer(order)

    def close(self, order: Order) -> None:
        with self._changed:
            order.closed = True
            self._settle(order)

    def leave(self, order: Order) -> None:
        with self._changed:
            if order not in self._orders:
                return
            self._orders.discard(order)
            order.left = True
            order.pieces.clear()
            if order.queued:
                self._queue.remove(order)
            if order.slot is not None:
                self._gone.add(order.slot)
            self._changed.notify_all()

    def lost(self, why: str) -> None:
        """Count a client that did not stay to the end: it ``left``, or ``stalled``."""
        self._metrics.add("rvqlm_lost_total", model=self.name, reason=why)

    def taken(self, order: Order, samples: int) -> None:
        """The client took so much."""
        with self._changed:
            order.waiting -= samples
            self._offer(order)

    def refuse(self) -> None:
        """Take no new orders; what is open goes on."""
        with self._changed:
            self._refusing = True

    def count(self) -> int:
        """Orders that are open."""
        with self._changed:
            return len(self._orders)

    def cut(self) -> int:
        """End what is open with an error; how many orders that were."""
        with self._changed:
            cut = [order for order in self._orders if not order.done]
            for order in cut:
                self._fail(order, ApiError(503, "cut off: the server is being stopped"))
            return len(cut)

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._refusing = self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    # ----------------------------------------------------------------------------- under the lock

    def _offer(self, order: Order, first: bool = False) -> None:
        """Queue an order that has something to be made and whose client keeps up."""
        full = order.waiting > self.limits.ahead_seconds * self.sampling_rate
        if full or not order.pieces or order.queued or order.slot is not None or order.left:
            return
        order.queued = True
        if first:
            self._queue.appendleft(order)
        else:
            self._queue.append(order)
        self._changed.notify_all()

    def _settle(self, order: Order) -> None:
        """Tell an order of which all is made."""
        if order.closed and not (order.pieces or order.slot is not None or order.done):
            order.done = True
            order.put(None)

    def _fail(self, order: Order, error: ApiError) -> None:
        if order.done or order.left:
            return
        order.done = True
        order.pieces.clear()
        if order.queued:
            self._queue.remove(order)
            order.queued = False
        if order.slot is not None and order.slot in self._running:
            self._gone.add(order.slot)
            order.left = True
            self._changed.notify_all()
        order.put(error)

    # -------------------------------------------------------------------------- the model's thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._free()
                self._fill()
                if self._running:
                    self._step()
        except BaseException as e:
            self._give_up(e)
            if not isinstance(e, Exception):
                raise

    def _wait(self) -> bool:
        with self._changed:
            while not (self._stopped or self._running or self._queue or self._gone):
                self._changed.wait()
            return not self._stopped

    def _free(self) -> None:
        with self._changed:
            gone = [slot for slot in self._gone if slot in self._running]
            self._gone.clear()
            for slot in gone:
                self._running.pop(slot).slot = None
        for slot in gone:
            self._streams.remove(slot)

    def _fill(self) -> None:
        while self._streams.free:
            with self._changed:
                if not self._queue:
                    return
                order = self._queue.popleft()
                order.queued, order.slot = False, BETWEEN
                piece = order.pieces.popleft()
            self._begin(order, piece)

    def _begin(self, order: Order, piece: Piece) -> None:
        if self._left(order) <= 0:
            self._end(order, {"stop": "length"})
            return
        order.put(Began(piece.text))
        order.began, order.piece_samples = time.perf_counter(), 0
        try:
            slot = self._streams.add(piece.prompt, piece.output, **piece.options)
        except UserError as e:
            with self._changed:
                order.slot = None
                self._fail(order, ApiError.of(e))
            return
        except Exception as e:
            self._broken(e, order)
            return
        with self._changed:
            order.slot = slot
            self._running[slot] = order
            if order.left or order.done:
                self._gone.add(slot)

    def _left(self, order: Order) -> float:
        """Samples that it may still have."""
        if order.budget is None:
            return float("inf")
        return round(order.budget * self.sampling_rate) - order.samples

    def _step(self) -> None:
        began = time.perf_counter()
        try:
            heard = self._streams.step()
        except Exception as e:
            self._broken(e)
            return
        now = time.perf_counter()
        self._metrics.add("rvqlm_working_seconds_total", now - began, model=self.name)
        for one in heard:
            order, audio = self._running[one.slot], np.asarray(one.audio, np.float32).T
            left = self._left(order)
            if len(audio):
                self._hear(order, audio[: int(min(left, len(audio)))], now)
            over = len(audio) >= left  # as much as it may have
            if not (one.ended or over):
                continue
            if not one.ended:
                self._streams.remove(one.slot)
            with self._changed:
                del self._running[one.slot]
                order.slot = BETWEEN
            about = one.about or {}
            if "error" in about:  # in the middle of a text
                with self._changed:
                    order.slot = None
                    self._fail(order, ApiError(400, about["error"]))
                continue
            factor = order.piece_samples / self.sampling_rate / max(1e-9, now - order.began)
            self._metrics.observe("rvqlm_real_time_factor", factor, model=self.name)
            self._piece_seconds += 0.2 * (now - order.began - self._piece_seconds)
            self._end(order, {**about, "stop": one.ended or "length"})

    def _hear(self, order: Order, audio: np.ndarray, now: float) -> None:
        seconds = len(audio) / self.sampling_rate
        if not order.samples:
            waited = now - order.opened
            self._metrics.observe("rvqlm_first_audio_seconds", waited, model=self.name)
        if order.clock.heard(now, seconds):
            order.underruns += 1
            self._metrics.add("rvqlm_underruns_total", model=self.name)
        order.samples += len(audio)
        order.piece_samples += len(audio)
        self._metrics.add("rvqlm_audio_seconds_total", seconds, model=self.name)
        with self._changed:
            if not order.left:
                order.waiting += len(audio)
                order.put(audio)

    def _end(self, order: Order, about: dict) -> None:
        """Of a piece."""
        order.put(Ended(about))
        with self._changed:
            order.slot = None
            if not order.pieces:  # a client that says more later is not behind
                order.clock.reset()
            self._offer(order, first=True)
            self._settle(order)

    def _broken(self, error: Exception, *others: Order) -> None:
        """What the batch holds is lost; the rest goes on with a new one."""
        log.error("model %s failed", self.name, exc_info=error)
        with self._changed:
            for order in (*self._running.values(), *others):
                order.slot = None
                self._fail(order, ApiError.of(error))
            self._running.clear()
            self._gone.clear()
        self._streams = self._make()

    def _give_up(self, error: BaseException) -> None:
        log.error("model %s has stopped", self.name, exc_info=error)
        with self._changed:
            self.failure = reason_of(error)
            for order in list(self._orders):
                order.slot = None
                self._fail(order, ApiError(503, f"model {self.name} has failed"))
            self._running.clear()
            self._queue.clear()
