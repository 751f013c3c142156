"""Splits that share nothing, and the three commands over a token directory."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from token_fixtures import make_tokens

from rvqlm.bin import index as index_command
from rvqlm.bin import split as split_command
from rvqlm.bin import validate as validate_command
from rvqlm.data import splits
from rvqlm.data.index import TokenDataset, build_index, manifest_path, read_manifest
from rvqlm.data.splits import (
    SPLITS,
    SplitConfig,
    group,
    is_augmented,
    recording,
    require_disjoint,
    speakers,
    split_manifest,
)
from rvqlm.errors import UserError


def split_by_group(cuts, valid, test, by="auto", seed=0, **options):
    config = SplitConfig(Path(), valid, test, by=by, seed=seed, **options)
    return splits.split_by_group(cuts, config)


def cut(name, rec=None, voices=(), seconds=1.0):
    return {
        "id": name,
        "duration": seconds,
        "features": {"recording_id": rec or name},
        "supervisions": [{"speaker": v} for v in voices],
    }


def corpus(n, rng, voices=20, takes=0):
    out = []
    for i in range(n):
        rec = f"rec-{rng.randrange(takes)}" if takes else None
        out.append(cut(f"c{i}", rec, [f"v{rng.randrange(voices)}"], rng.uniform(1, 20)))
    return out


def members(cuts, result, of):
    return [{x for c, s in zip(cuts, result.split) if s == n for x in of(c)} for n in range(3)]


def assert_disjoint(sets):
    for a in range(3):
        for b in range(a):
            assert not sets[a] & sets[b]


@pytest.mark.parametrize("key", ["auto", "speaker", "recording"])
def test_no_speaker_and_no_recording_is_shared(key):
    rng = random.Random(0)
    for trial in range(10):
        cuts = corpus(200, rng, voices=12, takes=0 if key == "speaker" else 40)
        if key != "recording":  # one recording per speaker, or all would hang together
            for c in cuts:
                c["features"]["recording_id"] = c["supervisions"][0]["speaker"] + str(trial)
        result = split_by_group(cuts, 0.1, 0.2, key, seed=trial)
        assert_disjoint(members(cuts, result, lambda c: [recording(c)]))
        if key != "recording":
            assert result.by == "speaker"
            assert_disjoint(members(cuts, result, speakers))
        assert all((result.split == n).any() for n in range(3))


def test_conversations_tie_their_speakers_together():
    """a-b share a cut, b-c another, c-d a recording: all four stay together."""
    for seed in range(20):
        rec = f"r{seed}"  # names of other hashes: no chain may depend on which is the least
        cuts = [cut("1", voices=["a", "b"]), cut("2", voices=["b", "c"]), cut("3", rec, ["c"])]
        cuts += [cut("4", rec, ["d"])] + [cut(f"x{i}", voices=[f"e{i}"]) for i in range(6)]
        result = split_by_group(cuts, 1, 1, "speaker", seed)
        assert len(set(result.split[:4].tolist())) == 1
        assert sum(result.groups.values()) == 7


def test_sizes_are_shares_of_hours_or_numbers_of_groups():
    rng = random.Random(1)
    cuts = corpus(2000, rng, voices=300)
    result = split_by_group(cuts, 0.05, 0.1, "speaker", 0)
    total = sum(result.seconds.values())
    assert result.seconds["valid"] / total == pytest.approx(0.05, abs=0.005)
    assert result.seconds["test"] / total == pytest.approx(0.1, abs=0.005)
    result = split_by_group(cuts, 4, 0, "speaker", 0)
    assert result.groups["valid"] == 4 and result.groups["test"] == 0
    # even when every group is larger than the share
    result = split_by_group(corpus(60, rng, voices=4), 0.01, 0.01, "speaker", 0)
    assert result.groups["valid"] == result.groups["test"] == 1


def test_named_speakers_make_up_the_test_split():
    cuts = [cut(f"c{n}", voices=[f"s{n % 6}"]) for n in range(30)]
    cuts.append(cut("duet", voices=["s4", "s5"]))  # ties s5 to s4
    result = split_by_group(cuts, 1, 0.3, test_speakers=["s1", "s4"])
    assert members(cuts, result, speakers)[2] == {"s1", "s4", "s5"}
    assert result.groups == {"train": 2, "valid": 1, "test": 2}
    with pytest.raises(UserError, match="--test-speakers nobody: no cut"):
        split_by_group(cuts, 1, 0, test_speakers=["nobody"])
    with pytest.raises(UserError, match="exclude each other"):
        split_by_group(cuts, 1, 0, "recording", test_speakers=["s1"])
    with pytest.raises(UserError, match="no speaker"):
        split_by_group([*cuts, cut("dumb")], 1, 0, test_speakers=["s1"])
    with pytest.raises(UserError, match="groups of cuts"):
        split_by_group(cuts, 1, 0, test_speakers=[f"s{n}" for n in range(5)])


def grouped(name, group=None, original=None, seconds=1.0, **kwargs):
    custom = {"group": group, "augmented_from": original}
    return {
        **cut(name, seconds=seconds, **kwargs),
        "custom": {k: v for k, v in custom.items() if v is not None} or None,
    }


@pytest.mark.parametrize("key", ["auto", "speaker", "recording"])
def test_groups_are_not_divided(key):
    rng = random.Random(3)
    for trial in range(10):
        cuts = [
            grouped(f"c{n}", rng.choice([f"g{rng.randrange(30)}", None]), voices=[f"v{n % 50}"])
            for n in range(100)
        ]
        result = split_by_group(cuts, 0.1, 0.2, "recording" if trial % 2 else key, seed=trial)
        assert result.grouped and not result.dropped
        assert_disjoint(members(cuts, result, lambda c: [group(c)]))
        assert all((result.split == n).any() for n in range(3))
    names = {group(c) for c in cuts}
    if result.by == "recording":
        assert sum(result.groups.values()) == len(names)


def test_a_group_may_have_the_name_of_a_recording():
    """A copy names its original's recording; the original itself has no group."""
    for seed in range(20):
        cuts = [grouped(f"c{n}") for n in range(8)]
        cuts += [grouped(f"copy{n}", f"c{n}", f"c{n}") for n in range(8)]
        result = split_by_group(cuts, 2, 2, seed=seed, augmented="all")
        assert (result.split[:8] == result.split[8:]).all() and not result.dropped
        chain = [grouped("a", "b"), grouped("b", "c"), grouped("c")]
        linked = split_by_group([*cuts, *chain], 2, 2, seed=seed, augmented="all")
        assert len(set(linked.split[-3:].tolist())) == 1


