"""What all paths of the server share: the models, the work that takes time, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from starlette.datastructures import UploadFile

from rvqlm.serving.answers import Results
from rvqlm.serving.config import Door, Limits
from rvqlm.serving.errors import ApiError
from rvqlm.serving.metrics import Metrics
from rvqlm.serving.served import Served
from rvqlm.serving.uploads import decode

T = TypeVar("T")


class Service:
    """Models by name, the first is the default."""

    def __init__(self, models: dict[str, Served], door: Door, limits: Limits, metrics: Metrics):
        self.models, self.door, self.limits, self.metrics = models, door, limits, metrics
        self.results = Results()
        self.stopping = False
        # texts and codecs take turns: what speaks for espeak-ng is one library with one state
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._decoding = ThreadPoolExecutor(2, "decode")

    def find(self, name: str) -> Served:
        """:raises ApiError: 404."""
        if not name:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"no model {name[:60]!r}; there are {known}", "model", "model_not_found"
            )
        return self.models[name]

    async def prepare(self, work: Callable[..., T], *args) -> T:
        """What takes time, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work, *args)

    async def decode(self, upload: UploadFile, served: Served) -> np.ndarray:
        return await asyncio.get_running_loop().run_in_executor(
            self._decoding, decode, upload.file, upload.filename or "", served.codec.info,
            self.limits,
        )  # fmt: skip

    def open_orders(self) -> int:
        return sum(served.worker.count() for served in self.models.values())

    async def stop(self, grace: float, hurry: Callable[[], bool]) -> int:
        """Take no more, let what is open end, cut off what is left after ``grace`` seconds; how
        many requests that were."""
        self.stopping = True
        for served in self.models.values():
            served.worker.refuse()
        until = asyncio.get_running_loop().time() + grace
        while self.open_orders() and not hurry() and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        cut = sum(served.worker.cut() for served in self.models.values())
        for served in self.models.values():
            await asyncio.to_thread(served.worker.stop)
        return cut
