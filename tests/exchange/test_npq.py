"""NPQ files: bytes as the definition says, every layout, ambiguity, and hostile input."""

import os
import random
import struct
import tracemalloc

import numpy as np
import pytest

from rvqlm.errors import UserError
from rvqlm.exchange.npq import read_npq, write_npq
from rvqlm.exchange.npq_layouts import LAYOUTS, NpqHeader, detect, pack_header, parse_layout


def codes_of(frames, levels, size, dtype=np.int64, seed=0):
    codes = np.random.default_rng(seed).integers(0, size, (frames, levels)).astype(dtype)
    if frames > 1 and levels > 1:
        codes[0], codes[-1, 0] = 0, size - 1
    return codes


def legacy(layout, codes, order="tk", rate=86.1328125, kbps=128.0, sizes=None, dtype="<u2"):
    """Bytes of a file in any layout, written field by field."""
    T, K = codes.shape
    sizes = sizes or [1024] * K
    out = b"NPQ1"
    out += struct.pack("<H", 1) if "no-version" not in layout else b""
    out += struct.pack("<H", K) + struct.pack("<f", rate)
    out += struct.pack("<f", kbps) if "no-kbps" not in layout else b""
    out += struct.pack("<H" if "u16-length" in layout else "<I", T)
    if "u16-vocab" in layout:
        out += struct.pack(f"<{K}H", *sizes)
    elif "one-vocab" in layout:
        out += struct.pack("<I", sizes[0])
    elif "no-vocab" not in layout:
        out += struct.pack(f"<{K}I", *sizes)
    if "no-dtype" not in layout:
        out += bytes([{"<u1": 0, "<u2": 1, "<u4": 2}[dtype]])
    return out + (codes if order == "tk" else codes.T).astype(dtype).tobytes()


def test_bytes_of_version_1(tmp_path):
    write_npq(tmp_path / "a.npq", np.array([[1, 2], [3, 1023]]), 75.0, 1024, 64.5)
    expected = b"NPQ1" + struct.pack("<HHffI2IB", 1, 2, 75.0, 64.5, 2, 1024, 1024, 1)
    assert (tmp_path / "a.npq").read_bytes() == expected + struct.pack("<4H", 1, 2, 3, 1023)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npq"]  # no temporary file stays


@pytest.mark.parametrize("frames", [0, 1, 2, 300_000])
@pytest.mark.parametrize("dtype, size", [("uint8", 256), ("uint16", 65536), ("uint32", 1 << 20)])
def test_round_trip(tmp_path, frames, dtype, size):
    codes = codes_of(frames, 3, size, dtype)
    write_npq(tmp_path / "a.npq", codes, 86.1328125, size, 128.0)
    header, back = read_npq(tmp_path / "a.npq")
    assert (header.layout, header.order, header.num_codebooks) == ("v1", "tk", 3)
    assert (header.num_frames, header.token_rate, header.orig_kbps) == (frames, 86.1328125, 128.0)
    assert header.vocab_sizes == (size,) * 3 and back.dtype == np.dtype(dtype)
    assert back.shape == (frames, 3) and (back == codes).all()


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


