"""Conditions of a split: what is read, how prompts are drawn, what is refused."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from condition_fixtures import SIZES, edit_cuts, make_steps, make_times
from scipy import stats
from token_fixtures import INFO, make_tokens

import rvqlm.data.speakers as speakers_module
from rvqlm.batch import PAD
from rvqlm.condition_info import ConditionInfo
from rvqlm.data.conditions import ConditionSet, text_times_paths
from rvqlm.data.index import TokenDataset
from rvqlm.data.mapped import column_path
from rvqlm.data.mixed import open_mixed
from rvqlm.data.plan import Items, PlanConfig
from rvqlm.data.ragged import Ragged, write_ragged
from rvqlm.data.speakers import Speakers, uniform
from rvqlm.errors import UserError

FRAMES = np.random.default_rng(3).integers(1, 90, 60).tolist()
ROWS = np.array([0, 6, 17, 59, 3], np.uint32)
NO = np.zeros(5, np.uint32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    codes = make_tokens(directory, FRAMES, speakers=9)
    steps = {kind: make_steps(directory, kind) for kind in SIZES}
    return TokenDataset.open(directory, "train"), codes, steps


def whole(ds, rows=ROWS):
    return Items.whole(rows, ds.frames)


def test_text_and_notes_of_whole_cuts(data):
    ds, _, steps = data
    conditions = ConditionSet.open(ds, ["midi", "text"])
    assert list(conditions.infos) == ["midi", "text"]
    assert conditions.infos["midi"].sizes == SIZES["midi"] and conditions.infos["text"].rate == 4
    assert conditions.missing() == {"midi": 8, "text": 8}
    read = conditions.read(whole(ds))
    for kind, sizes in SIZES.items():
        values, lengths, _ = read[kind]
        expected = [steps[kind][row] for row in ROWS]
        assert values.dtype == torch.int32 and lengths.dtype == torch.int64
        assert lengths.tolist() == [len(e) for e in expected] and lengths[1] == 0
        assert values.shape == (5, max(map(len, expected)), len(sizes))
        for item, e in zip(values, expected):
            np.testing.assert_array_equal(item[: len(e)].numpy(), e)
            assert (item[len(e) :] == PAD).all()
    none = conditions.read(whole(ds, np.array([6, 13])))["text"]
    assert none.values.shape == (2, 0, 1) and none.lengths.tolist() == [0, 0]


def test_times_of_symbols(tmp_path):
    """Of two folders: each text has its own, NaN where they are unknown, and these are counted."""
    told = []
    for name, seed in (("a", 0), ("b", 1)):
        make_tokens(tmp_path / name, FRAMES[:20], seed=seed)
        for kind in SIZES:
            make_steps(tmp_path / name, kind, seed=seed)
        told += make_times(tmp_path / name, seed=seed)
    mixed = open_mixed([tmp_path / "a", tmp_path / "b"], "train")
    conditions = ConditionSet.open(mixed, ["midi", "text"], aligned=True)
    rows = np.array([3, 23, 4, 6, 39, 0, 20], np.uint32)
    read = conditions.read(whole(mixed, rows))
    text, seconds = read["text"], 1 / float(mixed.info.frame_rate)
    assert read["midi"].times is None and text.times.dtype == torch.float32
    for n, row in enumerate(rows.tolist()):
        count = 0 if told[row] is None else len(told[row])
        assert count in (0, text.lengths[n]) and text.times[n, count:].isnan().all()
        if count:
            got = text.times[n, :count] * seconds
            np.testing.assert_allclose(got, told[row], atol=1e-4)
    assert told[3] is not None and told[23] is not None and told[4] is None
    # 4 of 20 and no text in 6 and 13
    texts = text_times_paths(mixed)
    assert [p.parent.name for p in texts] == ["a", "b"] and all(p.exists() for p in texts)
    assert conditions.without_times() == 8 and conditions.missing() == {"midi": 4, "text": 4}
    assert conditions.infos["text"].aligned and not conditions.infos["midi"].aligned
    # each folder's are noticed
    state = conditions.state()
    make_times(tmp_path / "b", seed=5)
    other = ConditionSet.open(mixed, ["midi", "text"], aligned=True).state()
    assert state.pop("text_times") != other.pop("text_times") and state == other
    plain = ConditionSet.open(mixed, ["midi", "text"])
    assert plain.read(whole(mixed, rows))["text"].times is None and plain.without_times() == 0
    assert not plain.infos["text"].aligned and plain.state() == state
    texts[1].unlink()
    with pytest.raises(UserError, match=r"b/text-times_train.bin not found; run rvqlm align"):
        ConditionSet.open(mixed, ["text"], aligned=True)


def test_prompts_are_crops_of_another_cut_of_the_speaker(data):
    ds, codes, _ = data
    conditions = ConditionSet.open(ds, ["prompt"], prompt_frames=20, seed=5)
    assert conditions.infos["prompt"].sizes == (INFO.codebook_size,) * 3
    places = defaultdict(list)  # by two frames of codes: where a crop may be from
    for n, array in enumerate(codes):
        for t in range(len(array)):
            places[array[t : t + 2].tobytes()].append((n, t))
    rows = np.arange(len(ds))
    drawn, starts = Counter(), Counter()
    for epoch in range(30):
        values, lengths, _ = conditions.read(whole(ds, rows), epoch)["prompt"]
        for row, item, n in zip(rows.tolist(), values.numpy(), lengths.tolist()):
            ((other, t),) = [
                (o, t)
                for o, t in places[item[: min(n, 2)].astype(np.int16).tobytes()]
                if np.array_equal(codes[o][t : t + n], item[:n])
            ]
            assert other != row and other % 9 == row % 9
            assert n == min(20, FRAMES[other]) and (item[n:] == PAD).all()
            drawn[row, other] += 1
            starts[t == 0] += FRAMES[other] > 25
    pairs = [(r, o) for r in range(60) for o in range(r % 9, 60, 9) if o != r]
    assert set(drawn) <= set(pairs)
    for speaker in range(9):  # every other cut equally often
        counts = [drawn[p] for p in pairs if p[0] % 9 == speaker]
        assert stats.chisquare(counts).pvalue > 1e-4
    assert starts[False] > 5 * starts[True] > 0


def test_prompts_depend_on_seed_epoch_and_row_alone(data):
    ds = data[0]
    one = ConditionSet.open(ds, ["prompt"], prompt_frames=20, seed=5)
    all_rows = np.arange(len(ds))
    together = one.read(whole(ds, all_rows), 4)["prompt"]
    again = ConditionSet.open(ds, ["prompt"], prompt_frames=20, seed=5)
    for rows in (ROWS, all_rows[::-1], ROWS[:1]):
        part = again.read(whole(ds, rows), 4)["prompt"]
        for item, n, row in zip(part.values, part.lengths, rows.tolist()):
            assert n == together.lengths[row]
            assert torch.equal(item[:n], together.values[row, :n])
    # parts of a recording have the prompt of the whole
    window = again.read(Items(ROWS, NO, NO + 1), 4)["prompt"]
    assert torch.equal(window.values, again.read(whole(ds), 4)["prompt"].values)
    for other, epoch in ((again, 5), (ConditionSet.open(ds, ["prompt"], seed=6), 4)):
        changed = other.read(whole(ds, all_rows), epoch)["prompt"].values[:, :1]
        assert (changed != together.values[:, :1]).any(dim=2).float().mean() > 0.6


def test_uniform_numbers():
    draws = np.concatenate([uniform(7, e, np.arange(2000), s) for e in range(5) for s in (0, 1)])
    assert stats.kstest(draws, "uniform").pvalue > 1e-3 and len(np.unique(draws)) == len(draws)
    lag = (
        np.corrcoef(draws[:-1], draws[1:])[0, 1],
        np.corrcoef(draws[:2000], draws[2000:4000])[0, 1],
    )
    assert max(map(abs, lag)) < 0.08
    assert uniform(-1, 0, np.array([3]), 0) == uniform((1 << 64) - 1, 0, np.array([3]), 0)


def test_no_prompt_from_the_same_audio(tmp_path):
    """Copies of a recording, and windows of it that overlap, are no prompts for each other."""
    make_tokens(tmp_path, [40, 40, 40, 30, 30, 30, 9], speakers=1)
    hop = INFO.hop / INFO.sampling_rate

    def edit(n, cut):
        if n in (1, 2):
            cut["custom"]["augmented_from"] = "cut-0000"
        if n in (4, 5):  # windows of cut 3: frames 0..30 of it, 10..30 and 0..10
            cut["features"] = third["features"]
            cut["start"], cut["duration"] = (10 * hop, 20 * hop) if n == 4 else (0, 10 * hop)
        if n == 3:
            third.update(cut)
        if n == 6:
            cut["supervisions"] = []

    third = {}
    edit_cuts(tmp_path, edit)
    ds = TokenDataset.open(tmp_path, "train")
    speakers = Speakers.open(ds)
    assert speakers.num_others(np.arange(7)).tolist() == [3, 3, 3, 3, 3, 3, 0]
    seen = defaultdict(set)
    for epoch in range(40):
        for row, other in enumerate(
            speakers.draw(np.arange(7), uniform(0, epoch, np.arange(7), 0))
        ):
            seen[row].add(int(other))
    assert all(seen[r] == {3, 4, 5} for r in (0, 1, 2))
    assert all(seen[r] == {0, 1, 2} for r in (3, 4, 5)) and seen[6] == {-1}
    conditions = ConditionSet.open(ds, ["prompt"])
    assert conditions.missing() == {"prompt": 1}
    assert conditions.read(whole(ds, np.arange(7)))["prompt"].lengths[6] == 0


def test_windows_side_by_side_may_prompt_each_other(tmp_path):
    make_tokens(tmp_path, [30, 30], speakers=1)
    hop = INFO.hop / INFO.sampling_rate
    first = {}

    def edit(n, cut):
        first.update({} if n else cut)
        cut["features"] = first["features"]
        cut["start"], cut["duration"] = n * 10 * hop, 10 * hop

    edit_cuts(tmp_path, edit)
    speakers = Speakers.open(TokenDataset.open(tmp_path, "train"))
    assert speakers.draw(np.arange(2), np.zeros(2)).tolist() == [1, 0]


def test_speakers_are_read_once_and_again_when_the_manifest_changes(tmp_path, monkeypatch, capsys):
    make_tokens(tmp_path, [5] * 8, speakers=2)
    ds = TokenDataset.open(tmp_path, "train")
    before = Speakers.open(ds).table.tolist()
    assert [s for s, _ in before] == [1, 2] * 4 and len({o for _, o in before}) == 8
    real = speakers_module._read_speakers
    monkeypatch.setattr(speakers_module, "_read_speakers", None)
    assert Speakers.open(ds).table.tolist() == before  # the file is enough
    monkeypatch.setattr(speakers_module, "_read_speakers", real)

    def rename(n, cut):
        cut["supervisions"][0]["speaker"] = f"other-{n // 4}"

    edit_cuts(tmp_path, rename)
    changed = TokenDataset.open(tmp_path, "train")
    assert changed.fingerprint == ds.fingerprint  # of ids and codes: names are not in it
    assert [s for s, _ in Speakers.open(changed).table.tolist()] == [1] * 4 + [2] * 4
    path = column_path(changed.directory, "speakers", changed.split)
    path.write_bytes(path.read_bytes()[:-3])
    assert len(Speakers.open(changed).table) == 8 and len(Ragged.open(path)) == 8

    path.unlink()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(speakers_module, "write_ragged", refuse)
    assert [s for s, _ in Speakers.open(changed).table.tolist()] == [1] * 4 + [2] * 4
    said = capsys.readouterr().err
    assert "speakers_train.bin could not be written (Permission denied)" in said
    assert not path.exists()


def test_prompts_need_speakers_with_several_cuts(tmp_path):
    make_tokens(tmp_path, [5, 6])
    ds = TokenDataset.open(tmp_path, "train")
    with pytest.raises(
        UserError, match=r"split train .*: no cut has a speaker; name speakers with"
    ):
        ConditionSet.open(ds, ["prompt"])
    make_tokens(tmp_path, [5, 6], speakers=2)
    ds = TokenDataset.open(tmp_path, "train")
    with pytest.raises(UserError, match="every speaker has only one cut"):
        ConditionSet.open(ds, ["prompt"])
    with pytest.raises(ValueError, match="prompts of 0 frames"):
        ConditionSet.open(ds, ["prompt"], prompt_frames=0)
    with pytest.raises(UserError, match="'lyrics': choose from text, midi, source, prompt"):
        ConditionSet.open(ds, ["lyrics"])


@pytest.mark.parametrize("kind", ["text", "midi"])
def test_what_is_missing_names_its_command(tmp_path, kind):
    make_tokens(tmp_path, [5, 6, 7])
    ds = TokenDataset.open(tmp_path, "train")
    remedy = f"; run rvqlm {kind} --manifest-dir {tmp_path}$"
    described, column = tmp_path / f"{kind}.json", tmp_path / f"{kind}_train.bin"

    def refused(match):
        with pytest.raises(UserError, match=match + ".*" + remedy):
            ConditionSet.open(ds, [kind])

    refused(f"{kind}.json not found: no {kind}")
    make_steps(tmp_path, kind)
    good = described.read_text()
    for text, match in (
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ('{"kind": "x"}', "is damaged"),
    ):
        described.write_text(text)
        refused(f"{kind}.json {match}")
    other = {"text": "midi", "midi": "text"}[kind]
    described.write_text(json.dumps(ConditionInfo(other, (3,)).to_dict()))
    refused(f"describes {other}, not {kind}")
    described.write_text(json.dumps({**json.loads(good), "sizes": [1] * len(SIZES[kind])}))
    refused("made with another table")
    described.write_text(json.dumps({**json.loads(good), "sizes": [99, 99]}))
    refused("the index 3, .* 2")
    described.write_text(good)
    write_ragged(column, [[]], len(SIZES[kind]), ds.fingerprint)
    refused("has 1 rows")
    write_ragged(column, [[]] * 3, len(SIZES[kind]), "0" * 16)
    refused("belongs to other data")
    column.unlink()
    refused(f"{kind}_train.bin not found")


def test_parts_of_recordings_have_no_text_of_their_own(data):
    ds = data[0]
    conditions = ConditionSet.open(ds, ["prompt", "text", "midi"])
    for flag in ("window_frames", "crop_frames"):
        match = f"--{flag.replace('_', '-')} takes parts .* text belongs to the whole"
        with pytest.raises(UserError, match=match):
            conditions.check_plan(PlanConfig(**{flag: 5}))
        match = "version that kept no times for parts: run rvqlm midi --manifest-dir .* again"
        with pytest.raises(UserError, match=match):
            ConditionSet.open(ds, ["midi"]).check_plan(PlanConfig(**{flag: 5}))
    conditions.check_plan(PlanConfig())
    ConditionSet.open(ds, ["prompt"]).check_plan(PlanConfig(window_frames=5))
    with pytest.raises(UserError, match=r"a part of cut 'cut-0017' .* text belongs to the whole"):
        conditions.read(Items(ROWS[2:3], NO[:1], ds.frames[ROWS[2:3]] - 1))


def test_fewer_levels(data):
    ds = data[0]
    conditions = ConditionSet.open(ds.first_levels(2), ["prompt"], prompt_frames=20)
    whole_levels = ConditionSet.open(ds, ["prompt"], prompt_frames=20)
    assert conditions.infos["prompt"].sizes == (64, 64)
    a, b = (c.read(whole(ds))["prompt"] for c in (conditions, whole_levels))
    assert torch.equal(a.values, b.values[:, :, :2]) and torch.equal(a.lengths, b.lengths)
