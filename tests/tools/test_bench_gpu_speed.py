"""The tables of speeds of tools/bench/gpu.py: the best batch, bytes, launches, memory, the text."""

import json
from dataclasses import replace
from functools import partial

import generate
import gpu
import gpu_generation_speed as generation
import gpu_speed as speed
import gpu_train_speed as training
import pytest
import torch
from gpu_checks import NotRun, Where, Wrong
from simulated_cuda import simulated_cuda
from train_step_cases import make_model

from rvqlm.models.cards import count_parameters


def card(most: int, rates: dict[int, float]):
    """What is asked of a card that holds so many items; and the numbers it was asked for."""
    asked = []

    def rate_of(items: int) -> float:
        asked.append(items)
        if items > most:
            raise speed.TooLarge(f"{items} GiB needed: out of memory")
        return rates.get(items, float(items))

    return rate_of, asked


@pytest.mark.parametrize(
    "most, rates, best, tried",
    [
        (1000, {}, 192, [6, 12, 24, 48, 96, 192]),  # as many as are tried
        (50, {}, 48, [6, 12, 24, 48, 96]),  # as many as fit
        (1000, {24: 12.5}, 24, [6, 12, 24]),  # no 5 % more, and yet the most
        (1000, {12: 5.0}, 6, [6, 12]),  # fewer
        (4, {}, 3, [6, 3]),
        (2, {}, 1, [6, 3, 1]),
    ],
)
def test_the_best_batch(most, rates, best, tried):
    rate_of, asked = card(most, rates)
    assert training.best_batch(rate_of, 6) == best and asked == tried


def test_no_batch_fits():
    with pytest.raises(NotRun, match=r"^1 GiB needed: out of memory"):
        training.best_batch(card(0, {})[0], 6)

    def old(items: int) -> float:
        raise NotRun("this card has no bf16")

    with pytest.raises(NotRun, match="no bf16"):
        training.best_batch(old, 6)


def test_what_memory_would_have_to_be():
    def ask():
        held = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
        return held, torch.empty(5 << 28, dtype=torch.uint8, device="cuda")

    with simulated_cuda(memory=1 << 30):
        with pytest.raises(NotRun, match=r"at least 1\.5 GiB needed: out of memory"):
            speed.within_memory(ask)
        assert torch.cuda.memory_allocated() == 0

    def full():  # as torch says it
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a")

    with simulated_cuda(), pytest.raises(NotRun, match=r"at least 2\.5 GiB"):
        speed.within_memory(full)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """(family, layers) -> what trains it, on a simulated GPU."""
    where = Where(torch.device("cuda", 0), tmp_path, simulated=True)
    monkeypatch.setattr(training, "TOY", replace(training.TOY, codebooks=2, frames=4))
    with speed.place(where) as at:

        def make(family: str, layers: int) -> training.Subject:
            subject = training.Subject(where, at, family, "eager")
            subject.size = replace(training.TOY, layers=layers)
            return subject

        yield make


def test_launches_grow_with_layers(toy, monkeypatch):
    subject = toy("delay", 3)
    subject.trainer.train = training.Loader(subject.batch(2))
    subject.step()
    want = speed.counted(subject.at, subject.step)
    monkeypatch.setattr(training, "Size", partial(speed.Size, layers=3))
    assert subject.counts(1) == want and want[1] == 1


def test_a_step_that_is_not_taken_is_no_speed(toy):
    subject = toy("delay", 1)
    subject.trainer.guard.judge = lambda loss, norm: "nonfinite"
    with pytest.raises(Wrong, match="was not taken: nonfinite"):
        subject.measure(2, 1)


def test_bytes_are_those_of_the_other_bench():
    size = speed.Size(dim=64, layers=2, heads=2, codebooks=8, codebook_size=512)
    args = generate.Args("tiny", frames=107, codebooks=8, codebook_size=512)
    step = generate.bytes_read(args, "bf16", 3)  # of 107 for 100 frames with delays of 0 to 7
    parts = count_parameters(make_model(size, vars(size), "delay"))
    read = generation.numbers_read("delay", parts, size, 0, 100, 3)
    assert generate.bytes_of(read[0], 2, read[1], 2) == pytest.approx(107 * step, rel=1e-3)
    parts = count_parameters(make_model(size, vars(size), "depth"))
    plain, again = (generation.numbers_read("depth", parts, size, n, 100, 3)[0] for n in (0, 5))
    assert again - plain == 100 * 7 * 5


def test_the_tables_are_printed_and_kept(tmp_path, monkeypatch, capsys):
    def full():
        raise NotRun("at least 12.3 GiB needed: out of memory")

    figures = {"items": 6, "tokens/s": 123456.7, "MFU": 0.412, "launches": 9988, "waits": 1}

    def part(where):
        yield "products of large matrices", lambda: "700 TFLOP/s, of 989"
        at = speed.Place(where.device, None, False)
        yield "delay, 12 GB, eager", lambda: training.TABLE.row(at, figures)
        yield "delay, best, eager", full
        yield "valle, best, eager", lambda: training.TABLE.row(at._replace(quick=True), figures)

    monkeypatch.setattr(gpu, "PARTS", {"train-speed": gpu.Part(part, 1.0, False)})
    record = tmp_path / "gpu.json"
    command = ["--simulate", "--json", str(record), "--only", "train-speed"]
    assert gpu.main(command) == 0
    said = capsys.readouterr().out
    assert "items 6, tokens/s 123,457, MFU 41%, launches 9,988, waits 1" in said
    assert "700 TFLOP/s, of 989:\n\n| family | batch | blocks | items | tokens/s |" in said
    assert "| delay | 12 GB | eager | 6 | 123,457 | - | 41% | - | 9,988 | 1 |\n" in said
    full_row = "| delay | best | eager | - | at least 12.3 GiB needed: out of memory | - |"
    assert full_row in said
    simulated = "| valle | best | eager | simulated | simulated | simulated | simulated | simulated"
    assert simulated + " | 9,988 | 1 |" in said
    kept = json.loads(record.read_text())["checks"]
    assert kept[1]["figures"] == figures and kept[2]["verdict"] == "not run"
    assert kept[3]["figures"]["tokens/s"] == "simulated"
    assert gpu.main([*command, "--seconds", "0"]) == 0
    assert "| delay | 12 GB | eager | - | not run | - |" in capsys.readouterr().out
