"""rvqlm grid: all settings once, also after an interruption; the best one, and how sure that is."""

import csv
import json

import numpy as np
import pytest
import torch
from saved_models import save_model
from sources import INFO, K, trained, write

import rvqlm.bin.grid
from rvqlm.codecs.base import Codec
from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.judging import grid
from rvqlm.judging.grid_results import Results, compare


class Mute(Codec):
    """Decodes to a little noise."""

    decode_context_frames = 0

    def __init__(self):
        super().__init__(INFO)

    def encode(self, audio, lengths=None):
        raise NotImplementedError

    def decode(self, codes):
        return 0.1 * torch.ones(len(codes), 1, codes.shape[1] * INFO.hop)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    train, _ = write(folder / "tokens")
    for name, steps in (("untrained", 0), ("half", 8), ("best", 60)):
        save_model(trained(train, steps), folder / f"exp/{name}.pt", step=steps, ema=False)
    return folder


@pytest.fixture(autouse=True)
def mute(monkeypatch):
    monkeypatch.setattr(grid, "load_codec_like", lambda *_: Mute())


def run(place, *flags) -> int:
    words = ["--exp-dir", place / "exp", "--manifest-dir", place / "tokens", "--split", "test"]
    words += ["--num", "6", "--prompt-seconds", "0.2", "--seconds", "0.5", "--num-threads", "1"]
    return rvqlm.bin.grid.main([*map(str, words), *map(str, flags)])


def read(out) -> dict:
    return json.loads((out / "grid.json").read_text())


def test_interrupted_it_goes_on(place, tmp_path, capsys):
    flags = ("--out-dir", tmp_path, "--temperature", "0", "1", "--top-k", "0", "2")
    assert run(place, *flags) == 0
    out = capsys.readouterr().out
    assert out.count("best.pt (step 60), temperature") == 2 * 4 + 1  # made, ranked, named
    with open(tmp_path / "grid.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert {(row["temperature"], row["top_k"]) for row in rows} == {
        ("0.0", "0"), ("0.0", "2"), ("1.0", "0"), ("1.0", "2"),
    }  # fmt: skip
    figures = [float(row["kl"]) for row in rows]
    assert figures == sorted(figures)
    assert all(float(r["kl_low"]) <= float(r["kl_high"]) for r in rows)
    before = (tmp_path / "grid.csv").read_bytes()

    some = sorted((tmp_path / "settings").glob("*.json"))[2]
    was = json.loads(some.read_text())
    some.unlink()
    assert run(place, *flags) == 0  # makes that one alone, and the same
    assert capsys.readouterr().out.split("kl, least")[0].count("temperature") == 1
    again = json.loads(some.read_text())
    assert {k: v for k, v in again.items() if k not in ("generation_seconds", "checksum")} == {
        k: v for k, v in was.items() if k not in ("generation_seconds", "checksum")
    }
    assert run(place, *flags, "--top-p", "0.9") == 0  # others, beside those
    assert len(read(tmp_path)["settings"]) == 8
    assert before.splitlines()[0] != (tmp_path / "grid.csv").read_bytes().splitlines()[0]

    capsys.readouterr()
    assert run(place, *flags, "--seed", "1") == 2
    assert "the results there are of seed 0 (now 1); give another" in capsys.readouterr().err
    assert run(place, *flags, "--seed", "1", "--overwrite") == 0
    assert len(read(tmp_path)["settings"]) == 4


def test_batches_change_nothing(place, tmp_path):
    for size in (1, 4):
        flags = ("--out-dir", tmp_path / str(size), "--batch-size", size, "--top-k", "0")
        assert run(place, *flags) == 0
    one, four = (read(tmp_path / str(size))["settings"][0] for size in (1, 4))
    for judge in ("kl", "nats", "repetition"):
        assert one[judge]["value"] == pytest.approx(four[judge]["value"], rel=1e-4)


def test_checkpoints_are_ordered_by_what_they_learned(place, tmp_path):
    names = [str(place / f"exp/{name}.pt") for name in ("untrained", "half", "best")]
    flags = ("--out-dir", tmp_path, "--top-k", "0", "--num", "12")
    for judge in ("kl", "nats"):
        assert run(place, *flags, "--judge", judge, "--checkpoints", *names) == 0
        ranked = [row["checkpoint"] for row in read(tmp_path)["settings"]]
        assert ranked[-1] == "untrained.pt"
    assert ranked == ["best.pt", "half.pt", "untrained.pt"]


