"""EXP/run.json: what was started and how it ended, whatever becomes of the file meanwhile."""

import errno
import json
import os
import shutil

import pytest
from toy import ToyLoader, toy_flags, toy_trainer

from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.training import run
from rvqlm.training.run import end_run, write_run


def read(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_starts_and_ends_stand_side_by_side(tmp_path):
    end_run(tmp_path, write_run(tmp_path, {"ranks": 1}, "first"), "SIGTERM", 3)
    write_run(tmp_path, {"ranks": 1}, "killed")
    end_run(tmp_path, write_run(tmp_path, {"ranks": 2}, "last"), "finished", 9)
    found = read(tmp_path)
    assert found["commands"] == ["first", "killed", "last"] and found["ranks"] == 2
    assert [e["outcome"] for e in found["ended"]] == ["SIGTERM", "killed", "finished"]
    assert len(found["started"]) == 3


def test_deleted_meanwhile_it_is_written_anew(tmp_path):
    record = write_run(tmp_path, {"ranks": 1}, "first")
    (tmp_path / "run.json").unlink()
    end_run(tmp_path, record, "finished", 9)
    assert read(tmp_path)["commands"] == ["first"]
    assert read(tmp_path)["ended"][0]["outcome"] == "finished"


@pytest.mark.parametrize("content", ["", "[]", "null", '{"started": 5}', '{"ended": null}', "{"])
def test_a_damaged_one_is_begun_anew(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    end_run(tmp_path, write_run(tmp_path, {}, "next"), "finished", 9)
    assert read(tmp_path)["commands"] == ["next"] and len(read(tmp_path)["ended"]) == 1


def test_a_full_disk_at_the_end_costs_a_line(tmp_path, monkeypatch, capsys):
    record = write_run(tmp_path, {}, "first")

    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run, "write_json", refuse)
    end_run(tmp_path, record, "finished", 9)
    assert "run.json: No space left" in capsys.readouterr().err
    assert read(tmp_path)["commands"] == ["first"]


def test_all_but_checkpoints_may_go_while_it_trains(tmp_path):
    class Deleting(ToyLoader):
        def __next__(self):
            if (self.epoch, self.step) == (1, 2):
                for path in tmp_path.iterdir():
                    if path.suffix != ".pt":
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                (tmp_path / "tensorboard").touch()  # and nothing can be in its place
            return super().__next__()

    assert toy_trainer(toy_flags(tmp_path, max_steps=12), Deleting()).fit() == "finished"
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 12


def test_without_a_place_for_tensorboard(tmp_path, capsys):
    (tmp_path / "tensorboard").touch()
    assert toy_trainer(toy_flags(tmp_path, max_steps=4)).fit() == "finished"
    assert "cannot be written" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").exists()
