"""`WS /v1/audio/stream`: text in pieces, audio by sentence."""

import base64
import io
import json
import time

import numpy as np
import pytest
import soundfile
from served import FRONT_END, RATE, FakeStreamer, eventually, fake_audio, fake_server
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def talk(server, **options):
    url = server.url.replace("http", "ws", 1) + "v1/audio/stream"
    return connect(url, **options)


def send(socket, *messages: dict) -> None:
    for message in messages:
        socket.send(json.dumps(message))


def everything(socket) -> tuple[list[dict], bytes]:
    said, audio = [], b""
    try:
        for message in socket:
            if isinstance(message, bytes):
                audio += message
            else:
                said.append(json.loads(message))
    except ConnectionClosed:
        pass
    return said, audio


def pcm(text: str, seed: int, row: int) -> bytes:
    audio = fake_audio(FRONT_END.encode(text, None).tolist(), seed, row)[0].astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, audio, RATE, "PCM_16", format="WAV")
    return file.getvalue()[44:]


def test_sentences_are_said_as_they_complete():
    """However the text is cut; what is said of one does not wait for the next."""
    with fake_server() as (server, _):
        with talk(server) as socket:
            send(socket, {"type": "start", "seed": 5}, {"type": "text", "text": "Abba c"})
            assert json.loads(socket.recv()) | {"id": 0} == {
                "type": "ready", "id": 0, "sampling_rate": RATE, "channels": 1,
            }  # fmt: skip
            send(socket, {"type": "text", "text": "ab. "})
            assert json.loads(socket.recv(10)) == {"type": "sentence", "text": "Abba cab.", "at": 0}
            for c in "Dad bad. Fed":
                send(socket, {"type": "text", "text": c})
            send(socket, {"type": "flush"}, {"type": "flush"}, {"type": "text", "text": " ... "})
            send(socket, {"type": "text", "text": "Head"}, {"type": "end"})
            said, audio = everything(socket)
        texts = ["Abba cab.", "Dad bad.", "Fed"]
        assert [m["text"] for m in said if m["type"] == "sentence"][:2] == texts[1:]
        assert said[-1]["type"] == "done" and said[-1]["stop"] == "eos"
        parts = [pcm(text, 5, row) for row, text in enumerate(texts)]
        assert audio.startswith(b"".join(parts)) and len(audio) > len(b"".join(parts))
        assert said[-1]["seconds"] == len(audio) / 2 / RATE
        assert server.service.open_orders() == 0


def test_a_sentence_that_comes_while_another_begins_waits_for_its_end(monkeypatch):
    add = FakeStreamer.add

    def slowly(*args, **options):
        time.sleep(0.05)
        return add(*args, **options)

    monkeypatch.setattr(FakeStreamer, "add", slowly)
    texts = ["Abba cab.", "Dad bad.", "Bed."]
    with fake_server() as (server, streamer):
        with talk(server) as socket:
            send(socket, {"type": "start", "seed": 5})
            for text in texts:
                send(socket, {"type": "text", "text": text + " "})
                time.sleep(0.01)
            send(socket, {"type": "end"})
            said, audio = everything(socket)
    assert audio == b"".join(pcm(text, 5, row) for row, text in enumerate(texts))
    assert [piece["stop"] for piece in said[-1]["pieces"]] == ["eos"] * 3
    assert streamer.most == 1


@pytest.mark.parametrize(
    "messages,said,code",
    [
        ([b"1"], "messages are JSON, as text", 1008),
        (["nonsense"], "malformed", 1008),
        (['{"type": "text"}'], "Invalid enum value 'text'", 1008),
        (['{"type": "start", "voice": "ann"}'], "no voice 'ann'", 1008),
        (['{"type": "start", "speed": 2}'], "without rvqlm align", 1008),
        (['{"type": "start"}', '{"type": "shout"}'], "Invalid enum value 'shout'", 1008),
        (['{"type": "start"}', b"1"], "messages are JSON, as text", 1008),
        (['{"type": "start"}', '{"type": "text", "text": "xx. "}'], "no symbol for 'x'", 1008),
        (['{"type": "start"}', json.dumps({"type": "text", "text": "a" * 99})], "99 char", 1008),
    ],
)
def test_what_is_wrong_is_said(talking, messages, said, code):
    with talk(talking) as socket:
        for message in messages:
            socket.send(message)
        errors, _ = everything(socket)
        assert said in errors[-1]["error"]["message"] and socket.close_code == code


@pytest.fixture(scope="module")
def talking():
    with fake_server(max_text=50) as (server, _):
        yield server


def test_tokens_sites_and_those_who_say_nothing():
    with fake_server(token="s3cret", stall_seconds=0.3, idle_seconds=0.3) as (server, _):
        with pytest.raises(InvalidStatus, match="401"):
            talk(server)
        right = {"Authorization": "Bearer s3cret"}
        with pytest.raises(InvalidStatus, match="403"):
            talk(server, additional_headers=right, origin="https://example.org")
        coded = base64.urlsafe_b64encode(b"s3cret").decode().rstrip("=")
        with talk(server, subprotocols=["rvqlm", f"rvqlm.token.{coded}"]) as socket:
            assert socket.subprotocol == "rvqlm"
            said, _ = everything(socket)
            assert "the first message did not come" in said[-1]["error"]["message"]
        with talk(server, additional_headers=right) as socket:
            send(socket, {"type": "start"})
            said, _ = everything(socket)
            assert "nothing to be said for too long" in said[-1]["error"]["message"]


def test_a_client_that_leaves_or_reads_slowly_holds_nobody():
    """A slot is free at once; what is not taken is not made beyond a bound."""
    with fake_server(slots=1, ahead_seconds=0.2, step_seconds=0.001) as (server, streamer):
        slow = talk(server, max_queue=1, close_timeout=0.1)
        send(slow, {"type": "start"}, *[{"type": "text", "text": "Abba cab dad. "}] * 20)
        with talk(server) as other:
            send(other, {"type": "start", "seed": 1}, {"type": "text", "text": "Bed."})
            send(other, {"type": "end"})
            _, audio = everything(other)
            assert audio == pcm("Bed.", 1, 0)
        slow.close()
        eventually(lambda: not (server.service.open_orders() or streamer.running))
