"""Tokenization by the jobs of an array, and what they made as one token directory."""

import gzip
import json
import random
import shlex
import shutil
import signal

import pytest
from lhotse import CutSet
from tokenize_fixtures import (
    Peaks,
    Stop,
    config,
    contents,
    in_a_process,
    interrupt_after,
    lines,
    make_audio,
    spoil,
)

import rvqlm.bin.main
from rvqlm.audio.source import Listing, Source
from rvqlm.audio.sources import open_source
from rvqlm.errors import UserError
from rvqlm.tokenizing import combine as combining
from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing.combine import combine
from rvqlm.tokenizing.parts import Part

pytestmark = pytest.mark.usefixtures("peaks")


def make_part(corpus, out, part, **flags):
    made = config(corpus, out, **flags)
    made.input.part = part
    return tokenize.tokenize(made)


def make_parts(corpus, out, of, **flags):
    for number in random.Random(of).sample(range(of), of):
        make_part(corpus, out, f"{number}/{of}", **flags)


def said(out):
    """What a token directory tells, however its codes are shared out over shards."""
    side = json.loads((out / "tokens.json").read_text())
    side = {k: v for k, v in side.items() if k not in ("shards", "checksum")}
    cuts = CutSet.from_file(out / "cuts.jsonl.gz")
    codes = [(c.id, c.custom, c.duration, c.load_features().tolist()) for c in cuts]
    return side, codes, lines(out / "audio_cuts.jsonl.gz"), lines(out / "skipped.jsonl")


@pytest.mark.parametrize("of", [1, 4, 40])
def test_parts_together_are_what_one_run_makes(corpus, tmp_path, of, capsys):
    """Of 40 parts, for 31 items, some have none; of some all files are bad."""
    spoil(corpus)
    whole, out = tmp_path / "whole", tmp_path / "out"
    tokenize.tokenize(config(corpus, whole))
    make_parts(corpus, out, of)
    made = combine(out, checksums=True)
    assert said(out) == said(whole)
    assert (made.num_cuts, made.skipped) == (25, 6)
    assert not list(out.glob("part*"))
    before = contents(out)
    assert combine(out).num_cuts == 25
    for part in (None, f"{of - 1}/{of}"):  # all of it is done, however one asks
        capsys.readouterr()
        make_part(corpus, out, part)
        assert f"{out}: complete, 25 cuts; nothing to do" in capsys.readouterr().out
    assert contents(out) == before


def test_a_part_has_the_same_bytes_wherever_and_however_it_is_made(corpus, tmp_path, monkeypatch):
    spoil(corpus)
    first = tmp_path / "a" / "tokens"
    make_parts(corpus, first, 3, jobs=1)
    folder = Part(1, 3).folder(first)
    expected = contents(folder)
    other = tmp_path / "b" / "tokens"
    interrupt_after(monkeypatch, 4)
    with pytest.raises(Stop):
        make_part(corpus, other, "1/3")
    assert not (Part(1, 3).folder(other) / "tokens.json").exists()
    monkeypatch.setattr(Peaks, "delay", 0.2)
    killed = config(corpus, other, jobs=3)
    killed.input.part = "1/3"
    process = in_a_process(killed)
    process.join(0.3)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(Peaks, "delay", 0.0)
    make_part(corpus, other, "1/3", jobs=2)
    assert contents(Part(1, 3).folder(other)) == expected


