"""Recordings that clients send: decoded in bounded time and memory, whatever their bytes claim."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
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
        return _read(str(path), info, limits)


def _read(path: str, info: CodecInfo, limits: Limits) -> np.ndarray:
    until = time.monotonic() + limits.decode_seconds
    most = round(limits.max_upload_seconds * info.sampling_rate)
    stream = open_file(path, "upload", info, AudioConfig())
    blocks: list[np.ndarray] = []
    there = 0
    try:
        for block in stream.blocks():
            blocks.append(block)
            there += block.shape[1]
            if there > most:
                raise ApiError(
                    413, f"the upload is longer than {limits.max_upload_seconds:g} s", "file"
                )
            if time.monotonic() > until:
                raise ApiError(413, "the upload takes too long to decode", "file")
    except BadAudio as e:
        raise ApiError(400, f"the upload cannot be used: {e.reason}", "file") from None
    return np.concatenate(blocks, axis=1)
