"""The mean of checkpoints: against numpy, and what it refuses."""

import numpy as np
import pytest
import torch
from families import make, random_batch
from saved_models import checkpoint_of, save_model

from rvqlm.bin import average
from rvqlm.checkpoints.averaging import average_checkpoints, newest_archives
from rvqlm.checkpoints.file import load_checkpoint, require_resumable, save_checkpoint
from rvqlm.checkpoints.loading import find_checkpoint, load_model
from rvqlm.errors import UserError


def shaken(seed: int, case: str = "delay"):
    model = make(case)
    torch.manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=1e4, std=1.0)  # float32 sums of these would lose digits
    return model


@pytest.fixture(scope="module")
def exp_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("exp")
    for n in range(4):
        save_model(shaken(n), path / f"archive/step-0000000{n}-20261125-12000{n}.pt", n)
    save_model(shaken(9), path / "best.pt", 9)
    return path


def test_equals_numpy(exp_dir, tmp_path):
    paths = newest_archives(exp_dir, 3)
    out = average_checkpoints(paths, tmp_path / "mean.pt")
    mean, states = load_checkpoint(out), [load_checkpoint(p) for p in paths]
    assert [s["step"] for s in states] == [1, 2, 3]
    for part in ("model", "ema"):
        assert mean[part].keys() == states[0][part].keys()
        for name, value in mean[part].items():
            stacked = np.stack([s[part][name].double().numpy() for s in states])
            np.testing.assert_array_equal(value.numpy(), stacked.mean(0).astype(np.float32))
    assert mean["step"] == 3 and mean["averaged"]["steps"] == [1, 2, 3]
    assert mean["config"] == states[0]["config"]
    # in any order
    other = load_checkpoint(average_checkpoints(paths[::-1], tmp_path / "other.pt"))
    assert all(torch.equal(other["model"][k], v) for k, v in mean["model"].items())
    assert other["step"] == 3


def test_loads_like_any_checkpoint_but_is_not_resumed_from(exp_dir, tmp_path, capsys):
    assert average.main([str(exp_dir), "--last", "2"]) == 0
    assert "average.pt: the mean of 2 checkpoints" in capsys.readouterr().out
    assert find_checkpoint(exp_dir, "average") == exp_dir / "average.pt"
    model, info, state = load_model(exp_dir, "average")
    raw, _, _ = load_model(exp_dir, "average", use_ema=False)
    batch = random_batch(model, [5, 3])
    assert model(batch).loss.isfinite() and info == model.info
    name, value = next(iter(model.named_parameters()))
    torch.testing.assert_close(value, dict(raw.named_parameters())[name] + 0.01, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match=r"x\.pt: the mean of .* steps 2, 3, without optimizer"):
        require_resumable(state, "x.pt")
    require_resumable(load_checkpoint(exp_dir / "best.pt"), "best.pt")


def test_integers_are_kept_and_must_agree(tmp_path):
    states = [checkpoint_of(make("delay"), n, ema=False) for n in range(2)]
    for state in states:
        state["model"]["count"] = torch.tensor([2, 3])
        state["model"]["half"] = torch.ones(2, dtype=torch.bfloat16) * (2 + state["step"])
        save_checkpoint(state, tmp_path / f"{state['step']}.pt")
    mean = load_checkpoint(
        average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "x.pt")
    )
    assert mean["ema"] is None and mean["model"]["count"].tolist() == [2, 3]
    assert mean["model"]["half"].dtype == torch.bfloat16
    assert mean["model"]["half"].tolist() == [2.5, 2.5]
    states[1]["model"]["count"] += 1
    save_checkpoint(states[1], tmp_path / "1.pt")
    with pytest.raises(UserError, match=r"1\.pt: model: count are integers that differ"):
        average_checkpoints([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "x.pt")


def test_refusals(exp_dir, tmp_path):
    good, other = sorted((exp_dir / "archive").iterdir())[:2]
    wider = save_model(make("delay", decoder_dim=48), tmp_path / "wider.pt")
    plain = save_model(make("delay"), tmp_path / "plain.pt", ema=False)
    state = checkpoint_of(make("delay"))
    next(iter(state["ema"].values())).view(-1)[3] = float("nan")
    save_checkpoint(state, tmp_path / "nan.pt")
    (tmp_path / "damaged.pt").write_bytes(good.read_bytes()[:-1000])
    (tmp_path / "link.pt").symlink_to(good)
    out = tmp_path / "out.pt"
    for paths, to, message in (
        ([good], out, "at least two"),
        ([good, tmp_path / "none.pt"], out, r"none\.pt: no checkpoint there"),
        ([good, tmp_path], out, "no checkpoint there"),
        ([good, tmp_path / "link.pt"], out, "are one file"),
        ([good, other], other, "is one of the checkpoints to average"),
        ([good, other], tmp_path, "a directory"),
        ([good, other], tmp_path / "no/out.pt", "no directory"),
        ([good, wider], out, r"wider\.pt is of another model .*model_config decoder_dim differ"),
        ([good, plain], out, "only one has averaged weights"),
        ([good, tmp_path / "nan.pt"], out, r"nan\.pt: ema: \S+ is not finite"),
        ([good, tmp_path / "damaged.pt"], out, r"damaged\.pt: damaged"),
    ):
        with pytest.raises(UserError, match=message) as e:
            average_checkpoints(paths, to)
        assert "\n" not in str(e.value) and not out.exists()


def test_command_line(exp_dir, tmp_path, capsys):
    few = save_model(make("delay"), tmp_path / "exp/best.pt").parent
    for words, message in (
        ([], "give an experiment"),
        ([tmp_path / "none"], "none: no such experiment"),
        ([exp_dir, "--last", 1], "--last 1: a mean takes at least 2"),
        ([exp_dir, "--last", 9], "4 archives, a mean takes at least 9"),
        ([few], "archive: 0 archives, a mean takes at least 2; train with --archive-every"),
        ([few / "best.pt", exp_dir / "best.pt"], "give --out"),
        ([few / "best.pt", exp_dir / "best.pt", "--last", 2], "--last 2 is for an experiment"),
    ):
        assert average.main([str(w) for w in words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    out = tmp_path / "mean.pt"
    assert average.main([str(few / "best.pt"), str(exp_dir / "best.pt"), "--out", str(out)]) == 0
    assert load_checkpoint(out)["averaged"]["steps"] == [7, 9]
