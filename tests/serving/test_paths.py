"""The paths of the server over real connections: OpenAI's form, formats, refusals, counts."""

import base64
import io
import json
import re
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from served import FRONT_END, RATE, fake_audio, fake_server

TEXT = "Abba cab."


@pytest.fixture(scope="module")
def server():
    with fake_server(max_text=60, max_seconds=2.0) as (made, _):
        yield made


def speak(server, **fields) -> httpx.Response:
    return httpx.post(server.url + "v1/audio/speech", json={"input": TEXT, **fields}, timeout=30)


def expected(text: str, seed: int, row: int = 0) -> np.ndarray:
    """As 16-bit PCM."""
    audio = fake_audio(FRONT_END.encode(text, None).tolist(), seed, row)[0]
    file = io.BytesIO()
    soundfile.write(file, np.clip(audio, -1, 1).astype(np.float32), RATE, "PCM_16", format="WAV")
    return np.frombuffer(file.getvalue()[44:], np.int16)


def test_the_openai_client_works_unchanged(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "v1", api_key="none", max_retries=0)
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "rvqlm"
    speech = client.audio.speech
    asked = {"model": "tiny", "voice": "default", "input": TEXT}
    made = speech.create(**asked).read()  # MP3
    assert soundfile.info(io.BytesIO(made)).samplerate == RATE
    whole = speech.create(**asked, response_format="wav", extra_body={"seed": 4}).read()
    audio, rate = soundfile.read(io.BytesIO(whole), dtype="int16")
    assert rate == RATE and np.array_equal(audio, expected(TEXT, 4))
    with speech.with_streaming_response.create(**asked, response_format="pcm") as answer:
        pcm = b"".join(answer.iter_bytes())
    assert len(pcm) == pytest.approx(2 * 24_000 * len(expected(TEXT, 4)) / RATE, rel=0.02)
    with pytest.raises(openai.BadRequestError, match="no voice 'alloy'; there are default"):
        speech.create(**{**asked, "voice": "alloy"})
    with pytest.raises(openai.NotFoundError, match="no model 'tts-1'; there are tiny"):
        speech.create(**{**asked, "model": "tts-1"})


def test_the_documentations_example_works(server, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    for theirs, ours in [("http://127.0.0.1:8000/", server.url), ("mine", "tiny")]:
        assert theirs in code
        code = code.replace(theirs, ours)
    exec(compile(code.replace("Good morning.", TEXT), "serving.md", "exec"), {})
    assert soundfile.read("good-morning.wav")[1] == RATE


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "opus"])
def test_formats_whole_and_streamed(server, name):
    """The same audio, but that the header of what is streamed cannot say how long it is."""
    whole = speak(server, response_format=name, stream=False, seed=1)
    flow = speak(server, response_format=name, stream=True, seed=1)
    assert "content-length" in whole.headers and "content-length" not in flow.headers
    audio, rate = soundfile.read(io.BytesIO(whole.content))
    assert rate == RATE and len(audio) == len(expected(TEXT, 1))
    if name == "wav":
        assert flow.content[44:] == whole.content[44:] == expected(TEXT, 1).tobytes()
        assert flow.content[40:44] == b"\xff" * 4
    if name == "flac":  # of the header only what counts samples differs
        assert flow.content[42:] == whole.content[42:]


def test_events(server):
    answer = speak(server, response_format="pcm", stream_format="sse", seed=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line]
    audio = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert audio == speak(server, response_format="pcm", seed=2).content
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert events[-1]["type"] == "speech.audio.done" and events[-1]["stop"] == "eos"


def test_a_result_is_described_to_who_made_it(server):
    answer = speak(server, seed=7)
    about = httpx.get(f"{server.url}v1/audio/results/{answer.headers['x-request-id']}").json()
    assert about["seed"] == 7 and about["text"] == TEXT and about["model"] == "tiny"
    assert about["seconds"] == len(expected(TEXT, 7)) / RATE and about["stop"] == "eos"
    assert httpx.get(f"{server.url}v1/audio/results/nobodys").status_code == 404
    drawn = {speak(server).headers["x-request-id"] for _ in range(2)}
    seeds = [httpx.get(f"{server.url}v1/audio/results/{id}").json()["seed"] for id in drawn]
    assert len(set(seeds)) == 2


