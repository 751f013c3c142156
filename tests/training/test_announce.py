"""The words that a training begins with."""

from types import SimpleNamespace

from rvqlm.codec_info import CodecInfo
from rvqlm.models.codec_lm import CodecLMConfig
from rvqlm.training.announce import (
    budget_words,
    epoch_words,
    items_words,
    length_words,
    schedule_words,
)
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


def loader(config, epoch=0, world_size=1, **values):
    info = CodecInfo("descript/dac_44khz", "", 44100, 512, 9, 1024)
    data = SimpleNamespace(info=info)
    return SimpleNamespace(
        config=config.data, dataset=data, epoch=epoch, world_size=world_size, **values
    )


def test_windows_of_75_hours_of_music():
    """As the log of that training gives them: 34,520 windows (ctx=1280, step=640), 1,438 steps."""
    config = flags({"accum": 6}, {"window_frames": 1280, "hop_frames": 640})
    assert epoch_words(loader(config, epoch_steps=8630, epoch_items=34520), config) == (
        "34,520 windows of 1,280 frames (14.9 s), one every 640 frames (7.4 s), 8,630 batches, "
        "1,439 optimizer steps an epoch"
    )
    config = flags(data={"window_schedule": ("0:512", "100:1024")})
    words = items_words(loader(config, epoch=100, epoch_items=9))
    assert words == "9 windows of 1,024 frames (11.9 s)"


def test_epoch_and_length():
    config = flags({"accum": 2})
    words = epoch_words(loader(config, epoch_steps=7, epoch_items=1200), config)
    assert words == "1,200 items, 7 batches, 4 optimizer steps an epoch"
    config = flags(data={"window_frames": 50})
    words = epoch_words(loader(config, epoch_steps=1, epoch_items=1, world_size=2), config)
    assert words == ("1 window of 50 frames (0.6 s), 1 batch a rank, 1 optimizer step an epoch")
    data = type("Data", (), {"hours": 0.005, "__len__": lambda self: 1})()
    assert length_words(data) == "1 cut, 18 s"