def test_ranks_share_a_part(corpus, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    make_part(corpus, other, "1/2")
    together = config(corpus, out)
    together.input.part = "1/2"
    ranks = [in_a_process(together, RANK=str(r), WORLD_SIZE="2", LOCAL_RANK=str(r)) for r in (1, 0)]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert contents(Part(1, 2).folder(out)) == contents(Part(1, 2).folder(other))


def test_all_jobs_of_an_array_at_once(corpus, tmp_path):
    """None of them is first, and all write down what they have in common."""
    out = tmp_path / "out"
    jobs = [config(corpus, out) for _ in range(6)]
    for number, job in enumerate(jobs):
        job.input.part = f"{number}/6"
    processes = [in_a_process(job) for job in jobs]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert combine(out).num_cuts == 24


def test_combining_can_be_stopped_and_done_again(corpus, tmp_path, monkeypatch):
    out, other = tmp_path / "out", tmp_path / "other"
    make_parts(corpus, out, 3)
    make_parts(corpus, other, 3)
    combine(other)

    def stop(*args):
        raise Stop

    for name in ("write_sidecar", "remove_folders"):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            patch.setattr(combining, name, stop)
            combine(out)
        assert len(list(out.glob("part-*"))) == 3
    assert combine(out).num_cuts == 24
    assert contents(out) == contents(other)


def test_kept_parts_are_as_they_were(corpus, tmp_path):
    out = tmp_path / "out"
    make_parts(corpus, out, 2)
    before = {k: v for k, v in contents(out).items() if k.startswith("part")}
    combine(out, keep_parts=True)
    made = contents(out)
    assert {k: v for k, v in made.items() if k.startswith("part")} == before
    shard = next((out / "codes").iterdir())
    assert shard.stat().st_nlink == 2


def test_what_is_missing_is_named_with_the_command_that_makes_it(corpus, tmp_path, monkeypatch):
    out = tmp_path / "my tokens"
    for number in (0, 4, 6):
        make_part(corpus, out, f"{number}/7", mono="left", trim_silence=True)
    interrupt_after(monkeypatch, 1)
    with pytest.raises(Stop):
        make_part(corpus, out, "2/7", mono="left", trim_silence=True)
    pattern = r"4 parts of 7 are missing or unfinished: 1-3,5; run (rvqlm .*) and so on"
    with pytest.raises(UserError, match=pattern) as caught:
        combine(out)
    assert not (out / "codes").exists()
    command = str(caught.value).split("run ")[1].removesuffix(" and so on")
    assert "--mono left --trim-silence --jobs 1 --part 1/7" in command
    for number in (1, 2, 3):
        words = shlex.split(command.replace(" 1/7", f" {number}/7"))
        assert rvqlm.bin.main.main(words[1:]) == 0
    with pytest.raises(UserError, match=r"1 part of 7 is missing or unfinished: 5; run .* 5/7$"):
        combine(out)
    assert rvqlm.bin.main.main([*words[1:-1], "5/7"]) == 0
    assert rvqlm.bin.main.main(["combine", "--out-dir", str(out)]) == 0
    assert said(out)[0]["num_cuts"] == 24


def test_another_list_codec_setting_or_number_is_refused(corpus, tmp_path):
    out = tmp_path / "out"
    make_part(corpus, out, "0/2")
    with pytest.raises(UserError, match="is made in 2 parts, not 3"):
        make_part(corpus, out, "0/3")
    with pytest.raises(UserError, match="codec mismatch"):
        make_part(corpus, out, "1/2", codec="other")
    with pytest.raises(UserError, match="mono 'average' against 'left'"):
        make_part(corpus, out, "1/2", mono="left")
    with pytest.raises(UserError, match="is made in parts: give --part"):
        tokenize.tokenize(config(corpus, out))
    more = shutil.copytree(corpus, tmp_path / "more")
    shutil.copy(more / "speaker0/000.wav", more / "speaker0/more.wav")
    with pytest.raises(UserError, match=r"another input .*items 24 against 25, digest"):
        make_part(more, out, "1/2")


def elsewhere(corpus, tmp_path):
    """Part 1/3 of another list, as a machine makes it that shares no folder with the others."""
    make_audio(tmp_path / "list", 23)
    make_part(tmp_path / "list", tmp_path / "there", "1/3")
    folder = Part(1, 3).folder(tmp_path / "out")
    shutil.rmtree(folder)
    shutil.copytree(Part(1, 3).folder(tmp_path / "there"), folder)


def shorten(corpus, tmp_path):
    path = next((Part(1, 3).folder(tmp_path / "out") / "codes").iterdir())
    path.write_bytes(path.read_bytes()[:-1])


def flip(corpus, tmp_path):
    path = next((Part(1, 3).folder(tmp_path / "out") / "codes").iterdir())
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def lose_a_line(corpus, tmp_path):
    path = Part(1, 3).folder(tmp_path / "out") / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).split(b"\n", 1)[1]))