def test_no_more_audio_than_asked_for(server):
    short = speak(server, response_format="wav", seconds=0.1, seed=1)
    assert short.content[44:] == expected(TEXT, 1)[: RATE // 10].tobytes()
    about = httpx.get(f"{server.url}v1/audio/results/{short.headers['x-request-id']}").json()
    assert about["stop"] == "length" and about["seconds"] == 0.1
    most = speak(server, response_format="wav", input="Abba cab " * 6, seconds=50)
    assert len(most.content) == 44 + 2 * 2 * RATE  # the server's limit


@pytest.mark.parametrize(
    "fields,status,said",
    [
        ({"input": "..."}, 400, "no word in it"),
        ({"input": "Abba x"}, 400, "no symbol for 'x'"),
        ({"input": "a" * 61}, 400, "61 characters, at most 60"),
        ({"input": "gag"}, 400, "the model does not say this"),
        ({"input": 3}, 400, "Expected `str`"),
        ({"speed": 2}, 400, "trained without rvqlm align"),
        ({"speed": 9}, 400, "<= 4"),
        ({"instructions": "Whisper"}, 400, "follows none"),
        ({"response_format": "aac"}, 400, "ask for wav, flac, mp3, opus, pcm"),
        ({"response_format": "doc"}, 400, "Invalid enum value 'doc'"),
        ({"temperature": -1}, 400, ">= 0"),
        ({"colour": "red"}, 400, "unknown field `colour`"),
        ({"voice": {"id": "ann"}}, 400, "no voice 'ann'"),
        ({"input": "a" * 200_000}, 413, "bytes is not taken"),
    ],
)
def test_mistakes_are_said_in_openais_form(server, fields, status, said):
    answer = speak(server, **fields)
    error = answer.json()["error"]
    assert answer.status_code == status and said in error["message"], error
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_mistakes(server):
    url = server.url + "v1/audio/speech"
    for body in (b"", b"{", b"[" * 10_000, b'{"input": "\xff"}', b"null"):
        answer = httpx.post(url, content=body)
        assert answer.status_code == 400 and "message" in answer.json()["error"]
    assert httpx.get(url).status_code == 405 and "error" in httpx.get(url).json()
    assert httpx.get(server.url + "nowhere").json()["error"]["message"] == "Not Found"
    with fake_server(text=False) as (mute, _):
        error = speak(mute).json()["error"]["message"]
        assert "does not speak" in error and "continuation" in error


def test_a_token_is_wanted_where_there_is_one():
    with fake_server(token="s3cret") as (server, _):
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            answer = httpx.get(server.url + "v1/models", headers=given)
            assert answer.status_code == 401, given
            assert answer.json()["error"]["code"] == "invalid_api_key"
        right = {"Authorization": "Bearer s3cret"}
        assert httpx.get(server.url + "v1/models", headers=right).status_code == 200
        assert httpx.get(server.url + "metrics").status_code == 401
        assert httpx.get(server.url + "healthz").status_code == 200
        assert httpx.get(server.url).status_code == 200


def test_pages_of_other_sites_cannot_use_it(server):
    url = server.url + "v1/models"
    assert httpx.get(url, headers={"Origin": server.url.rstrip("/")}).status_code == 200
    assert httpx.get(url, headers={"Origin": "https://example.org"}).status_code == 403
    # a name of theirs that leads to this address
    theirs = {"Host": "example.org", "Origin": "http://example.org"}
    assert httpx.get(url, headers=theirs).status_code == 403
    assert httpx.get(url, headers={"Host": f"localhost:{server.port}"}).status_code == 200


def test_what_is_counted(server):
    speak(server)
    speak(server, voice="nobody")
    lines = httpx.get(server.url + "metrics").text.splitlines()
    assert [
        n for n in lines if n[0] != "#" and not re.fullmatch(r"\w+(\{.*\})? [\d.e+-]+", n)
    ] == []
    values = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
    for status in (200, 400):
        path = f'rvqlm_requests_total{{path="/v1/audio/speech",status="{status}"}}'
        assert int(values[path]) > 0
    model = '{model="tiny"}'
    assert values["rvqlm_slots" + model] == "8" and values["rvqlm_slots_busy" + model] == "0"
    assert values["rvqlm_open_requests" + model] == "0"
    first = int(values["rvqlm_first_audio_seconds_count" + model])
    infinite = 'rvqlm_first_audio_seconds_bucket{model="tiny",le="+Inf"}'
    assert first > 0 and int(values[infinite]) == first
    assert float(values["rvqlm_audio_seconds_total" + model]) > 0
