"""What goes wrong in a week: non-finite steps, disks, logs and ranks that go away."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import ToyConfig, ToyLoader, ToyModel, toy_flags, toy_trainer

from rvqlm.checkpoints.archives import archives, step_of
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.errors import UserError
from rvqlm.training.bad_batch import load_bad_batch


class Poisoned(ToyModel):
    """Its loss is multiplied by what `poison` gives for (epoch, step) of a batch in training."""

    poison: dict = {}

    def forward(self, batch, **kwargs):
        out = super().forward(batch, **kwargs)
        if self.training and (batch.epoch, batch.step) in self.poison:
            out.loss = out.loss * self.poison[batch.epoch, batch.step]
        return out


def poisoned(flags, poison):
    trainer = toy_trainer(flags)
    trainer.model.__class__ = Poisoned
    trainer.model.poison = poison
    return trainer


def lines(exp_dir: Path, kind: str = "train") -> list[dict]:
    return [x for x in map(json.loads, open(exp_dir / "metrics.jsonl")) if x["kind"] == kind]


NAN = float("nan")


def test_a_nonfinite_step_leaves_no_trace_but_its_batch(tmp_path):
    flags = toy_flags(tmp_path, max_steps=8)
    trainer = poisoned(flags, {(0, 2): NAN})
    before = {}
    train_step = trainer.train_step

    def spying():
        old = [p.clone() for p in trainer.model.parameters()]
        outcome = train_step()
        before[trainer.step] = [torch.equal(a, b) for a, b in zip(old, trainer.model.parameters())]
        return outcome

    trainer.train_step = spying
    assert trainer.fit() == "finished"
    assert all(before[2]) and not any(before[1])
    log = lines(tmp_path)
    assert [x["skipped_nonfinite"] for x in log] == [1, 0, 0, 0]  # lines at 3, 4 (epoch), 6, 8
    assert all(x["loss"] is not None and x["loss"] == x["loss"] for x in log)
    bad = load_bad_batch(tmp_path / "bad_batches/step-000002-rank-0.pt")
    assert bad.reason == "nonfinite" and bad.step == 2 and len(bad.batches) == 1
    assert torch.equal(bad.batches[0].codes, ToyLoader().make(0, 2).codes)


def test_an_outlier_is_skipped(tmp_path):
    flags = toy_flags(tmp_path, max_steps=40, outlier_warmup_steps=10)
    trainer = poisoned(flags, {(5, 1): 30.0})
    trainer.fit()
    assert sum(x["skipped_outlier"] for x in lines(tmp_path)) == 1
    assert trainer.guard.counts == {"nonfinite": 0, "outlier": 1}


def test_an_interval_of_skipped_steps_only(tmp_path):
    flags = toy_flags(tmp_path, max_steps=9, save_every_steps=0, valid_every_steps=100)
    trainer = poisoned(flags, {(0, 3): NAN, (1, 0): NAN, (1, 1): NAN})
    trainer.fit()
    values = {x["step"]: x for x in lines(tmp_path)}
    assert values[6]["loss"] is None and values[6]["skipped_nonfinite"] == 2
    assert values[9]["loss"] is not None


def test_back_to_the_last_good_checkpoint_and_past_the_data(tmp_path):
    """Weights that diverged between two checkpoints: training continues from the one before."""
    flags = toy_flags(tmp_path, max_steps=30, max_skips=3, rollback_lr=0.5, schedule="constant")
    trainer = toy_trainer(flags)
    train_step = trainer.train_step

    def diverging():
        if trainer.step == 10:
            with torch.no_grad():
                trainer.model.head.weight[0, 0] = NAN
        return train_step()

    trainer.train_step = diverging
    assert trainer.fit() == "finished"
    log = lines(tmp_path)
    assert sum(x["skipped_nonfinite"] for x in log) == 3 and sum(x["rollbacks"] for x in log) == 1
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.lr == pytest.approx(0.005) and trainer.step == 30
    state = load_checkpoint(tmp_path / "latest.pt")
    assert state["stepper"]["guard"]["rollbacks"] == 1 and state["epoch"] == 7


def test_divergence_stops_with_good_checkpoints(tmp_path):
    flags = toy_flags(tmp_path, max_steps=100, max_skips=2, max_rollbacks=1)
    trainer = poisoned(flags, {(e, s): NAN for e in range(2, 25) for s in range(4)})
    with pytest.raises(UserError, match=r"diverged at step 12.*after 1 rollbacks.*lower --base-lr"):
        trainer.fit()
    for name in ("latest.pt", "best.pt"):
        state = load_checkpoint(tmp_path / name)
        assert state["step"] == 8 and all(v.isfinite().all() for v in state["model"].values())


def test_divergence_before_any_checkpoint(tmp_path):
    flags = toy_flags(tmp_path, max_steps=100, max_skips=2)
    trainer = poisoned(flags, {(0, s): NAN for s in range(4)})
    with pytest.raises(UserError, match=r"no checkpoint was saved yet.*rvqlm doctor"):
        trainer.fit()


def test_nonfinite_validation_rolls_back(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=16, valid_every_steps=3))
    validate = trainer._validate

    def diverged():
        if trainer.step == 6:
            with torch.no_grad():
                trainer.ema.average[0][:] = NAN
        return validate()

    trainer._validate = diverged
    assert trainer.fit() == "finished"
    assert sum(x["rollbacks"] for x in lines(tmp_path)) == 1
    assert all(a.isfinite().all() for a in trainer.ema.average)


@pytest.mark.parametrize("start", [1.0, 2.0**20])
def test_float16_finds_its_scale(tmp_path, start):
    flags = toy_flags(tmp_path, max_steps=60, log_every_steps=1)
    trainer = toy_trainer(flags, dtype=torch.float16)
    trainer.scale.value = start
    trainer.fit()
    log = lines(tmp_path)
    first = next(x["loss"] for x in log if x["loss"] is not None)
    assert log[-1]["loss"] < first - 0.1
    assert sum(x["skipped_overflow"] for x in log) == (
        0 if start == 1.0 else pytest.approx(10, abs=9)
    )
    assert not (tmp_path / "bad_batches").exists() and trainer.guard.in_a_row == 0


def test_log_deleted_while_running(tmp_path):
    class Deleting(ToyLoader):
        def __next__(self):
            if (self.epoch, self.step) == (1, 2):
                (tmp_path / "metrics.jsonl").unlink()
                shutil.rmtree(tmp_path / "tensorboard")
            return super().__next__()

    assert toy_trainer(toy_flags(tmp_path, max_steps=12), Deleting()).fit() == "finished"
    assert [x["step"] for x in lines(tmp_path)] == [8, 9, 12]
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 12


def test_full_disk_ends_training_with_the_one_before(tmp_path):
    """The limit on file sizes stands for the disk: the log still fits, a checkpoint doesn't."""
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=30))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = trainer._save

    def filling(*arguments):
        if trainer.step >= 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        save(*arguments)

    trainer._save = filling
    try:
        with pytest.raises(UserError, match=r"could not be written.*free space"):
            trainer.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 4
    assert not list(tmp_path.glob(".*.tmp"))
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=30))
    trainer.resume(tmp_path / "latest.pt")
    assert trainer.fit() == "finished"


