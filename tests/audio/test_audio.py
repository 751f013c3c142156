import numpy as np
import pytest
import soundfile
import soxr
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment
from lhotse.augmentation import ReverbWithImpulseResponse
from lhotse.cut import MultiCut
from loudness_of import measure

from rvqlm.audio import parts as audio_module
from rvqlm.audio import reader as audio_reader
from rvqlm.audio.items import Outside
from rvqlm.audio.load import load_cut, load_file, open_cut, open_file
from rvqlm.audio.parts import cut_blocks, recording_cut
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.reader import BadAudio
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError

INFO = CodecInfo("test", "0" * 16, 16000, 320, 2, 256)
STEREO = CodecInfo("test", "0" * 16, 16000, 320, 2, 256, channels=2)
REFUSE = AudioConfig(mono="refuse", stereo="refuse")


def streamed(stream):
    """All samples of a stream, and the cut that it makes of them."""
    return np.concatenate(list(stream.blocks()), axis=1), stream.cut


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


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000, 192000])
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
    assert "2 channels where 1 are wanted" in reason(path, 16000, 1, REFUSE)
    assert np.array_equal(load_file(path, 16000, channels=2), stereo.T)
    mono = save(tmp_path / "m.wav", tone())
    assert "1 channels where 2 are wanted" in reason(mono, 16000, 2, REFUSE)
    assert np.array_equal(load_file(mono, 16000, 2), np.repeat(tone().T, 2, axis=0))
    assert np.array_equal(load_file(path, 16000, 1, AudioConfig(mono="left"))[0], stereo[:, 0])
    assert np.array_equal(load_file(path, 16000, 1, AudioConfig(mono="right"))[0], stereo[:, 1])
    eight = tone(channels=8)
    path = save(tmp_path / "8.wav", eight)
    assert np.allclose(load_file(path, 16000)[0], eight.mean(1), atol=1e-7)
    assert np.array_equal(load_file(path, 16000, 1, AudioConfig(mono="right"))[0], eight[:, 1])
    assert "8 channels where 2 are wanted" in reason(path, 16000, 2)
    assert load_file(path, 16000, 8).shape == (8, 8000)


def test_channels_in_opposite_phase_are_no_silence(tmp_path):
    """Their average is; said for a file read in part, at other rates and within a cut too."""
    wave = tone(1.0)
    path = save(tmp_path / "a.wav", np.hstack([wave, -0.95 * wave]))
    assert "its channels are in opposite phase" in reason(path, 16000)
    assert "opposite phase" in reason(path, 8000, 1, max_samples=2000)
    assert "opposite phase" in reason(path, 8000, 1, AudioConfig(trim_silence=True, loudness=-23.0))
    with pytest.raises(BadAudio, match="give --mono left or --mono right"):
        load_cut(recording_cut(Recording.from_file(path)).truncate(offset=0.5), 16000)
    assert np.array_equal(load_file(path, 16000, 2), np.hstack([wave, -0.95 * wave]).T)
    assert np.array_equal(load_file(path, 16000, 1, AudioConfig(mono="left"))[0], wave[:, 0])
    rng = np.random.default_rng(0)
    fine = {  # unrelated, all but silent, and with one that is silent
        "wide": rng.uniform(-0.1, 0.1, (8000, 2)),
        "hush": np.array([[1, -1]] * 8000) / 32768,
        "left": np.hstack([wave, 0 * wave]),
        "inverse": np.hstack([wave, -0.7 * wave]),
    }
    for name, audio in fine.items():
        load_file(save(tmp_path / f"{name}.wav", audio), 16000)


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


def test_a_file_alone_is_told_apart_from_a_damaged_one(tmp_path):
    path, notes = tmp_path / "a.wav", []
    soundfile.write(path, tone(), 16000)
    load_file(path, 16000, notes=notes)
    assert not notes
    path.write_bytes(path.read_bytes()[:-1000])
    assert load_file(path, 16000, notes=notes).shape == (1, 7500)
    assert notes == ["cut short: 15000 of 16000 bytes of its audio are there"]
    notes.clear()
    load_file(path, 16000, max_samples=100, notes=notes)
    assert not notes  # what is used of it is whole


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
    stream = open_file(path, "x", INFO, AudioConfig())
    audio, cut = streamed(stream)
    assert stream.num_samples == 8000 and stream.ends_recording
    assert audio.shape == (1, 8000)
    assert isinstance(cut, MultiCut) and cut.id == cut.recording.id == "x"
    assert (cut.duration, cut.sampling_rate, cut.channel) == (0.5, 8000, [0, 1])
    assert np.array_equal(load_cut(cut, 16000), audio)
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
    behind = why(recording(path, num=99999), start=2.0, duration=0.5)
    assert behind == "begins at 2.00 s, the file ends at 0.50 s"
    assert "the file has fewer" in why(recording(path, channels=(0, 1)), channel=1)
    assert load_cut(recording_cut(recording(path, num=8100)), 16000).shape == (1, 8000)  # mp3s
    with pytest.raises(BadAudio, match="without a recording"):
        load_cut(MonoCut("c", 0, 1, 0), 16000)


