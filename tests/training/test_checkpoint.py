import errno
import resource
import shutil

import pytest
import torch
from toy import toy_flags, toy_trainer

from rvqlm.errors import UserError
from rvqlm.training.checkpoint import (
    atomic_write,
    find_checkpoint,
    last_stage,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("exp")
    toy_trainer(toy_flags(path, max_steps=4)).fit()
    return path


def test_holds_what_the_contract_names(exp_dir):
    state = load_checkpoint(exp_dir / "latest.pt")
    assert {
        *("format", "model", "ema", "model_name", "model_config", "codec", "config", "optimizer"),
        *("schedule", "loader", "rng", "step", "best", "elapsed"),
    } <= state.keys()
    assert state["step"] == 4 and state["model_name"] == "toy"
    assert state["config"]["max-steps"] == 4 and state["config"]["width"] == 12
    assert state["codec"]["codebook_size"] == 11


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_truncated_file(exp_dir, tmp_path, share):
    data = (exp_dir / "latest.pt").read_bytes()
    (tmp_path / "latest.pt").write_bytes(data[: int(len(data) * share)])
    (tmp_path / "best.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"latest\.pt: damaged.*best\.pt may be good"):
        load_checkpoint(tmp_path / "latest.pt")


def test_foreign_files(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match=r"x\.pt: no checkpoint there"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(UserError, match=r"x\.pt: damaged, or not a checkpoint"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"not a checkpoint of rvqlm trainer \(no model"):
        load_checkpoint(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(UserError, match="not a checkpoint of rvqlm trainer"):
        load_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_code_in_a_file_does_not_run(tmp_path, capsys):
    torch.save({"format": 1, "model": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert "code ran" not in capsys.readouterr().out


def test_other_format(exp_dir, tmp_path):
    state = load_checkpoint(exp_dir / "latest.pt")
    torch.save(state | {"format": 99}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="format 99, this version reads 2"):
        load_checkpoint(tmp_path / "x.pt")


def test_failed_write_leaves_the_one_before(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("good")

    def fail(to):
        to.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError):
        atomic_write(path, fail)
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_full_disk_is_one_line_and_keeps_the_one_before(exp_dir, tmp_path):
    path = tmp_path / "latest.pt"
    path.write_text("good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores SIGXFSZ: EFBIG
    try:
        with pytest.raises(UserError, match=r"latest\.pt: the checkpoint could not be written"):
            save_checkpoint({"x": torch.zeros(10_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_second_name(tmp_path):
    for value in (1, 2):
        save_checkpoint({"x": value}, tmp_path / "best.pt", also=tmp_path / "latest.pt")
        assert torch.load(tmp_path / "latest.pt")["x"] == value
    save_checkpoint({"x": 3}, tmp_path / "latest.pt")
    assert torch.load(tmp_path / "best.pt")["x"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "latest.pt"]


def test_find_checkpoint(exp_dir, tmp_path):
    assert find_checkpoint(exp_dir) == exp_dir / "best.pt"
    assert find_checkpoint(exp_dir / "latest.pt") == exp_dir / "latest.pt"
    with pytest.raises(UserError, match="no such experiment"):
        find_checkpoint(tmp_path / "none")
    (tmp_path / "latest.pt").write_text("x")
    with pytest.raises(UserError, match=r"best\.pt: no such checkpoint; there is .*latest\.pt"):
        find_checkpoint(tmp_path)


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
