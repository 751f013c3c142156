"""Shards: bit-exact round trips, kill and resume, damage, and the token clock inside lhotse."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from lhotse import CutSet
from lhotse.features.io import get_reader, get_writer
from lhotse.qa import validate_cut

from rvqlm.codec_info import CodecInfo
from rvqlm.data import store
from rvqlm.data.store import (
    DTYPES,
    Key,
    RvqMmapReader,
    RvqMmapWriter,
    check_shard,
    code_dtype,
    frames_to_seconds,
    token_cut,
)
from rvqlm.errors import UserError
from rvqlm.files import sha256_of

# the frame rates of published codecs: sampling rate, hop
RATES = [(44100, 512), (24000, 320), (16000, 320), (32000, 640), (24000, 1920), (22050, 256)]


def codec(sampling_rate: int, hop: int, k: int = 2, v: int = 1024) -> CodecInfo:
    return CodecInfo("c", "0" * 16, sampling_rate, hop, k, v)


@pytest.mark.parametrize("frames, dtype", zip([0, 1, 7, 70000], DTYPES))
def test_round_trip_is_bit_exact(tmp_path, dtype, frames):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(frames)
    first = rng.integers(limits.min, limits.max, (frames, 3), dtype=dtype, endpoint=True)
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        keys = [writer.write("x", first), writer.write("y", first[::-1])]
    reader = RvqMmapReader(tmp_path / "a.rvq")
    for key, expected in zip(keys, (first, first[::-1])):
        got = reader.read(key)
        assert got.dtype == np.dtype(dtype) and got.flags.writeable
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(reader.read(keys[1], 2, 5), first[::-1][2:5])
    np.testing.assert_array_equal(reader.read(keys[1], 3), first[::-1][3:])
    assert (tmp_path / "a.rvq").stat().st_size == 2 * first.nbytes


def test_arrays_of_other_types_stay_apart_and_aligned(tmp_path):
    arrays = [np.full((3, 1), 7, np.uint8), np.full((2, 2), -1, np.int16), np.ones((1, 3), "u4")]
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        keys = [writer.write("", a) for a in arrays]
    for key, a in zip(keys, arrays):
        assert Key.parse(key).offset % a.itemsize == 0
        np.testing.assert_array_equal(RvqMmapReader(tmp_path / "a.rvq").read(key), a)


def test_int64_codes_are_stored_narrow_and_checked(tmp_path):
    with RvqMmapWriter(tmp_path / "a.rvq", dtype="int16") as writer:
        assert writer.write("", np.full((2, 2), 1023)).endswith("int16")
        with pytest.raises(ValueError, match="do not fit int16"):
            writer.write("", np.full((2, 2), 40000))
        for bad in (np.zeros((2, 2)), np.zeros(3, np.int16)):
            with pytest.raises(TypeError):
                writer.write("", bad)
        assert writer.num_bytes == 8  # nothing of the refused arrays
    assert [code_dtype(v) for v in (1024, 32767, 32768, 65536, 65537)] == [
        *("int16", "int16", "uint16", "uint16", "uint32")
    ]


def test_registered_with_lhotse():
    assert get_writer("rvq_mmap") is RvqMmapWriter and get_reader("rvq_mmap") is RvqMmapReader


def test_append_resume_cuts_the_torn_tail(tmp_path):
    path = tmp_path / "a.rvq"
    with RvqMmapWriter(path) as writer:
        kept = writer.write("", np.arange(8, dtype=np.int16).reshape(4, 2))
    with open(path, "ab") as file:
        file.write(b"torn!")
    with RvqMmapWriter(path, mode="a", valid_bytes=Key.parse(kept).end) as writer:
        added = writer.write("", np.full((2, 2), 5, np.int16))
    assert Key.parse(added).offset == 16 and path.stat().st_size == 24
    reader = RvqMmapReader(path)
    assert reader.read(kept).ravel().tolist() == list(range(8))
    assert (reader.read(added) == 5).all()
    with pytest.raises(UserError, match=r"a\.rvq is truncated: 24 bytes, 25 needed; delete it"):
        RvqMmapWriter(path, mode="a", valid_bytes=25)
    assert path.stat().st_size == 24


def test_second_writer_is_refused_and_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SETTLE_SECONDS", 0.01)
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        writer.write("", np.ones((3, 2), np.int16))
        with pytest.raises(UserError, match="being written by another process"):
            RvqMmapWriter(tmp_path / "a.rvq")
        assert (tmp_path / "a.rvq").stat().st_size == 12


def test_full_disk_leaves_whole_arrays(tmp_path):
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        key = writer.write("", np.ones((3, 2), np.int16))
        real = writer._file

        class Full:
            """Takes half of what it is given, then has no room."""

            def write(self, data):
                if len(data) < 100:
                    raise OSError(28, "No space left on device")
                return real.write(data[: len(data) // 2])

            def __getattr__(self, name):
                return getattr(real, name)

        writer._file = Full()
        with pytest.raises(OSError, match="No space"):
            writer.write("", np.ones((500, 2), np.int16))
        writer._file = real
        assert (tmp_path / "a.rvq").stat().st_size == Key.parse(key).end == 12
        after = writer.write("", np.full((1, 2), 3, np.int16))
    assert RvqMmapReader(tmp_path / "a.rvq").read(after).tolist() == [[3, 3]]


WRITE_FOREVER = """
import sys, numpy as np
from rvqlm.data.store import RvqMmapWriter
writer = RvqMmapWriter(sys.argv[1])
n = 0
while True:
    key = writer.write("", np.full((50 + n % 50, 3), n % 1000, np.int16))
    print(n, key, flush=True)
    n += 1
