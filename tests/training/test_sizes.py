"""`--size` gives values to flags that nobody gave, and to no others."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from rvqlm.bin.trainer import read_flags
from rvqlm.cli import flatten
from rvqlm.models.factory import MODELS
from rvqlm.training.config import TrainerConfig, check
from rvqlm.training.sizes import SIZES, with_size

NEEDED = ["--exp-dir", "exp", "--manifest-dir", "tokens", "--max-steps", "9"]


def test_the_flag_knows_every_size():
    assert get_args(get_type_hints(TrainerConfig)["size"]) == ("none", *SIZES)
    assert "size" in {f.name for f in fields(TrainerConfig)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", SIZES)
def test_every_family_takes_every_size(size, model):
    conditions = ["--conditions", "text"] if model == "recognizer" else []
    config = read_flags([*NEEDED, "--size", size, "--model-name", model, *conditions])
    check(config)
    flags = flatten(config)
    assert {k: flags[k] for k in SIZES[size]} == SIZES[size]


def test_flags_and_file_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("size: small\nnhead: 6\nbase-lr: 0.1\n")
    flags = flatten(read_flags([*NEEDED, "--config", str(file), "--base-lr", "0.2"]))
    assert (flags["size"], flags["nhead"], flags["base-lr"]) == ("small", 6, 0.2)
    assert flags["decoder-dim"] == 192  # what neither says is the size's
    assert flatten(read_flags(NEEDED))["optimizer"] == "adamw"  # none: as without the flag


def test_an_unknown_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        read_flags([*NEEDED, "--size", "huge"])
    assert "huge" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_flags_and_another_size_is_another_run():
    run = SIZES["small"] | {"size": "small", "base-lr": 0.1}
    for again in (NEEDED, [*NEEDED, "--size", "small"]):
        assert with_size(again, run)["base-lr"] == 0.1
    assert with_size([*NEEDED, "--size", "base"], run)["decoder-dim"] == 512
    old = {"decoder-dim": 256}  # of before there was the flag
    assert with_size(NEEDED, old) == old
    assert with_size([*NEEDED, "--size", "tiny"], old)["decoder-dim"] == 128
