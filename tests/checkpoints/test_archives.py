"""Archives: names, how many are kept, and that they are whole whatever the run does later."""

import os
from datetime import datetime, timedelta

import pytest
import torch
from families import make
from saved_models import checkpoint_of, save_model
from toy import toy_flags

from rvqlm.checkpoints.archives import archive, archives, step_of
from rvqlm.checkpoints.file import load_checkpoint, save_checkpoint
from rvqlm.errors import UserError
from rvqlm.training.config import check

NOON = datetime(2026, 11, 25, 12, 0, 0)


@pytest.fixture(scope="module")
def model():
    return make("delay")


def names(exp_dir) -> list[str]:
    return sorted(p.name for p in (exp_dir / "archive").iterdir())


def test_the_newest_of_each_kind_are_kept_under_their_steps_and_times(model, tmp_path):
    made = []
    for step in range(10, 60, 10):
        latest = save_model(model, tmp_path / "latest.pt", step)
        made.append(archive(tmp_path, latest, step, 3, NOON + timedelta(seconds=step)))
        save_model(model, tmp_path / "best.pt", step)
        archive(tmp_path, tmp_path / "best.pt", step, 2, NOON + timedelta(seconds=step))
    assert made[0].name == "step-00000010-20261125-120010.pt"
    assert archives(tmp_path) == made[2:] == sorted(made[2:])
    assert [p.name[:13] for p in archives(tmp_path, "best")] == ["best-00000040", "best-00000050"]
    assert len(names(tmp_path)) == 5
    # later checkpoints of the run change none
    save_model(model, tmp_path / "latest.pt", 99)
    assert [load_checkpoint(p)["step"] for p in made[2:]] == [30, 40, 50]


def test_what_others_put_there_stays(model, tmp_path):
    latest = save_model(model, tmp_path / "latest.pt")
    for name in ("before-the-change.pt", "step-1.pt", "notes.txt"):
        (tmp_path / "archive").mkdir(exist_ok=True)
        (tmp_path / "archive" / name).write_text("mine")
    for step in range(4):
        archive(tmp_path, latest, step, 1, NOON + timedelta(days=step))
    assert names(tmp_path) == [
        *("before-the-change.pt", "notes.txt", "step-00000003-20261128-120000.pt", "step-1.pt")
    ]


def steps(exp_dir, kind="step") -> list[int]:
    return [step_of(p) for p in archives(exp_dir, kind)]


def test_after_a_return_to_an_earlier_step_its_own_archives_count(model, tmp_path):
    """Those of later steps are of another training: neither deleted nor averaged with."""
    latest = save_model(model, tmp_path / "latest.pt")
    best = save_model(model, tmp_path / "best.pt")
    for hour, step in enumerate((100, 200, 300, 400)):
        archive(tmp_path, latest, step, 3, NOON + timedelta(hours=hour))
        archive(tmp_path, best, step, 3, NOON + timedelta(hours=hour))
    for hour, step in enumerate((250, 300, 350)):
        archive(tmp_path, latest, step, 3, NOON + timedelta(hours=9 + hour))
    assert steps(tmp_path) == [250, 300, 350] and steps(tmp_path, "best") == [200]
    abandoned = sorted(p.name for p in (tmp_path / "archive" / "abandoned").iterdir())
    assert abandoned == [
        *("best-00000300-20261125-140000.pt", "best-00000400-20261125-150000.pt"),
        *("step-00000300-20261125-140000.pt", "step-00000400-20261125-150000.pt"),
    ]


def test_a_clock_that_is_set_back_deletes_none_of_the_newest(model, tmp_path):
    latest = save_model(model, tmp_path / "latest.pt")
    for step, hours in ((1, 0), (2, 1), (3, -5), (4, -4), (5, -100)):
        last = archive(tmp_path, latest, step, 2, NOON + timedelta(hours=hours))
        assert last.exists() and steps(tmp_path)[-2:] == [*range(1, step + 1)][-2:]
        assert len(steps(tmp_path)) <= 2


def test_an_archive_costs_no_second_write(model, tmp_path, monkeypatch):
    latest = save_model(model, tmp_path / "latest.pt")
    assert archive(tmp_path, latest, 1, 3, NOON).samefile(latest)
    again = archive(tmp_path, latest, 1, 3, NOON)  # the same name within a second
    assert again.samefile(latest) and len(names(tmp_path)) == 1

    def refuse(*paths):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    copy = archive(tmp_path, latest, 2, 3, NOON)
    assert not copy.samefile(latest) and copy.read_bytes() == latest.read_bytes()


def test_a_sharded_checkpoint_takes_its_directory_along(model, tmp_path):
    """The run deletes the directory that its own latest.pt no longer names."""
    state = checkpoint_of(model) | {"model": {}, "ema": None, "sharded": "latest-7.dcp"}
    (tmp_path / "latest-7.dcp").mkdir()
    (tmp_path / "latest-7.dcp" / "0.distcp").write_bytes(b"tensors")
    save_checkpoint(state, tmp_path / "latest.pt")
    made = archive(tmp_path, tmp_path / "latest.pt", 7, 1, NOON)
    (tmp_path / "latest-7.dcp" / "0.distcp").unlink()
    archived = load_checkpoint(made, gather=False)
    assert (made.parent / archived["sharded"] / "0.distcp").read_bytes() == b"tensors"
    assert archived["step"] == 7 and torch.equal(archived["optimizer"][0]["exp_avg"], torch.ones(3))
    (tmp_path / "latest-7.dcp" / "0.distcp").write_bytes(b"others")
    torn = made.with_name("step-00000008-20261125-110000.dcp")  # of a kill: no file goes with it
    torn.mkdir()
    archive(tmp_path, tmp_path / "latest.pt", 8, 1, NOON + timedelta(seconds=1))
    assert names(tmp_path) == [
        *("step-00000008-20261125-120001.dcp", "step-00000008-20261125-120001.pt")
    ]
    archive(tmp_path, tmp_path / "latest.pt", 6, 1, NOON)
    assert (made.parent / "abandoned" / "step-00000008-20261125-120001.dcp" / "0.distcp").exists()


def test_what_cannot_be_archived(model, tmp_path):
    latest = tmp_path / "latest.pt"
    with pytest.raises(UserError, match="could not be written"):
        archive(tmp_path, latest, 1, 1)
    latest.write_bytes(b"PK\x03\x04 no checkpoint")
    with pytest.raises(UserError, match=r"latest\.pt: damaged, cannot be archived"):
        archive(tmp_path, latest, 1, 1)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"archive_every": -1}, "--archive-every -1: at least 0"),
        ({"archive_every_steps": 5, "keep_archived": -2}, "--keep-archived -2: at least 0"),
        ({"keep_archived": 3}, "--keep-archived 3 means nothing without"),
    ],
)
def test_flags(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        check(toy_flags(tmp_path, max_steps=9, **flags))
    for good in ({"archive_best": True}, {"archive_every_steps": 1}, {"archive_every": 1}):
        check(toy_flags(tmp_path, max_steps=9, keep_archived=3, **good))
