"""The words that a training begins with."""

from types import SimpleNamespace

from rvqlm.models.codec_lm import CodecLMConfig
from rvqlm.training.announce import budget_words, epoch_words, length_words, schedule_words
from rvqlm.training.config import LossConfig, OptimConfig, TrainPlan, flags_class


def flags(optim=None, data=None, **top):
    return flags_class(CodecLMConfig)(
        exp_dir="e",
        manifest_dir="m",
        optim=OptimConfig(**(optim or {})),
        data=TrainPlan(**(data or {})),
        loss=LossConfig(),
        **top,
    )


def test_budget():
    config = flags(num_epochs=1, max_steps=30, max_minutes=0.5)
    assert (
        budget_words(config, 12) == "1 epoch (about 12 steps), or 30 steps (2.50 epochs), or 30 s"
    )


def test_schedule():
    assert schedule_words(flags()) == (
        "adamw, learning rate 0.001 after a warm-up over 2 % of the budget, then cosine to 0"
    )
    optim = {"schedule": "step", "warmup_steps": 1, "eta_min_ratio": 0.1, "embedding_lr": 0.01}
    assert schedule_words(flags(optim)) == (
        "adamw, learning rate 0.001 (0.01 of embeddings) after a warm-up over 1 step, then step, "
        "not below 0.0001"
    )
    words = schedule_words(flags({"schedule": "constant", "warmup_ratio": 0.0}))
    assert words.endswith("over 0 % of the budget, then constant")


def test_epoch_and_length():
    loader = SimpleNamespace(epoch_steps=7, epoch_items=1200, world_size=1)
    assert epoch_words(loader, flags({"accum": 2})) == (
        "1,200 items, 7 batches, 4 optimizer steps an epoch"
    )
    loader = SimpleNamespace(epoch_steps=1, epoch_items=1, world_size=2)
    windows = flags(data={"window_frames": 50})
    assert epoch_words(loader, windows) == "1 window, 1 batch a rank, 1 optimizer step an epoch"
    data = type("Data", (), {"hours": 0.005, "__len__": lambda self: 1})()
    assert length_words(data) == "1 cut, 18 s"
