import pytest
import torch
from torch import nn

from rvqlm.training.ema import EMA


@pytest.mark.parametrize("warmup", [True, False])
def test_equals_the_formula(warmup):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema = EMA(model, 0.8, warmup)
    naive = [p.detach().clone() for p in model.parameters()]
    for n in range(40):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(ema.next_share())
        decay = min(0.8, (1 + n) / (10 + n)) if warmup else 0.8
        naive = [decay * a + (1 - decay) * p.detach() for a, p in zip(naive, model.parameters())]
    for a, b in zip(naive, ema.average):
        torch.testing.assert_close(a, b)


def test_swapped_uses_the_average_and_gives_the_weights_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(model, decay=0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.add_(1.0)
        model[1].running_mean.add_(7.0)
    raw = model[0].weight.detach().clone()
    with ema.swapped():
        assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[0].weight, raw)
    state = ema.state_dict(model)
    assert torch.equal(state["0.weight"], before["0.weight"])
    assert state["1.running_mean"].tolist() == [7.0, 7.0]  # buffers are the model's
    assert state.keys() == before.keys()


def test_weights_come_back_after_an_error():
    model = nn.Linear(1, 1)
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(3.0)
    try:
        with ema.swapped():
            raise ValueError
    except ValueError:
        pass
    assert model.weight.item() == 3.0


def test_state_round_trip():
    model = nn.Linear(2, 3)
    ema = EMA(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(ema.next_share())
    other = EMA(nn.Linear(2, 3), decay=0.5)
    other.load_state_dict(ema.state_dict(model), ema.updates)
    assert other.updates == 1
    for a, b in zip(ema.average, other.average):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_swapping_moves_no_values():
    model = nn.Linear(2, 3)
    ema = EMA(model, decay=0.5)
    weights, average = model.weight.data_ptr(), ema.average[0].data_ptr()
    with ema.swapped():
        assert (model.weight.data_ptr(), ema.average[0].data_ptr()) == (average, weights)
