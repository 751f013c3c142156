"""Files of all formats, whole, damaged and oddly named; libsndfile and ffmpeg side by side."""

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from rvqlm.audio import ffmpeg as audio_ffmpeg
from rvqlm.audio import read as audio_read
from rvqlm.audio.ffmpeg import FfmpegReader, find_ffmpeg
from rvqlm.audio.load import load_cut, load_file, open_file
from rvqlm.audio.parts import recording_cut
from rvqlm.audio.prepare import AudioConfig
from rvqlm.audio.read import close_parked, open_at, open_audio, park, probe
from rvqlm.audio.reader import BadAudio
from rvqlm.errors import UserError

RATE, NUM = 44100, 30 * 4410 + 17  # more than two blocks


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A stereo WAV in a folder of its own."""
    path = tmp_path_factory.mktemp("audio") / "source.wav"
    t = np.arange(NUM) / RATE
    audio = np.stack([0.4 * np.sin(2 * np.pi * 440 * t), 0.2 * np.sin(2 * np.pi * 880 * t)], 1)
    soundfile.write(path, audio + np.random.default_rng(0).normal(0, 0.01, audio.shape), RATE)
    return path


def converted(source, name, *flags):
    path = source.with_name(name)
    command = [find_ffmpeg(), "-nostdin", "-v", "error", "-y", "-i", str(source), *flags]
    subprocess.run([*command, f"file:{path}"], check=True)
    return path


def read(path, size=1 << 16):
    with open_audio(path) as reader:
        blocks = []
        while len(block := reader.read(size)):
            blocks.append(block)
    return np.concatenate(blocks)


def refused(path):
    with pytest.raises(BadAudio) as e:
        read(path)
    assert isinstance(e.value, UserError) and str(e.value).count("\n") == 0
    return e.value.reason


SNDFILE = [
    ("a.wav", {"subtype": "PCM_24"}),
    ("a.flac", {}),
    ("a.aiff", {}),
    ("a.mp3", {}),
    ("a.ogg", {"subtype": "VORBIS"}),
    ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
]


@pytest.mark.parametrize("name, kind", SNDFILE)
def test_formats_of_libsndfile(source, name, kind):
    audio, rate = soundfile.read(source)
    if name.endswith(".opus"):
        rate = 48000  # it knows no 44.1 kHz: the same samples, played faster
    path = source.with_name(name)
    soundfile.write(path, audio, rate, **kind)
    found = probe(path)
    assert found == (rate, 2, NUM)
    whole = read(path, NUM + 1)
    assert whole.shape == (NUM, 2) and whole.dtype == np.float32
    error = np.sqrt(np.mean((whole - audio) ** 2))
    assert error < (2e-2 if name.endswith((".mp3", ".ogg", ".opus")) else 1e-4)
    # libsndfile gives other samples at the end of a Vorbis or Opus file after a seek
    for size in (1000, 4410):
        assert np.array_equal(read(path, size), whole)
    for at in (0, 1, 70_001, NUM - 1200, NUM - 7, NUM):
        with open_at(path, at) as reader:
            part = reader.read(1000)
        assert len(part) == min(1000, NUM - at)
        assert np.abs(part - whole[at : at + 1000]).max(initial=0) < 1e-6


@pytest.mark.parametrize(
    "name, flags",
    [
        ("b.m4a", ("-c:a", "aac")),
        ("b.aac", ("-c:a", "aac")),
        ("b.webm", ("-c:a", "libopus")),
        ("b.wma", ("-c:a", "wmav2")),
        ("b.mka", ("-c:a", "flac")),
        ("b.mp4", ("-c:a", "alac")),
    ],
)
def test_formats_of_ffmpeg(source, name, flags):
    path = converted(source, name, *flags)
    audio = soundfile.read(source)[0]
    found = read(path, NUM * 2)
    assert abs(len(found) - NUM) < 2500 or name.endswith(".webm")
    if "-c:a flac" in " ".join(flags) or "-c:a alac" in " ".join(flags):
        assert np.array_equal(found, soundfile.read(source, dtype="float32")[0])
    assert probe(path) == (48000 if name.endswith(".webm") else RATE, 2, None)
    assert np.array_equal(read(path, 4321), found)
    level = np.sqrt(np.mean(found**2, axis=0)) / np.sqrt(np.mean(audio**2, axis=0))
    assert np.allclose(level, 1, atol=0.03)  # both channels, in order, at the right level


def test_an_mp3_that_does_not_tell_its_length(source):
    """libsndfile guesses it from the first frame and would stop in the middle."""
    path = converted(source, "vbr.mp3", "-q:a", "2", "-write_xing", "0")
    assert soundfile.info(path).frames < NUM * 2 // 3  # or else this test is of no use any more
    assert probe(path) == (RATE, 2, None)
    assert 0 <= len(read(path)) - NUM < 3000
    tagged = converted(source, "tag.mp3", "-q:a", "2", "-write_xing", "0", "-write_id3v1", "1")
    assert np.array_equal(read(tagged), read(path))
    with open_at(path, 100_000) as reader:
        assert np.array_equal(reader.read(500), read(path)[100_000:100_500])


def read_with_notes(path):
    with open_audio(path) as reader:
        blocks = []
        while len(block := reader.read(1 << 16)):
            blocks.append(block)
        return np.concatenate(blocks), " ".join(reader.notes)


def test_what_was_cut_short_is_read_as_far_as_it_goes(source):
    converted(source, "vbr.mp3", "-q:a", "2", "-write_xing", "0")
    converted(source, "x.m4a", "-movflags", "+faststart")
    for name in ("x.mp3", "x.flac", "x.webm", "x.ogg", "x.mka"):
        converted(source, name)
    for name, why in (
        ("vbr.mp3", "cut short: its last frame lacks"),
        ("x.mp3", f"of {NUM} samples could be decoded"),
        ("x.flac", f"of {NUM} samples could be decoded"),
        ("x.ogg", "cut short: its last page"),
        ("x.m4a", "ffmpeg says"),
        ("x.webm", "ffmpeg says"),
        ("x.mka", "ffmpeg says"),
        ("source.wav", f"cut short: {2 * NUM - 22} of {4 * NUM} bytes"),
    ):
        data = source.with_name(name).read_bytes()
        torn = source.with_name("torn-" + name)
        torn.write_bytes(data[: len(data) // 2])
        whole, torn_audio = read(source.with_name(name), NUM * 2), read_with_notes(torn)
        assert why in torn_audio[1], (name, torn_audio[1])
        assert 0.3 * len(whole) < len(torn_audio[0]) < 0.7 * len(whole), name
        assert probe(torn).num_samples in (None, len(torn_audio[0]))
        same = min(len(torn_audio[0]), 30_000)
        assert np.abs(torn_audio[0][:same] - whole[:same]).max() < 1e-3, name
    # a WAV whose length is not known when it is written is none of these
    piped = source.with_name("piped.wav")
    with open(piped, "wb") as out:
        command = [find_ffmpeg(), "-v", "error", "-i", str(source), "-f", "wav", "-"]
        subprocess.run(command, stdout=out, check=True)
    found, notes = read_with_notes(piped)
    assert np.array_equal(found, soundfile.read(source, dtype="float32")[0]) and not notes


def test_a_hole_in_the_data(source):
    data = bytearray(converted(source, "y.m4a").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    source.with_name("hole.m4a").write_bytes(data)
    found, notes = read_with_notes(source.with_name("hole.m4a"))
    assert notes.startswith("damaged: ffmpeg says: ") and abs(len(found) - NUM) < 5000


def test_what_a_container_promises_and_what_else_is_in_it(source, tmp_path):
    """Of a video with two tracks the first is read; its length says nothing of the audio's."""
    video = ("-f", "lavfi", "-i", "color=size=16x16:duration=9", "-shortest")
    # FLAC: what a build takes by default may not end on the sample
    tracks = ("-i", str(source), "-map", "0", "-map", "1", "-c:a", "flac")
    two = converted(source, "two.mka", *tracks)
    found, notes = read_with_notes(two)
    assert notes == "has 2 tracks of audio, of which the first is read" and len(found) == NUM
    film = converted(source, "film.mkv", *video[:4], "-c:v", "mpeg4", "-c:a", "flac")
    found, notes = read_with_notes(film)
    assert (len(found), notes) == (NUM, "")
    longer = bytearray(converted(source, "long.mka", "-c:a", "flac").read_bytes())
    at = longer.index(b"\x44\x89\x88") + 3  # the length, in ms
    longer[at : at + 8] = struct.pack(">d", 6000.0)
    source.with_name("longer.mka").write_bytes(longer)
    found, notes = read_with_notes(source.with_name("longer.mka"))
    assert len(found) == NUM and f"{NUM} of {6 * RATE} samples" in notes


