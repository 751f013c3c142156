"""Files as they are found in the world: piped, glued, tagged, cut short and damaged ones of every
container, made here, beside what ffmpeg decodes of them.

Of a file that holds all of its audio every sample is read and nothing is said, however its length
is written. Of one that does not, as much is read as ffmpeg finds, and the reader says so.
"""

from __future__ import annotations

import io
import struct
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile

from rvqlm.audio.ffmpeg import find_ffmpeg
from rvqlm.audio.read import open_audio, probe
from rvqlm.audio.reader import BadAudio
from rvqlm.containers.scan import layout_of

RATE, NUM, OTHER = 16000, 17_000, 11_000  # samples of the two recordings


@dataclass(frozen=True)
class Container:
    suffix: str
    format: str
    subtype: str
    tolerance: float = 0.0
    """largest difference from ffmpeg's samples"""
    padding: int = 0
    """samples by which lengths may differ without a word"""
    size: tuple[bytes, int, str, int] | None = None
    """where the size of the audio stands: behind what, how far, its format, and what it counts in
    addition"""


CONTAINERS = {
    "wav": Container(".wav", "WAV", "PCM_16", size=(b"data", 4, "<I", 0)),
    "wav24": Container(".wav", "WAV", "PCM_24", size=(b"data", 4, "<I", 0)),
    "rf64": Container(".wav", "RF64", "PCM_16", size=(b"ds64", 16, "<Q", 0)),
    "w64": Container(".w64", "W64", "PCM_16", size=(b"data\xf3\xac", 16, "<Q", 24)),
    "aiff": Container(".aiff", "AIFF", "PCM_16", size=(b"SSND", 4, ">I", 8)),
    "au": Container(".au", "AU", "PCM_16", size=(b".snd", 8, ">I", 0)),
    "caf": Container(".caf", "CAF", "PCM_16", size=(b"data", 4, ">q", 4)),
    "flac": Container(".flac", "FLAC", "PCM_16"),
    "ogg": Container(".ogg", "OGG", "VORBIS", 2e-4, 1024),
    "opus": Container(".opus", "OGG", "OPUS", 0.1, 400),
    "mp3": Container(".mp3", "MP3", "MPEG_LAYER_III", 2e-4, 2400),
}
PCM = [name for name, c in CONTAINERS.items() if c.size]


