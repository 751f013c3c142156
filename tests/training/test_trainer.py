import json
import os
import signal
from pathlib import Path

import pytest
import torch
from toy import INFO, ToyConfig, ToyLoader, ToyModel, toy_flags, toy_trainer

from rvqlm.batch import Batch
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.errors import UserError
from rvqlm.runtime import step_seed
from rvqlm.training.logger import TIMINGS
from rvqlm.training.schedule import Budget

UNTIMED = (*TIMINGS, "config", "since")


def untimed(value):
    """A checkpoint or log line without what differs between two runs of one command."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in UNTIMED}
    return [untimed(v) for v in value] if isinstance(value, (list, tuple)) else value


def same(a, b, path="state") -> None:
    a, b = untimed(a), untimed(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for k in a:
            same(a[k], b[k], f"{path}.{k}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for n, (x, y) in enumerate(zip(a, b)):
            same(x, y, f"{path}[{n}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def log_of(exp_dir: Path) -> list[dict]:
    return [untimed(json.loads(line)) for line in open(exp_dir / "metrics.jsonl")]


VARIANTS = {
    "plain": {},
    "muon, accumulation over epoch ends": {"optimizer": "muon", "accum": 3},
    "no average, no clipping, constant": {
        "ema_decay": 0.0,
        "clip_grad_norm": 0.0,
        "schedule": "constant",
    },
    "dropout, smoothing, odd intervals": {
        "label_smoothing": 0.1,
        "log_every_steps": 5,
        "valid_every_steps": 2,
        "save_every_steps": 3,
        "model": ToyConfig(dropout=0.3),
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_crash_at_any_step_leaves_no_trace(tmp_path, name):
    whole = toy_flags(tmp_path / "whole", max_steps=14, **VARIANTS[name])
    assert toy_trainer(whole).fit() == "finished"
    expected = load_checkpoint(tmp_path / "whole/latest.pt")
    best = load_checkpoint(tmp_path / "whole/best.pt")
    for crash in ((0, 2), (1, 1), (3, 0)):
        flags = toy_flags(tmp_path / f"crash{crash}", max_steps=14, **VARIANTS[name])
        exp_dir = Path(flags.exp_dir)
        with pytest.raises(ConnectionError):
            toy_trainer(flags, ToyLoader(fail_at=crash)).fit()
        trainer = toy_trainer(flags)
        if (exp_dir / "latest.pt").exists():
            trainer.load_state_dict(load_checkpoint(exp_dir / "latest.pt"), "latest.pt")
            assert trainer.step > 0
        assert trainer.fit() == "finished"
        same(load_checkpoint(exp_dir / "latest.pt"), expected)
        same(load_checkpoint(exp_dir / "best.pt"), best)
        assert log_of(exp_dir) == log_of(tmp_path / "whole")


class Batches(ToyLoader):
    """Given batches, over and over."""

    def __init__(self, batches):
        super().__init__(steps=len(batches))
        self.batches = batches

    def make(self, epoch, step):
        return self.batches[step % len(self.batches)]


def joined(batches: list[Batch]) -> Batch:
    items = [b.codes[i, : b.lengths[i]] for b in batches for i in range(len(b.lengths))]
    return Batch.from_codes(items)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulation_equals_one_large_batch(tmp_path, optimizer):
    parts = [ToyLoader(seed=7).make(0, n) for n in range(4)]
    weights = []
    for accum, batches in ((4, parts), (1, [joined(parts)])):
        optim = {"accum": accum, "optimizer": optimizer, "schedule": "constant"}
        trainer = toy_trainer(
            toy_flags(tmp_path / str(accum), max_steps=5, **optim), Batches(batches)
        )
        trainer.fit()
        weights.append(dict(trainer.model.named_parameters()))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_gradient_is_the_mean_over_tokens(tmp_path):
    parts = [ToyLoader(seed=3).make(0, n) for n in range(3)]
    flags = toy_flags(tmp_path, accum=3, clip_grad_norm=0.0, max_steps=1)
    trainer = toy_trainer(flags, Batches(parts))
    torch.manual_seed(flags.seed)
    reference = ToyModel()
    out = reference(joined(parts))
    (out.loss / out.normalizer).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters()])
    trainer.fit()
    for p, q in zip(trainer.model.parameters(), reference.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    assert log_of(tmp_path)[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_clipping(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, clip_grad_norm=0.01, max_steps=1))
    trainer.fit()
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()])
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    assert log_of(tmp_path)[0]["grad_norm"] > 0.02  # the log has the norm before clipping


def test_epochs_end_training_exactly(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, accum=3, num_epochs=2), ToyLoader(steps=4))
    trainer.fit()
    # 8 batches in steps of 3, 3 and 2
    assert trainer.step == 3 and trainer.epochs == 2.0
    assert [x["epoch"] for x in log_of(tmp_path) if x["kind"] == "epoch"] == [0, 1]
    seen = sum(x["frames"] for x in log_of(tmp_path) if x["kind"] == "train")
    loader = ToyLoader(steps=4)
    assert seen == sum(loader.make(e, s).num_frames for e in range(2) for s in range(4))


def test_minutes_end_training_and_the_schedule(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, max_minutes=0.6 / 60, save_every_steps=0))
    trainer.fit()
    assert 0.6 <= trainer.elapsed < 5
    assert trainer.step > 3 and trainer.lr < 0.01 * 0.2


def test_minutes_before_an_interruption_count(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, max_minutes=1.0))
    trainer.elapsed = 45.0
    state = trainer.state_dict()
    resumed = toy_trainer(toy_flags(tmp_path, max_minutes=1.0))
    resumed.load_state_dict(state)
    assert resumed.progress == 0.75
    resumed.budget = Budget(max_minutes=45.3 / 60)
    resumed.fit()
    assert 45.3 <= resumed.elapsed < 50


def test_the_best_is_what_the_model_is_judged_by(tmp_path, monkeypatch):
    """The lowest error rate; among equals the lowest loss, which alone decides elsewhere."""
    figures = [(3.0, 0.5), (2.0, 0.5), (1.0, 0.6), (2.5, 0.4), (2.5, 0.4)]

    def run(name, **attributes):
        given = iter(figures)

        class Totals:
            def reduce(self, function):
                pass

            def metrics(self, rate):
                loss, errors = next(given)
                found = {"loss": loss, "error_rate": errors, "bits_per_second": None}
                return found | {"nats": [], "accuracy": [], "perplexity": 1.0}

        monkeypatch.setattr("rvqlm.training.trainer.evaluate_batches", lambda *args: Totals())
        flags = toy_flags(tmp_path / name, max_steps=5, valid_every_steps=1)
        trainer = toy_trainer(flags)
        for key, value in attributes.items():
            setattr(trainer.model, key, value)
        trainer.fit()
        return trainer.best

    best = run("errors", judged_by="error_rate")
    assert best == {"loss": 2.5, "error_rate": 0.4, "step": 4}
    assert load_checkpoint(tmp_path / "errors" / "best.pt")["step"] == 4
    assert run("loss") == {"loss": 1.0, "step": 3}


def test_learns_and_averages(tmp_path):
    trainer = toy_trainer(toy_flags(tmp_path, base_lr=0.03, max_steps=60))
    trainer.fit()
    losses = [x["loss"] for x in log_of(tmp_path) if x["kind"] == "valid"]
    assert losses[-1] < losses[0] - 0.3
    state = load_checkpoint(tmp_path / "latest.pt")
    assert not torch.equal(state["ema"]["hidden.weight"], state["model"]["hidden.weight"])
    assert state["best"]["loss"] == min(losses)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == state["best"]["step"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_at_the_end_of_the_step(tmp_path, number):
    class Interrupting(ToyLoader):
        def __next__(self):
            if (self.epoch, self.step) == (1, 2):
                os.kill(os.getpid(), number)
            return super().__next__()

    before = signal.getsignal(number)
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=100), Interrupting())
    assert trainer.fit() == signal.Signals(number).name
    assert trainer.step == 7  # the signal came in the seventh step
    assert load_checkpoint(tmp_path / "latest.pt")["step"] == 7
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ToyConfig(width=16)}, "--width was 12, is 16"),
        ({"seed": 5}, "--seed was 0, is 5"),
        ({"optimizer": "muon"}, "--optimizer was adamw, is muon"),
        ({"ema_decay": 0.0}, "--ema-decay"),
    ],
)
def test_resume_refuses_another_run(tmp_path, change, message):
    toy_trainer(toy_flags(tmp_path, max_steps=4)).fit()
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=8, **change))
    with pytest.raises(UserError, match=message):
        trainer.load_state_dict(load_checkpoint(tmp_path / "latest.pt"), "latest.pt")


def test_resume_refuses_another_codec(tmp_path):
    toy_trainer(toy_flags(tmp_path, max_steps=4)).fit()
    trainer = toy_trainer(toy_flags(tmp_path, max_steps=8))
    trainer.info = type(INFO)(**{**INFO.to_dict(), "fingerprint": "1" * 16})
    with pytest.raises(UserError, match=r"codec mismatch.*fingerprint"):
        trainer.load_state_dict(load_checkpoint(tmp_path / "latest.pt"), "latest.pt")


def test_every_log_flag_has_an_effect(tmp_path):
    def kinds(exp_dir, **log):
        trainer = toy_trainer(toy_flags(exp_dir, max_steps=10, **log), ToyLoader(steps=100))
        saves = []
        trainer._save = lambda improved, archived: saves.append(trainer.step)
        trainer.fit()
        lines = log_of(exp_dir)
        steps = {k: [x["step"] for x in lines if x["kind"] == k] for k in ("train", "valid")}
        return steps | {"saves": saves, "frames": [x["frames"] for x in lines if "best" in x]}

    plain = kinds(tmp_path / "a")
    assert (
        plain["train"] == [3, 6, 9, 10] and plain["valid"] == [10] and plain["saves"] == [4, 8, 10]
    )
    assert kinds(tmp_path / "b", log_every_steps=5)["train"] == [5, 10]
    assert kinds(tmp_path / "c", save_every_steps=7)["saves"] == [7, 10]
    assert kinds(tmp_path / "d", valid_every_steps=4)["valid"] == [4, 8, 10]
    assert len(kinds(tmp_path / "e", valid_every_minutes=1e-9)["valid"]) == 10
    assert len(kinds(tmp_path / "f", save_every_minutes=1e-9)["saves"]) == 10
    assert kinds(tmp_path / "g", valid_max_batches=1)["frames"][0] < plain["frames"][0]


def test_seeds_of_steps_differ():
    seeds = {step_seed(s, r, n) for s in range(3) for r in range(3) for n in range(50)}
    assert len(seeds) == 450 and all(0 <= s < 2**63 for s in seeds)