def test_a_file_shorter_than_its_manifest_is_read_as_far_as_it_goes(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    segments = [SupervisionSegment("s", "r", 0.1, 0.8, text="a")]
    cut = MonoCut("c", 0.25, 0.75, 0, segments, recording=recording(path, num=16000))
    stream = open_cut(cut, INFO, AudioConfig())
    audio, made = streamed(stream)
    assert audio.shape == (1, 4000) and (made.start, made.duration) == (0.25, 0.25)
    assert stream.notes == ["has 8000 samples, its manifest says 16000; make the manifest anew"]
    assert np.array_equal(load_cut(made, 16000), audio) and stream.ends_recording
    # a file that has become longer is named as well, as the rest of it is not read
    stream = open_cut(recording_cut(recording(path, num=4000)), INFO, AudioConfig())
    assert streamed(stream)[0].shape == (1, 4000)
    assert "has 8000 samples, its manifest says 4000" in stream.notes[0]


def test_what_is_not_a_plain_file_goes_through_lhotse(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    command = Recording("r", [AudioSource("command", [0], f"cat {path}")], 16000, 8000, 0.5)
    trusting = AudioConfig(outside=Outside(allow_commands=True))
    assert np.array_equal(load_cut(recording_cut(command), 16000, 1, trusting)[0], tone()[:, 0])
    quiet = recording_cut(recording(path)).perturb_volume(0.5)
    assert np.allclose(load_cut(quiet, 16000)[0], tone()[:, 0] / 2, atol=1e-6)
    broken = Recording("r", [AudioSource("command", [0], "false")], 16000, 8000, 0.5)
    with pytest.raises(BadAudio, match="empty file"):
        load_cut(recording_cut(broken), 16000, 1, trusting)
    # two files as the channels of one recording, and lhotse's transforms on an odd file
    two = [AudioSource("file", [0], path), AudioSource("file", [1], path)]
    both = Recording("r", two, 16000, 8000, 0.5, channel_ids=[0, 1])
    assert np.array_equal(load_cut(recording_cut(both), 16000, 2), np.repeat(tone().T, 2, 0))
    data = bytearray((tmp_path / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    (tmp_path / "piped.wav").write_bytes(data)
    fast = recording_cut(recording(tmp_path / "piped.wav")).perturb_speed(2.0)
    assert load_cut(fast, 16000).shape == (1, 4000)


def outside_of(tmp_path):
    """Recordings whose audio does not lie in files, and what each would do if it were read."""
    path, ran = save(tmp_path / "a.wav", tone()), tmp_path / "ran"
    touch = f"touch {ran}; cat {path}"

    def one(kind, source, **fields):
        return Recording("r", [AudioSource(kind, [0], source)], 16000, 8000, 0.5, **fields)

    file = [AudioSource("file", [0], path), AudioSource("command", [1], touch)]
    room = ReverbWithImpulseResponse(rir=one("command", touch).to_dict()).to_dict()
    yield "a shell command", one("command", touch)
    yield "a shell command", one("url", f"pipe:{touch}")
    yield "a shell command", Recording("r", file, 16000, 8000, 0.5, channel_ids=[0, 1])
    yield "a shell command", one("file", path, transforms=[room])
    yield "--allow-urls only", one("url", "http://127.0.0.1:9/a.wav")
    yield "of type 'memory'", one("memory", "abc")
    yield "of type 'shar'", one("shar", "")
    yield "of type 'kaldi'", one("kaldi", "a.ark:12")


def test_nothing_but_files_is_read_unless_it_is_allowed(tmp_path):
    for why, rec in outside_of(tmp_path):
        for read in (lambda cut: load_cut(cut, 16000), lambda cut: list(cut_blocks(cut))):
            with pytest.raises(BadAudio, match=why):
                read(recording_cut(rec))
    assert not (tmp_path / "ran").exists()
    cut = recording_cut(next(outside_of(tmp_path))[1])
    assert len(list(cut_blocks(cut, Outside(allow_commands=True)))) == 1
    assert (tmp_path / "ran").exists()  # or else the above would be no test
    with pytest.raises(BadAudio, match="a shell command"):
        load_cut(cut, 16000, config=AudioConfig(outside=Outside(allow_urls=True)))
    # names of files are never taken for anything else
    for name in ("http://127.0.0.1:9/a.wav", "pipe:touch ran", "concat:a.wav|a.wav"):
        fast = recording_cut(recording(name)).perturb_speed(2.0)
        with pytest.raises(BadAudio, match="no such file"):
            load_cut(fast, 16000)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_a_stream_equals_the_whole(tmp_path, monkeypatch, rate):
    """However the file is cut into blocks: what soxr makes of it in one go."""
    rng = np.random.default_rng(rate)
    noise = rng.uniform(-0.5, 0.5, (30011, 2)).astype(np.float32)
    path = save(tmp_path / "a.wav", noise, rate)
    whole = soxr.resample(noise.mean(axis=1, dtype=np.float32), rate, 16000, quality="HQ")
    for size in (1009, 4096, 1 << 16):
        monkeypatch.setattr(audio_module, "BLOCK_SAMPLES", size)
        stream = open_file(path, "x", INFO, AudioConfig())
        blocks = list(stream.blocks())
        assert np.array_equal(np.concatenate(blocks, axis=1)[0], whole)
        assert stream.num_samples == len(whole) == round(30011 * 16000 / rate)
        assert len(blocks) > 1 or size > 30011
    assert np.array_equal(load_file(path, 16000)[0], whole)
    assert np.array_equal(load_file(path, 16000, max_samples=777)[0], whole[:777])


def test_memory_does_not_grow_with_the_file(tmp_path):
    """The largest block anywhere on the way is the same for five minutes and for a second."""
    seen = []

    for seconds in (6, 300):
        path = tmp_path / f"{seconds}.wav"
        with soundfile.SoundFile(path, "w", 44100, 1, subtype="PCM_16") as file:
            for _ in range(seconds):
                file.write(np.zeros(44100, np.int16))
        stream = open_file(str(path), "x", INFO, AudioConfig(loudness=-23.0))
        seen.append(max(block.shape[1] for block in stream.blocks()))
        assert stream.num_samples == seconds * 16000
    most = audio_reader.BLOCK_SAMPLES * 16000 / 44100
    assert max(seen) < 1.1 * most and abs(seen[0] - seen[1]) < 0.1 * most


def test_a_file_that_turns_bad_midway(tmp_path):
    audio = np.tile(tone(), (40, 1))
    audio[-5] = np.inf
    stream = open_file(save(tmp_path / "a.wav", audio), "x", INFO, AudioConfig())
    given = []
    with pytest.raises(BadAudio, match="NaN or infinite"):
        for block in stream.blocks():
            given.append(block)
    assert given and not hasattr(stream, "cut")


def silence_around(tmp_path, before=1600, after=4000, rate=16000):
    """A tone between silences; the last with a click that is too quiet to count."""
    audio = np.concatenate([np.zeros((before, 1)), tone(1.0, rate), np.zeros((after, 1))])
    audio[-2000] = 1e-3  # -60 dBFS
    return save(tmp_path / "s.wav", audio.astype(np.float32), rate)


def test_trimming(tmp_path):
    path = silence_around(tmp_path)
    config = AudioConfig(trim_silence=True)
    stream = open_file(path, "x", INFO, config)
    audio, cut = streamed(stream)
    # whole frames of 320 samples: the tone's first sample is 0, its frame begins at 1600
    assert (cut.start, cut.duration, cut.id) == (0.1, 1.0, "x") and audio.shape == (1, 16000)
    assert np.array_equal(audio[0], tone(1.0)[:, 0])
    assert np.array_equal(load_cut(cut, 16000), audio)
    assert stream.ends_recording  # nothing but silence is left behind
    assert streamed(open_cut(cut, INFO, AudioConfig()))[1] == cut
    loud = AudioConfig(trim_silence=True, trim_dbfs=-70.0)
    audio, cut = streamed(open_file(path, "x", INFO, loud))
    assert audio.shape[1] == -(-(1600 + 16000 + 2001) // 320) * 320 - 1600  # up to the click
    assert np.array_equal(load_cut(cut, 16000), audio)
    with pytest.raises(BadAudio, match="nothing but silence"):
        streamed(open_file(save(tmp_path / "0.wav", tone() * 0), "x", INFO, config))
    with pytest.raises(BadAudio, match="zero-length"):
        streamed(open_file(save(tmp_path / "1.wav", tone()[:0]), "x", INFO, config))


def test_trimming_a_cut_moves_its_supervisions(tmp_path):
    path = silence_around(tmp_path, 3200, 8000)
    segments = [SupervisionSegment("s", "r", 0.15, 0.5, text="a")]
    cut = MonoCut("c", 0.05, 1.3, 0, segments, recording=recording(path, num=27200))
    stream = open_cut(cut, INFO, AudioConfig(trim_silence=True))
    audio, made = streamed(stream)
    # the cut begins at sample 800 and the tone 2400 later, in its 8th frame; it ends in the 58th
    assert (made.start, made.duration) == ((800 + 2240) / 16000, (58 * 320 - 2240) / 16000)
    assert made.supervisions[0].start == pytest.approx(0.15 - 0.14)
    assert np.array_equal(load_cut(made, 16000), audio)
    assert not stream.ends_recording  # the cut stopped before its recording did
    rate = MonoCut("c", 0.05, 1.3, 0, recording=recording(path, num=27200))
    audio, made = streamed(open_cut(rate, CodecInfo("t", "0" * 16, 24000, 256, 2, 9), AudioConfig(
        trim_silence=True)))  # fmt: skip
    assert np.array_equal(load_cut(made, 24000), audio)


def test_loudness(tmp_path):
    path = save(tmp_path / "a.wav", tone(2.0, 44100, channels=2) * 0.1, 44100)
    audio, cut = streamed(open_file(path, "x", INFO, AudioConfig(loudness=-23.0)))
    assert measure([audio], 16000) == pytest.approx(-23.0, abs=0.05)
    assert np.array_equal(load_cut(cut, 16000), audio)
    # lhotse understands it too
    assert np.allclose(cut.load_audio().mean(0), load_cut(cut, 44100)[0], atol=1e-6)
    # a second normalisation starts from the first
    again, twice = streamed(open_cut(cut, INFO, AudioConfig(loudness=-30.0)))
    assert measure([again], 16000) == pytest.approx(-30.0, abs=0.05)
    assert np.array_equal(load_cut(twice, 16000), again)
    assert len(twice.recording.transforms) == 1
    # peaks stay below -1 dBFS
    clicks = tone(2.0) * 0.01
    clicks[100] = 0.9
    audio, _ = streamed(open_file(save(tmp_path / "b.wav", clicks), "x", INFO,
                                  AudioConfig(loudness=-14.0)))  # fmt: skip
    assert np.abs(audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)
    for name, quiet in (("silent", tone() * 0), ("short", tone(0.1))):
        audio, cut = streamed(
            open_file(save(tmp_path / f"{name}.wav", quiet), "x", INFO, AudioConfig(loudness=-14.0))
        )
        assert np.array_equal(audio[0], quiet[:, 0]) and not cut.recording.transforms


def test_all_of_it_at_once_on_what_goes_through_lhotse(tmp_path):
    path = silence_around(tmp_path)
    fast = recording_cut(recording(path, num=21600)).perturb_speed(1.1)
    config = AudioConfig(trim_silence=True, loudness=-23.0)
    audio, cut = streamed(open_cut(fast, INFO, config))
    assert np.array_equal(load_cut(cut, 16000), audio)
    assert audio.shape[1] < 16000 and measure([audio], 16000) == pytest.approx(-23.0, abs=0.1)


@pytest.mark.parametrize("info", [INFO, STEREO])
def test_extremes_pass_as_they_are(tmp_path, info):
    """Silence, full scale and a constant are audio like any other."""
    for name, value in (("silence", 0.0), ("clipped", 1.0), ("dc", 0.25)):
        audio = np.full((3000, 1), value, np.float32)
        if name == "clipped":
            audio[::2] = -1.0
        made, cut = streamed(open_file(save(tmp_path / f"{name}.wav", audio), "x", info,
                                       AudioConfig()))  # fmt: skip
        assert np.array_equal(made, np.repeat(audio.T, info.channels, axis=0))
        assert cut.num_samples == 3000
