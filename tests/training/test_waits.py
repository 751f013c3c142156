"""How often a step of training waits for a GPU, by family: once, however many micro-batches it has,
and the losses of a GPU, which chooses its cells without asking, are those of a CPU."""

import copy

import gpu_checks as checks
import pytest
import torch
from families import PAIRWISE, make, random_batch
from simulated_cuda import simulated_cuda

from rvqlm.batch import Most
from rvqlm.training.level_weights import LevelWeights, LossConfig

CTC = 4
"""Of a micro-batch: torch's kernels copy the lengths, forward and backward."""
CASES = {
    "coarse-first": 0, "custom-midi-cross": 0, "parallel-text-spread": 0, "depth-text-cross": 0,
    "valle": 0, "masked-prompt-cross": 0, "both-ways-spread": 0, "aligned-delay-spread": 0,
    "recognizer": CTC,
}  # fmt: skip
"""Waits of a micro-batch."""


@pytest.fixture
def gpu():
    with simulated_cuda():
        yield torch.device("cuda", 0)


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_once(gpu, case, tmp_path, monkeypatch):
    if case == "recognizer":
        monkeypatch.setattr(checks, "make", lambda *_, **__: checks.EXTRA[case]().train())
    trained = checks.trainer(tmp_path, case, gpu)
    weights = LevelWeights(LossConfig(level_weights=("3", "2", "1")), 3)
    if case != "recognizer":
        trained.level_weights = weights
    trained.model.train()
    trained.train_step()  # constants are copied once
    outcomes = []
    found = checks.waited(lambda: outcomes.append(trained.train_step()))
    micro_batches = trained.config.optim.accum
    assert sum(found.values()) == 1 + micro_batches * CASES[case], found
    assert outcomes[0].totals.sums["accuracy"][1].sum() > 0  # also what is counted after the wait


@pytest.mark.parametrize("case", ["masked-prompt-cross", "valle"])
def test_held_out_batches_do_not_wait(gpu, case):
    model = make(case).eval().to(gpu)
    batch = random_batch(model, checks.LENGTHS)

    @torch.no_grad()
    def validate():
        model(batch.to(gpu))

    validate()
    assert not checks.waited(validate)


def heads_and_rows(name):
    model = make({"linear": "delay", "mlp": "custom-midi-cross", "depth": "depth-text-cross"}[name])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 32, generator=generator)
    targets = torch.randint(13, (23, 3), generator=generator)
    return copy.deepcopy(model.heads), hidden, targets


MASKS = {
    "rows": lambda t: (torch.arange(23) % 3 > 0)[:, None].expand(23, 3),
    "levels": lambda t: torch.arange(23)[:, None] % 3 == torch.arange(3),
    "weights": lambda t: (torch.arange(23)[:, None] % 3 == torch.arange(3)) * 0.7,
    "none": lambda t: torch.zeros(23, 3, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["linear", "mlp", "depth"])
def test_losses_of_cells_chosen_on_the_device(gpu, name, mask):
    heads, hidden, targets = heads_and_rows(name)
    valid = MASKS[mask](targets)
    levels = torch.tensor([1.0, 0.5, 2.0])
    there, inputs = copy.deepcopy(heads).to(gpu), [hidden.clone().requires_grad_()]
    want = heads.loss(*inputs, targets, valid, levels, 0.1)
    want.loss.backward()
    exact = Most(int((valid != 0).any(1).sum()), int((valid != 0).sum(0).max()))
    looser = Most(exact.rows + 2, exact.cells + 2)
    for most in (None, exact, looser, Most(99, 99)):
        moved = [x.to(gpu) for x in (hidden, targets, valid, levels)]
        moved[0].requires_grad_()
        there.zero_grad()
        got = there.loss(*moved, 0.1, most)
        torch.testing.assert_close(got.loss.cpu(), want.loss)
        for key, value in want.sums.items():
            torch.testing.assert_close(got.sums[key].cpu(), value)
        got.loss.backward()
        torch.testing.assert_close(moved[0].grad.cpu(), inputs[0].grad)
        for p, q in zip(there.parameters(), heads.parameters()):
            if q.grad is not None:
                torch.testing.assert_close(p.grad.cpu(), q.grad)


def test_items_of_one_level_each(gpu, monkeypatch):
    from rvqlm.modules import fused_loss

    monkeypatch.setattr(fused_loss, "GPU_ITEM_ELEMENTS", 2 * 13 * 32)  # two items at once
    monkeypatch.setattr(fused_loss, "GPU_BLOCK_ELEMENTS", 2 * 13 * 2)  # two frames of them
    heads = make("delay").heads
    there, hidden = copy.deepcopy(heads).to(gpu), torch.randn(5, 7, 32, requires_grad=True)
    level, targets = torch.tensor([2, 0, 2, 2, 0]), torch.randint(13, (5, 7))
    valid, weights = torch.rand(5, 7) > 0.3, torch.tensor([1.0, 0.5, 2.0])
    want = heads.loss_of_level(hidden, level, targets, valid, weights, 0.1)
    want.loss.backward()
    moved = [x.detach().to(gpu) for x in (hidden, level, targets, valid, weights)]
    moved[0].requires_grad_()
    got = there.loss_of_level(*moved, 0.1)
    got.loss.backward()
    torch.testing.assert_close(got.loss.cpu(), want.loss)
    for key, value in want.sums.items():
        torch.testing.assert_close(got.sums[key].cpu(), value)
    torch.testing.assert_close(moved[0].grad.cpu(), hidden.grad)
    torch.testing.assert_close(there.weight.grad.cpu(), heads.weight.grad)
    assert set(PAIRWISE) >= set(CASES) - {"recognizer"}
