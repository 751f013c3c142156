"""The index: what it says of a manifest, and what makes it refuse to open."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from lhotse import CutSet
from token_fixtures import INFO, drop_checksums, make_tokens

from rvqlm.codec_info import CodecInfo
from rvqlm.data import index
from rvqlm.data.index import TokenDataset, build_index, index_path, manifest_path
from rvqlm.data.store import RvqMmapWriter, frames_to_seconds, token_cut
from rvqlm.errors import UserError
from rvqlm.files import write_json

FRAMES = [5, 1, 30, 17, 200, 8]


def rewrite(directory, cuts, split="train"):
    with gzip.open(manifest_path(directory, split), "wt") as file:
        file.writelines(json.dumps(c) + "\n" for c in cuts)


def read(directory, split="train"):
    with gzip.open(manifest_path(directory, split)) as file:
        return [json.loads(line) for line in file]


def edit_sidecar(directory, **changes):
    path = directory / "tokens.json"
    write_json(path, {**json.loads(path.read_text()), **changes}, checksum=True)


@pytest.mark.parametrize("v, dtype", [(64, "int16"), (40000, "uint16"), (70000, "uint32")])
def test_reads_what_was_stored(tmp_path, v, dtype):
    info = CodecInfo("wide", "a" * 16, 44100, 512, 4, v)
    codes = make_tokens(tmp_path, FRAMES, info, num_shards=3)
    ds = TokenDataset.open(tmp_path, "train")
    assert len(ds) == 6 and ds.frames.tolist() == FRAMES and ds.info == info
    assert list(ds.ids()) == [f"cut-{n:04d}" for n in range(6)] and ds.id_of(4) == "cut-0004"
    assert ds.hours == pytest.approx(sum(FRAMES) * 512 / 44100 / 3600)
    for row, expected in enumerate(codes):
        got = ds.read(row)
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(ds.read(row, start=1), expected[1:])
    np.testing.assert_array_equal(ds.read(4, start=50, num=7), codes[4][50:57])
    for start, num in ((0, 201), (-1, 2), (199, 2)):
        with pytest.raises(IndexError):
            ds.read(4, start, num)
    assert ds.ends(np.arange(6)).all()


def test_first_levels(tmp_path):
    codes = make_tokens(tmp_path, FRAMES)
    whole, two = TokenDataset.open(tmp_path, "train"), TokenDataset.open(tmp_path, "train", 2)
    assert two.info.num_codebooks == 2 and two.info.num_samples(7) == INFO.num_samples(7)
    assert two.fingerprint == whole.fingerprint and whole.info.num_codebooks == 3
    for row, expected in enumerate(codes):
        np.testing.assert_array_equal(two.read(row), expected[:, :2])
        assert two.read(row).flags.c_contiguous and not two.view(row).flags.writeable
    np.testing.assert_array_equal(two.view(4, 30, 9), codes[4][30:39, :2])
    np.testing.assert_array_equal(two.first_levels(1).view(4, 199), codes[4][199:, :1])
    np.testing.assert_array_equal(whole.read(2), codes[2])
    for wrong in (0, 4):
        with pytest.raises(UserError, match=f"--num-quantizers {wrong}: .* have 3 levels; choose"):
            TokenDataset.open(tmp_path, "train", wrong)


def test_twelve_bytes_a_cut(tmp_path):
    make_tokens(tmp_path / "a", [3] * 100)
    make_tokens(tmp_path / "b", [3] * 1100)
    size = [index_path(tmp_path / d, "train").stat().st_size for d in "ab"]
    assert 12_000 <= size[1] - size[0] <= 12_064


def test_lhotse_windows_and_ends(tmp_path):
    """A manifest of windows that lhotse cut is indexed by the frames it covers."""
    codes = make_tokens(tmp_path, [95, 40])
    cuts = CutSet.from_file(manifest_path(tmp_path, "train"))
    windows = cuts.cut_into_windows(frames_to_seconds(40, INFO)).to_eager()
    dicts = [w.to_dict() for w in windows]
    dicts[-1]["custom"]["ends_recording"] = False
    rewrite(tmp_path, dicts)
    build_index(tmp_path, "train")
    ds = TokenDataset.open(tmp_path, "train")
    assert ds.frames.tolist() == [40, 40, 15, 40]
    np.testing.assert_array_equal(np.concatenate([ds.read(r) for r in range(3)]), codes[0])
    assert ds.ends(np.arange(4)).tolist() == [False, False, True, False]


def test_a_moved_directory_still_opens(tmp_path):
    codes = make_tokens(tmp_path / "a", FRAMES)
    before = TokenDataset.open(tmp_path / "a", "train").fingerprint
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "a")
    ds = TokenDataset.open(tmp_path / "b", "train")
    np.testing.assert_array_equal(ds.read(3), codes[3])
    assert ds.fingerprint == before


def test_fingerprint_tells_data_apart(tmp_path):
    prints = set()
    for n, frames in enumerate(([5, 6], [6, 5], [5, 6, 7], [5, 6])):
        make_tokens(tmp_path / str(n), frames)
        prints.add(TokenDataset.open(tmp_path / str(n), "train").fingerprint)
    assert len(prints) == 3  # the last equals the first
    cuts = read(tmp_path / "0")
    cuts[0]["id"] = "another"
    rewrite(tmp_path / "0", cuts)
    build_index(tmp_path / "0", "train")
    assert TokenDataset.open(tmp_path / "0", "train").fingerprint not in prints


def test_building_takes_little_memory(tmp_path):
    make_tokens(tmp_path, [3])
    (cut,) = read(tmp_path)
    peaks = []
    for count in (200, 8000):
        rewrite(tmp_path, ({**cut, "id": str(n)} for n in range(count)))
        tracemalloc.start()
        build_index(tmp_path, "train")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(TokenDataset.open(tmp_path, "train")) == count
    assert peaks[1] < peaks[0] + 7800 * 40  # the columns with a copy to write; a cut has 1 kB


def test_columns_that_do_not_fit_into_memory(tmp_path, monkeypatch):
    """An index made of many blocks, on the disk, has the columns of one made at once."""
    make_tokens(tmp_path, [1 + n % 7 for n in range(50)])
    whole = index.index_of(tmp_path, "train")
    monkeypatch.setattr(index, "_IN_MEMORY", 100)
    monkeypatch.setattr(index, "_HASHES", 8)
    header, columns = index.index_of(tmp_path, "train")
    assert b"".join(columns) == b"".join(whole[1]) and header == whole[0]
    ds = TokenDataset.open(tmp_path, "train")
    assert ds.holds(index.index_of(tmp_path, "train")[1])
    assert not ds.holds([b"".join(whole[1])[:-1]])
    cuts = read(tmp_path)
    for n in (1, 30, 49):
        twice = [c | {"id": "cut-0000"} if i == n else c for i, c in enumerate(cuts)]
        rewrite(tmp_path, twice)
        with pytest.raises(UserError, match="two cuts have the id 'cut-0000'"):
            build_index(tmp_path, "train")
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_full_disk_leaves_the_old_index(tmp_path, monkeypatch):
    make_tokens(tmp_path, FRAMES)
    before, files = index_path(tmp_path, "train").read_bytes(), sorted(tmp_path.iterdir())

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        build_index(tmp_path, "train")
    assert index_path(tmp_path, "train").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == files


def test_stale_index(tmp_path):
    make_tokens(tmp_path, FRAMES)
    cuts = read(tmp_path)
    rewrite(tmp_path, cuts[:-1])
    with pytest.raises(
        UserError, match=r"index_train\.bin is older than its manifest.*rvqlm index"
    ):
        TokenDataset.open(tmp_path, "train")
    build_index(tmp_path, "train")
    assert len(TokenDataset.open(tmp_path, "train")) == 5
    os.utime(manifest_path(tmp_path, "train"))  # touched, not changed
    assert len(TokenDataset.open(tmp_path, "train")) == 5
    edit_sidecar(tmp_path, shards=[])
    with pytest.raises(UserError, match="older than the tokens of"):
        TokenDataset.open(tmp_path, "train")
    manifest_path(tmp_path, "train").unlink()
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz .*is missing"):
        TokenDataset.open(tmp_path, "train")


def test_wrong_codec_names_both_sides(tmp_path):
    make_tokens(tmp_path, FRAMES)
    other = {**INFO.to_dict(), "name": "other", "fingerprint": "f" * 16}
    edit_sidecar(tmp_path, codec=other)
    with pytest.raises(UserError, match=r"index_train\.bin \(test\) and .*tokens\.json \(other\)"):
        TokenDataset.open(tmp_path, "train")
    edit_sidecar(tmp_path, codec={**INFO.to_dict(), "num_codebooks": 5})
    with pytest.raises(UserError, match=r"cut 'cut-0000' has 3 codebooks.*codec test has 5"):
        build_index(tmp_path, "train")
    edit_sidecar(tmp_path, codec={**INFO.to_dict(), "hop": 160})
    with pytest.raises(UserError, match="hop 320; codec test has 3 at 16000 Hz, hop 160"):
        build_index(tmp_path, "train")


def test_truncated_and_missing_shards(tmp_path):
    make_tokens(tmp_path, FRAMES, num_shards=2)
    shard = tmp_path / "codes/shard-00001.rvq"
    os.truncate(shard, shard.stat().st_size - 1)
    for action in (TokenDataset.open, build_index):
        with pytest.raises(UserError, match=r"shard-00001\.rvq is truncated"):
            action(tmp_path, "train")
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.rvq is missing"):
        TokenDataset.open(tmp_path, "train")


def test_damaged_files(tmp_path):
    make_tokens(tmp_path, FRAMES)
    index, manifest = index_path(tmp_path, "train"), manifest_path(tmp_path, "train")
    whole = index.read_bytes()
    for bad in (b"", b"x", whole[:10], whole[:-1], whole + b"1", b"RVQIDX99" + whole[8:]):
        index.write_bytes(bad)
        with pytest.raises(UserError, match=r"index_train\.bin is damaged"):
            TokenDataset.open(tmp_path, "train")
    index.unlink()
    with pytest.raises(UserError, match=r"index_train\.bin not found; run rvqlm index"):
        TokenDataset.open(tmp_path, "train")
    good = manifest.read_bytes()
    manifest.write_bytes(good[:-20])
    with pytest.raises(UserError, match="cut short or damaged"):
        build_index(tmp_path, "train")
    manifest.write_bytes(b"plain text")
    with pytest.raises(UserError, match="cut short or damaged"):
        build_index(tmp_path, "train")
    manifest.write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(UserError, match="entry 1: object missing required field id"):
        build_index(tmp_path, "train")
    manifest.write_bytes(gzip.compress(b"no json\n"))
    with pytest.raises(UserError, match="entry 1: not JSON"):
        build_index(tmp_path, "train")
    manifest.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(UserError, match="has no cuts"):
        build_index(tmp_path, "train")
    manifest.unlink()
    with pytest.raises(UserError, match="not found; run rvqlm tokenize"):
        build_index(tmp_path, "train")
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(UserError, match=r"tokens\.json is damaged"):
        build_index(tmp_path, "train")
    with pytest.raises(UserError, match="not a token directory"):
        build_index(tmp_path / "nowhere", "train")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["codes", "cuts.jsonl.gz", "tokens.json"]


def shift(bytes_):
    """The same array, some bytes on."""

    def change(cut):
        offset, rest = cut["features"]["storage_key"].split(",", 1)
        cut["features"]["storage_key"] = f"{int(offset) + bytes_},{rest}"

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(start=0.003), "not whole frames inside its tokens"),
        (lambda c: c.update(duration=c["duration"] + 0.02), "not whole frames inside"),
        (lambda c: c.update(type="MixedCut"), "has no tokens"),
        (lambda c: c.pop("features"), "has no tokens"),
        (lambda c: c["features"].update(storage_type="numpy_files"), "stored as 'numpy_files'"),
        (lambda c: c["features"].update(storage_key="7"), "not a key"),
        (lambda c: c.pop("duration"), "incomplete, no duration"),
        (lambda c: c.update(duration=-1.0), r"entry 3: \$\.duration: expected float > 0"),
        (lambda c: c.update(start=math.nan), r"entry 3: \$\.start: expected float"),
        (lambda c: c.update(id=7), r"entry 3: \$\.id: expected str, got int"),
        (lambda c: c.update(id="cut-0000"), "two cuts have the id 'cut-0000'"),
        (lambda c: c["features"].pop("num_frames"), "incomplete, no num_frames of its features"),
        (lambda c: c["features"].update(num_frames=8), "has 8 x 3 codes, its storage key .* says"),
        (lambda c: c["features"].update(num_features=4), "has .* x 4 codes, its storage key"),
        (shift(2), "begins within a frame of its shard"),
        (shift(-3), "begins within a frame of its shard"),
        (lambda c: c["supervisions"].append({"speaker": ["a"]}), "supervisions.0..speaker: expec"),
        (lambda c: c.update(custom={"scales": "x"}), r"custom\.scales: expected array"),
    ],
)
def test_cuts_that_do_not_fit(tmp_path, change, message):
    make_tokens(tmp_path, FRAMES)
    cuts = read(tmp_path)
    change(cuts[2])
    rewrite(tmp_path, cuts)
    with pytest.raises(UserError, match=message):
        build_index(tmp_path, "train")


def test_mixed_types_are_refused(tmp_path):
    make_tokens(tmp_path, [4])
    with RvqMmapWriter(tmp_path / "codes/shard-00001.rvq", dtype="uint8") as writer:
        key = writer.write("", np.zeros((3, 3), np.uint8))
    cut = token_cut("b", writer.storage_path, key, INFO, "b")
    rewrite(tmp_path, [*read(tmp_path), cut.to_dict()])
    with pytest.raises(UserError, match="int16 and uint8 are mixed"):
        build_index(tmp_path, "train")


def test_names_that_are_no_utf_8(tmp_path):
    """Of files, as their ids are in JSON; and half a character, which only JSON can have."""
    make_tokens(tmp_path, FRAMES)
    cuts = read(tmp_path)
    names = ["\udcff", "\ud800", *(cut["id"] for cut in cuts[2:])]
    rewrite(tmp_path, [cut | {"id": name} for cut, name in zip(cuts, names)])
    build_index(tmp_path, "train")
    assert list(TokenDataset.open(tmp_path, "train").ids()) == names


def test_no_such_split(tmp_path):
    """What would make it is said, not what cannot."""
    make_tokens(tmp_path, FRAMES)
    message = r"no split 'valid' \(there are train\); run rvqlm split with --valid above 0"
    with pytest.raises(UserError, match=message):
        TokenDataset.open(tmp_path, "valid")


def test_columns_of_before_there_were_checksums(tmp_path):
    make_tokens(tmp_path, FRAMES, num_shards=2)
    expected = TokenDataset.open(tmp_path, "train")
    drop_checksums(tmp_path)
    dataset = TokenDataset.open(tmp_path, "train")
    assert dataset.fingerprint == expected.fingerprint and dataset.frames.tolist() == FRAMES
    path = index_path(tmp_path, "train")
    good = path.read_bytes()
    for at, message in ((-8 * len(FRAMES) + 3, "outside the shards"), (-2, "of another header")):
        path.write_bytes(good[:at] + b"\x7f" + good[at + 1 :])
        with pytest.raises(UserError, match=message):
            TokenDataset.open(tmp_path, "train")
