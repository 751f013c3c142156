"""NPQ files: bytes as the definition says, both older headers, and hostile input."""

import os
import random
import struct
import tracemalloc

import numpy as np
import pytest

from rvqlm.errors import UserError
from rvqlm.exchange.npq import LAYOUTS, NpqHeader, parse_npq, read_npq, write_npq


def codes_of(frames, levels, size, dtype=np.int64, seed=0):
    codes = np.random.default_rng(seed).integers(0, size, (frames, levels)).astype(dtype)
    if frames > 1 and levels > 1:
        codes[0], codes[-1, 0] = 0, size - 1
    return codes


def file_of(layout, codes, rate=86.1328125, kbps=128.0, sizes=1024, dtype="<u2"):
    """Bytes of a file in any layout, written field by field."""
    T, K = codes.shape
    vocabularies = struct.pack(f"<{K}I", *([sizes] * K if isinstance(sizes, int) else sizes))
    out = b"NPQ1"
    if layout == "v1":
        out += struct.pack("<HHffI", 1, K, rate, kbps, T) + vocabularies
        out += bytes([{"<u1": 0, "<u2": 1, "<u4": 2}[dtype]])
    elif layout == "legacy":
        out += struct.pack("<iffi", K, rate, kbps, T) + vocabularies
    else:
        out += struct.pack("<if", K, rate) + vocabularies + struct.pack("<i", T)
    return out + codes.astype(dtype).tobytes()


def test_bytes_of_version_1(tmp_path):
    write_npq(tmp_path / "a.npq", np.array([[1, 2], [3, 1023]]), 75.0, 1024, 64.5)
    expected = b"NPQ1" + struct.pack("<HHffI2IB", 1, 2, 75.0, 64.5, 2, 1024, 1024, 1)
    assert (tmp_path / "a.npq").read_bytes() == expected + struct.pack("<4H", 1, 2, 3, 1023)


@pytest.mark.parametrize(
    "frames, dtype, size",
    [
        (0, "uint16", 65536), (1, "uint8", 256), (2, "uint32", 1 << 20),
        (300_000, "uint8", 256), (300_000, "uint16", 65536),
    ],
)  # fmt: skip
def test_round_trip(tmp_path, frames, dtype, size):
    codes = codes_of(frames, 3, size, dtype)
    write_npq(tmp_path / "a.npq", codes, 86.1328125, size, 128.0)
    header, back = read_npq(tmp_path / "a.npq")
    assert (header.layout, header.num_codebooks, header.num_frames) == ("v1", 3, frames)
    assert (header.token_rate, header.orig_kbps) == (86.1328125, 128.0)
    assert header.vocab_sizes == (size,) * 3 and back.dtype == np.dtype(dtype)
    assert back.shape == (frames, 3) and (back == codes).all() and not back.flags.writeable


def test_a_wider_type_and_sizes_per_level_are_kept(tmp_path):
    codes = np.array([[0, 7, 299]])
    write_npq(tmp_path / "a.npq", codes, 50.0, [4, 8, 300], dtype="uint32")
    header, back = read_npq(tmp_path / "a.npq")
    assert header.vocab_sizes == (4, 8, 300) and back.dtype == np.uint32
    assert back.tolist() == codes.tolist()


