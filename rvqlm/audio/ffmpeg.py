"""Decoding by an ffmpeg program, for what libsndfile cannot read: M4A, AAC, WMA, WebM, and what is
damaged."""

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

INSTALL = "install it or pip install imageio-ffmpeg"

_KNOW_THEIR_LENGTH = ("mov", "matroska", "asf")
"""Containers whose length is written in them; of others ffmpeg guesses it from the bit rate."""

_DECODING = "\n[info] Output #0"
"""What ffmpeg writes when it begins to decode; errors before that may be those of pictures."""


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
    """Through the pipe of an ffmpeg process, which writes an AU file of float32.

    span: bytes [start, end) of the file; None for all. rate: to bring it to; None for its own. What
    ffmpeg complains of while it decodes ends up in `notes`: it goes on to the end as well as it
    can.
    """

    def __init__(self, path: str, span: tuple[int, int] | None = None, rate: int | None = None):
        self.path, self.num_samples, self.notes = path, None, []
        self.promised: int | None = None
        program = find_ffmpeg()
        if program is None:
            raise BadAudio(path, f"{os.path.splitext(path)[1]} needs ffmpeg: {INSTALL}")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe could fill up and block
        # `file:` keeps names with colons and leading dashes from being read as something else; a
        # playlist in disguise must not reach out to the network
        url = f"file:{path}"
        if span is not None:
            url = f"subfile,,start,{span[0]},end,{span[1]},,:{url}"
        command = [program, "-nostdin", "-hide_banner", "-nostats", "-v", "level+info",
                   "-threads", "1", "-vn", "-sn", "-dn",
                   "-protocol_whitelist", "file,subfile,pipe", "-i", url, "-map", "0:a:0",
                   "-af", "asetpts=N/SR/TB",  # where time jumps, as in chains, no sample is lost
                   *(["-ar", str(rate)] if rate else []),
                   "-f", "au", "-c:a", "pcm_f32be", "-"]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors
        )
        try:
            header = self._bytes(24)
            if len(header) < 24:
                self._process.wait()
                why = self._complaints(self._said()) or ["it finds no audio"]
                raise BadAudio(path, f"unreadable: ffmpeg says: {why[0]}")
            magic, offset, _, encoding, rate, channels = struct.unpack(">4s5I", header)
            if magic != b".snd" or encoding != 6:
                raise BadAudio(path, "unreadable: ffmpeg wrote no AU file")
            self._bytes(offset - 24)
            self.sampling_rate, self.num_channels = rate, channels
            self._promises(self._said())
        except BaseException:
            self.close()
            raise

    def _promises(self, said: str) -> None:
        """What the container tells of its length, and of what is left out."""
        said = said.partition(_DECODING)[0]
        container = re.search(r"^\[info\] Input #0, (\w+)", said, re.M)
        streams = re.findall(r"^\[info\]\s+Stream #0:\d+.*?: (Audio|Video): (.*)", said, re.M)
        tracks = sum(kind == "Audio" for kind, _ in streams)
        if tracks > 1:
            self.notes.append(f"has {tracks} tracks of audio, of which the first is read")
        if any(kind == "Video" and "attached pic" not in about for kind, about in streams):
            return  # as long as its longest stream
        time = re.search(r"^\[info\]\s+Duration: (\d+):(\d+):([\d.]+)", said, re.M)
        if time and container and container[1] in _KNOW_THEIR_LENGTH:
            seconds = 3600 * int(time[1]) + 60 * int(time[2]) + float(time[3])
            self.promised = round(seconds * self.sampling_rate)

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
        """The pipe has ended: note what ffmpeg complained of since it began to decode."""
        status = self._process.wait()
        why = self._complaints(self._said().partition(_DECODING)[2])
        if status and not why:
            why = [f"exit status {status}"]
        note = f"damaged: ffmpeg says: {why[0]}" if why else None
        if note and note not in self.notes:
            self.notes.append(note)

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read(1 << 20).decode(errors="replace")

    def _complaints(self, said: str) -> list[str]:
        """Its errors, without the places in ffmpeg that they come from."""
        # "[in#0/mov @ 0x5623c3c39100] [error] moov atom not found"
        found = re.findall(
            r"^(?:\[[^\]]*\] )*?\[(?:error|fatal)\] (?:\[[^\]]*\] )*(.*)$", said, re.M
        )
        return [line.strip() for line in found if line.strip()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
