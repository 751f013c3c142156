import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, Recording
from lhotse.cut import MultiCut

from rvqlm.data.audio import BadAudio, load_cut, load_file, load_new_file, prepare, recording_cut
from rvqlm.errors import UserError


def tone(seconds=0.5, rate=16000, hz=440.0, channels=1):
    t = np.arange(int(seconds * rate)) / rate
    levels = 0.5 / (1 + np.arange(channels))
    return (np.sin(2 * np.pi * hz * t)[:, None] * levels).astype(np.float32)


def save(path, audio, rate=16000, **kwargs):
    soundfile.write(path, audio, rate, **{"subtype": "FLOAT", **kwargs})
    return str(path)


def reason(*args, **kwargs):
    with pytest.raises(BadAudio) as e:
        load_file(*args, **kwargs)
    assert isinstance(e.value, UserError) and str(e.value) == f"{args[0]}: {e.value.reason}"
    return e.value.reason


def test_samples_pass_unchanged(tmp_path):
    audio = tone()
    loaded = load_file(save(tmp_path / "a.wav", audio), 16000)
    assert loaded.dtype == np.float32 and loaded.shape == (1, 8000) and loaded.flags.c_contiguous
    assert np.array_equal(loaded[0], audio[:, 0])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_time_and_tone(tmp_path, rate):
    loaded = load_file(save(tmp_path / "a.wav", tone(rate=rate), rate), 16000)
    assert abs(loaded.shape[1] - 8000) <= 1
    inner = slice(500, 7500)
    n = min(loaded.shape[1], 8000)
    assert np.abs(loaded[0, :n][inner] - tone()[:n, 0][inner]).max() < 2e-3


def test_channels_are_averaged_or_refused(tmp_path):
    stereo = tone(channels=2)
    path = save(tmp_path / "a.wav", stereo)
    assert np.allclose(load_file(path, 16000)[0], stereo.mean(1), atol=1e-7)
    assert "2 channels where 1 are wanted" in reason(path, 16000, 1, "refuse")
    assert np.array_equal(load_file(path, 16000, channels=2), stereo.T)
    mono = save(tmp_path / "m.wav", tone())
    assert "1 channels where 2 are wanted" in reason(mono, 16000, 2)


def test_what_is_wrong_with_a_file(tmp_path):
    assert reason(tmp_path / "no.wav", 16000) == "no such file"
    empty = tmp_path / "empty.wav"
    empty.touch()
    assert reason(empty, 16000) == "empty file"
    text = tmp_path / "text.wav"
    text.write_text("this is not audio")
    assert reason(text, 16000).startswith("unreadable: ")
    assert "text.wav" not in reason(text, 16000)
    assert "zero-length" in reason(save(tmp_path / "zero.wav", tone()[:0]), 16000)
    short = save(tmp_path / "short.wav", tone()[:1], 16000)
    assert load_file(short, 16000).shape == (1, 1)
    assert "zero-length audio after resampling" in reason(short, 4000)
    for value in (np.nan, np.inf, -np.inf):
        audio = tone()
        audio[77] = value
        assert "NaN or infinite" in reason(save(tmp_path / "nan.wav", audio), 16000)
    loud = save(tmp_path / "loud.wav", tone() * 32767)
    assert "integers stored as floats" in reason(loud, 16000)
    torn = tmp_path / "torn.flac"
    soundfile.write(torn, tone()[:, 0], 16000)
    torn.write_bytes(torn.read_bytes()[:30])
    assert reason(torn, 16000).startswith(("unreadable", "zero-length"))


def recording(path, rate=16000, num=8000, channels=(0,), **kwargs):
    return Recording(
        id="r",
        sources=[AudioSource("file", list(channels), str(path))],
        sampling_rate=rate,
        num_samples=num,
        duration=num / rate,
        **kwargs,
    )


def test_a_new_file_becomes_a_cut(tmp_path):
    path = save(tmp_path / "a.wav", tone(rate=8000, channels=2), 8000)
    audio, cut = load_new_file(path, "x", 16000)
    assert audio.shape == (1, 8000)
    assert isinstance(cut, MultiCut) and cut.id == cut.recording.id == "x"
    assert (cut.duration, cut.sampling_rate, cut.channel) == (0.5, 8000, [0, 1])
    assert np.allclose(load_cut(cut, 16000), audio)
    assert np.allclose(cut.load_audio().mean(0), load_file(path, 8000)[0], atol=1e-6)


def test_cuts_read_their_part_and_channel(tmp_path):
    stereo = tone(channels=2)
    rec = recording(save(tmp_path / "a.wav", stereo), channels=(0, 1))
    cut = MonoCut("c", 0.1, 0.25, 1, recording=rec)
    assert np.array_equal(load_cut(cut, 16000)[0], stereo[1600:5600, 1])
    assert np.array_equal(load_cut(cut, 16000), cut.load_audio())
    whole = recording_cut(rec)
    assert np.allclose(load_cut(whole, 16000)[0], stereo.mean(1), atol=1e-7)


def test_manifests_that_do_not_fit_their_files(tmp_path):
    path = save(tmp_path / "a.wav", tone())

    def why(rec, **fields):
        with pytest.raises(BadAudio) as e:
            load_cut(MonoCut("c", **{"start": 0, "duration": rec.duration, "channel": 0, **fields},
                             recording=rec), 16000)  # fmt: skip
        return e.value.reason

    assert "16000 Hz, its manifest says 8000" in why(recording(path, rate=8000, num=4000))
    assert "8000 samples fewer" in why(recording(path, num=16000))
    assert "zero-length" in why(recording(path, num=99999), start=2.0, duration=0.5)
    assert "the file has fewer" in why(recording(path, channels=(0, 1)), channel=1)
    assert load_cut(recording_cut(recording(path, num=8100)), 16000).shape == (1, 8000)  # mp3s
    with pytest.raises(BadAudio, match="without a recording"):
        load_cut(MonoCut("c", 0, 1, 0), 16000)


def test_what_is_not_a_plain_file_goes_through_lhotse(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    command = Recording("r", [AudioSource("command", [0], f"cat {path}")], 16000, 8000, 0.5)
    assert np.allclose(load_cut(recording_cut(command), 16000)[0], tone()[:, 0])
    quiet = recording_cut(recording(path)).perturb_volume(0.5)
    assert np.allclose(load_cut(quiet, 16000)[0], tone()[:, 0] / 2, atol=1e-6)
    broken = Recording("r", [AudioSource("command", [0], "false")], 16000, 8000, 0.5)
    with pytest.raises(BadAudio, match="unreadable"):
        load_cut(recording_cut(broken), 16000)


def test_prepare_does_not_touch_its_input():
    audio = tone(channels=2)
    before = audio.copy()
    prepare(audio, 16000, 8000, 1, "average", "x")
    assert np.array_equal(audio, before)