@pytest.mark.parametrize(
    "codes, sizes, dtype",
    [
        (np.zeros((2, 2)), 8, None),
        (np.zeros(3, int), 8, None),
        (np.array([[8, 0]]), 8, None),
        (np.array([[-1, 0]]), 8, None),
        (np.array([[1, 1]]), [8], None),
        (np.array([[1, 1]]), 1024, "uint8"),
        (np.array([[1, 1]]), 1024, "int16"),
    ],
)
def test_what_cannot_be_written(tmp_path, codes, sizes, dtype):
    with pytest.raises(ValueError):
        write_npq(tmp_path / "a.npq", codes, 50.0, sizes, dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frames, levels", [(50, 9), (60, 1), (1, 2), (0, 3)])
def test_every_layout_is_recognised(layout, frames, levels):
    codes = codes_of(frames, levels, 1024)
    data = file_of(layout, codes)
    header, back = parse_npq(data, "a.npq")
    assert (header.layout, header.num_codebooks, header.num_frames) == (layout, levels, frames)
    assert header.orig_kbps == (None if layout == "legacy-no-kbps" else 128.0)
    assert header.vocab_sizes == (1024,) * levels and header.token_rate == 86.1328125
    assert back.tolist() == codes.tolist() and back.dtype == np.uint16
    assert header.to_dict()["payload_offset"] + header.to_dict()["payload_bytes"] == len(data)


def test_no_file_is_taken_for_one_of_the_other_legacy_layout():
    """Of equal size, and with numbers that each reads as sizes, were there no bounds on them."""
    codes = codes_of(1025, 2, 1000)
    codes[:, 1] %= 100
    codes[0] = 1000, 0  # as one u32, a vocabulary size
    data = file_of("legacy-no-kbps", codes, sizes=[1024, 1024])
    header, _ = parse_npq(data, "a.npq")
    assert (header.layout, header.num_frames) == ("legacy-no-kbps", 1025)


@pytest.mark.parametrize(
    "data, found",
    [
        (b"NPQ2\1\0\1", r"not an NPQ file: it begins with b'NPQ2'; read are .* NPQ1"),
        (b"NPQ1" + bytes(40), r"v1: version 0; legacy: 0 codebooks; legacy-no-kbps: 0 codebooks"),
        (file_of("v1", codes_of(20, 2, 1024), rate=float("nan")), r"v1: a token rate of nan"),
        (file_of("v1", codes_of(20, 2, 1024), kbps=-1.0), r"v1: -1 kbps"),
        (file_of("v1", codes_of(20, 9, 1024), sizes=512), r"code 1023 in level 0, whose voc.* 512"),
        (file_of("v1", codes_of(20, 9, 9), dtype="<u1"), r"vocabularies of 1024 to 1024 in uint8"),
        (file_of("v1", codes_of(20, 9, 9))[:-1], r"its 416 bytes .*20 x 9 .* make 417 bytes"),
    ],
)
def test_what_is_none_says_what_was_found(data, found):
    with pytest.raises(UserError, match=found) as error:
        parse_npq(data, "x/old.npq")
    assert str(error.value).startswith("x/old.npq: ") and "\n" not in str(error.value)


# ------------------------------------------------------------------------------ hostile input


@pytest.mark.parametrize("layout", LAYOUTS)
def test_truncation_at_every_byte(tmp_path, layout):
    data = file_of(layout, codes_of(7, 3, 1024))

    def read(data):
        (tmp_path / "a.npq").write_bytes(data)
        return read_npq(tmp_path / "a.npq")[0]

    for size in range(len(data)):
        with pytest.raises(UserError):
            read(data[:size])
    with pytest.raises(UserError):
        read(data + b"\0")
    assert read(data).num_frames == 7


@pytest.mark.parametrize("frames", [0xFFFFFFFF, 0x80000000, 1 << 24])
@pytest.mark.parametrize("levels", [1, 9, 0xFFFF])
def test_sizes_beyond_the_file(frames, levels):
    sizes = struct.pack("<3I", 1024, 1024, 1024)
    for head in (
        struct.pack("<HHffI", 1, levels, 86.0, 128.0, frames) + sizes + b"\1",
        struct.pack("<IffI", levels, 86.0, 128.0, frames) + sizes,
        struct.pack("<If", levels, 86.0) + sizes + struct.pack("<I", frames),
    ):
        with pytest.raises(UserError):
            parse_npq(b"NPQ1" + head + bytes(100), "a.npq")


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npq")  # opening it for reading would wait for ever
    for path in (tmp_path / "pipe.npq", tmp_path, tmp_path / "none.npq", "a\0b"):
        with pytest.raises(UserError):
            read_npq(path)


def test_other_files_are_not_read_through(tmp_path):
    with open(tmp_path / "huge.npq", "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(UserError, match="not an NPQ file"):
        read_npq(tmp_path / "huge.npq")


def test_fuzz():
    """Mutated and random files: a header or a UserError, and no more memory than they justify."""
    rng = random.Random(0)
    seeds = [
        file_of(layout, codes_of(frames, levels, 200), dtype=dtype, sizes=200)
        for layout in LAYOUTS
        for frames, levels, dtype in ((0, 2, "<u1"), (5, 3, "<u2"), (9, 1, "<u4"))
        if layout == "v1" or dtype == "<u2"
    ]
    seeds += [b"NPQ1", b"NPQ1\1\0"]
    numbers = [0, 1, 2, 9, 255, 256, 1023, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for case in range(3000):
            if case % 10 == 0:  # nothing but the magic
                data = bytearray(b"NPQ1" + rng.randbytes(rng.randrange(120)))
            else:
                data = bytearray(rng.choice(seeds))
                for _ in range(rng.randrange(1, 4)):
                    at = rng.randrange(4, max(5, min(len(data), 40)))
                    kind = rng.randrange(4)
                    if kind == 0:
                        data[at : at + 1] = bytes([rng.randrange(256)])
                    elif kind == 1:
                        form = rng.choice(["<H", "<I"])
                        value = rng.choice(numbers) & (0xFFFF if form == "<H" else 0xFFFFFFFF)
                        data[at : at + struct.calcsize(form)] = struct.pack(form, value)
                    elif kind == 2:
                        data = data[: rng.randrange(len(data) + 1)]
                    else:
                        data += rng.randbytes(rng.randrange(8))
            data = bytes(data)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                header, codes = parse_npq(data, "fuzz.npq")
                assert isinstance(header, NpqHeader)
                assert header.offset + codes.size * codes.itemsize == len(data)
                assert (codes < np.array(header.vocab_sizes)).all()
                outcomes["read"] += 1
            except UserError as e:
                assert "\n" not in str(e) and len(str(e)) < 1000
                outcomes["refused"] += 1
            assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()
    assert outcomes["read"] > 20 and outcomes["refused"] > 1000
