"""Where audio goes that is heard while it is made."""

import io
import sys
import types

import pytest
import soundfile
import torch

from rvqlm.errors import UserError
from rvqlm.inference.sinks import loudspeaker, pipe


def pieces(channels: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list((1.2 * torch.rand(channels, 1000) - 0.5).split([1, 400, 599], 1))


class Pipe(io.RawIOBase):
    """Takes bytes and can't be gone back in."""

    def __init__(self):
        self.sent, self.flushed = b"", b""

    def write(self, data):
        self.sent += data

    def flush(self):
        self.flushed = self.sent


@pytest.mark.parametrize("channels", [1, 2])
def test_a_pipe_gets_what_a_wav_has(tmp_path, channels):
    audio = pieces(channels)
    soundfile.write(tmp_path / "a.wav", torch.cat(audio, 1).clamp(-1, 1).T.numpy(), 8000)
    plain, wav = Pipe(), Pipe()
    for file, form in ((plain, "pcm"), (wav, "wav")):
        with pipe(file, form, 8000, channels) as write:
            for piece in audio:
                write(piece)
                assert file.flushed == file.sent  # each at once
    whole = (tmp_path / "a.wav").read_bytes()
    assert whole[44:] == plain.sent and wav.sent[44:] == plain.sent
    (tmp_path / "b.wav").write_bytes(wav.sent)  # of a length that its header does not know
    read, rate = soundfile.read(tmp_path / "b.wav", dtype="int16", always_2d=True)
    wanted, _ = soundfile.read(tmp_path / "a.wav", dtype="int16", always_2d=True)
    assert rate == 8000 and (read == wanted).all()


def test_the_loudspeaker_plays_all(monkeypatch):
    played, calls = [], []

    class OutputStream:
        def __init__(self, rate, channels, dtype):
            calls.append((rate, channels, dtype))
            self.write = played.append

        def start(self):
            calls.append("start")

        def stop(self):
            calls.append("stop")

        def abort(self):
            calls.append("abort")

        def close(self):
            calls.append("close")

    module = types.SimpleNamespace(OutputStream=OutputStream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    audio = pieces(2)
    with loudspeaker(8000, 2) as write:
        for piece in audio:
            write(piece)
    assert calls == [(8000, 2, "float32"), "start", "stop", "close"]
    heard = torch.cat([torch.from_numpy(p) for p in played])
    assert torch.equal(heard.T, torch.cat(audio, 1).clamp(-1, 1))
    with pytest.raises(KeyError), loudspeaker(8000, 2):
        raise KeyError
    assert calls[-2:] == ["abort", "close"]


def test_without_a_loudspeaker_it_is_said_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match=r"pip install 'rvqlm\[play\]'"), loudspeaker(8000, 1):
        pass

    class Error(Exception):
        pass

    def nothing(*_, **__):
        raise Error("no default device")

    module = types.SimpleNamespace(OutputStream=nothing, PortAudioError=Error)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(UserError, match=r"no loudspeaker \(.*no default device"):
        with loudspeaker(8000, 1):
            pass
