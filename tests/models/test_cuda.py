"""Every family on a GPU is what it is on a CPU: in float64, where nothing but the order of sums
differs."""

import copy
from dataclasses import replace

import pytest
import torch
from families import PAIRWISE, make, random_batch

pytestmark = pytest.mark.cuda
# ends, lengths and places on the time axis are computed in float32 whatever the weights are
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}


def on_both(case, **changes):
    model = make(case, **changes).double()
    return model, copy.deepcopy(model).cuda()


def without_float32(case) -> dict:
    """Changes of a config that leave float64 alone."""
    name = PAIRWISE[case][0]
    return {"predict_length": False} if name == "masked" else {"model_end": False}


@pytest.mark.parametrize("in_rows", [False, True])
@pytest.mark.parametrize("case", PAIRWISE)
def test_loss_and_gradients(case, in_rows):
    here, there = on_both(case, **without_float32(case))
    within = FLOAT32 if here.conditions else FLOAT64
    batch = random_batch(here, [9, 3, 6], prompt_lengths=[2, 0, 3])
    if in_rows:  # the first two share one
        batch = replace(batch, rows=torch.tensor([[0, 9], [0, 3], [1, 6]]), row_frames=12)
    want, got = here.eval()(batch), there.eval()(batch.to("cuda"))
    torch.testing.assert_close(got.loss.cpu(), want.loss, **within)
    for name, (value, count) in want.sums.items():
        torch.testing.assert_close(got.sums[name][0].cpu(), value, **within)
        assert torch.equal(got.sums[name][1].cpu(), count)
    want.loss.backward()
    got.loss.backward()
    for (name, p), q in zip(here.named_parameters(), there.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad.cpu(), p.grad, **within, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("case", PAIRWISE)
def test_ends_and_lengths(case):
    here, there = on_both(case)
    batch = random_batch(here, [9, 3, 6])
    want, got = here.eval()(batch).sums, there.eval()(batch.to("cuda")).sums
    names = {"end_nats", "length_nats"} & set(want)
    assert names
    for name in names:
        torch.testing.assert_close(got[name][0].cpu(), want[name][0], **FLOAT32)


@pytest.mark.parametrize("case", PAIRWISE)
def test_greedy_generation(case):
    here, there = on_both(case)
    batch = random_batch(here, [6, 6])
    options = {"max_frames": 12, "min_frames": 12, "temperature": 0, "conditions": batch.conditions}
    want, got = (m.eval().generate(batch.codes[:, :2], **options) for m in (here, there))
    assert torch.equal(got.codes.cpu(), want.codes)
    assert got.lengths.tolist() == want.lengths.tolist() and got.stop == want.stop
