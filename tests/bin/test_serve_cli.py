"""`rvqlm serve` as a user starts and stops it: one process, one line, one mistake."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import soundfile
import tiny_codecs
import torch
from saved_models import save_model
from served import TEXT

import rvqlm.bin.main
from rvqlm.codecs.registry import load_codec
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An experiment, and a folder with a voice and a file that is none."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    shape = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": ("text",)}
    info = load_codec("spectral", num_codebooks=2).info
    model = CodecLM(CodecLMConfig(**shape), info, {"text": TEXT})
    torch.nn.init.normal_(model.heads.classifiers)  # in 8 bits they draw other codes
    save_model(model, folder / "exp/mine/best.pt")
    (folder / "voices").mkdir()
    soundfile.write(folder / "voices/ann.wav", tiny_codecs.noise(16000).numpy(), 16000)
    (folder / "voices/ann.txt").write_text("Abba cab.")
    (folder / "voices/bad.wav").write_text("no audio")
    return folder


def get(url: str, **asked) -> bytes:
    body = json.dumps(asked).encode() if asked else None
    headers = {"Authorization": "Bearer s3cret", "Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


INT8 = "--precision", "fp32", "--weights", "int8", "--kernels", "torch"


def generated(folder, text: str, *flags: str) -> np.ndarray:
    """What rvqlm generate makes, 16 bits."""
    words = ["--exp-dir", "exp/mine", "--text", text, "--seconds", "2", "--seed", "1", *flags]
    words += ["--out-dir", "made", "--overwrite"]
    assert rvqlm.bin.main.main(["generate", *words]) == 0
    (path,) = folder.glob("made/*.wav")
    audio = soundfile.read(path, dtype="int16")[0].astype(int)
    path.unlink()
    return audio


def looked_up(url: str) -> dict[str, tuple[int, int]]:
    """Of each part how often it was kept of a voice, and how often it was not."""
    text, found = get(url + "metrics").decode(), []
    for what in ("hits", "misses"):
        line = rf'^rvqlm_voice_cache_{what}_total{{model="mine",part="(\w+)"}} (\d+)$'
        found.append({part: int(n) for part, n in re.findall(line, text, re.M)})
    return {part: tuple(each.get(part, 0) for each in found) for part in {**found[0], **found[1]}}


def test_from_start_to_stop(folder, monkeypatch, request):
    """Its address is printed, a voice speaks as rvqlm generate of the same flags has it, SIGTERM in
    the middle of a stream says what it cuts."""
    words = ["--exp-dir", "exp/mine", "--voices", "voices", "--port", "0", "--grace", "0.2"]
    words += INT8
    process = subprocess.Popen(
        [sys.executable, "-m", "rvqlm.bin.main", "serve", *words, "--slots", "2"],
        cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "RVQLM_TOKEN": "s3cret"},
    )  # fmt: skip
    request.addfinalizer(process.kill)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"listening on (http://127.0.0.1:(\d+)/)", line):
            break
    url, port = found[1], int(found[2])
    assert any("voice bad is left out" in line for line in said), said
    assert any("mine: codec-lm of exp/mine, speaks, 1 voice" in line for line in said), said
    voices = json.loads(get(url + "v1/voices"))["data"]
    assert [v["id"] for v in voices] == ["default", "ann"]
    asked = {"input": "Abba.", "seconds": 0.3, "response_format": "wav", "seed": 1}
    default, ann = (get(url + "v1/audio/speech", **asked, voice=v) for v in ("default", "ann"))
    assert default[:4] == b"RIFF" and default != ann == get(
        url + "v1/audio/speech", **asked, voice="ann"
    )
    on = {**asked, "voice": "ann", "input": ""}
    first, again = (get(url + "v1/audio/continuation", **on) for _ in range(2))
    assert first == again != ann
    # behind a text the model has to read the voice anew, and the codec has not
    assert looked_up(url) == {"codec": (3, 1), "model": (1, 1)}
    monkeypatch.chdir(folder)
    prompted = generated(folder, "Abba cab. Abba.", "--prompt", "voices/ann.wav", *INT8)[16000:]
    alone = generated(folder, "Abba.", *INT8)
    as_floats = generated(folder, "Abba.", *INT8, "--weights", "float")
    for made, wanted in [(default, alone), (ann, prompted)]:
        audio = soundfile.read(io.BytesIO(made), dtype="int16")[0].astype(int)
        assert len(audio) == 4800 and np.abs(audio - wanted[:4800]).max() <= 1  # rounded
    assert np.abs(alone[:4800] - as_floats[:4800]).max() > 1
    (card,) = json.loads(get(url + "v1/models"))["data"]
    how = {name: card["rvqlm"][name] for name in ("precision", "weights", "kernels")}
    assert how == {"precision": "float32", "weights": "int8", "kernels": "torch"}
    soundfile.write("voices/ann.wav", tiny_codecs.noise(16000, seed=2).numpy(), 16000)
    assert first != get(url + "v1/audio/continuation", **on)
    assert looked_up(url) == {"codec": (3, 2), "model": (1, 2)}
    with socket.create_connection(("127.0.0.1", port)) as client:
        body = json.dumps({"input": "abba " * 400, "response_format": "pcm"}).encode()
        client.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        process.send_signal(signal.SIGTERM)
        got = b""
        try:
            while part := client.recv(65536):
                got += part
        except ConnectionResetError:
            pass
        assert not got.endswith(b"0\r\n\r\n")
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped: 1 request cut off" in rest
    assert "s3cret" not in "".join(said) + rest and "abba" not in rest.lower()


@pytest.mark.parametrize(
    "words,said",
    [
        ([], "--exp-dir"),
        (["--exp-dir", "nowhere"], "nowhere: no such experiment"),
        (["--exp-dir", "exp/mine", "--host", "0.0.0.0"], "give a --token or set RVQLM_TOKEN"),
        (["--exp-dir", "exp/mine", "--token", "a b"], "without spaces"),
        (["--exp-dir", "exp/mine", "exp/mine"], "two models are called mine"),
        (["--exp-dir", "exp/mine", "--model-names", "a", "b"], "2 names of 1 models"),
        (["--exp-dir", "exp/mine", "--voices", "nowhere"], "--voices nowhere: no such folder"),
        (["--exp-dir", "exp/mine", "--voices", "exp"], "no recording in it"),
        (["--exp-dir", "exp/mine", "--max-seconds", "0"], "--max-seconds 0.0: above 0"),
        (["--exp-dir", "exp/mine", "--host", "no such host"], "--host no such host"),
    ],
)
def test_mistakes_are_one_line_and_status_2(folder, monkeypatch, capsys, words, said):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RVQLM_TOKEN", raising=False)
    if words:
        words = [*words, "--port", "0"] if "--port" not in words else words
    try:
        status = rvqlm.bin.main.main(["serve", *words])
    except SystemExit as end:
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and said in error, error
    if words:
        assert error.strip().splitlines()[-1].startswith("rvqlm serve: error:")


def test_a_port_that_is_taken(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "--exp-dir", "exp/mine", "--port", str(port)]
        assert rvqlm.bin.main.main(words) == 2
    assert "Address already in use; give another, or --port 0" in capsys.readouterr().err
