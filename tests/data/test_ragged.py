"""Ragged columns against plain lists, and what damage says."""

from __future__ import annotations

import numpy as np
import pytest
from token_fixtures import drop_checksums

from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.errors import UserError

MARK = "0123456789abcdef"


def random_rows(fields: int, high: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, high, (n, fields)) for n in rng.integers(0, 9, 57)]
    rows[3] = rows[3][:0]
    rows[5] = np.full((2, fields), high - 1)
    return rows


@pytest.mark.parametrize(
    "fields, high, dtype",
    [
        *((1, 256, "uint8"), (6, 257, "uint16"), (1, 65536, "uint16")),
        *((6, 65537, "int32"), (1, 1 << 31, "int32")),
    ],
)
def test_round_trip(tmp_path, fields, high, dtype):
    rows = random_rows(fields, high)
    path = tmp_path / "x_train.bin"
    assert write_ragged(path, iter(rows), fields, MARK) == len(rows)
    ragged = Ragged.open(path, MARK)
    assert len(ragged) == len(rows) and ragged.num_fields == fields
    assert ragged.steps.dtype.name == dtype and max(ragged.max_ids) == high - 1
    assert ragged.max_ids == tuple(np.concatenate(rows).max(axis=0))
    np.testing.assert_array_equal(ragged.lengths, [len(r) for r in rows])
    for n, row in enumerate(rows):
        got = ragged.read(n)
        assert got.dtype == np.int32 and got.shape == row.shape
        np.testing.assert_array_equal(got, row)
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            ragged.read(outside)
    assert [p.name for p in tmp_path.iterdir()] == ["x_train.bin"]


def test_flat_rows_and_rows_without_steps(tmp_path):
    path = tmp_path / "x.bin"
    write_ragged(path, [np.array([4, 2], np.uint8), np.array([]), []], 1, MARK)
    ragged = Ragged.open(path)
    assert [ragged.read(n).tolist() for n in range(3)] == [[[4], [2]], [], []]
    write_ragged(path, [np.array([]), []], 6, MARK)
    assert Ragged.open(path).read(1).shape == (0, 6) and max(Ragged.open(path).max_ids) == -1
    write_ragged(path, [], 2, MARK)
    assert len(Ragged.open(path)) == 0


@pytest.mark.parametrize(
    "row", [np.zeros((2, 3), int), np.zeros(3, int), np.array([[1.0, 2.0]]), np.array([[-1, 0]])]
)
def test_wrong_rows_leave_no_file(tmp_path, row):
    with pytest.raises(ValueError, match="row 1"):
        write_ragged(tmp_path / "x.bin", [np.zeros((1, 2), int), row], 2, MARK)
    assert not list(tmp_path.iterdir())


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.bin"
    write_ragged(path, random_rows(1, 9)[:6], 1, MARK)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x.bin is damaged .*; run rvqlm text"):
            Ragged.open(path, MARK, "run rvqlm text")
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="other bytes than its checksum"):
        Ragged.open(path)
    write_ragged(path, random_rows(1, 9)[:6], 1, MARK)
    drop_checksums(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="wrong size"):
        Ragged.open(path)
    path.unlink()
    with pytest.raises(UserError, match="not found; make it again"):
        Ragged.open(path)


def test_broken_starts_and_other_data_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    write_ragged(path, [np.arange(5), np.arange(3)], 1, MARK)
    drop_checksums(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[16 + int.from_bytes(whole[8:16], "little") + 8] = 9  # where row 1 begins
    path.write_bytes(whole)
    with pytest.raises(UserError, match="rows out of order"):
        Ragged.open(path)
    write_ragged(path, [np.arange(5)], 1, MARK)
    with pytest.raises(UserError, match=f"other data .fingerprint {MARK}, the index has ffff"):
        Ragged.open(path, "f" * 16)
