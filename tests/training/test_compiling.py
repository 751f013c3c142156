"""`--compile` computes what is computed without it, and compiles a handful of times."""

import copy
from dataclasses import replace

import pytest
import torch
from families import make, random_batch, random_items
from torch._dynamo.utils import counters
from torch.fx.experimental import _config

from rvqlm.errors import UserError
from rvqlm.modules import attention
from rvqlm.training.compiling import _try_compiler, compile_model, reshaped, warm_up

SHAPES = {(B, T) for B in (1, 2, 3) for T in range(6, 30)}


@pytest.fixture(autouse=True)
def fresh():
    """Nothing compiled before, no setting kept."""
    torch._dynamo.reset()
    settings = torch._dynamo.config
    limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
    with _config.patch(use_duck_shape=True), settings.patch({limit: 8}):
        yield
    torch._dynamo.reset()


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def quiet(_):
    pass


def step(model, batch, dtype=torch.float32):
    """Loss and gradients, with the dropout of seed 0."""
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(batch)
    out.loss.backward()
    return out.loss.detach(), [p.grad.clone() for p in model.parameters()]


def assert_same(model, other, batch, dtype=torch.float32, **tolerance):
    loss, grads = step(model, batch, dtype)
    other_loss, other_grads = step(other, batch, dtype)
    torch.testing.assert_close(loss, other_loss, **tolerance)
    for mine, theirs in zip(grads, other_grads):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize(
    ("case", "changes"),
    [("depth", {"activation_checkpointing": True}), ("post-norm", {})],
)
def test_gradients_are_those_of_the_plain_model(case, changes):
    """Through AOTAutograd, with dropout: every gradient of the plain model."""
    plain = make(case, dropout=0.2, **changes).train()
    model = copy.deepcopy(plain)
    before = counters["stats"]["unique_graphs"]
    compile_model(model, {(2, 7)}, quiet, backend="aot_eager")
    assert_same(model, plain, random_batch(model, [7, 5]))
    assert counters["stats"]["unique_graphs"] > before


# versions needed: of batches of one item and of others; an encoder is a second network
@pytest.mark.parametrize(
    ("case", "versions", "masks_in_blocks"),
    [("text-spread", 2, ("cpu",)), ("source-cross", 4, ("cpu",)), ("masked", 2, ())],
)
def test_no_shape_compiles_after_the_warm_up(case, versions, masks_in_blocks, monkeypatch):
    monkeypatch.setattr(attention, "MASKS_IN_BLOCKS", masks_in_blocks)
    changes = {"num_decoder_layers": 4}  # depth costs nothing
    model, backend = make(case, **changes).train(), Counting()
    shapes = compile_model(model, SHAPES, quiet, backend)
    assert len(shapes) <= 4
    warm_up(model, shapes, random_batch(model, [9, 8]), torch.float32, quiet)
    assert backend.graphs == versions
    for lengths in ([6], [29], [17, 12], [8, 7, 6], [23, 22, 5]):
        model(random_batch(model, lengths, seed=sum(lengths))).loss.backward()
    assert backend.graphs == versions


@pytest.mark.parametrize("case", ["text-cross", "masked-text"])
def test_rows_of_several_items_compile_once(case):
    plain = make(case, num_encoder_layers=0, num_decoder_layers=1).train()
    model, backend = copy.deepcopy(plain), Counting()

    def in_rows(lengths, row):
        batch = random_batch(plain, lengths, seed=sum(lengths))
        rows = torch.stack([torch.tensor(row), batch.lengths], 1)
        return replace(batch, rows=rows, row_frames=12)

    shapes = compile_model(model, {(2, 12), (1, 12)}, quiet, backend, in_rows=True)
    warm_up(model, shapes, in_rows([7, 5, 2, 9], [0, 0, 1, 1]), torch.float32, quiet)
    made = backend.graphs
    assert made > 0
    for batch in (
        in_rows([6, 4, 11], [0, 0, 1]),
        in_rows([3, 5, 4], [0] * 3),
        in_rows([9, 3, 2, 8, 4], [0, 0, 1, 1, 2]),
    ):
        assert_same(model, plain, batch, rtol=1e-4, atol=1e-4)
    assert backend.graphs == made


def test_few_shapes_get_code_of_their_own():
    model, backend = make("delay").train(), Counting()
    shapes = compile_model(model, {(2, 8), (1, 8)}, quiet, backend)
    assert shapes == [(2, 8), (1, 8)]
    warm_up(model, shapes, random_batch(model, [9, 8]), torch.float32, quiet)
    assert backend.graphs == 2


def test_validation_and_generation_do_not_compile():
    model, backend = make("delay").train(), Counting()
    compile_model(model, SHAPES, quiet, backend)
    model.generate(random_items([3])[0][None], max_new_frames=4)
    model.eval()
    with torch.no_grad():
        model(random_batch(model, [6, 5]))
    assert backend.graphs == 0
    model.train()(random_batch(model, [6, 5]))
    assert backend.graphs > 0


def test_a_warm_up_leaves_no_trace():
    model = make("text", dropout=0.5).eval()
    compile_model(model, SHAPES, quiet, Counting())
    weights = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    before, said = torch.get_rng_state(), []
    like = random_batch(model, [6, 5])
    assert warm_up(model, [(2, 6)], like, torch.float32, said.append) > 0
    assert torch.equal(before, torch.get_rng_state()) and not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    assert "1 of 1, 2 x 6 frames" in said[0]


def test_batches_of_other_shapes_hold_the_same_codes_and_conditions():
    model = make("text-prompt")
    batch = random_batch(model, [4, 3], prompt_lengths=[2, 1])
    made = reshaped(batch, 5, 7)
    assert made.codes.shape[:2] == (5, 7) and made.lengths.tolist() == [7] * 5
    assert torch.equal(made.codes[4, 3:6], batch.codes[0, :3])  # rows 0 1 0 1 0, frames 0 1 2 0 ...
    assert torch.equal(made.conditions["text"].values[3], batch.conditions["text"].values[1])
    model(made).loss.backward()


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(UserError, match="no transformer blocks"):
        compile_model(torch.nn.Linear(2, 2), SHAPES, quiet)

    def broken(*args, **kwargs):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"cpu here \(no compiler\); install a C\+\+ compiler"):
        compile_model(make("delay"), SHAPES, quiet)
    with pytest.raises(UserError, match=r"cuda .* triton and a C compiler with Python.h .*7"):
        _try_compiler(torch.device("cuda"))