"""


def test_killed_writer_loses_nothing_it_gave_a_key_for(tmp_path):
    path = tmp_path / "a.rvq"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE
    )
    log = b""
    while log.count(b"\n") < 200:
        log += os.read(process.stdout.fileno(), 4096)
    process.send_signal(signal.SIGKILL)
    log += process.stdout.read()
    process.wait()
    lines = [line.split() for line in io.BytesIO(log).readlines() if line.endswith(b"\n")]
    reader = RvqMmapReader(path)
    for n, key in lines:
        array = reader.read(key.decode())
        assert len(array) == 50 + int(n) % 50 and (array == int(n) % 1000).all()
    end = Key.parse(lines[-1][1].decode()).end
    with RvqMmapWriter(path, mode="a", valid_bytes=end) as writer:
        assert Key.parse(writer.write("", np.ones((1, 3), np.int16))).offset == end


def test_reader_follows_a_growing_and_a_replaced_file(tmp_path):
    path = tmp_path / "a.rvq"
    with RvqMmapWriter(path) as writer:
        a = writer.write("", np.full((3, 2), 1, np.int16))
        assert (RvqMmapReader(path).read(a) == 1).all()
        b = writer.write("", np.full((3, 2), 2, np.int16))
        assert (RvqMmapReader(path).read(b) == 2).all()
    with RvqMmapWriter(tmp_path / "b.rvq") as writer:
        writer.write("", np.full((9, 2), 3, np.int16))
    os.replace(tmp_path / "b.rvq", path)
    assert (RvqMmapReader(path).read(a) == 3).all()


def test_damage_is_a_user_error_naming_the_file(tmp_path):
    path = tmp_path / "a.rvq"
    with RvqMmapWriter(path) as writer:
        key = writer.write("", np.arange(200, dtype=np.int16).reshape(100, 2))
    digest = sha256_of(path)
    check_shard(path, 400, digest)
    data = bytearray(path.read_bytes())
    data[13] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.rvq is corrupted.*tokenize again"):
        check_shard(path, 400, digest)
    os.truncate(path, 399)
    for action in (
        lambda: RvqMmapReader(path).read(key),
        lambda: RvqMmapReader(path).read(key, 0, 5),  # the rest would be silently wrong
        lambda: check_shard(path, 400, digest),
    ):
        with pytest.raises(UserError, match=r"a\.rvq is truncated: 399 bytes, 400 needed"):
            action()
    with pytest.raises(UserError, match=r"a\.rvq has 399 bytes, its sidecar says 100"):
        check_shard(path, 100)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.rvq is missing"):
        RvqMmapReader(path)
    for text in ("", "1,2,3", "0,1,1,float32", "-4,1,1,int16", "a,b,c,int16"):
        with pytest.raises(UserError, match="not a key"):
            Key.parse(text)


@pytest.mark.parametrize("sampling_rate, hop", RATES)
def test_token_clock_survives_nested_truncations(tmp_path, sampling_rate, hop):
    """Whole-hop windows of windows of windows give exactly their frames, through lhotse."""
    info = codec(sampling_rate, hop)
    rng = np.random.default_rng(hop)
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        for n in range(25):
            frames = int(rng.integers(1, 20000 if n % 5 == 0 else 2000))
            codes = np.arange(frames * 2, dtype=np.uint32).reshape(frames, 2)
            key = writer.write("", codes)
            cut = token_cut("id", writer.storage_path, key, info, "rec")
            assert cut.num_frames == frames
            np.testing.assert_array_equal(cut.load_features(), codes)
            low = 0
            for _ in range(6):
                a = int(rng.integers(0, frames))
                frames = int(rng.integers(1, frames - a + 1))
                cut = cut.truncate(
                    offset=frames_to_seconds(a, info), duration=frames_to_seconds(frames, info)
                )
                low += a
                assert cut.num_frames == frames
                # what lhotse reads, before it would mend an off-by-one by repeating a frame
                raw = cut.features.load(start=cut.start, duration=cut.duration)
                np.testing.assert_array_equal(raw, codes[low : low + frames])


def test_cut_manifest_round_trip_and_lhotse_validation(tmp_path):
    from lhotse import SupervisionSegment

    info = codec(44100, 512)
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        codes = np.arange(2 * 1234, dtype=np.int16).reshape(1234, 2)
        key = writer.write("", codes)
    duration = frames_to_seconds(1234, info)
    segment = SupervisionSegment("s", "rec", 0.0, duration, 0, "text", speaker="me")
    cut = token_cut(
        *("id", writer.storage_path, key, info, "rec", 0, [segment]),
        num_samples=631000,
        ends_recording=False,
        custom={"take": 3},
    )
    validate_cut(cut, read_data=True)
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl.gz")
    (back,) = CutSet.from_file(tmp_path / "cuts.jsonl.gz")
    assert back.duration == cut.duration == 1234 * 512 / 44100
    assert back.custom == {"take": 3, "num_samples": 631000, "ends_recording": False}
    assert back.supervisions[0].text == "text"
    np.testing.assert_array_equal(back.load_features(), codes)
    windows = CutSet.from_cuts([back]).cut_into_windows(frames_to_seconds(100, info)).to_eager()
    pieces = [w.load_features() for w in windows]
    np.testing.assert_array_equal(np.concatenate(pieces), codes)


def test_cuts_without_frames_or_of_another_width_are_refused(tmp_path):
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        empty = writer.write("", np.zeros((0, 2), np.int16))
        wide = writer.write("", np.zeros((4, 3), np.int16))
    with pytest.raises(UserError, match="no frames"):
        token_cut("a", writer.storage_path, empty, codec(16000, 320), "r")
    with pytest.raises(UserError, match="3 codebooks"):
        token_cut("a", writer.storage_path, wide, codec(16000, 320), "r")


def test_copy_feats_goes_through_the_writer(tmp_path):
    info = codec(16000, 320)
    with RvqMmapWriter(tmp_path / "a.rvq") as writer:
        key = writer.write("", np.arange(20, dtype=np.int16).reshape(10, 2))
    cut = token_cut("id", writer.storage_path, key, info, "rec")
    with RvqMmapWriter(tmp_path / "b.rvq") as other:
        other.write("", np.ones((3, 2), np.int16))
        copied = cut.features.copy_feats(other)
    assert copied.storage_path.endswith("b.rvq")
    np.testing.assert_array_equal(copied.load(), cut.load_features())


def test_more_shards_than_files_that_may_be_open(tmp_path, monkeypatch):
    """Read by several threads at once, each shard gives its own arrays, and files are closed."""
    monkeypatch.setattr(store, "MOST_OPEN", 3)
    for n in range(12):
        with RvqMmapWriter(tmp_path / f"{n}.rvq") as writer:
            writer.write("a", np.full((5, 2), n, np.int16))
    before = len(os.listdir("/proc/self/fd"))
    shards = [store.Shard(tmp_path / f"{n}.rvq") for n in range(12)]

    def read(turn: int) -> bool:
        n = turn * 7 % 12
        return bool((shards[n].view(0, 5, 2, np.dtype("<i2")) == n).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(600)))
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    closed = next(n for n in range(12) if shards[n]._file is None)
    os.replace(tmp_path / f"{(closed + 1) % 12}.rvq", tmp_path / f"{closed}.rvq")
    with pytest.raises(UserError, match=rf"{closed}\.rvq has changed since it was opened"):
        shards[closed].view(0, 5, 2, np.dtype("<i2"))