def test_names_that_could_be_taken_for_something_else(source, monkeypatch):
    monkeypatch.chdir(source.parent)
    plain = read(converted(source, "z.m4a"))
    for name in ("-i.m4a", "a b 'c'.m4a", "http:x.m4a", "ünï-日本.m4a", "100%d.m4a", "a|b&c.m4a"):
        os.link("z.m4a", name)
        assert np.array_equal(read(name), plain), name
    for name in ("- x.wav", "pipe:1.wav", "日本 2.flac"):
        soundfile.write(name, np.zeros(70), 8000)
        assert read(name).shape == (70, 1)
    undecodable = os.fsdecode(b"\xff\xfe.m4a")
    os.link("z.m4a", undecodable)
    assert np.array_equal(read(undecodable), plain)
    os.unlink(undecodable)
    with pytest.raises(BadAudio) as e:
        read(undecodable)
    assert str(e.value) == r"\xff\xfe.m4a: no such file"


def test_a_wrong_suffix(source):
    os.link(converted(source, "w.m4a"), source.with_name("called.mp3"))
    assert np.array_equal(read(source.with_name("called.mp3")), read(source.with_name("w.m4a")))
    os.link(source, source.with_name("called.m4a"))
    assert len(read(source.with_name("called.m4a"))) == NUM
    source.with_name("playlist.m4a").write_text(f"#EXTM3U\n#EXTINF:3,\nfile:{source}\n")
    assert "ffmpeg says" in refused(source.with_name("playlist.m4a"))


