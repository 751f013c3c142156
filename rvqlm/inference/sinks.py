"""Where audio goes that is heard while it is made: a pipe, or the loudspeaker."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import BinaryIO, Literal

import numpy as np
from torch import Tensor

from rvqlm.errors import UserError, reason_of

Write = Callable[[Tensor], object]
"""Takes the next piece of audio, (C, n) float32."""

UNKNOWN = 0xFFFFFFFF
"""Size in the header of a wav whose length nobody knows yet."""


def wav_header(sampling_rate: int, channels: int) -> bytes:
    """Of 16-bit audio that goes on to the end of the file."""
    frame = 2 * channels
    kind = struct.pack("<HHIIHH", 1, channels, sampling_rate, frame * sampling_rate, frame, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE")
        + struct.pack("<4sI", b"fmt ", len(kind))
        + kind
        + struct.pack("<4sI", b"data", UNKNOWN)
    )


def pcm16(audio: Tensor, sampling_rate: int) -> bytes:
    """(C, n) float -> little-endian 16-bit samples, channels in turn, as a wav file has them."""
    import soundfile

    raw = io.BytesIO()
    data = audio.clamp(-1, 1).T.contiguous().numpy()
    how = {"subtype": "PCM_16", "endian": "LITTLE", "format": "RAW"}
    soundfile.write(raw, data, sampling_rate, **how)
    return raw.getvalue()


@contextmanager
def pipe(
    file: BinaryIO, form: Literal["wav", "pcm"], sampling_rate: int, channels: int
) -> Iterator[Write]:
    """A file that cannot be gone back in. Each piece is sent at once."""

    def send(data: bytes) -> None:
        file.write(data)
        file.flush()

    if form == "wav":
        send(wav_header(sampling_rate, channels))
    yield lambda audio: send(pcm16(audio, sampling_rate))


@contextmanager
def loudspeaker(sampling_rate: int, channels: int) -> Iterator[Write]:
    """The default output of this machine; at the end what was written is played.

    :raises UserError: no package sounddevice, or nothing to play with.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as e:  # OSError: no PortAudio
        raise UserError(
            f"--stream play needs the package sounddevice ({reason_of(e)}): pip install "
            "'rvqlm[play]', and where PortAudio is missing install that (libportaudio2)"
        ) from None
    try:
        out = sounddevice.OutputStream(sampling_rate, channels=channels, dtype="float32")
        out.start()
    except sounddevice.PortAudioError as e:
        raise UserError(f"--stream play: no loudspeaker ({reason_of(e)})") from None
    waiting: Queue[np.ndarray | None] = Queue()

    def play() -> None:  # beside the making, which would stand still meanwhile
        while (piece := waiting.get()) is not None:
            out.write(piece)

    player = threading.Thread(target=play, daemon=True)
    player.start()
    try:
        yield lambda audio: waiting.put(audio.T.contiguous().clamp(-1, 1).numpy())
    except BaseException:
        out.abort()
        raise
    else:
        waiting.put(None)
        player.join()
        out.stop()
    finally:
        out.close()
