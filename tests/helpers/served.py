"""A server of `rvqlm.serving` in a thread, around a stand-in for the running batch whose audio can
be told from the text and the seed alone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from rvqlm.codecs.registry import load_codec
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.serving import server, uploads
from rvqlm.serving.config import Door, Limits
from rvqlm.serving.metrics import Metrics
from rvqlm.serving.served import Served
from rvqlm.serving.service import Service
from rvqlm.serving.worker import Worker, declare

HOP, RATE = 320, 16000
SYMBOLS = SymbolTable.of(["<space>", ".", *"abcdefghABCDEFGH"])
FRONT_END = TextFrontEnd(TextSettings("chars"), SYMBOLS)
TEXT = ConditionInfo("text", (len(SYMBOLS),), 4.0, FRONT_END.info(4.0).settings)


@dataclass
class Heard:
    slot: int
    audio: np.ndarray
    codes: object = None
    ended: str | None = None
    about: dict | None = None


def fake_audio(ids: list[int], seed: int, row: int) -> np.ndarray:
    """(1, n) of a text: two frames a symbol, of a level and a length of its own."""
    level = zlib.crc32(repr((ids, seed, row)).encode()) % 1000 / 2000 + 0.1
    frames = 2 * max(1, len(ids))
    return np.full((1, frames * HOP), level, np.float32) * np.linspace(1, 0.5, frames * HOP)[None]


class FakeStreamer:
    """One frame of each slot a step.

    :param step_seconds: what a step takes.
    """

    def __init__(self, slots: int, step_seconds: float = 0.0):
        self.slots, self.step_seconds = slots, step_seconds
        self.running: dict[int, list] = {}
        self.most = self.steps = 0
        self.removed: list[int] = []
        self.break_at: int | None = None

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    def add(self, prompt, output, sampling=None, demask=None, speech=None, row=0) -> int:
        text = prompt.given.values.get("text")
        ids = [] if text is None else text[:, 0].tolist()
        if ids == FRONT_END.encode("gag", None).tolist():
            raise UserError("the model does not say this")
        audio = fake_audio(ids + prompt.codes.flatten().tolist()[:9], output.seed, row)
        slot = next(n for n in range(self.slots) if n not in self.running)
        self.running[slot] = [audio, 0]
        self.most = max(self.most, len(self.running))
        return slot

    def step(self) -> list[Heard]:
        self.steps += 1
        if self.steps == self.break_at:
            raise RuntimeError("a bug")
        time.sleep(self.step_seconds)
        heard = []
        for slot, state in list(self.running.items()):
            audio, at = state
            piece, state[1] = audio[:, at : at + HOP].astype(np.float32), at + HOP
            over = state[1] >= audio.shape[1]
            about = {"seconds": audio.shape[1] / RATE} if over else None
            heard.append(Heard(slot, piece, None, "eos" if over else None, about))
            if over:
                del self.running[slot]
        return heard

    def remove(self, slot: int) -> None:
        self.removed.append(slot)
        del self.running[slot]


uploads.begin()


def fake_served(streamer, limits: Limits, metrics: Metrics, name="tiny", text=True) -> Served:
    codec = load_codec("spectral", num_codebooks=2)
    model = SimpleNamespace(
        name="codec-lm", info=codec.info, conditions={"text": TEXT} if text else {},
        duration_head=None, way=None,
    )  # fmt: skip
    worker = Worker(name, lambda: streamer, RATE, limits, metrics)
    worker.start()
    return Served(name, model, codec, worker, limits, {"model": name})


def eventually(there, seconds: float = 20) -> None:
    """It comes true, sooner or later."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@dataclass
class Running:
    url: str
    port: int
    service: Service
    server: server.Server
    thread: threading.Thread

    def stop(self, grace: float = 0.0) -> None:
        self.service.door = replace(self.service.door, grace=grace)
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(models: dict[str, Served], door: Door, limits: Limits, metrics: Metrics) -> Iterator:
    listening = server.listen(door.host, 0)
    url = server.url_of(listening)
    service = Service(models, door, limits, metrics)
    serving = server.Server(service)
    thread = threading.Thread(target=lambda: asyncio.run(serving.serve(sockets=[listening])))
    thread.start()
    made = Running(url, listening.getsockname()[1], service, serving, thread)
    try:
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def fake_server(
    step_seconds: float = 0.0, token: str = "", text: bool = True, **values
) -> Iterator[tuple[Running, FakeStreamer]]:
    """A server of one model that is none."""
    limits, metrics = replace(Limits(), **values), Metrics()
    declare(metrics)
    streamer = FakeStreamer(limits.slots, step_seconds)
    served = fake_served(streamer, limits, metrics, text=text)
    with running({"tiny": served}, Door(token=token), limits, metrics) as made:
        yield made, streamer
