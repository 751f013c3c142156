"""Finding and loading of models: experiments, stages, and what is none of these."""

import shutil

import pytest
from toy import toy_flags, toy_trainer

from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, last_stage, load_model
from rvqlm.errors import UserError


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("exp")
    toy_trainer(toy_flags(path, max_steps=4)).fit()
    return path


def test_find_checkpoint(exp_dir, tmp_path):
    assert find_checkpoint(exp_dir) == exp_dir / "best.pt"
    assert find_checkpoint(exp_dir / "latest.pt") == exp_dir / "latest.pt"
    with pytest.raises(UserError, match="no such experiment"):
        find_checkpoint(tmp_path / "none")
    (tmp_path / "latest.pt").write_text("x")
    with pytest.raises(UserError, match=r"best\.pt: no such checkpoint; there is .*latest\.pt"):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"average\.pt: no such checkpoint; rvqlm average .* makes"):
        find_checkpoint(tmp_path, "average")
    with pytest.raises(UserError, match=r"a directory, not a checkpoint file.*--init-from"):
        load_checkpoint(tmp_path)


def test_load_model_refuses_an_unknown_model(exp_dir):
    with pytest.raises(UserError, match="unknown model 'toy'"):
        load_model(exp_dir)


def test_of_a_model_trained_in_stages_the_last_one_counts(exp_dir, tmp_path):
    assert last_stage(exp_dir) == exp_dir and last_stage(tmp_path) == tmp_path
    for number in (1, 2, 10):
        (tmp_path / f"stage{number}").mkdir()
        shutil.copy(exp_dir / "best.pt", tmp_path / f"stage{number}")
    assert last_stage(tmp_path) == tmp_path / "stage10"
    assert find_checkpoint(tmp_path) == tmp_path / "stage10" / "best.pt"
    with pytest.raises(UserError, match=r"stage10/latest\.pt: no such checkpoint"):
        find_checkpoint(tmp_path, "latest")
