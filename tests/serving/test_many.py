"""Many clients, bad clients, a failing model, the end: nobody's trouble is another's."""

import asyncio
import contextlib
import gc
import http.client
import io
import json
import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
import tiny_codecs
import torch
from served import TEXT, eventually, fake_server, running

from rvqlm.codecs.pretrained import from_model
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.inference.stream import Streamer
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.serving.config import Door, Limits
from rvqlm.serving.metrics import Metrics
from rvqlm.serving.served import Served
from rvqlm.serving.worker import Worker, declare

LETTERS = "abcdefgh"
MANY = httpx.Limits(max_connections=100)


def request(port: int, close: bool = True, **fields) -> bytes:
    """A POST as it is sent."""
    body = json.dumps({"response_format": "wav", "stream": True, **fields}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head += "Connection: close\r\n" if close else ""
    return head.encode() + b"\r\n" + body


def speak(server, text: str, seed: int = 0, **fields) -> httpx.Response:
    asked = {"input": text, "seed": seed, "response_format": "wav", **fields}
    return httpx.post(server.url + "v1/audio/speech", json=asked, timeout=120)


def held() -> float:
    """MB of memory, now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def test_a_hundred_at_once_get_what_each_gets_alone():
    """By a tiny model, in 8 slots: none lost, none mixed up, memory where it was."""
    torch.manual_seed(0)
    codec = from_model(tiny_codecs.dac(), "tiny-dac")
    shape = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    model = CodecLM(CodecLMConfig(**shape), codec.info, {"text": TEXT}).eval()
    for parameter in model.parameters():  # so that a text makes a difference
        torch.nn.init.normal_(parameter, std=0.2)
    texts = [a + b + a for a in LETTERS for b in LETTERS]
    jobs = [(texts[n % 64], n) for n in range(100)]

    limits, metrics = Limits(slots=8, queue=100, max_seconds=0.016), Metrics()
    declare(metrics)
    rate, sampling = codec.info.sampling_rate, SamplingConfig(top_k=20)
    worker = Worker("tiny", lambda: Streamer(model, codec, 8), rate, limits, metrics)
    worker.start()
    served = Served("tiny", model, codec, worker, limits, {}, sampling=sampling)
    with running({"tiny": served}, Door(), limits, metrics) as server:
        with ThreadPoolExecutor(100) as clients, httpx.Client(timeout=120, limits=MANY) as client:

            def ask(job: tuple[str, int]) -> httpx.Response:
                asked = {"input": job[0], "seed": job[1], "response_format": "wav", "stream": True}
                return client.post(server.url + "v1/audio/speech", json=asked)

            first = [*clients.map(ask, jobs[:16])]  # what is made once is there
            before = held()
            answers = [*clients.map(ask, jobs)]
            assert held() - before < 40
        assert [a.status_code for a in first + answers] == [200] * 116
        assert server.service.open_orders() == 0 and worker._streams.free == 8

    got = {job: np.frombuffer(a.content[44:], np.int16) for job, a in zip(jobs, answers)}
    assert len({audio.tobytes() for audio in got.values()}) > 95
    for job in jobs[::9]:
        prompts = read_prompts(PromptArgs(), ConditionArgs(text=job[:1]), model, codec, 16, 0)
        output = OutputArgs(seconds=limits.max_seconds, seed=job[1])
        (alone,) = generate(model, codec, SampleRequest(prompts, output, sampling), {})
        file = io.BytesIO()
        soundfile.write(file, alone.audio[0].numpy().clip(-1, 1), rate, "PCM_16", format="WAV")
        wanted = np.frombuffer(file.getvalue()[44:], np.int16)
        assert len(got[job]) == len(wanted) > 0, job
        assert np.abs(got[job].astype(int) - wanted).max() <= 1, job  # 16 bits, rounded


def test_a_full_queue_says_when_to_come_back():
    with fake_server(slots=1, queue=2, step_seconds=0.01) as (server, streamer):
        with ThreadPoolExecutor(8) as clients:
            answers = [*clients.map(lambda n: speak(server, "abba" * 2, n), range(8))]
        refused = [a for a in answers if a.status_code == 429]
        assert len(refused) >= 1 and streamer.most == 1
        assert {a.status_code for a in answers} == {200, 429}
        assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert speak(server, "a").status_code == 200


def test_a_late_request_does_not_wait_for_others():
    with fake_server(slots=2, step_seconds=0.005) as (server, _):
        with ThreadPoolExecutor(2) as clients:
            long = clients.submit(speak, server, "abba" * 40)
            eventually(lambda: server.service.open_orders() == 1)
            assert speak(server, "ab").status_code == 200
            assert not long.done()
            assert long.result().status_code == 200


@contextlib.contextmanager
def open_stream(server, text: str, **fields):
    """A connection on which audio has begun to arrive."""
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request(server.port, input=text, **fields))
        client.recv(10)
        yield client


LONG = "abba" * 500


@pytest.mark.parametrize("way", ["closed", "reset", "half-closed"])
def test_a_client_that_goes_frees_its_slot(way):
    with fake_server(slots=1, step_seconds=0.002) as (server, streamer):
        with open_stream(server, LONG) as client:
            assert streamer.running
            if way == "half-closed":
                client.shutdown(socket.SHUT_WR)
            elif way == "reset":
                linger = b"\1\0\0\0\0\0\0\0"
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.close()
            else:
                client.close()
            eventually(lambda: streamer.removed)
        assert speak(server, "ab").status_code == 200
        eventually(lambda: not server.service.open_orders())
        assert 'reason="left"' in server.service.metrics.text()


def test_who_leaves_while_waiting_is_not_served():
    with fake_server(slots=1, step_seconds=0.002) as (server, streamer):
        with open_stream(server, LONG):
            with socket.create_connection(("127.0.0.1", server.port)) as waiting:
                waiting.sendall(request(server.port, input="dad"))
                eventually(lambda: server.service.open_orders() == 2)
            eventually(lambda: server.service.open_orders() == 1)
            assert len(streamer.running) == 1


def test_a_client_that_stops_reading_is_let_go_and_holds_nobody():
    options = {"slots": 2, "stall_seconds": 0.5, "max_text": 20_000, "max_seconds": 3000}
    with fake_server(**options) as (server, _):
        with open_stream(server, "abba" * 3000):  # more than systems keep for a socket
            assert speak(server, "ab").status_code == 200
            eventually(lambda: not server.service.open_orders())
        assert 'reason="stalled"' in server.service.metrics.text()


def test_a_slow_reader_gets_everything():
    with fake_server(slots=1, stall_seconds=5) as (server, _):
        text = "abba" * 150
        whole = speak(server, text, stream=True).content
        assert len(whole) > 700_000
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = {"input": text, "seed": 0, "response_format": "wav", "stream": True}
        connection.request("POST", "/v1/audio/speech", json.dumps(body))
        answer, got = connection.getresponse(), b""
        while part := answer.read(20_000):
            got += part
            time.sleep(0.01)
        assert got == whole


def test_a_bug_in_the_middle_ends_those_it_concerns():
    """Their answers end without an end; others, and those who come after, are served."""
    with fake_server(slots=2, step_seconds=0.002) as (server, streamer):
        with open_stream(server, LONG) as client:
            streamer.break_at = streamer.steps + 5
            got = b""
            while part := client.recv(65536):
                got += part
            assert got and not got.endswith(b"0\r\n\r\n")
        streamer.running.clear()
        streamer.break_at = streamer.steps + 3
        assert speak(server, LONG).status_code == 500  # nothing was sent yet
        streamer.running.clear()
        assert speak(server, "ab").status_code == 200


def test_stopping_lets_what_runs_end_and_cuts_what_does_not(capfd):
    with fake_server(slots=2, step_seconds=0.005) as (server, _):
        answers = []
        with open_stream(server, LONG) as endless:
            short = threading.Thread(target=lambda: answers.append(speak(server, "abba" * 5)))
            short.start()
            eventually(lambda: server.service.open_orders() == 2)
            stopping = threading.Thread(target=lambda: server.stop(grace=1.5))
            stopping.start()
            eventually(lambda: server.service.stopping)
            with contextlib.suppress(httpx.TransportError):  # it may be gone already
                assert httpx.get(server.url + "healthz").status_code == 503
                assert speak(server, "ab").status_code == 503
            short.join()
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while part := endless.recv(65536):
                    got += part
            assert got and not got.endswith(b"0\r\n\r\n")
            stopping.join()
        assert answers[0].status_code == 200
    assert "1 request cut off" in capfd.readouterr().err


def test_text_by_loops_of_the_event_loop_only():
    """An order belongs to the loop that opened it."""
    with fake_server() as (server, _):
        worker = server.service.models["tiny"].worker
        with pytest.raises(RuntimeError):
            worker.open()
        assert worker.count() == 0

        async def opened():
            with worker.open() as order:
                order.close()
                return await order.next()

        assert asyncio.run(opened()) is None
