"""Stopped anywhere and started again, `rvqlm tokenize` makes what it makes in one go."""

import os
import random
import signal

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from tokenize_fixtures import (
    HOP,
    RATE,
    Peaks,
    Stop,
    config,
    contents,
    in_a_process,
    interrupt_after,
    spoil,
)

from rvqlm.audio.sources import open_source
from rvqlm.errors import UserError
from rvqlm.tokenizing import encode as token_encode
from rvqlm.tokenizing import shard as token_shard
from rvqlm.tokenizing import tokenize
from rvqlm.tokenizing.shard import ShardLog

pytestmark = pytest.mark.usefixtures("peaks")


def test_finished_is_left_alone_and_other_work_is_refused(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    tokenize.tokenize(config(corpus, out))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    summary = tokenize.tokenize(config(corpus, out, jobs=2))
    assert "nothing to do" in capsys.readouterr().out and summary.num_cuts == 24
    with pytest.raises(UserError, match=r"codec mismatch between --out-dir .*fingerprint 'llll"):
        tokenize.tokenize(config(corpus, out, codec="other"))
    with pytest.raises(UserError, match="mono 'average' against 'refuse'"):
        tokenize.tokenize(config(corpus, out, mono="refuse"))
    (corpus / "speaker0" / "000.wav").unlink()
    with pytest.raises(UserError, match=r"made from another input .*items 24 against 23"):
        tokenize.tokenize(config(corpus, out))
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "cuts.jsonl.gz").touch()
    with pytest.raises(UserError, match="tokenize did not make"):
        tokenize.tokenize(config(corpus, foreign))


def test_dry_run_writes_nothing(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    assert tokenize.tokenize(config(corpus, out, dry_run=True)) is None
    assert not out.exists()
    shown = capsys.readouterr().out
    assert "24 items" in shown and "200.00 frames/s" in shown and "nothing written" in shown


def test_another_codec_cannot_continue(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt_after(monkeypatch, 5)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out, jobs=1))
    assert not (out / "tokens.json").exists()
    with pytest.raises(UserError, match="codec mismatch"):
        tokenize.tokenize(config(corpus, out, codec="other", jobs=2))


@pytest.mark.parametrize(
    "damage, jobs",
    [("none", 2), ("torn line", 1), ("torn codes", 2), ("lost codes", 1), ("no codes", 1)],
)
def test_whatever_the_tail_looks_like_the_result_is_the_same(
    corpus, tmp_path, monkeypatch, damage, jobs
):
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole"))
    out = tmp_path / "out"
    interrupt_after(monkeypatch, 11)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out))
    shard, log = token_shard.shard_path(out, 0), token_shard.log_path(out, 0)
    if damage == "torn line":
        with open(log, "ab") as file:
            file.write(b'{"cut": {"features": {"storage_key": "0,1')
    elif damage == "torn codes":
        with open(shard, "ab") as file:
            file.write(b"\x07" * 33)
    elif damage == "lost codes":
        os.truncate(shard, shard.stat().st_size // 2 + 1)
    elif damage == "no codes":
        shard.unlink()
    tokenize.tokenize(config(corpus, out, jobs=jobs))  # the plan of the first start holds
    assert contents(out) == contents(tmp_path / "whole")


def test_a_renamed_directory_continues_under_its_new_name(corpus, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 9)
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, tmp_path / "old"))
    os.rename(tmp_path / "old", tmp_path / "new")
    tokenize.tokenize(config(corpus, tmp_path / "new"))
    for cut in CutSet.from_file(tmp_path / "new" / "cuts.jsonl.gz"):
        assert len(cut.load_features()) == cut.num_frames


@pytest.mark.parametrize(
    "flags",
    [
        {"jobs": 1},
        {"jobs": 2},
        {"jobs": 1, "batch_size": 3},
        {"jobs": 1, "loudness": -23.0, "trim_silence": True, "chunk_seconds": 1.0},
    ],
    ids=str,
)
def test_killed_at_any_moment(corpus, tmp_path, monkeypatch, flags):
    spoil(corpus)
    for name in ("long", "longer"):  # several blocks, and loud enough to be measured
        noise = np.random.default_rng(len(name)).uniform(-0.1, 0.1, 90_000)
        soundfile.write(corpus / "speaker1" / f"{name}.flac", noise, RATE)
    tokenize.tokenize(config(corpus, tmp_path / "whole", **flags))
    monkeypatch.setattr(Peaks, "delay", 0.02)
    out, rng, kills = tmp_path / "out", random.Random(str(flags)), 0
    for _ in range(20):
        process = in_a_process(config(corpus, out, **flags))
        process.join(rng.uniform(0.02, 0.15))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    else:
        monkeypatch.setattr(Peaks, "delay", 0)
        tokenize.tokenize(config(corpus, out, **flags))
    assert kills >= 2
    assert contents(out) == contents(tmp_path / "whole")