@pytest.mark.parametrize("key", ["speaker", "recording"])
def test_copies_are_in_training_only(key):
    """They are dropped elsewhere, and do not count as hours of validation and test."""
    rng = random.Random(4)
    cuts = [grouped(f"c{n}", voices=[f"v{n}"], seconds=rng.uniform(1, 20)) for n in range(300)]
    for n in range(100):  # some recordings have five copies, most none
        cuts += [
            grouped(f"c{n}-{k}", f"c{n}", f"c{n}", 9.0, voices=[f"v{n}-{k}"]) for k in range(5)
        ]
    result = split_by_group(cuts, 0.2, 0.1, key, seed=1)
    for n in (1, 2):
        assert not any(is_augmented(c) for c, s in zip(cuts, result.split) if s == n)
    assert_disjoint(members(cuts, result, lambda c: [group(c)]))
    hours = sum(c["duration"] for c in cuts if not is_augmented(c))
    assert result.seconds["valid"] / hours == pytest.approx(0.2, abs=0.01)
    assert result.seconds["test"] / hours == pytest.approx(0.1, abs=0.01)
    dropped = [c for c, s in zip(cuts, result.split) if s < 0]
    assert len(dropped) == result.dropped > 0 and all(is_augmented(c) for c in dropped)
    held = {group(c) for c, s in zip(cuts, result.split) if s > 0}
    assert {c["id"] for c in dropped} == {
        c["id"] for c in cuts if is_augmented(c) and group(c) in held
    }


def test_copies_without_originals_are_for_training():
    cuts = [grouped(f"c{n}-x", f"c{n}", f"c{n}") for n in range(50)] + [grouped("a"), grouped("b")]
    for seed in range(5):
        result = split_by_group(cuts, 1, 1, seed=seed)
        assert (result.split[:50] == 0).all() and sorted(result.split[50:]) == [1, 2]
    with pytest.raises(UserError, match="52 groups of cuts by recording where 4 are needed"):
        split_by_group(cuts, 2, 1)