@pytest.mark.parametrize("order", ["tk", "kt"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_when_named(name, order):
    codes = codes_of(50, 9, 1024)
    data = legacy(name, codes, order)
    header = detect("a.npq", data, f"{name}:{order}")
    assert (header.layout, header.order, header.num_codebooks) == (name, order, 9)
    assert header.num_frames == 50 and header.dtype == np.uint16
    assert header.orig_kbps == (None if "no-kbps" in name else 128.0)
    assert header.vocab_sizes == (None if "no-vocab" in name else (1024,) * 9)
    assert pack_header(header) == data[: header.offset]
    flat = np.frombuffer(data, "<u2", offset=header.offset)
    assert (flat.reshape(50, 9) if order == "tk" else flat.reshape(9, 50).T).tolist() == (
        codes.tolist()
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_where_only_it_fits(name):
    """Levels of different sizes tell the order; where no sizes are stored, one level has none."""
    free = "no-vocab" in name or "one-vocab" in name
    levels = 1 if free else 4
    sizes = [1024] if free else [1024, 512, 64, 16]
    columns = [np.random.default_rng(n).integers(0, s, 60) for n, s in enumerate(sizes)]
    codes = np.stack(columns, 1)
    codes[:2] = np.array(sizes) - 1
    for order in ("tk", "kt")[: 1 if levels == 1 else 2]:
        header = detect("a.npq", legacy(name, codes, order, sizes=sizes))
        if "one-vocab" in name:  # one size of one level is a size per level
            rest = [field for field in name.split("+") if field != "one-vocab"]
            assert header.layout == ("+".join(rest) or "v1")
        else:
            assert header.layout == name
        assert header.order == order and header.num_frames == 60


def test_version_1_is_taken_at_its_word():
    """(T, K) is its definition; only codes beyond their vocabulary make it (K, T)."""
    codes = codes_of(20, 3, 1024)
    assert detect("a.npq", legacy("v1", codes)).order == "tk"
    sizes = [1024, 16, 16]
    codes[:, 1:] %= 16
    assert detect("a.npq", legacy("v1", codes, "tk", sizes=sizes)).order == "tk"
    assert detect("a.npq", legacy("v1", codes, "kt", sizes=sizes)).order == "kt"


def test_two_that_fit_are_named_and_none_is_chosen():
    codes = codes_of(20, 9, 1024)
    with pytest.raises(UserError) as error:
        detect("old.npq", legacy("no-kbps", codes, "kt"))
    message = str(error.value)
    assert "old.npq: 2 layouts fit" in message and "\n" not in message
    assert "no-kbps:tk (K=9, T=20, uint16) and no-kbps:kt (K=9, T=20, uint16)" in message
    assert message.endswith("give --layout no-kbps:tk or no-kbps:kt")
    with pytest.raises(UserError, match="2 layouts fit"):  # a header alone leaves the order open
        detect("old.npq", legacy("no-kbps", codes, "kt"), "no-kbps")


def test_one_frame_or_level_has_one_order():
    for shape in ((1, 9), (30, 1)):
        assert detect("a.npq", legacy("no-kbps", codes_of(*shape, 1024))).layout == "no-kbps"
    empty = legacy("no-kbps", codes_of(0, 9, 1024))
    assert detect("a.npq", empty, "no-kbps").num_frames == 0
    with pytest.raises(UserError, match="no known layout"):  # looks like a header cut short
        detect("a.npq", empty)


def test_a_layout_that_does_not_fit_says_why():
    data = legacy("v1", codes_of(20, 9, 1024))
    with pytest.raises(UserError, match="--layout no-vocab:tk does not fit: 20 x 9 codes of"):
        detect("a.npq", data, "no-vocab:tk")
    with pytest.raises(UserError, match="code 1023 in level 0, whose vocabulary is 512"):
        detect("a.npq", legacy("v1", codes_of(20, 9, 1024), sizes=[512] * 9), "v1:tk")


def test_a_named_layout_takes_odd_values():
    data = legacy("v1", codes_of(20, 2, 1024), rate=float("nan"), kbps=-1.0)
    with pytest.raises(UserError, match=r"no known layout fits .*token rate of nan"):
        detect("a.npq", data)
    assert detect("a.npq", data, "v1").num_frames == 20


@pytest.mark.parametrize("text", ["v2", "v1:xy", "", "no-kbps+", "u16-length+nothing"])
def test_no_layout(text):
    with pytest.raises(UserError, match="not a layout"):
        parse_layout(text)


def test_fields_of_a_layout_in_any_order():
    assert parse_layout("no-dtype+no-kbps:kt") == (LAYOUTS["no-kbps+no-dtype"], ("kt",))


# ------------------------------------------------------------------------------ hostile input


def read_bytes(path, data, **options):
    path.write_bytes(data)
    return read_npq(path, **options)


def test_truncation_at_every_byte(tmp_path):
    data = legacy("v1", codes_of(7, 3, 1024))
    for size in range(len(data)):
        with pytest.raises(UserError):
            read_bytes(tmp_path / "a.npq", data[:size])
    with pytest.raises(UserError):
        read_bytes(tmp_path / "a.npq", data + b"\0")
    assert read_bytes(tmp_path / "a.npq", data)[0].num_frames == 7


@pytest.mark.parametrize("frames", [0xFFFFFFFF, 0x80000000, 1 << 24])
@pytest.mark.parametrize("levels", [1, 9, 0xFFFF])
def test_sizes_beyond_the_file(tmp_path, frames, levels):
    for name in ("v1", "no-vocab"):
        head = b"NPQ1" + struct.pack("<HHffI", 1, levels, 86.0, 128.0, frames)
        sizes = b"" if name == "no-vocab" else struct.pack("<3I", 1024, 1024, 1024)
        for layout in (None, name):
            with pytest.raises(UserError):
                read_bytes(tmp_path / "a.npq", head + sizes + b"\1" + bytes(100), layout=layout)


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


def test_fuzz(tmp_path):
    """Mutated and random files: a header or a UserError, and no more memory than they justify."""
    rng = random.Random(0)
    seeds = [
        legacy(name, codes_of(frames, levels, 200), dtype=dtype, sizes=[200] * levels)
        for name in LAYOUTS
        for frames, levels, dtype in ((0, 2, "<u1"), (5, 3, "<u2"), (9, 1, "<u4"))
        if not ("no-dtype" in name and dtype != "<u2")
    ]
    seeds += [b"NPQ1", b"NPQ1\1\0"]
    numbers = [0, 1, 2, 9, 255, 256, 1023, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    try:
        for case in range(6000):
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
            data, layout = bytes(data), rng.choice([None, None, *LAYOUTS])
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                header = detect("fuzz.npq", data, layout)
                assert isinstance(header, NpqHeader)
                assert header.offset + header.payload_bytes == len(data)
                outcomes["read"] += 1
            except UserError as e:
                assert "\n" not in str(e) and len(str(e)) < 1000
                outcomes["refused"] += 1
            assert tracemalloc.get_traced_memory()[1] - before < 100_000
    finally:
        tracemalloc.stop()
    assert outcomes["read"] > 20 and outcomes["refused"] > 1000
