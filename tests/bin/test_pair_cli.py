"""rvqlm pair: which source every cut gets, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from condition_fixtures import edit_cuts
from token_fixtures import INFO, make_tokens

from rvqlm.bin.pair import main
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset, build_index
from rvqlm.data.plan import Items
from rvqlm.data.ragged import Ragged
from rvqlm.errors import UserError

FRAMES = [20, 31, 12, 40, 25]


def rename(directory, names, split="train"):
    edit_cuts(directory, lambda n, cut: cut.update(id=names[n]), split)


@pytest.fixture
def tokens(tmp_path):
    """Solos a/solo ... e/solo, and backings in another order, in two splits of another division."""
    solo, backing = tmp_path / "solo", tmp_path / "backing"
    codes = make_tokens(solo, FRAMES)
    rename(solo, [f"{name}/solo" for name in "abcde"])
    make_tokens(backing, FRAMES[::-1], seed=4)  # writes cuts of all five
    names = [f"{name}/backing" for name in "edcba"]
    rename(backing, names)
    heard = dict(zip("edcba", (TokenDataset.open(backing, "train").read(n) for n in range(5))))
    shutil.copy(backing / "cuts_train.jsonl.gz", backing / "cuts_valid.jsonl.gz")
    rows = {"train": [0, 1, 2], "valid": [3, 4]}
    for split, keep in rows.items():
        lines = json_lines(backing, split)
        write_lines(backing, split, [lines[n] for n in keep])
        build_index(backing, split)
    return solo, backing, codes, heard


def json_lines(directory, split):
    with gzip.open(directory / f"cuts_{split}.jsonl.gz", "rt") as file:
        return file.readlines()


def write_lines(directory, split, lines):
    with gzip.open(directory / f"cuts_{split}.jsonl.gz", "wt") as file:
        file.writelines(lines)


def pair(solo, backing, *words):
    flags = ["--manifest-dir", str(solo), "--source-dir", str(backing)]
    return main([*flags, "--suffixes", "/solo", "/backing", *words])


def read(solo, rows, start=0, length=None):
    ds = TokenDataset.open(solo, "train")
    rows = np.array(rows)
    length = ds.frames[rows] if length is None else np.full(len(rows), length)
    items = Items(rows, np.full(len(rows), start), length)
    return ConditionSet.open(ds, ["source"]).read(items)["source"]


def test_each_cut_has_its_own_source(tokens, capsys, tmp_path):
    solo, backing, _, heard = tokens
    assert pair(solo, backing) == 0
    assert "train          5 of 5 cuts have a source\n" in capsys.readouterr().out
    values, lengths, _ = read(solo, range(5))
    assert lengths.tolist() == FRAMES and values.shape == (5, 40, 3)
    for name, item, n in zip("abcde", values.numpy(), lengths.tolist()):
        np.testing.assert_array_equal(item[:n], heard[name])
    window = read(solo, [1, 3], 5, 9)
    np.testing.assert_array_equal(window.values[1], heard["d"][5:14])
    record = json.loads((solo / "source.json").read_text())
    assert record["directory"] == "../backing" and record["condition"]["sizes"] == [64] * 3
    two = TokenDataset.open(solo, "train", 2)
    fewer = ConditionSet.open(two, ["source"]).read(Items([0], [0], [20]))["source"].values
    np.testing.assert_array_equal(fewer[0], heard["a"][:, :2])
    # both directories moved together
    (tmp_path / "else").mkdir()
    for folder in (solo, backing):
        folder.rename(tmp_path / "else" / folder.name)
    np.testing.assert_array_equal(read(tmp_path / "else/solo", [2]).values[0], heard["c"])


def test_equal_ids_need_no_flags(tmp_path):
    make_tokens(tmp_path / "a", FRAMES)
    codes = make_tokens(tmp_path / "b", FRAMES, seed=2)
    flags = ["--manifest-dir", str(tmp_path / "a"), "--source-dir", str(tmp_path / "b")]
    assert main(flags) == 0
    np.testing.assert_array_equal(read(tmp_path / "a", [3]).values[0], codes[3])


def test_cuts_without_a_source(tokens, capsys):
    solo, backing, _, heard = tokens
    write_lines(backing, "valid", json_lines(backing, "valid")[1:])  # b is gone
    build_index(backing, "valid")
    assert pair(solo, backing) == 2
    said = capsys.readouterr().err
    assert "1 of 5 cuts of" in said and "'b/solo'; give" in said and "--allow-missing" in said
    assert not (solo / "source.json").exists()
    assert pair(solo, backing, "--allow-missing") == 0
    assert "4 of 5 cuts have a source; without: b/solo\n" in capsys.readouterr().out
    values, lengths, _ = read(solo, [0, 1])
    assert lengths.tolist() == [20, 0] and (values[1] == -1).all()
    np.testing.assert_array_equal(values[0], heard["a"])
    assert ConditionSet.open(TokenDataset.open(solo, "train"), ["source"]).missing() == {
        "source": 1
    }
    flags = ["--manifest-dir", str(solo), "--source-dir", str(backing)]
    assert main([*flags, "--allow-missing"]) == 2  # not one is left: surely a mistake
    said = capsys.readouterr().err
    assert "5 of 5 cuts" in said and "'e/solo'; give the endings" in said and "let" not in said


def test_lengths_that_differ(tmp_path, capsys):
    solo, backing = tmp_path / "solo", tmp_path / "backing"
    make_tokens(solo, [20, 31, 12])
    codes = make_tokens(backing, [22, 29, 12], seed=1)
    flags = ["--manifest-dir", str(solo), "--source-dir", str(backing), "--tolerance-frames"]
    assert main([*flags, "1"]) == 2
    said = capsys.readouterr().err
    assert "2 of 3 pairs differ in length or beginning by more than --tolerance-frames 1: " in said
    assert "'cut-0000' has 20 frames, its source 22; 'cut-0001' has 31 frames, " in said
    assert main([*flags, "-1"]) == 2 and "is negative" in capsys.readouterr().err
    assert main([*flags, "2"]) == 0
    assert "3 of 3 cuts have a source, 1 a shorter one" in capsys.readouterr().out
    values, lengths, _ = read(solo, [0, 1, 2])
    assert lengths.tolist() == [20, 29, 12]
    np.testing.assert_array_equal(values[0, :20], codes[0][:20])
    assert read(solo, [1], 30, 1).lengths.tolist() == [0]
    assert read(solo, [1], 25, 6).lengths.tolist() == [4]


def test_few_of_other_lengths_are_paired_as_far_as_they_reach(tmp_path, capsys):
    """One bad pair does not end the pairing of a corpus; it is named."""
    solo, backing = tmp_path / "solo", tmp_path / "backing"
    make_tokens(solo, [20, 31, 12])
    codes = make_tokens(backing, [20, 12, 12], seed=1)
    assert main(["--manifest-dir", str(solo), "--source-dir", str(backing)]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        "1 pair of lengths that differ by more than 2 frames or of other beginnings, paired from "
        "these on as far as the shorter reaches: 'cut-0001' has 31 frames, its source 12"
    )
    assert "3 of 3 cuts have a source, 1 a shorter one" in said.out
    values, lengths, _ = read(solo, [0, 1, 2])
    assert lengths.tolist() == [20, 12, 12]
    np.testing.assert_array_equal(values[1, :12], codes[1])


def test_beginnings_that_differ_are_named_and_refused(tmp_path, capsys):
    """Silence trimmed of each on its own leaves equal lengths that do not belong together."""
    solo, backing = tmp_path / "solo", tmp_path / "backing"
    flags = ["--manifest-dir", str(solo), "--source-dir", str(backing)]
    frame = INFO.hop / INFO.sampling_rate

    def begin(directory, frames):
        edit_cuts(
            directory,
            lambda n, cut: cut["custom"].update(recording_start=float(frames[n] * frame)),
        )

    for directory in (solo, backing):
        make_tokens(directory, [20, 31, 12])
    begin(solo, [0, 7, 9])
    begin(backing, [0, 7, 9])
    assert main(flags) == 0
    assert "begin" not in capsys.readouterr().err
    begin(backing, [0, 7, 8])
    assert main(flags) == 0
    said = capsys.readouterr().err
    assert f"'cut-0002' begins at {9 * frame:.2f} s of its recording, its source at" in said
    begin(backing, [50, 57, 9])
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert "2 of 3 pairs differ" in said and "rvqlm audio activity trims both alike" in said
    assert main([*flags, "--tolerance-frames", "50"]) == 0  # both are as they should be


def test_twins_and_wrong_directories(tokens, tmp_path, capsys):
    solo, backing, *_ = tokens

    def refused(*words):
        assert pair(*words) == 2
        return capsys.readouterr().err

    assert "is --manifest-dir itself" in refused(solo, solo)
    assert "not a token directory" in refused(solo, tmp_path)
    other = tmp_path / "other"
    make_tokens(other, FRAMES, replace(INFO, codebook_size=32, fingerprint="f" * 16))
    said = refused(solo, other)
    assert f"codec mismatch between {solo} (test) and {other} (test): fingerprint" in said
    rename(backing, ["e", "e/backing", "c"])
    assert "go by one id, 'e' and 'e/backing': give --suffixes" in refused(solo, backing)
    for path in backing.glob("index_*.bin"):
        path.unlink()
    assert f"rvqlm index with --manifest-dir {backing}" in refused(solo, backing)


def test_sources_out_of_date(tokens, tmp_path):
    solo, backing, *_ = tokens
    ds = TokenDataset.open(solo, "train")

    def refused(match):
        with pytest.raises(UserError, match=match):
            ConditionSet.open(ds, ["source"])

    again = f"run rvqlm pair --manifest-dir {solo} --source-dir"
    refused(f"source.json not found: no sources; {again} OTHER")
    pair(solo, backing)
    record = (solo / "source.json").read_text()
    column = solo / "source_train.bin"
    whole = column.read_bytes()
    column.write_bytes(whole[:-1])
    refused(f"source_train.bin is damaged .other bytes than its checksum is of.; {again} {backing}")
    column.write_bytes(whole)
    (solo / "source.json").write_text(record[:40])
    refused("source.json is damaged")
    (solo / "source.json").write_text(record)
    rename(backing, ["c", "d", "e"])
    refused(f"split train of {backing} changed; {again} {backing}")
    backing.rename(tmp_path / "gone")
    refused(f"no folder {backing}; move it there, or {again}")


def test_columns_of_an_interrupted_pairing_are_refused(tokens):
    """New columns beside an old source.json would name rows of other indexes."""
    solo, backing, *_ = tokens
    pair(solo, backing)
    old = (solo / "source.json").read_text()
    rename(backing, ["x", "y", "z"])
    pair(solo, backing, "--allow-missing")
    new = (solo / "source.json").read_text()
    assert json.loads(new) != json.loads(old) and len(Ragged.open(solo / "source_train.bin")) == 5
    rename(backing, ["e/backing", "d/backing", "c/backing"])  # as before: the old file fits again
    (solo / "source.json").write_text(old)
    with pytest.raises(UserError, match=r"source_train.bin belongs to other data"):
        ConditionSet.open(TokenDataset.open(solo, "train"), ["source"])
