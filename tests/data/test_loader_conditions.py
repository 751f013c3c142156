"""The loader with conditions: each item has its own, wherever and with whom it is read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from condition_fixtures import make_steps, make_times
from token_fixtures import make_tokens

from rvqlm.batch import Padded
from rvqlm.data.conditions import ConditionSet
from rvqlm.data.index import TokenDataset
from rvqlm.data.loader import TokenLoader
from rvqlm.data.pairs import PairConfig, make_pairs
from rvqlm.data.plan import PlanConfig
from rvqlm.errors import UserError

CONFIG = PlanConfig(max_duration=8, shuffle_window=60)
KINDS = ("text", "midi", "source", "prompt")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    target, source = (tmp_path_factory.mktemp(name) for name in ("target", "source"))
    frames = np.random.default_rng(1).integers(2, 200, 97).tolist()
    make_tokens(target, frames, speakers=8)
    texts = make_steps(target, "text")
    make_times(target)
    make_steps(target, "midi")
    heard = make_tokens(source, frames, seed=9)
    make_pairs(PairConfig(target, source))
    return TokenDataset.open(target, "train"), texts, heard


def items(batches) -> dict:
    """Conditions of each item by epoch, row and its first frames, without padding."""
    out = {}
    for batch in batches:
        for n, row in enumerate(batch.index.tolist()):
            of = {k: p.values[n, : p.lengths[n]].numpy() for k, p in batch.conditions.items()}
            if (times := batch.conditions.get("text", Padded(None, None)).times) is not None:
                of["times"] = times[n, : batch.conditions["text"].lengths[n]].nan_to_num(-1).numpy()
            key = (batch.epoch, row, batch.codes[n, :2].numpy().tobytes())
            assert key not in out
            out[key] = of
    return out


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        a[i].keys() == b[i].keys() and all(np.array_equal(a[i][k], b[i][k]) for k in a[i])
        for i in a
    )


def take(loader, n):
    return [next(loader) for _ in range(n)]


def test_batches_carry_the_conditions_of_their_rows(data):
    ds, texts, heard = data
    loader = TokenLoader(ds, CONFIG, seed=0, conditions=ConditionSet.open(ds, KINDS))
    for batch in take(loader, loader.epoch_steps):
        assert list(batch.conditions) == list(KINDS)
        for n, row in enumerate(batch.index.tolist()):
            text, source = (batch.conditions[k] for k in ("text", "source"))
            np.testing.assert_array_equal(text.values[n, : text.lengths[n]], texts[row])
            np.testing.assert_array_equal(source.values[n, : source.lengths[n]], heard[row])
            assert 0 < batch.conditions["prompt"].lengths[n] <= 150
    loader.close()


@pytest.mark.parametrize("flags", [{}, {"crop_frames": 40}, {"window_frames": 64}])
def test_resuming_anywhere_gives_the_same_conditions(data, flags):
    ds, config = data[0], replace(CONFIG, **flags)
    told = {"prompt_frames": 30, "aligned": True}
    conditions = ConditionSet.open(ds, KINDS[2:] if flags else KINDS, **told)
    whole = TokenLoader(ds, config, seed=7, conditions=conditions)
    total = whole.epoch_steps * 2 + 3
    expected = take(whole, total)
    whole.close()
    for stop in random.Random(0).sample(range(total), 4):
        first = TokenLoader(ds, config, seed=7, conditions=conditions)
        got = take(first, stop)
        again = ConditionSet.open(ds, list(conditions.infos), **told)
        second = TokenLoader(ds, config, seed=7, prefetch=1, conditions=again)
        second.load_state_dict(first.state_dict())
        first.close()
        got += take(second, total - stop)
        second.close()
        for a, b in zip(got, expected):
            assert same(items([a]), items([b]))


def test_batch_composition_changes_nothing(data):
    ds = data[0]
    conditions = ConditionSet.open(ds, KINDS, aligned=True)
    alone = TokenLoader(ds, replace(CONFIG, max_cuts=1), seed=1, conditions=conditions)
    expected = items(take(alone, alone.epoch_steps))
    for config, seed, world in ((CONFIG, 3, 1), (replace(CONFIG, max_duration=20), 4, 3)):
        got = {}
        for rank in range(world):
            loader = TokenLoader(ds, config, seed, rank, world, conditions=conditions)
            got |= items(take(loader, loader.epoch_steps))
            loader.close()
        assert same(got, expected)
    alone.close()


def test_validation_hears_the_same_every_time(data):
    ds = data[0]
    conditions = ConditionSet.open(ds, KINDS)
    first = items(TokenLoader(ds, CONFIG, seed=0, conditions=conditions).epoch_batches())
    loader = TokenLoader(ds, CONFIG, seed=5, conditions=ConditionSet.open(ds, KINDS))
    take(loader, 3)
    assert same(first, items(loader.epoch_batches())) and len(first) == 97
    loader.close()


def test_windows_hear_their_frames_of_the_source(data):
    ds, _, heard = data
    config = replace(CONFIG, window_frames=50, hop_frames=25)
    loader = TokenLoader(ds, config, seed=0, conditions=ConditionSet.open(ds, ["source"]))
    codes = [ds.read(row) for row in range(len(ds))]
    for batch in loader.epoch_batches():
        values, lengths, _ = batch.conditions["source"]
        assert torch.equal(lengths, batch.lengths)
        for row, n, item, source in zip(batch.index, batch.lengths, batch.codes, values):
            starts = range(0, len(codes[row]), 25)
            at = [s for s in starts if np.array_equal(codes[row][s : s + int(n)], item[:n])]
            assert any(np.array_equal(heard[row][s : s + int(n)], source[:n]) for s in at)


def test_text_does_not_go_with_parts(data):
    ds = data[0]
    conditions = ConditionSet.open(ds, ["text"])
    with pytest.raises(UserError, match=r"--crop-frames takes parts .* text belongs to the whole"):
        TokenLoader(ds, replace(CONFIG, crop_frames=9), seed=0, conditions=conditions)
    # more ranks than items: the plan divides cuts in time, and the thread's error arrives here
    few = replace(CONFIG, filter_max_duration=0.3)
    loader = TokenLoader(ds, few, seed=0, world_size=64, conditions=conditions)
    with pytest.raises(UserError, match=r"a part of cut .* text belongs .* fewer ranks"):
        for rank in range(64):
            other = TokenLoader(ds, few, 0, rank, 64, conditions=conditions)
            try:
                take(other, loader.epoch_steps)
            finally:
                other.close()


def test_other_conditions_are_refused_on_resuming(data):
    ds = data[0]

    def loader(kinds=("text", "prompt"), **how):
        opened = ConditionSet.open(ds, kinds, **how) if kinds else None
        return TokenLoader(ds, CONFIG, seed=0, conditions=opened)

    state = loader().state_dict()
    loader().load_state_dict(state)
    with pytest.raises(UserError, match="--prompt-frames was 150, is 9; restore these"):
        loader(prompt_frames=9).load_state_dict(state)
    with pytest.raises(UserError, match=r"--conditions was \['text', 'prompt'\], is \['text'\]"):
        loader(["text"]).load_state_dict(state)
    with pytest.raises(UserError, match=r"--conditions was \['text', 'prompt'\], is None"):
        loader(None).load_state_dict(state)
    before = {k: v for k, v in loader(None).state_dict().items() if k != "conditions"}
    loader(None).load_state_dict(before)  # of a version without conditions


def test_other_times_are_refused_on_resuming(data):
    ds = data[0]

    def loader(aligned=True):
        return TokenLoader(
            ds, CONFIG, seed=0, conditions=ConditionSet.open(ds, ["midi", "text"], aligned=aligned)
        )

    state = loader().state_dict()
    loader().load_state_dict(state)
    with pytest.raises(UserError, match="--text-times was yes, is no; restore"):
        loader(False).load_state_dict(state)
    with pytest.raises(UserError, match="--text-times was no, is yes; restore"):
        loader().load_state_dict(loader(False).state_dict())
    try:
        make_times(ds.directory, seed=1)
        with pytest.raises(UserError, match="rvqlm align was run again: the times of the texts in"):
            loader().load_state_dict(state)
    finally:
        make_times(ds.directory)
    loader().load_state_dict(state)


def test_an_item_with_a_condition_out_of_range_is_left_out(tmp_path, capsys):
    target, source = tmp_path / "target", tmp_path / "source"
    make_tokens(target, [20] * 6)
    make_tokens(source, [20] * 6, seed=9)
    make_pairs(PairConfig(target, source))
    shard = next((source / "codes").glob("*.rvq"))
    values = np.fromfile(shard, "<i2").reshape(6, 20, 3)
    values[2, 4, 1] = 64
    values.tofile(shard)
    ds = TokenDataset.open(target, "train")
    loader = TokenLoader(ds, CONFIG, 0, conditions=ConditionSet.open(ds, ("source",)))
    seen = [row for batch in loader.epoch_batches() for row in batch.index.tolist()]
    assert sorted(seen) == [0, 1, 3, 4, 5]
    assert "'cut-0002' (row 2 of train)" in capsys.readouterr().err
