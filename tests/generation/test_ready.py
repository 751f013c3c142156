"""Steps that are made ready once, compiled or as a graph, are those that are made one by one."""

from dataclasses import replace

import pytest
import torch
from families import ALL, PAIRWISE, make, random_batch
from tape import Tape

from rvqlm.generation import ready
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.modules.transformer import Transformer

CASES = [case for case, (name, _) in PAIRWISE.items() if name != "masked"]


def shaken(case: str, how: str = "eager", **changes):
    torch.manual_seed(0)
    model = make(case, **changes)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made_by(model.eval(), how)


def made_by(model, how: str):
    for module in model.modules():
        if isinstance(module, Transformer):
            module.steps = how
    return model


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that were captured; they are tapes."""
    found = []

    def capture(function):
        found.append(Tape.capture(function))
        return found[-1]

    monkeypatch.setattr(ready, "capture", capture)
    return found


DRAWS = {
    "greedy": SamplingConfig(0.0),
    "all": SamplingConfig(
        0.9, 7, 0.95, 0.01, (1.0, 0.7), repetition_window=3, ban=("0:3",), best_of=2
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_draws_what_single_steps_draw(case, graphs):
    plain, model = shaken(case), shaken(case, "graph")
    batch = random_batch(plain, [6, 4])
    for seed, (name, sampling) in enumerate(DRAWS.items()):
        if plain.conditions:
            sampling = replace(sampling, cfg_scale=1.5)
        options = {"max_frames": 40, "sampling": sampling, "seed": seed}
        options["conditions"] = batch.conditions
        want, got = (m.generate(batch.codes[:, :2], **options) for m in (plain, model))
        assert torch.equal(got.codes, want.codes), name
        assert got.stop == want.stop
    assert len(graphs) >= 2