def wrong_name(corpus, tmp_path):
    out = tmp_path / "out"
    shutil.rmtree(Part(1, 3).folder(out))
    shutil.copytree(Part(2, 3).folder(out), Part(1, 3).folder(out))


def damage_sidecar(corpus, tmp_path):
    path = Part(1, 3).folder(tmp_path / "out") / "tokens.json"
    path.write_text(path.read_text().replace('"skipped": 0', '"skipped": 1'))


def of_others(corpus, tmp_path):
    shutil.copytree(Part(1, 3).folder(tmp_path / "out"), Part(1, 4).folder(tmp_path / "out"))


@pytest.mark.parametrize(
    "harm, message",
    [
        (elsewhere, r"part-00001-of-00003 was made from another input .*digest"),
        (shorten, r"part-00001-of-00003/codes/\S+ is truncated"),
        (flip, r"part-00001-of-00003/codes/\S+ is corrupted: checksum"),
        (lose_a_line, r"part-00001-of-00003 has 6 cuts where 7 belong; remove \S+ and run rvqlm"),
        (wrong_name, r"part-00001-of-00003 holds part 2/3; remove \S+ and run .* --part 1/3"),
        (damage_sidecar, r"part-00001-of-00003/tokens.json is damaged .*; remove \S+ and run"),
        (of_others, r"made in 3 parts, and \S+part-00001-of-00004 is one of others; remove it"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(corpus, tmp_path, harm, message):
    out = tmp_path / "out"
    make_parts(corpus, out, 3)
    harm(corpus, tmp_path)
    with pytest.raises(UserError, match=message):
        combine(out, checksums=True)
    assert not (out / "tokens.json").exists() and (out / "part-00000-of-00003").exists()


def test_nothing_usable_in_any_part(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in "ab":
        (tmp_path / f"audio/{name}.wav").write_text("no audio at all")
    make_parts(tmp_path / "audio", tmp_path / "out", 2)
    with pytest.raises(
        UserError, match=r"not one of 2 items could be tokenized; the first, .*a\.wav"
    ):
        combine(tmp_path / "out")
    with pytest.raises(UserError, match=r"parts.json not found: not a folder of parts; run rvqlm"):
        combine(tmp_path / "audio")


@pytest.mark.parametrize(
    "text, message",
    [
        ("3", "--part 3: give number/parts such as 17/1000, or auto/1000"),
        ("-1/4", "give number/parts"),
        ("4/4", "--part 4/4: parts count from 0: give 0/4 to 3/4"),
        ("0/0", "from 1 to 8192 parts"),
        ("0/9000", "from 1 to 8192 parts"),
        ("auto/4", "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
    ],
)
def test_parts_that_are_none(text, message, monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=message):
        Part.parse(text)


def test_the_number_comes_from_the_scheduler(monkeypatch):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert Part.parse("auto/4") == Part(0, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert Part.parse("auto/4") == Part(3, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    with pytest.raises(UserError, match=r"auto/4 \(SLURM_ARRAY_TASK_ID=4\): parts count from 0"):
        Part.parse("auto/4")


def test_parts_have_like_costs_and_every_item_once(corpus):
    source = open_source(str(corpus))
    listing: Listing = source.scan()
    found, costs = [], []
    for number in range(5):
        part, listed = Part(number, 5).of_input(source, listing, tokenize_identity(source))[:2]
        items = list(part.items(0, len(listed)))
        assert [i.id for i in items] == list(part.ids())
        found += items
        costs.append(listed.costs.sum())
    assert [i.id for i in found] == list(source.ids())
    assert max(costs) - min(costs) <= 2 * listing.costs.max()


def tokenize_identity(source: Source):
    from rvqlm.tokenizing.plan import Identity

    listing = source.scan()
    return Identity(Peaks().info, source.path, len(listing), listing.digest, {}, "float32")