def test_deterministic_in_seed_and_independent_of_order():
    rng = random.Random(2)
    cuts = corpus(300, rng)
    first = split_by_group(cuts, 0.2, 0.2, seed=5)
    again = split_by_group(cuts, 0.2, 0.2, seed=5)
    assert (first.split == again.split).all()
    assert (first.split != split_by_group(cuts, 0.2, 0.2, seed=6).split).any()
    order = list(range(300))
    rng.shuffle(order)
    moved = split_by_group([cuts[i] for i in order], 0.2, 0.2, seed=5)
    assert (moved.split == first.split[order]).all()


def test_auto_falls_back_to_recordings_and_says_so():
    cuts = [cut(f"c{i}", voices=["one voice"]) for i in range(20)]
    assert split_by_group(cuts, 0.1, 0.1).by == "recording"
    assert split_by_group([*cuts, cut("mute")], 0.1, 0.1).by == "recording"
    with pytest.raises(
        UserError, match=r"1 groups of cuts by speaker where 3 are needed.*recording"
    ):
        split_by_group(cuts, 0.1, 0.1, "speaker")
    with pytest.raises(UserError, match="cut 'mute' has no speaker; use --by recording"):
        split_by_group([*cuts, cut("mute")], 0.1, 0.1, "speaker")


@pytest.mark.parametrize(
    "valid, test, message",
    [
        (-0.1, 0, "--valid -0.1"),
        (1.5, 0, "--valid 1.5"),
        (0, float("nan"), "--test nan"),
        (0.5, 0.5, "leave nothing to train on"),
        (20, 1, "20 groups of cuts by recording where 22 are needed"),
    ],
)
def test_impossible_sizes(valid, test, message):
    with pytest.raises(UserError, match=message):
        split_by_group([cut(f"c{i}") for i in range(20)], valid, test)


def test_incomplete_and_no_cuts():
    with pytest.raises(UserError, match="no cuts to split"):
        split_by_group([], 0.1, 0.1)
    with pytest.raises(UserError, match="cut 'b' of the manifest is incomplete"):
        split_by_group([cut("a"), {"id": "b"}], 0.1, 0.1)


def told(name, where, voices=(), **custom):
    return cut(name, voices=voices) | {"custom": {"set": where} | custom}


def test_the_division_of_a_corpus():
    cuts = [told("a", "train", "x"), told("b", "dev", "y"), told("c", "test", "z")]
    cuts += [told("d", "Validation", "y"), told("e", "eval", "z"), told("f", "train", "x")]
    result = split_by_group(cuts, 0.05, 0.05, given="set", seed=7)
    assert result.split.tolist() == [0, 1, 2, 1, 2, 0] and result.by == "speaker"
    assert result.groups == {"train": 1, "valid": 1, "test": 1} and not result.why
    # a copy goes with its original, and is dropped where that is held out
    copies = [told("a-fast", "train", "x", augmented_from="a")]
    copies += [told("b-fast", "dev", "y", augmented_from="b")]
    result = split_by_group([*cuts, *copies], 0, 0, given="set")
    assert result.split.tolist()[-2:] == [0, -1] and result.dropped == 1
    # by recording where a speaker is in two, or one has none; asked for, it is an error in the end
    for voices, why in (("x", "divides some"), ("", "cut 'g' has no speaker")):
        result = split_by_group([*cuts, told("g", "test", voices)], 0, 0, given="set")
        assert result.by == "recording" and why in result.why
        assert result.split.tolist() == [0, 1, 2, 1, 2, 0, 2]


def test_a_division_that_is_none():
    good = told("a", "train")
    for cuts, message in [
        ([good, told("b", "train-clean-100")], "cut 'b' has 'train-clean-100' there, where train"),
        ([good, cut("b")], "cut 'b' has 'none' there"),
        ([told("b", "test")], "no cut is for training"),
    ]:
        with pytest.raises(UserError, match=message):
            split_by_group(cuts, 0.05, 0.05, given="set")
    with pytest.raises(UserError, match="exclude each other"):
        split_by_group([good], 0.05, 0.05, given="set", test_speakers=("x",))