def test_damaged_latest_is_refused_and_an_archive_goes_on(tmp_path):
    toy_trainer(toy_flags(tmp_path, max_steps=8, archive_every_steps=4)).fit()
    latest = tmp_path / "latest.pt"
    latest_bytes = latest.read_bytes()
    latest.unlink()  # an archive is another name of the same bytes
    latest.write_bytes(latest_bytes[:-100])
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=12))
    with pytest.raises(UserError, match=r"latest\.pt: damaged.*may be good|best\.pt"):
        trainer.resume(latest)
    archived = sorted((tmp_path / "archive").glob("step-*.pt"))
    assert [int(p.name.split("-")[1]) for p in archived] == [4, 8]
    trainer.resume(archived[0])
    assert trainer.step == 4 and trainer.fit() == "finished"


@pytest.mark.parametrize("kind", ["step", "best"])
def test_killed_before_the_archive(tmp_path, monkeypatch, kind):
    """Between latest.pt and its second name: the next start makes that."""
    from rvqlm.training import trainer as module

    flags = toy_flags(
        tmp_path, max_steps=12, archive_every_steps=4, valid_every_steps=4, archive_best=True
    )
    real, calls = module.archive, []

    def killed(exp_dir, path, step, keep):
        calls.append(path.name)
        if step == 8 and path.name == {"step": "latest.pt", "best": "best.pt"}[kind]:
            raise KeyboardInterrupt
        return real(exp_dir, path, step, keep)

    monkeypatch.setattr(module, "archive", killed)
    with pytest.raises(KeyboardInterrupt):
        toy_trainer(flags).fit()
    assert "best.pt" in calls
    monkeypatch.setattr(module, "archive", real)
    trainer = toy_trainer(flags)
    trainer.resume(tmp_path / "latest.pt")
    assert trainer.step == 8
    whole = [step_of(p) for p in archives(tmp_path, kind)]
    assert whole[-1] == 8
    trainer = toy_trainer(flags)  # nothing twice
    trainer.resume(tmp_path / "latest.pt")
    assert [step_of(p) for p in archives(tmp_path, kind)] == whole
    assert trainer.fit() == "finished"
    assert [step_of(p) for p in archives(tmp_path)] == [4, 8, 12]
    assert all(load_checkpoint(p)["step"] == step_of(p) for p in archives(tmp_path))


