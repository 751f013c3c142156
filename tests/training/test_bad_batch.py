import errno
import os

import pytest
import torch
from families import K, make, random_batch
from toy import ToyLoader

from rvqlm.batch import Batch, Padded
from rvqlm.errors import UserError
from rvqlm.training import bad_batch
from rvqlm.training.bad_batch import BadBatch, load_bad_batch, save_bad_batch

FACTS = {
    "step": 7,
    "rank": 1,
    "seed": 5,
    "reason": "outlier",
    "loss": 9.5,
    "grad_norm": 3.0,
    "progress": 0.4,
}


def saved(tmp_path, batches):
    return load_bad_batch(save_bad_batch(tmp_path, BadBatch(**FACTS, batches=batches), keep=10))


def two_batches(model):
    return [
        random_batch(model, (9, 5), seed=1, prompt_lengths=[2, 0], ends=[True, False]),
        random_batch(model, (4, 7, 3), seed=2),
    ]


def equal(a, b) -> bool:
    if isinstance(a, Padded):
        return all(equal(x, y) for x, y in zip(a, b))
    if isinstance(a, torch.Tensor):
        if a.dtype.is_floating_point:
            a, b = a.view(torch.int32), b.view(torch.int32)  # NaN, too
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize("case", ["text-prompt-cross", "aligned-delay-spread"])
def test_a_batch_comes_back_as_it_was(tmp_path, case):
    batches = two_batches(make(case))
    batches[0].begins = torch.tensor([True, False])
    batches[0].epoch, batches[0].step = 3, 8
    bad = saved(tmp_path, batches)
    assert bad.path == tmp_path / "bad_batches/step-000007-rank-1.pt"
    assert {name: getattr(bad, name) for name in FACTS} == FACTS
    for given, got in zip(batches, bad.batches, strict=True):
        assert vars(given).keys() == vars(got).keys()
        for name in vars(given):
            assert equal(vars(given)[name], vars(got)[name]), name


def test_a_batch_of_a_version_without_times(tmp_path):
    batches = two_batches(make("text"))
    path = saved(tmp_path, batches).path
    state = torch.load(path, weights_only=True)
    for batch in state["batches"]:
        del batch["conditions"]["text"]["times"]
    torch.save(state, path)
    assert equal(load_bad_batch(path).batches[1].conditions, batches[1].conditions)


def test_the_file_holds_a_batch_and_not_the_memory_that_it_is_a_view_of(tmp_path):
    batch = Batch.from_codes([torch.zeros(100_000, K)])
    batch.codes = batch.codes[:, :10]
    assert saved(tmp_path, [batch]).path.stat().st_size < 20_000


def test_only_the_last_ones_of_a_rank_are_kept(tmp_path):
    batch = ToyLoader().make(0, 0)
    for number, step in enumerate((900, 3, 4, 5)):  # 900: before going back to a checkpoint
        for rank in (0, 1):
            bad = BadBatch(**FACTS | {"step": step, "rank": rank}, batches=[batch])
            path = save_bad_batch(tmp_path, bad, keep=2)
            os.utime(path, (number, number))
    names = sorted(p.name for p in (tmp_path / "bad_batches").iterdir())
    assert names == [f"step-00000{step}-rank-{rank}.pt" for step in (4, 5) for rank in (0, 1)]
    assert save_bad_batch(tmp_path / "none", bad, keep=0) is None
    assert not (tmp_path / "none").exists()


def test_a_full_disk_costs_the_file_and_not_the_training(tmp_path, monkeypatch):
    def full(state, file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bad_batch.torch, "save", full)
    bad = BadBatch(**FACTS, batches=[ToyLoader().make(0, 0)])
    assert save_bad_batch(tmp_path, bad, keep=2) is None
    assert list((tmp_path / "bad_batches").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    assert save_bad_batch(tmp_path / "file", bad, keep=2) is None


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_bad_batch(tmp_path / "missing.pt")
    whole = saved(tmp_path, [ToyLoader().make(0, 0)]).path
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:-100])
    torch.save({"model": {}}, tmp_path / "other.pt")
    for path in (cut, tmp_path / "other.pt"):
        with pytest.raises(UserError, match=f"{path}: damaged, or not a skipped step"):
            load_bad_batch(path)