def test_weights_of_fewer_bits(place, tmp_path):
    """Only what is generated differs, and by a little: nats of recordings are of the weights."""
    flags = ("--out-dir", tmp_path, "--temperature", "0")
    assert run(place, *flags) == 0
    assert run(place, *flags, "--weights", "float32", "int8", "bf16") == 0
    rows = {row.get("weights"): row for row in read(tmp_path)["settings"]}
    assert set(rows) == {None, "float32", "int8", "bf16"}
    for judge in ("kl", "nats", "repetition"):
        assert rows["float32"][judge] == rows[None][judge]  # the default
        for weights in ("int8", "bf16"):
            assert rows[weights][judge]["value"] == pytest.approx(rows[None][judge]["value"], rel=1)
    stored = [json.loads(p.read_text()) for p in (tmp_path / "settings").glob("*.json")]
    assert len({json.dumps(row["real_nats"]) for row in stored}) == 1


def test_rounded_weights_are_what_generates(place, tmp_path, monkeypatch):
    """Weights of no bits, in their place, are found to be worse."""

    def ruined(model, dtype, int8):
        assert (dtype, int8) == (torch.bfloat16, False)
        for parameter in model.parameters():
            parameter.data.zero_()
        return model

    monkeypatch.setattr(grid, "with_weights_in", ruined)
    flags = ("--out-dir", tmp_path, "--judge", "nats", "--top-k", "0", "--num", "12")
    assert run(place, *flags, "--weights", "float32", "bf16") == 0
    result = read(tmp_path)
    assert [row["weights"] for row in result["settings"]] == ["float32", "bf16"]
    assert result["certain"]


# ------------------------------------------------------------------------------------ certainty


def row_of(errors) -> dict:
    N = len(errors)
    nats = np.ones((N, 2, K)).tolist()
    return {
        "recordings": [f"r{n}" for n in range(N)], "errors": errors, "symbols": [10] * N,
        "own_nats": nats, "real_nats": nats, "repetition": [0.5] * N, "real_repetition": [0.5] * N,
        "silence": [0.0] * N, "ended": 0, "seconds": 1.0, "generation_seconds": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("second, certain", [([3, 4, 2, 5] * 5, True), ([2, 4, 1, 4] * 5, False)])
def test_whether_the_best_is_better_is_said_pair_by_pair(place, tmp_path, second, certain):
    """The scatter of sentences is far larger than the difference, and has no part in it."""
    dataset = TokenDataset.open(place / "tokens", "test")
    results = Results(tmp_path, {"seed": 0}, False)
    codes = [np.zeros((3, K), int)] * 20
    for n, errors in enumerate(([2, 3, 1, 4] * 5, second)):
        setting = {"checkpoint": "best.pt", "step": 1, "temperature": float(n)}
        results.add(setting, row_of(errors if n or certain else [2, 3, 1, 5] * 5), codes)
    found = compare(results, dataset, "errors")
    assert found["certain"] is certain
    first, other = found["settings"]
    assert first["errors"]["interval"][0] < first["errors"]["value"]
    low, high = other["behind_the_best"]
    assert (low > 0) is certain and low <= high
    if certain:  # every sentence has one error more
        assert (low, high) == pytest.approx((0.1, 0.1))


def test_a_divergence_lies_in_its_interval(place, tmp_path):
    """Of the recordings themselves it is 0, and more of every draw that lacks some of them."""
    dataset = TokenDataset.open(place / "tokens", "test")
    results = Results(tmp_path, {"seed": 0}, False)
    codes = [dataset.view(n) for n in range(len(dataset))]
    results.add({"checkpoint": "best.pt", "step": 1}, row_of([1] * len(codes)), codes)
    figure = compare(results, dataset, "kl")["settings"][0]["kl"]
    assert figure["value"] == pytest.approx(0, abs=1e-9)
    low, high = figure["interval"]
    assert low < figure["value"] < high


def test_what_is_refused(place, tmp_path, capsys):
    for flags, said in (
        (("--judge", "errors"), "--judge errors needs --recognizer"),
        (("--num", "0"), "--num 0 must be positive"),
        (("--top-p", "0", "--temperature", "-1"), "--temperature -1.0 must not be negative"),
        (("--recognizer", place / "exp"), "this is a codec-lm"),
    ):
        assert run(place, "--out-dir", tmp_path, *flags) == 2
        assert said in capsys.readouterr().err
    results = Results(tmp_path, {"seed": 0}, False)
    results.add({"checkpoint": "a", "step": 1}, row_of([1, 2]), [np.zeros((2, K), int)] * 2)
    next(results.folder.glob("*.npz")).write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        list(results.read())