def test_a_division_that_leaks_is_refused(tmp_path):
    make_tokens(tmp_path, [20] * 9, speakers=3, split=None)
    path = tmp_path / "cuts.jsonl.gz"
    cuts = list(read_manifest(path))
    for n, one in enumerate(cuts):
        one["custom"] = (one.get("custom") or {}) | {"set": ("train", "dev", "test")[n // 3]}
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in cuts)
    with pytest.raises(
        UserError, match=r"splits train and valid share . cuts, recordings or speak"
    ):
        split_manifest(SplitConfig(tmp_path, given="set", by="speaker"))
    assert split_manifest(SplitConfig(tmp_path, given="set")).by == "recording"
    made = json.loads((tmp_path / "splits.json").read_text())
    assert made["given"] == "set" and "seed" not in made
    for one, two in zip(cuts[3:6], cuts):  # a group in two sets is one at any rate
        one["custom"]["group"] = two["id"]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in cuts)
    with pytest.raises(UserError, match="splits train and valid share 3 cuts, recordings or group"):
        split_manifest(SplitConfig(tmp_path, given="set"))


def test_manifests_are_complete_and_reproducible(tmp_path):
    make_tokens(tmp_path, [20] * 60, speakers=12, split=None)
    split_manifest(SplitConfig(tmp_path, 0.1, 0.1))
    ids = [c["id"] for name in SPLITS for c in read_manifest(manifest_path(tmp_path, name))]
    assert sorted(ids) == [f"cut-{n:04d}" for n in range(60)]
    before = {name: manifest_path(tmp_path, name).read_bytes() for name in SPLITS}
    split_manifest(SplitConfig(tmp_path, 0.1, 0.1))
    assert before == {name: manifest_path(tmp_path, name).read_bytes() for name in SPLITS}
    split_manifest(SplitConfig(tmp_path, 2, 0))  # the test set goes away with its index
    assert not manifest_path(tmp_path, "test").exists()
    assert not list(tmp_path.glob(".*"))
    assert json.loads((tmp_path / "splits.json").read_text())["splits"]["valid"]["groups"] == 2


def test_leaks_are_found(tmp_path):
    make_tokens(tmp_path, [20] * 60, speakers=12, split=None)
    split_manifest(SplitConfig(tmp_path, 0.1, 0.1))
    with gzip.open(manifest_path(tmp_path, "train"), "ab") as file:
        file.write(json.dumps(next(read_manifest(manifest_path(tmp_path, "test")))).encode())
    paths = {name: manifest_path(tmp_path, name) for name in SPLITS}
    with pytest.raises(UserError, match="splits train and test share 3 cuts, recordings or speak"):
        require_disjoint(paths, "speaker")


def test_leaks_through_groups_are_found(tmp_path):
    paths = {name: tmp_path / f"{name}.jsonl" for name in SPLITS}
    for name, one in zip(SPLITS, [grouped("a"), grouped("b"), grouped("c", "g")]):
        paths[name].write_text(json.dumps(one) + "\n")
    require_disjoint(paths, "recording")
    for other in (grouped("d", "g"), grouped("d", "c"), grouped("g")):
        paths["train"].write_text(json.dumps(other) + "\n")
        if group(other) == "c":  # a copy of a cut that has a group of its own, and hides it
            paths["test"].write_text(json.dumps(grouped("c")) + "\n")
        with pytest.raises(UserError, match="splits train and test share 1 cuts, recordings or gr"):
            require_disjoint(paths, "recording")
        paths["test"].write_text(json.dumps(grouped("c", "g")) + "\n")


def test_tokens_changed_after_the_split_are_refused(tmp_path):
    make_tokens(tmp_path, [20] * 60, speakers=12, split=None)
    split_manifest(SplitConfig(tmp_path, 0.1, 0.1))
    make_tokens(tmp_path, [30] * 50, speakers=12, split=None)
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz has changed since it was split"):
        build_index(tmp_path, "train")
    (tmp_path / "splits.json").write_text(json.dumps({"source": None}))
    with pytest.raises(UserError, match="was interrupted; run rvqlm split"):
        build_index(tmp_path, "train")


def run(command, directory, *flags):
    return command.main(["--manifest-dir", str(directory), *flags])


