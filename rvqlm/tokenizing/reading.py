"""Reading ahead: a thread decodes and resamples the next items while the codec is at work.

What lies between the two is a queue of some blocks, so that memory does not depend on how long
items are. Items arrive in their order, one after another.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from rvqlm.audio.load import AudioStream
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.read import close_parked
from rvqlm.audio.reader import BadAudio, first_line
from rvqlm.audio.source import Item
from rvqlm.codec_info import CodecInfo
from rvqlm.data.channel import Channel
from rvqlm.errors import UserError

QUEUED_BLOCKS = 16


class Piece:
    """One item on its way to the codec.

    Go through `blocks()` before the next piece is asked for; afterwards `stream` has the cut.
    """

    def __init__(self, reading: ReadAhead, item: Item):
        self.item = item
        self.stream: AudioStream | None = None
        self.waited = 0.0
        """seconds that `blocks` waited for the reader"""
        self.finished = False
        self._reading = reading

    def blocks(self) -> Iterator[Tensor]:
        """(C, n) float32 at the codec's rate; `BadAudio` where the item turns out unusable."""
        while True:
            began = time.perf_counter()
            kind, content = self._reading.take()
            self.waited += time.perf_counter() - began
            if kind == "block":
                yield torch.from_numpy(content)
                continue
            self.finished = True
            if kind == "bad":
                raise content
            self.stream = content
            return


class ReadAhead:
    """Reads items in a thread; iterate over it for their `Piece`s. A context manager.

    Args:
        items: what to read.
        info: the codec that it goes to.
        config: what to do to the audio.
        blocks: how many to hold at most.
    """

    def __init__(
        self,
        items: Iterable[Item],
        info: CodecInfo,
        config: AudioConfig,
        blocks: int = QUEUED_BLOCKS,
    ):
        self._items, self._info, self._config = items, info, config
        self._channel = Channel(blocks)
        self._thread = threading.Thread(target=self._read, name="rvqlm-reading", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Piece]:
        while True:
            kind, content = self.take()
            if kind == "end":
                return
            piece = Piece(self, content)
            yield piece
            with contextlib.suppress(BadAudio):  # what nobody wanted of it is in the way
                while not piece.finished:
                    next(piece.blocks(), None)

    def take(self) -> tuple[str, object]:
        """The next message of the thread; raises what the thread met, if it was no bad audio."""
        kind, content = self._channel.get()
        if kind == "error":
            raise content
        return kind, content

    def close(self) -> None:
        """Stop reading, at the next block at the latest."""
        self._channel.close()
        self._thread.join()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *args) -> None:
        self.close()

    # ----------------------------------------------------------------------- in the thread

    def _read(self) -> None:
        try:
            for item in self._items:
                self._put("item", item)
                try:
                    stream = item.open(self._info, self._config)
                    for block in stream.blocks():
                        self._put("block", block)
                except BadAudio as e:
                    self._put("bad", e)
                except (_Stopped, UserError, OSError, MemoryError):  # of the machine, not the item
                    raise
                except Exception as e:  # whatever a decoder does to one file, others follow
                    why = f"unreadable: {type(e).__name__}: {first_line(e)}"
                    self._put("bad", BadAudio(item.path, why))
                else:
                    self._put("done", stream)
            self._put("end", None)
        except _Stopped:
            pass
        except BaseException as e:  # handed over to where it can be dealt with
            self._channel.put(("error", e))
        finally:
            close_parked()

    def _put(self, kind: str, content: object) -> None:
        if not self._channel.put((kind, content)):
            raise _Stopped


class _Stopped(Exception):
    pass