WORKER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from toy import ToyLoader, toy_flags, toy_trainer
from rvqlm.training.distributed import World

class Dying(ToyLoader):
    def __next__(self):
        if self.rank == 1 and (self.epoch, self.step) == (2, 1) and sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()

world = World()
for folder in map(Path, sys.argv[3:]):
    flags = toy_flags(folder, max_steps=14)
    trainer = toy_trainer(flags, Dying(rank=world.rank, world_size=world.size), world)
    if (folder / "latest.pt").exists():
        trainer.resume(folder / "latest.pt")
    trainer.fit()
control = {p.name for p in Path("/proc/self/task").iterdir()}
world.close()
assert len(control - {p.name for p in Path("/proc/self/task").iterdir()}) >= 2  # its own threads
"""


def test_one_rank_killed(tmp_path):
    """torchrun ends the others; started again, the run ends as if nothing had been."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    helpers = str(Path(__file__).parents[1] / "helpers")

    def start(how, *exp_dirs):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
             "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
             str(script), helpers, how, *(str(tmp_path / exp_dir) for exp_dir in exp_dirs)],
            capture_output=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    assert start("die", "killed").returncode != 0
    assert load_checkpoint(tmp_path / "killed/latest.pt")["step"] == 8
    assert start("live", "killed", "whole").returncode == 0
    a, b = (load_checkpoint(tmp_path / d / "latest.pt") for d in ("killed", "whole"))
    assert a["step"] == b["step"] == 14
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


def test_dropout_of_a_skipped_step_does_not_shift_the_next(tmp_path):
    """Random numbers belong to steps: a run with a skip and a resume equals one with the skip."""

    def flags(name):
        return toy_flags(tmp_path / name, max_steps=10, model=ToyConfig(dropout=0.3))

    poisoned(flags("a"), {(1, 1): NAN}).fit()
    stopped = poisoned(flags("b"), {(1, 1): NAN})
    stopped.stop.number = signal.SIGTERM
    stopped.fit()
    resumed = poisoned(flags("b"), {(1, 1): NAN})
    resumed.resume(tmp_path / "b/latest.pt")
    assert resumed.step == 1
    resumed.fit()
    a, b = (load_checkpoint(tmp_path / d / "latest.pt") for d in "ab")
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert a["stepper"] == b["stepper"]