def test_commands_end_to_end(tmp_path, capsys):
    codes = make_tokens(tmp_path, [20, 31, 7] * 20, speakers=12, split=None)
    assert run(split_command, tmp_path, "--valid", "2", "--test", "3", "--seed", "1") == 0
    assert "no two splits share a speaker" in capsys.readouterr().out
    assert run(index_command, tmp_path) == 0
    assert run(validate_command, tmp_path, "--max-duration", "10") == 0
    out = capsys.readouterr().out
    assert "unigram entropy per level" in out and "no problems found" in out
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["by"] == "speaker" and not stats["problems"]
    train = stats["splits"]["train"]
    ds = TokenDataset.open(tmp_path, "train")
    mine = np.concatenate([codes[int(name.split("-")[1])] for name in ds.ids()])
    assert train["cuts"] == len(ds) and train["frames"] == len(mine)
    assert train["codes_used"] == [len(np.unique(mine[:, k])) for k in range(3)]
    p = np.bincount(mine[:, 0], minlength=64) / len(mine)
    assert train["entropy_bits"][0] == pytest.approx(-sum(x * np.log2(x) for x in p if x))
    assert train["unigram_bits_per_second"] == pytest.approx(50 * sum(train["entropy_bits"]))
    assert train["plan"]["largest_batch_seconds"] <= 10
    assert sum(s["hours"] for s in stats["splits"].values()) == pytest.approx(1160 / 50 / 3600)


def test_copies_end_to_end(tmp_path, capsys):
    make_tokens(tmp_path, [20] * 60, split=None)
    cuts = list(read_manifest(tmp_path / "cuts.jsonl.gz"))
    for n, c in enumerate(cuts[30:]):
        c["custom"] = {**(c.get("custom") or {}), "group": cuts[n]["id"]}
        c["custom"]["augmented_from"] = cuts[n]["id"]
        c["supervisions"] = []
    for c in cuts[:30]:
        c["supervisions"] = []
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(c) + "\n" for c in cuts)
    assert run(split_command, tmp_path, "--valid", "4", "--test", "3") == 0
    out = capsys.readouterr().out
    assert "share a recording or group (checked)" in out and "groups of recordings" in out
    assert "a speaker may be in several of them, since cut 'cut-0000' has no speaker" in out
    assert "7 augmented copies of valid and test left out" in out
    record = json.loads((tmp_path / "splits.json").read_text())
    assert (record["by"], record["asked"]) == ("recording", "auto")
    assert record["dropped"] == 7 and record["splits"]["train"]["cuts"] == 46
    assert run(index_command, tmp_path) == 0
    assert run(validate_command, tmp_path, "--max-duration", "10") == 0
    assert run(split_command, tmp_path, "--valid", "4", "--test", "3", "--augmented", "all") == 0
    record = json.loads((tmp_path / "splits.json").read_text())
    assert record["dropped"] == 0 and record["splits"]["valid"]["cuts"] == 8


def test_validate_finds_damage(tmp_path, capsys):
    make_tokens(tmp_path, [20, 31, 7] * 20, speakers=12, split=None)
    run(split_command, tmp_path)
    run(index_command, tmp_path)
    shard = tmp_path / "codes/shard-00000.rvq"
    good = shard.read_bytes()

    def problems():
        assert run(validate_command, tmp_path, "--max-duration", "20") == 2
        return capsys.readouterr().err

    shard.write_bytes(good[:2] + b"\x05\x00" + good[4:])
    assert "shard-00000.rvq is corrupted" in problems()
    assert run(validate_command, tmp_path, "--max-duration", "20", "--no-checksums") == 0
    shard.write_bytes(good[:-2] + b"\xff\x7f")
    found = problems()
    assert (
        "cut 'cut-0059' of" in found
        and "has code 32767 in frame 6, level 2; codec test has 64" in found
    )
    os.truncate(shard, 100)
    assert "is truncated" in problems()
    shard.write_bytes(good)
    with gzip.open(manifest_path(tmp_path, "train"), "ab") as file:
        file.write(b"\n")
    assert "is older than its manifest" in problems()
    assert json.loads((tmp_path / "stats.json").read_text())["problems"]


@pytest.mark.parametrize("command", [split_command, index_command, validate_command])
def test_commands_refuse_what_is_no_token_directory(command, tmp_path, capsys):
    assert run(command, tmp_path / "none") == 2
    error = capsys.readouterr().err
    name = command.__name__.split(".")[-1]
    assert error.startswith(f"rvqlm {name}: error: ") and "tokens.json" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_commands_run_as_scripts(tmp_path):
    done = subprocess.run(
        [sys.executable, split_command.__file__, "--manifest-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith("rvqlm split: error: ")
