"""Recordings that clients send: decoded in bounded time and memory, whatever their bytes claim.

What decodes them is a process of its own: bytes can be made that keep any decoder busy for minutes,
and a process can be ended.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rvqlm.audio.load import open_file
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.read import AUDIO_SUFFIXES
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.serving.config import Limits
from rvqlm.serving.errors import ApiError

_STARTING_SECONDS = 120.0
_MEMORY = 1 << 30
"""Bytes that decoding may take beyond what the process has to begin with."""
_UNUSABLE = "the upload cannot be used"


def begin() -> None:
    """Start what the processes are copies of, so that none has to import anything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    context.Process(target=int, daemon=True).start()


def decode(file: BinaryIO, name: str, info: CodecInfo, limits: Limits) -> np.ndarray:
    """An upload as the codec wants it, (C, S) float32; blocks, so not for the event loop.

    :param name: what the client calls it; only a known ending is looked at.
    :raises ApiError: not audio, too long, too much work.
    """
    suffix = os.path.splitext(name)[1].lower()
    with tempfile.TemporaryDirectory(prefix="rvqlm-") as folder:
        path = Path(folder) / f"upload{suffix if suffix in AUDIO_SUFFIXES else ''}"
        with open(path, "wb") as copy:
            file.seek(0)
            shutil.copyfileobj(file, copy)
        pipe, theirs = multiprocessing.Pipe()
        job = (str(path), info.to_dict(), limits.max_upload_seconds, theirs)
        process = multiprocessing.get_context("forkserver").Process(
            target=_work, args=job, daemon=True
        )
        process.start()
        theirs.close()
        try:
            _take(pipe, _STARTING_SECONDS)
            status, message, channels = json.loads(_take(pipe, limits.decode_seconds))
            audio = _take(pipe, limits.decode_seconds)
        except TimeoutError:
            raise ApiError(413, "the upload takes too long to decode", "file") from None
        except (EOFError, OSError):  # it has died of the upload
            raise ApiError(400, f"{_UNUSABLE}: decoding it fails", "file") from None
        finally:
            process.kill()
            process.join()
            pipe.close()
    if status != 200:
        raise ApiError(status, message, "file")
    return np.frombuffer(bytearray(audio), np.float32).reshape(channels, -1)


def _take(pipe: Connection, seconds: float) -> bytes:
    if not pipe.poll(seconds):
        raise TimeoutError
    return pipe.recv_bytes()


# --------------------------------------------------------------------------------- the process


def _work(path: str, info: dict, most_seconds: float, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain of every byte they dislike
    _limit_memory()
    status, message, audio = 200, "", np.empty((1, 0), np.float32)
    with contextlib.suppress(OSError):  # nobody waits any more
        pipe.send_bytes(b"ready")
        try:
            audio = _read(path, CodecInfo.from_dict(info), most_seconds)
        except ApiError as e:
            status, message = e.status, e.message
        except BadAudio as e:
            status, message = 400, f"{_UNUSABLE}: {e.reason}"
        except MemoryError:
            status, message = 413, "the upload takes too much memory to decode"
        pipe.send_bytes(json.dumps([status, message, len(audio)]).encode())
        pipe.send_bytes(audio.tobytes())


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # where there is no such limit
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _read(path: str, info: CodecInfo, most_seconds: float) -> np.ndarray:
    most = round(most_seconds * info.sampling_rate)
    blocks: list[np.ndarray] = []
    there = 0
    for block in open_file(path, "upload", info, AudioConfig()).blocks():
        blocks.append(block)
        there += block.shape[1]
        if there > most:
            raise ApiError(413, f"the upload is longer than {most_seconds:g} s")
    return np.concatenate(blocks, axis=1)