def signal(num, rate=RATE, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(num) / rate
    tones = [0.3 * np.sin(2 * np.pi * (300 + 110 * (c + seed)) * t) for c in range(channels)]
    return np.stack(tones, 1) + rng.normal(0, 0.01, (num, channels))


def encoded(container, num, rate=RATE, channels=1, seed=0):
    """The bytes of a file."""
    out = io.BytesIO()
    c = CONTAINERS[container]
    audio = signal(num, rate, channels, seed)
    soundfile.write(out, audio, rate, format=c.format, subtype=c.subtype)
    return out.getvalue()


def resized(data, container, size):
    """A file with another size of the audio in its header; -1 is the largest number."""
    name, offset, pattern, extra = CONTAINERS[container].size
    at = data.index(name) + offset
    largest = (1 << 8 * struct.calcsize(pattern) - pattern.endswith("q")) - 1
    value = largest if size == -1 and pattern != ">q" else size + extra * (size > 0)
    return data[:at] + struct.pack(pattern, value) + data[at + struct.calcsize(pattern) :]


def id3v2(content):
    size = len(content)
    syncsafe = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + syncsafe + content


ART = bytes([0xFF, 0xFB, 0x90, 0x64, 0xFF, 0xD8]) * 700  # looks like frames now and then
APE = b"APETAGEX" + struct.pack("<4I8x", 2000, 32, 0, 0)
ID3V1 = b"TAG" + b"x" * 125


def read(path, size=5000):
    """Samples, rate, and what was said."""
    with open_audio(path) as reader:
        blocks = [np.zeros((0, reader.num_channels), np.float32)]
        while len(block := reader.read(size)):
            blocks.append(block)
        return np.concatenate(blocks), reader.sampling_rate, "; ".join(reader.notes)


def by_ffmpeg(path, rate):
    """All that the program itself makes of a file, (n, C); nothing if it gives up."""
    command = [find_ffmpeg(), "-nostdin", "-v", "quiet", "-i", f"file:{path}", "-map", "0:a:0"]
    command += ["-ar", str(rate), "-f", "au", "-c:a", "pcm_f32be", "-"]
    data = subprocess.run(command, capture_output=True, check=False).stdout
    if len(data) < 24:
        return np.zeros((0, 1), np.float32)
    offset, channels = struct.unpack(">I", data[4:8])[0], struct.unpack(">I", data[20:24])[0]
    samples = np.frombuffer(data[offset : len(data) - (len(data) - offset) % 4], ">f4")
    return samples[: len(samples) // channels * channels].reshape(-1, channels)


@pytest.fixture
def check(tmp_path):
    """A function that reads bytes as a file and compares what comes with ffmpeg's."""

    def run(data, container, expected=None, says="", rate=RATE, suffix=None, padding=None):
        c = CONTAINERS[container]
        path = tmp_path / f"x{suffix or c.suffix}"
        path.write_bytes(data)
        found, found_rate, notes = read(path)
        assert found_rate == rate
        theirs = by_ffmpeg(path, rate)
        assert (says in notes) if says else not notes, notes
        if expected is None:  # never less than ffmpeg has
            assert len(found) >= len(theirs) - (c.padding if padding is None else padding)
        else:
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= max(1e-7, c.tolerance / 100)
        length = probe(path).num_samples
        assert length in (None, len(found)) or says, (length, len(found))
        return found, theirs

    return run


def decoded(data, container, tmp_path):
    path = tmp_path / f"plain{CONTAINERS[container].suffix}"
    path.write_bytes(data)
    return read(path)[0]


@pytest.mark.parametrize("container", CONTAINERS)
def test_whole_files(container, check, tmp_path):
    """Odd rates and numbers of channels, tags, junk, and two files end to end."""
    c = CONTAINERS[container]
    a, b = encoded(container, NUM), encoded(container, OTHER, seed=1)
    first, theirs = check(a, container)
    assert len(first) == NUM
    same = min(NUM, len(theirs))
    assert abs(len(theirs) - NUM) <= c.padding
    inner = slice(0, same - c.padding)
    assert np.abs(first[inner] - theirs[inner]).max() <= max(1e-7, c.tolerance)
    second = decoded(b, container, tmp_path)
    for rate, channels in ((11025, 2), (8000, 5), (37800, 3)):
        if c.subtype in ("OPUS", "MPEG_LAYER_III") and (rate == 37800 or channels > 2):
            rate, channels = 24000, 2
        if c.subtype == "OPUS":
            rate = 24000
        found, theirs = check(encoded(container, 5000, rate, channels), container, rate=rate)
        assert found.shape == (5000, channels) and theirs.shape[1] == channels
    for before, behind in ((id3v2(ART), b""), (b"", APE + ID3V1), (id3v2(ART), ID3V1)):
        check(before + a + behind, container, first)
    junk = np.random.default_rng(5).integers(0, 255, 3000, np.uint8).tobytes()
    check(junk + a, container, first)
    both = np.concatenate([first, second])
    check(a + b, container, both)
    check(a + a + b, container, np.concatenate([first, both]))
    check(id3v2(ART) + a + ID3V1 + id3v2(b"x" * 50) + b, container, both)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_chain_of_unlike_recordings(container, check, tmp_path):
    """ffmpeg stops at a change of rate or channels; all is made like the first."""
    a = encoded(container, NUM)
    first = decoded(a, container, tmp_path)
    for rate, channels in ((8000, 1), (16000, 2), (24000, 2)):
        b = encoded(container, OTHER // 1000 * rate // 16, rate, channels, seed=1)
        says = f"{rate} Hz x {channels}, made 16000 Hz x 1"
        # ffmpeg takes a second AU header for audio, and hears what MP3 encoders add
        padding = {"au": 30_000, "mp3": 6000}.get(container)
        found, _ = check(a + b, container, says=says, padding=padding)
        assert len(found) == NUM + OTHER and np.array_equal(found[:NUM], first)
        second = decoded(b, container, tmp_path).mean(1)
        level = np.sqrt(np.mean(found[NUM:] ** 2)) / np.sqrt(np.mean(second**2))
        assert abs(level - 1) < 0.1
    six = encoded("wav", 1000, RATE, 6)
    stereo = encoded("wav", NUM, RATE, 2)
    says = "2 of the 3 in it is left out: 16000 Hz x 6"
    found, _ = check(stereo + six + stereo, "wav", says=says)
    assert len(found) == 2 * NUM


@pytest.mark.parametrize("container", PCM)
def test_sizes_in_headers(container, check, tmp_path):
    """Unknown sizes mean all there is; one that is too small is believed as far as
    players believe it."""
    data = encoded(container, NUM)
    whole = decoded(data, container, tmp_path)
    name, offset, pattern, extra = CONTAINERS[container].size
    at = data.index(name) + offset
    size = struct.unpack(pattern, data[at : at + struct.calcsize(pattern)])[0] - extra
    for unknown in (0, -1):
        check(resized(data, container, unknown), container, whole)
    if container.startswith("wav"):  # sox, whole samples of 24 bits below the largest
        check(resized(data, container, 0x7FFFF000 // 3 * 3), container, whole)
    says = " bytes of audio where "
    found, _ = check(resized(data, container, size // 2), container, says=says)
    assert len(found) == (NUM if container in ("au", "w64") else NUM // 2)
    found, _ = check(resized(data, container, size * 2), container, says="cut short: ")
    assert len(found) == NUM
    if container == "wav":  # no audio at all is no unknown size
        empty = tmp_path / "empty.wav"
        empty.write_bytes(encoded("wav", 0) + b"LIST\4\0\0\0abcd")
        with pytest.raises(Exception, match="zero-length audio"):
            probe(empty)


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_files(container, check):
    """Cut short by a byte and by half, and with bytes lost on the way."""
    data = encoded(container, 3 * NUM)
    half = len(data) // 2
    for torn in (data[: half + 3], data[:half] + data[half + 501 :]):
        check(torn, container, says=" ")
    if container == "mp3":  # a frame is there without its last byte
        assert len(check(data[:-1], container)[0]) == 3 * NUM
    else:
        check(data[:-1], container, says=" ")
    found, _ = check(data[: half + 3] + encoded(container, NUM), container, says=" ")
    if container not in PCM:  # what follows is found again
        assert len(found) > 1.7 * NUM


def variable(tmp_path, num=3 * NUM):
    """An MP3 of variable bit rate, whose length nobody can guess."""
    path = tmp_path / "in.wav"
    loud = signal(num) * np.repeat(np.linspace(0, 1, num // 1000 + 1), 1000)[:num, None] ** 4
    soundfile.write(path, loud, RATE)
    command = [find_ffmpeg(), "-v", "error", "-i", str(path), "-q:a", "4", "-write_xing", "0"]
    command += ["-id3v2_version", "0", "-f", "mp3", "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_mp3_without_a_count_of_its_frames(check, tmp_path):
    data = variable(tmp_path)
    whole, theirs = check(data, "mp3")
    assert 3 * NUM <= len(whole) < 3 * NUM + 2400 and abs(len(theirs) - len(whole)) <= 1152
    check(id3v2(ART) + data + APE + ID3V1, "mp3", whole)
    check(b"\xff\xfb\x90\0" * 999 + data, "mp3", whole)
    check(bytes(70_000) + data, "mp3", whole)
    found, _ = check(data[100:], "mp3")  # begins within a frame, which is lost
    assert 0 < len(whole) - len(found) <= 4 * 576
    found, _ = check(data + data, "mp3")
    assert len(found) == 2 * len(whole)
    check(data[:-1], "mp3", says="its last frame lacks 1 byte")
    half = len(data) // 2
    found, _ = check(data[:half] + data[half + 500 :], "mp3", says="are no frames, the first at ")
    assert len(found) > 0.9 * len(whole)
    # a file with a count before and behind it
    counted = encoded("mp3", NUM)
    check(counted + data, "mp3", np.concatenate([decoded(counted, "mp3", tmp_path), whole]))
    check(data + counted, "mp3", np.concatenate([whole, decoded(counted, "mp3", tmp_path)]))


def test_flac_without_a_length(check, tmp_path):
    data = bytearray(encoded("flac", NUM))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    whole, _ = check(bytes(data), "flac")
    assert len(whole) == NUM
    check(bytes(data + data), "flac", np.concatenate([whole, whole]))
    torn, _ = check(encoded("flac", 3 * NUM)[:-20], "flac", says=f"of {3 * NUM} samples could be")
    assert len(torn) >= 3 * NUM - 4096


def test_flac_in_ogg_chained(check, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, signal(NUM), RATE)
    command = [find_ffmpeg(), "-v", "error", "-i", str(path), "-c:a", "flac", "-f", "ogg", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    one, _ = check(data, "flac", suffix=".oga")
    assert np.abs(one[:, 0] - soundfile.read(path)[0]).max() < 1e-4
    check(data + data, "flac", np.concatenate([one, one]), suffix=".oga")


def test_cuts_inside_odd_files(tmp_path):
    """Any part of them is the part of the whole."""
    files = {
        "a.mp3": variable(tmp_path)[100:],
        "b.ogg": encoded("ogg", NUM) + encoded("ogg", OTHER, 8000),
        "c.flac": encoded("flac", NUM) + encoded("flac", OTHER, seed=1),
        "d.wav": resized(encoded("wav", NUM), "wav", 0),
        "e.flac": encoded("flac", 3 * NUM)[:-5000],
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        whole = read(path)[0]
        for start in (1, 7000, NUM - 10, NUM + 10, 2 * NUM):
            with open_audio(path) as reader:
                reader.seek(start)
                found = reader.read(3000)
            expected = whole[start : start + 3000]
            assert found.shape == expected.shape, (name, start)
            assert np.abs(found - expected).max(initial=0) < 1e-6, (name, start)


def test_without_ffmpeg_the_damage_is_named_with_the_remedy(tmp_path, monkeypatch):
    from rvqlm.audio import ffmpeg
    from rvqlm.audio import read as reading

    torn = tmp_path / "a.flac"
    data = bytearray(encoded("flac", 9 * NUM))
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    torn.write_bytes(data)
    lost = tmp_path / "b.mp3"
    data = variable(tmp_path)
    lost.write_bytes(data[:9000] + data[9400:])
    for module in (ffmpeg, reading):
        monkeypatch.setattr(module, "find_ffmpeg", lambda: None)
    for path in (torn, lost):
        found, _, notes = read(path)
        assert len(found) > NUM and "pip install imageio-ffmpeg" in notes


@pytest.mark.parametrize("container", CONTAINERS)
def test_whatever_a_header_says_it_is_audio_or_bad_audio(container, tmp_path):
    rng = np.random.default_rng(list(container.encode()))
    data = np.frombuffer(encoded(container, 3000), np.uint8)
    path = tmp_path / f"x{CONTAINERS[container].suffix}"
    for number in range(60):
        damaged = data.copy()
        places = rng.integers(0, min(len(data), 150), rng.integers(1, 6))
        damaged[places] = rng.choice([0, 127, 128, 255, *rng.integers(0, 256, 3)], len(places))
        path.write_bytes(damaged[: rng.integers(20, len(data)) if number % 3 else None].tobytes())
        for quick in (True, False):
            layout = layout_of(path, quick)
            assert layout is None or layout.segments
        if number < 4:
            try:
                assert len(read(path)[0]) < 1_000_000
            except BadAudio as e:
                assert "\n" not in str(e)
