"""Recordings that clients send to `POST /v1/audio/continuation`, good ones and hostile ones."""

import io
import json
import resource
import socket
import struct
import time
import wave
import zipfile

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from served import RATE, fake_server

PATH = "v1/audio/continuation"


@pytest.fixture(scope="module")
def server():
    with fake_server(
        text=False, max_upload_mb=1.0, max_upload_seconds=20.0, decode_seconds=5.0
    ) as (made, _):
        yield made


def send(server, data: bytes, name: str = "a.wav", **fields) -> httpx.Response:
    return httpx.post(server.url + PATH, files={"file": (name, data)}, data=fields, timeout=30)


def sound(seconds: float = 1.0, rate: int = RATE, format: str = "WAV", channels: int = 1) -> bytes:
    file = io.BytesIO()
    audio = 0.3 * np.sin(np.arange(round(seconds * rate)) / 9)
    soundfile.write(file, np.stack([audio] * channels, 1), rate, format=format)
    return file.getvalue()


def test_continues_an_upload(server):
    """Of any rate, format and name; what comes back depends on it, and on how much is given."""
    one = send(server, sound(), seed=1)
    assert one.status_code == 200 and one.headers["content-type"] == "audio/wav"
    audio, rate = soundfile.read(io.BytesIO(one.content))
    assert rate == RATE and len(audio) > 0
    again = send(server, sound(), name="../../etc/passwd.wav", seed=1)
    assert again.content == one.content
    kinds = [send(server, sound(format=f, rate=r), f"a.{f.lower()}") for f, r in
             (("FLAC", 44100), ("OGG", 24000), ("MP3", 16000))]  # fmt: skip
    assert [kind.status_code for kind in kinds] == [200] * 3
    stereo = send(server, sound(channels=2), seed=1, response_format="flac")
    assert stereo.status_code == 200
    about = httpx.get(f"{server.url}v1/audio/results/{one.headers['x-request-id']}").json()
    assert about["seed"] == 1 and about["stop"] == "eos"
    unprompted = httpx.post(server.url + PATH, json={"seed": 3})
    assert unprompted.status_code == 200


def riff(promised: int, data: bytes) -> bytes:
    """A WAV of one channel whose header promises so many bytes."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", promised, b"WAVE") + form + b"data" + (
        struct.pack("<I", promised) + data
    )  # fmt: skip


def silent_flac(hours: float) -> bytes:
    """Hours of silence in less than a megabyte."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 1000, 1, "PCM_16", format="FLAC") as out:
        out.write(np.zeros(round(hours * 3_600_000), np.int16))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(50_000_000))
    return file.getvalue()


def empty_wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
    return file.getvalue()


PLAYLIST = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
HOSTILE = {
    "text": (lambda: b"this is no audio" * 100, "a.wav", 400),
    "empty": (lambda: b"", "a.wav", 400),
    "no samples": (empty_wav, "a.wav", 400),
    "archive": (zipped, "a.wav", 400),
    "archive as m4a": (zipped, "a.m4a", 400),
    "playlist": (lambda: PLAYLIST, "a.m4a", 400),
    "hours of silence": (lambda: silent_flac(8), "a.flac", 413),
    "too long": (lambda: sound(25), "a.wav", 413),
    "too large": (lambda: bytes(1_200_000), "a.wav", 413),
    "tags in tags": (lambda: b"ID3\x04\0\0\0\0\0\0" * 30_000, "a.mp3", 400),
    "1 Hz": (lambda: sound(300, rate=1), "a.wav", 400),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_uploads_get_a_4xx_and_cost_little(server, kind):
    make, name, status = HOSTILE[kind]
    data = make()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    answer = send(server, data, name)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert "/tmp" not in error["message"] and "decoding it fails" not in error["message"]
    assert time.monotonic() - began < 20  # of which a slow machine needs few
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_header_that_claims_gigabytes_promises_nothing(server):
    """What is there is taken, as everywhere; memory follows that."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = send(server, riff(2_000_000_000, bytes(2000) + b"\1\2" * 8000), seed=1)
    assert answer.status_code in (200, 400)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert send(server, riff(2_000_000_000, b"")).status_code == 400


def test_forms_that_are_none(server):
    url = server.url + PATH
    junk = httpx.post(url, content=b"x" * 100, headers={"content-type": "multipart/form-data"})
    assert junk.status_code == 400 and "message" in junk.json()["error"]
    mistakes = [
        ({"data": {"file": "words"}}, "file: send the recording as a file"),
        ({"files": {"other": b"1"}}, "other: send the recording as `file`"),
        ({"data": {"seconds": "-1"}}, "`float` > 0"),
        ({"data": {"colour": "red"}}, "colour"),
        ({"data": {"voice": "ann"}}, "no voice 'ann'"),
        ({"data": {"input": "Abba."}}, "trained without text"),
        ({"files": {"file": sound()}, "data": {"voice": "default"}}, "a file or a voice"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, "a form or JSON"),
    ]
    for asked, said in mistakes:
        answer = httpx.post(url, **asked)
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], said
    deep = b"[" * 20_000
    answer = httpx.post(url, content=deep, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_what_does_not_come_or_end_is_not_waited_for():
    with fake_server(text=False, stall_seconds=0.3, max_upload_mb=1.0, decode_seconds=0.3) as (
        server,
        _,
    ):
        endless = b"\xff\xfb\x90\x00" + b"\xff\xfb\x91\x04\x05" * 180_000  # minutes of work
        answer = send(server, endless, "a.mp3")
        assert answer.status_code == 413 and "too long to decode" in answer.text
        head = f"POST /{PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        head += "Content-Type: application/json\r\n\r\n{"
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(head.encode())
            assert b" 408 " in slow.recv(1000)
        with socket.create_connection(("127.0.0.1", server.port)) as mute:
            mute.sendall(b"POST ")
            mute.settimeout(10)
            assert mute.recv(10) == b""
        chunked = b"Transfer-Encoding: chunked"
        with socket.create_connection(("127.0.0.1", server.port)) as long:
            long.sendall(head.encode().replace(b"Content-Length: 1000", chunked)[:-1])
            got = b""
            try:
                for _ in range(40):
                    long.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                got = long.recv(1000)
            except OSError:  # it hung up while we were still sending
                got = got or b" 413 "
            assert b" 413 " in got
        assert json.loads(httpx.get(server.url + "healthz").content) == {"status": "ok"}