def test_without_ffmpeg(source, monkeypatch):
    path = converted(source, "v.m4a")
    monkeypatch.setattr(audio_ffmpeg, "find_ffmpeg", lambda: None)
    monkeypatch.setattr(audio_read, "find_ffmpeg", lambda: None)
    assert refused(path) == ".m4a needs ffmpeg: install it or pip install imageio-ffmpeg"
    text = source.with_name("text.wav")
    text.write_text("no audio at all")
    assert refused(text).startswith("unreadable")


def test_an_ffmpeg_that_hangs(source, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    monkeypatch.setattr(audio_ffmpeg, "find_ffmpeg", lambda: str(program))
    monkeypatch.setattr(audio_ffmpeg, "STALLED_SECONDS", 0.1)
    processes = []
    real = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: processes.append(real(*a, **k)) or processes[-1]
    )
    path = source.with_name("u.m4a")
    path.write_bytes(b"x")
    assert "gave nothing" in refused(path)
    assert processes[0].poll() is not None


def test_a_consumer_that_stops_early_leaves_no_process(source):
    path = converted(source, "t.m4a")
    reader = FfmpegReader(str(path))
    reader.read(10)
    process = reader._process
    assert process.poll() is None
    reader.close()
    assert process.poll() is not None
    stream = open_file(str(path), "x", _info(), AudioConfig()).blocks()
    next(stream)
    stream.close()