def test_killed_during_the_merge(corpus, tmp_path, monkeypatch):
    tokenize.tokenize(config(corpus, tmp_path / "whole"))
    original, calls = os.replace, []

    def replace(source, target):
        calls.append(str(target))
        if len(calls) == stop:
            raise Stop
        return original(source, target)

    for stop in range(1, 20):
        out = tmp_path / f"out{stop}"
        calls.clear()
        monkeypatch.setattr(os, "replace", replace)
        try:
            tokenize.tokenize(config(corpus, out))
            break
        except Stop:
            monkeypatch.setattr(os, "replace", original)
            assert not (out / "tokens.json").exists()
            (out / f".cuts.jsonl.gz.{2**22 + 1}.tmp").touch()  # a kill leaves such files
            tokenize.tokenize(config(corpus, out))
            assert contents(out) == contents(tmp_path / "whole")
    assert stop >= 6  # plan, done, three manifests, sidecar
    assert calls[-1].endswith("tokens.json")


class Sociable(Peaks):
    """A codec whose codes tell how many others were encoded in the same call."""

    def encode_pieces(self, audio):
        codes, scales = super().encode_pieces(audio)
        return torch.full_like(codes, len(audio)), scales


@pytest.mark.parametrize("later", [4, 1, 7])
def test_a_group_that_was_interrupted_is_encoded_in_the_same_batches(
    corpus, tmp_path, monkeypatch, later
):
    """Wherever the log ends, and whatever the batch size of the next start."""
    spoil(corpus)
    monkeypatch.setattr(tokenize, "load_codec", lambda *args: Sociable())
    for path in (corpus / "speaker0").glob("00*.wav"):  # of one length: they can be together
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 400), RATE)
    tokenize.tokenize(config(corpus, tmp_path / "whole", batch_size=4))
    codes = [c.load_features() for c in CutSet.from_file(tmp_path / "whole" / "cuts.jsonl.gz")]
    assert {int(c[0, 0]) for c in codes} > {1, 2}
    for stop in range(1, 31, 3 if later == 4 else 9):
        out, original = tmp_path / f"out{stop}", ShardLog.append

        def append(log, line, stop=stop, original=original):
            if log.items == stop:
                raise Stop
            original(log, line)

        monkeypatch.setattr(ShardLog, "append", append)
        with pytest.raises(Stop):
            tokenize.tokenize(config(corpus, out, batch_size=4))
        monkeypatch.setattr(ShardLog, "append", original)
        tokenize.tokenize(config(corpus, out, batch_size=later))
        if later == 4:
            assert contents(out) == contents(tmp_path / "whole")
        made = [c.load_features() for c in CutSet.from_file(out / "cuts.jsonl.gz")]
        groups = -(-stop // 4) * 4  # those that were begun are completed as they were
        known = sum(c.id in _done_before(corpus, groups) for c in _cuts(out))
        assert all((a == b).all() for a, b in zip(made[:known], codes[:known]))


def _cuts(out):
    return CutSet.from_file(out / "cuts.jsonl.gz")


def _done_before(corpus, items):
    return list(open_source(str(corpus)).ids())[:items]


def test_a_dying_worker_is_one_clear_line(corpus, tmp_path, monkeypatch):
    parent = os.getpid()
    original = token_encode.encode_stream

    def encode(codec, blocks, *args):
        blocks = list(blocks)
        if os.getpid() != parent and sum(b.shape[1] for b in blocks) > 35 * HOP:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(codec, blocks, *args)

    monkeypatch.setattr(token_encode, "encode_stream", encode)
    with pytest.raises(UserError, match=r"died \(killed by signal 9; out of memory\?\)"):
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))
    monkeypatch.setattr(token_encode, "encode_stream", original)
    tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_errors_of_workers_reach_the_user(corpus, tmp_path, monkeypatch):
    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr(token_encode, "encode_stream", no_memory)
    with pytest.raises(UserError, match=r"not enough memory to encode .*; use fewer --jobs"):
        tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))

    # what is no lack of memory is not called so, whatever it descends from
    for kind in (ZeroDivisionError, NotImplementedError):

        def bug(*args, kind=kind):
            raise kind("here")

        monkeypatch.setattr(token_encode, "encode_stream", bug)
        said = rf"(?s)in an encoding process.*{kind.__name__}: here"
        with pytest.raises(RuntimeError, match=said):
            tokenize.tokenize(config(corpus, tmp_path / "out", jobs=2))


def test_two_runs_at_once_are_refused(corpus, tmp_path, monkeypatch):
    interrupt_after(monkeypatch, 5)
    out = tmp_path / "out"
    with pytest.raises(Stop):
        tokenize.tokenize(config(corpus, out))
    monkeypatch.setattr(token_shard, "LOCK_SECONDS", 0.1)
    with ShardLog(out, 0):
        with pytest.raises(UserError, match="another rvqlm tokenize is writing"):
            tokenize.tokenize(config(corpus, out))
    tokenize.tokenize(config(corpus, out))
