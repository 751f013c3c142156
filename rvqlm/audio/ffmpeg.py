"""Decoding by an ffmpeg program, for what libsndfile cannot read: M4A, AAC, WMA, WebM."""

from __future__ import annotations

import functools
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile

import numpy as np

from rvqlm.audio.reader import BadAudio, Reader

STALLED_SECONDS = 60.0
"""An ffmpeg that gives nothing for so long is stopped."""


@functools.lru_cache(maxsize=1)
def find_ffmpeg() -> str | None:
    """The ffmpeg program: the one on the PATH, or that of the wheel imageio-ffmpeg."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the wheel of a platform without a binary
        return None


class FfmpegReader(Reader):
    """Through the pipe of an ffmpeg process, which writes an AU file of float32."""

    def __init__(self, path: str):
        self.path, self.num_samples = path, None
        program = find_ffmpeg()
        if program is None:
            suffix = os.path.splitext(path)[1]
            raise BadAudio(path, f"{suffix} needs ffmpeg: install it or pip install imageio-ffmpeg")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could fill up and block
        # `file:` keeps names with colons and leading dashes from being read as something else; a
        # playlist in disguise must not reach out to the network
        command = [program, "-nostdin", "-v", "error", "-threads", "1", "-vn", "-sn", "-dn",
                   "-protocol_whitelist", "file,pipe", "-i", f"file:{path}", "-map", "0:a:0",
                   "-f", "au", "-c:a", "pcm_f32be", "-"]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        try:
            header = self._bytes(24)
            if len(header) < 24:
                self._finish()
                raise BadAudio(path, "unreadable: ffmpeg finds no audio in it")
            magic, offset, _, encoding, rate, channels = struct.unpack(">4s5I", header)
            if magic != b".snd" or encoding != 6:
                raise BadAudio(path, "unreadable: ffmpeg wrote no AU file")
            self._bytes(offset - 24)
            self.sampling_rate, self.num_channels = rate, channels
        except BaseException:
            self.close()
            raise

    def _read(self, num: int) -> np.ndarray:
        width = 4 * self.num_channels
        data = self._bytes(num * width)
        if len(data) < num * width:
            self._finish()
        data = data[: len(data) // width * width]
        samples = np.frombuffer(data, ">f4").astype(np.float32)
        return samples.reshape(-1, self.num_channels)

    def _bytes(self, num: int) -> bytes:
        """The next bytes of the pipe; fewer only at its end."""
        parts, pipe = [], self._process.stdout
        while num > 0:
            if not select.select([pipe], [], [], STALLED_SECONDS)[0]:
                raise BadAudio(self.path, f"ffmpeg gave nothing for {STALLED_SECONDS:.0f} s")
            data = os.read(pipe.fileno(), min(num, 1 << 20))
            if not data:
                break
            parts.append(data)
            num -= len(data)
        return b"".join(parts)

    def _finish(self) -> None:
        """The pipe has ended: `BadAudio` unless ffmpeg was content."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read(2000).decode(errors="replace").strip().splitlines()
        if status or said:
            # "[in#0/mov @ 0x5623c3c39100] moov atom not found"
            said = [re.sub(r"^(\[[^\]]*\] *)+", "", line) for line in said]
            why = said[0] if said else f"exit status {status}"
            raise BadAudio(self.path, f"damaged or truncated: ffmpeg says: {why}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
