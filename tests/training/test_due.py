"""When to log, validate, sample, save and archive."""

import dataclasses

import pytest
from toy import toy_flags

from rvqlm.training.config import LogConfig, SaveConfig, what_is_due

NEVER = {"valid": 0.0, "sample": 0.0, "save": 0.0}


def due(tmp_path, step, elapsed=0.0, ended=None, finished=False, stopping=False, **flags):
    off = {"log_every_steps": 1000, "save_every_steps": 0, "save_every_minutes": 0.0}
    config = toy_flags(tmp_path, max_steps=10**6, **{**off, **flags})
    return what_is_due(config, step, elapsed, ended, finished, stopping, NEVER)


@pytest.mark.parametrize(
    ("flags", "when", "what"),
    [
        ({}, {"step": 7}, set()),
        ({"log_every_steps": 7}, {"step": 14}, {"log"}),
        ({"log_every_steps": 7}, {"step": 15}, set()),
        ({}, {"step": 7, "ended": 3}, {"log", "valid"}),
        ({"valid_every_steps": 5}, {"step": 10}, {"valid"}),
        ({"valid_every_steps": 5}, {"step": 11, "ended": 3}, {"log"}),
        ({"valid_every_minutes": 2.0}, {"step": 1, "elapsed": 120.0}, {"valid"}),
        ({"valid_every_minutes": 2.0}, {"step": 1, "elapsed": 119.0}, set()),
        ({"sample_every_steps": 4}, {"step": 8}, {"sample"}),
        ({"sample_every_minutes": 1.0}, {"step": 1, "elapsed": 60.0}, {"sample"}),
        ({"sample_every_epochs": 2}, {"step": 1, "ended": 1}, {"log", "valid", "sample"}),
        ({"sample_every_epochs": 2}, {"step": 1, "ended": 2}, {"log", "valid"}),
        ({"save_every_steps": 3}, {"step": 9}, {"save"}),
        ({"save_every_minutes": 1.0}, {"step": 1, "elapsed": 61.0}, {"save"}),
        ({"archive_every_steps": 3}, {"step": 9}, {"save", "archive"}),
        ({"archive_every": 2}, {"step": 9, "ended": 1}, {"log", "valid", "save", "archive"}),
        ({"archive_every": 2}, {"step": 9, "ended": 0}, {"log", "valid"}),
        ({}, {"step": 7, "stopping": True}, {"save"}),
        ({}, {"step": 7, "finished": True}, {"log", "valid", "save"}),
        ({"sample_every_epochs": 99}, {"step": 7, "finished": True},
         {"log", "valid", "save", "sample"}),
    ],
)  # fmt: skip
def test_each_flag_by_itself(tmp_path, flags, when, what):
    assert due(tmp_path, **when, **flags) == what


def test_every_flag_of_when_is_tried():
    tried = {
        *("log_every_steps", "valid_every_steps", "valid_every_minutes", "sample_every_steps"),
        *("sample_every_minutes", "sample_every_epochs", "save_every_steps"),
        *("save_every_minutes", "archive_every_steps", "archive_every"),
    }
    fields = [f.name for of in (LogConfig, SaveConfig) for f in dataclasses.fields(of)]
    assert tried == {name for name in fields if "_every" in name}