def _info():
    from rvqlm.codec_info import CodecInfo

    return CodecInfo("test", "0" * 16, 16000, 320, 2, 256)


def test_cuts_of_what_cannot_be_sought_are_read_on(source, monkeypatch):
    """Windows of an M4A that follow each other start one ffmpeg, and have the right samples."""
    path = converted(source, "s.m4a")
    whole = read(path)
    stream = open_file(str(path), "s", _info(), AudioConfig())
    list(stream.blocks())
    started = []
    real = FfmpegReader.__init__
    monkeypatch.setattr(
        FfmpegReader, "__init__", lambda self, *args: started.append(args) or real(self, *args)
    )
    cut = recording_cut(stream.cut.recording)
    for first in (0, 20_000, 50_000):
        window = cut.truncate(offset=first / RATE, duration=20_000 / RATE)
        assert np.array_equal(load_cut(window, RATE, 2).T, whole[first : first + 20_000])
    assert len(started) == 1
    window = cut.truncate(offset=1000 / RATE, duration=20_000 / RATE)
    assert np.array_equal(load_cut(window, RATE, 2).T, whole[1000:21_000])
    assert len(started) == 2
    close_parked()


def test_a_file_that_changed_is_not_read_on(source, tmp_path):
    path = tmp_path / "a.ogg"
    soundfile.write(path, np.zeros(9000), 8000)
    reader = open_at(path, 0)
    reader.read(10)
    park(reader)
    soundfile.write(path, np.full(9001, 0.5), 8000)
    with open_at(path, 10) as reader:
        assert abs(reader.read(4000)[2000, 0] - 0.5) < 0.1
    close_parked()


def test_what_is_no_file(tmp_path, monkeypatch):
    assert refused(tmp_path / "no.m4a") == "no such file"
    (tmp_path / "link.wav").symlink_to("nowhere")
    assert refused(tmp_path / "link.wav") == "no such file"
    (tmp_path / "folder.wav").mkdir()
    assert refused(tmp_path / "folder.wav") == "not a file"
    os.mkfifo(tmp_path / "fifo.wav")
    assert refused(tmp_path / "fifo.wav") == "not a file"  # and it does not wait for a writer
    (tmp_path / "empty.m4a").touch()
    assert refused(tmp_path / "empty.m4a") == "empty file"
    soundfile.write(tmp_path / "a.wav", np.zeros(9), 8000)
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may read everything
    assert refused(tmp_path / "a.wav") == "no permission to read it"


@pytest.mark.parametrize("rate", [8000, 11025, 96000, 192000])
def test_probe_and_rates(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 8)), rate)
    assert probe(tmp_path / "a.wav") == (rate, 8, 100)
    assert load_file(tmp_path / "a.wav", rate).shape == (1, 100)
    soundfile.write(tmp_path / "0.wav", np.zeros((0, 1)), rate)
    with pytest.raises(BadAudio, match="zero-length"):
        probe(tmp_path / "0.wav")


def test_no_descriptor_is_left_open(source):
    """Whole, in part, of each kind, and where opening fails."""
    make = {"a.mp3": ["-q:a", "2"], "b.mp3": ["-q:a", "2", "-write_xing", "0"], "c.m4a": []}
    paths = [converted(source, f"fd-{name}", *flags) for name, flags in make.items()]
    (source.parent / "fd-text.mp3").write_text("no audio at all" * 99)
    before = set(os.listdir("/proc/self/fd"))
    for path in paths:
        read(path)
        with open_audio(path) as reader:
            reader.read(10)
        probe(path)
    assert "unreadable" in refused(source.parent / "fd-text.mp3")
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_heavy_is_loaded_for_a_probe():
    code = "import sys, rvqlm.audio.read; print('torch' in sys.modules, 'lhotse' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
