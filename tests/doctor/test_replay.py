"""A skipped step, run again: what a replay measures is what training computed."""

import pytest
import torch
from families import K, V, make, random_batch
from toy import ToyLoader, ToyModel

from rvqlm.doctor.replay import replay
from rvqlm.errors import UserError
from rvqlm.runtime import step_seed
from rvqlm.training.bad_batch import BadBatch, load_bad_batch, save_bad_batch

FACTS = {"step": 7, "rank": 1, "seed": 5, "reason": "outlier", "loss": 9.5, "grad_norm": 3.0}


def saved(tmp_path, batches):
    bad = BadBatch(**FACTS, progress=0.4, batches=batches)
    return load_bad_batch(save_bad_batch(tmp_path, bad, keep=10))


def two_batches(model):
    return [
        random_batch(model, (9, 5), seed=1, prompt_lengths=[2, 0], ends=[True, False]),
        random_batch(model, (4, 7, 3), seed=2),
    ]


def healthy(found) -> bool:
    return not (found.first or found.first_gradient or found.error)


@pytest.mark.parametrize(
    "case, changes",
    [
        ("text-prompt-cross", {"dropout": 0.2, "condition_dropout": 0.3}),
        ("masked-text-prompt-cross", {}),
        ("valle-text", {"dropout": 0.1}),
        ("depth", {"activation_checkpointing": True, "scheduled_sampling": 0.5}),
        ("midi", {}),
        ("aligned-delay-spread", {"condition_dropout": 0.3}),
    ],
)
def test_a_replay_is_the_step_that_was_skipped(tmp_path, case, changes):
    model = make(case, **changes)
    bad = saved(tmp_path, two_batches(model))
    loss = tokens = 0.0
    model.progress = bad.progress
    torch.manual_seed(step_seed(bad.seed, bad.rank, bad.step))
    for batch in bad.batches:
        out = model(batch, label_smoothing=0.1)
        out.loss.backward()
        loss, tokens = loss + out.loss.item(), tokens + out.normalizer.item()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    found = replay(model, bad, torch.float32, label_smoothing=0.1)
    assert found.loss == loss / tokens and found.grad_norm == norm.item() / tokens
    assert healthy(found)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights))


def test_levels_are_drawn_where_training_drew_them(tmp_path):
    model, drawn = make("delay", dropout=0.2), []

    def draw(device):
        drawn.append(torch.rand(K))
        return drawn[-1].to(device)

    bad = saved(tmp_path, two_batches(model))
    found = replay(model, bad, torch.float32, draw_weights=draw)
    torch.manual_seed(step_seed(bad.seed, bad.rank, bad.step))
    outs = [model(batch, level_weights=torch.rand(K)) for batch in bad.batches]
    tokens = sum(out.normalizer.item() for out in outs)
    assert found.loss == sum(out.loss.item() for out in outs) / tokens and len(drawn) == 2


def module_of(model, name):
    return f"{name} ({type(model.get_submodule(name)).__name__})"


@pytest.mark.parametrize("case", ["delay", "masked-text", "valle-text"])
def test_a_poisoned_weight_is_found(tmp_path, case):
    model = make(case)
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)]
    with torch.no_grad():
        model.get_submodule(names[1]).weight[3] = float("nan")
    found = replay(model, saved(tmp_path, two_batches(model)), torch.float32)
    assert found.first == module_of(model, names[1])
    assert found.first_gradient and not found.out_of_range


def test_a_gradient_that_is_not_finite_while_the_loss_is(tmp_path):
    class Root(torch.nn.Module):
        """Square root of nothing: 0, with an infinite slope."""

        def forward(self, x):
            return (x * 0).abs().sqrt() + x

    model = ToyModel()
    model.hidden = torch.nn.Sequential(torch.nn.Linear(12, 12), Root())
    model.muon_parameters = list
    found = replay(model, saved(tmp_path, [ToyLoader().make(0, 0)]), torch.float32)
    assert found.first is None and found.error is None
    # backward comes from the head through the norm to what lies before the root
    assert found.first_gradient in ("hidden.0.weight", "hidden.0.bias")
    assert torch.isfinite(torch.tensor(found.loss))


def test_ids_out_of_range_are_counted_and_named(tmp_path):
    model = make("text")
    batches = two_batches(model)
    batches[1].codes[1, 2, K - 1] = V + 4  # beyond the last table
    batches[1].codes[0, 4:, 0] = 99  # past the end of item 0: of no account
    conditions = batches[0].conditions["text"]
    conditions.values[0, 0, 0] = -3
    found = replay(model, saved(tmp_path, batches), torch.float32)
    assert len(found.out_of_range) == 2
    said = " ".join(found.out_of_range)
    assert f"codes of micro-batch 1: {V + 4} at item 1 (row 1 of the index), position 2" in said
    assert "text of micro-batch 0: -3 at item 0" in said
    assert found.error  # of the second micro-batch
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_of_another_training_is_refused(tmp_path):
    bad = saved(tmp_path, two_batches(make("delay")))
    with pytest.raises(UserError, match="no text in it"):
        replay(make("text"), bad, torch.float32)
    with pytest.raises(UserError, match=f"codes of {K} levels, the model has 2"):
        replay(ToyModel(), bad, torch.float32)
