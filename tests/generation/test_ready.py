"""Steps that are made ready once, compiled or as a graph, are those that are made one by one."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from families import PAIRWISE, make, random_batch
from tape import Tape

from rvqlm.errors import UserError
from rvqlm.generation import ready, steps
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.generation.slots import Engine
from rvqlm.modules import native
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
    monkeypatch.setattr(native, "usable", lambda: False)  # what it draws is on no tape
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


def requests(model) -> list:
    """Of several lengths and ways to draw."""
    device, batch = next(model.parameters()).device, random_batch(model, [5, 3, 2, 7])
    found = []
    for n in range(4):
        given = {kind: padded.map(lambda x, n=n: None if x is None else x[n : n + 1])
                 for kind, padded in batch.conditions.items()}  # fmt: skip
        sampling = SamplingConfig(0.8, 5, cfg_scale=2.0 if given and n % 2 else 1.0)
        found.append(
            {
                "prompt_codes": batch.codes[n : n + 1, : n + 1].clamp(min=0),
                "max_new_frames": 24 + 5 * n,
                "sampling": sampling,
                "conditions": given,
                "seed": n,
            }
        )
    return [make_request(model.info, device, **order) for order in found]


def run(engine: Engine, wanted: list, apart: int) -> dict[int, torch.Tensor]:
    """New codes of each, joining so many steps apart."""
    waiting, at, made = list(enumerate(wanted)), {}, {n: [] for n in range(len(wanted))}
    for step in range(1000):
        if waiting and engine.free and step % apart == 0:
            number, one = waiting.pop(0)
            at[engine.add(one)] = number
        for new in engine.step():
            made[at[new.slot]].append(new.codes.cpu())
        if not waiting and not engine.sequences:
            return {n: torch.cat(codes) for n, codes in made.items()}
    raise AssertionError("no end")


JOINED = ["delay", "parallel-text-spread", "depth-text-cross", "flatten-residual"]


@pytest.mark.parametrize("case", JOINED)
def test_who_joins_graphs_gets_what_it_gets_alone(case, graphs):
    plain, model = shaken(case, model_end=False), shaken(case, "graph", model_end=False)
    wanted = requests(plain)
    made = run(Engine(model, 3), wanted, 4)
    for number, one in enumerate(wanted):
        alone = run(Engine(plain, 1), [one], 1)[0]
        assert torch.equal(made[number], alone), number
    assert graphs


def test_later_requests_find_the_graphs_of_earlier_ones(graphs):
    model = shaken("delay", "graph", model_end=False)
    for _ in range(2):
        for prompt in (3, 9):
            model.generate(torch.zeros(2, prompt, 3, dtype=torch.int64), max_new_frames=20)
        run(Engine(model, 2), requests(model)[:1], 1)
        count = len(graphs)
    assert count == len(graphs) == 2  # of two rows together, and of one in a running batch
    model.generate(batch_size=2, max_new_frames=300)  # more room, and another window
    assert len(graphs) == 4


def test_what_cannot_be_captured_is_said_and_made_step_by_step(monkeypatch, capsys):
    def fails(function):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(ready, "capture", fails)
    ready.say.cache_clear()
    plain, model = shaken("delay"), shaken("delay", "graph")
    want, got = (m.generate(batch_size=2, max_new_frames=20) for m in (plain, model))
    assert torch.equal(want.codes, got.codes)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(operation not permitted): steps are made one by one" in said


class Wrong(Tape):
    """Repeats all but the last operation of a name."""

    left_out = ""

    def replay(self):
        names = [func._schema.name for func, *_ in self.operations]
        last = len(names) - 1 - names[::-1].index(f"aten::{self.left_out}")
        kept, self.operations = (
            self.operations,
            self.operations[:last] + self.operations[last + 1 :],
        )
        super().replay()
        self.operations = kept


@pytest.mark.parametrize("left_out", ["index_copy_", "add_", "scatter_", "copy_"])
def test_a_graph_that_is_wrong_is_said_and_not_used(left_out, graphs, monkeypatch, capsys):
    monkeypatch.setattr(Wrong, "left_out", left_out)
    monkeypatch.setattr(ready, "capture", Wrong.capture)
    ready.say.cache_clear()
    plain, model = shaken("delay"), shaken("delay", "graph")
    options = {"batch_size": 2, "max_new_frames": 20, "min_new_frames": 20}
    want, got = (m.generate(**options) for m in (plain, model))
    assert torch.equal(want.codes, got.codes)
    assert "is not the step that was captured: steps are made one by one" in capsys.readouterr().err


@pytest.fixture
def traced(monkeypatch):
    """Traced as for the compiler, whose work takes minutes, and then not compiled."""
    if not os.environ.get("TEST_COMPILE"):
        pytest.skip("tracing takes minutes: TEST_COMPILE=1 runs it")
    torch._dynamo.reset()
    monkeypatch.setattr(ready, "BACKEND", "eager")
    ready.compiled_step.cache_clear()
    yield
    ready.compiled_step.cache_clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("case", ["delay", "parallel-text-spread"])
def test_what_is_traced_for_a_compiler_draws_what_single_steps_draw(case, traced, capsys):
    plain, model = shaken(case), shaken(case, "compile")
    batch = random_batch(plain, [6, 4])
    options = {"max_frames": 20, "temperature": 0, "conditions": batch.conditions}
    want, got = (m.generate(batch.codes[:, :2], **options) for m in (plain, model))
    assert torch.equal(got.codes, want.codes)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "compiled a step of decoding in" in lines[0]


def test_a_compiler_that_fails_is_named_with_what_it_needs(traced, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no g++ here")

    monkeypatch.setattr(ready, "BACKEND", backend)
    said = "--kernels compile does not work here .*g\\+\\+.*or use another of --kernels"
    with pytest.raises(UserError, match=said):
        shaken("delay", "compile").generate(batch_size=1, max_new_frames=5)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
def test_one_compiled_step_draws_what_single_steps_draw_at_any_length(capsys, monkeypatch):
    """And from the same logits, but for the order of sums."""
    small = {"decoder_dim": 16, "num_decoder_layers": 1, "model_end": False}
    plain, model = shaken("delay", **small), shaken("delay", "compile", **small)
    info, sample = plain.info, steps.sample
    now = torch.zeros(1, info.num_codebooks, info.codebook_size)  # logits of a step

    def seen(logits, *how):
        now.copy_(logits)
        return sample(logits, *how)

    monkeypatch.setattr(steps, "sample", seen)
    for frames in (12, 30, 7):
        made = []
        for m in (plain, model):
            logits = []
            options = {"batch_size": 1, "max_new_frames": frames, "seed": frames}
            options["progress"] = lambda _, found=logits: found.append(now.clone())
            made.append((m.generate(**options).codes, torch.cat(logits)))
        (want, wanted), (got, given) = made
        assert torch.equal(got, want)
        assert len(wanted) == frames + info.num_codebooks - 1
        assert (wanted.diff(dim=0).abs().amax((1, 2)) > 0.01).all()  # each has its own
        torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    assert capsys.readouterr().err.count("compiled a step of decoding in") == 1


@pytest.mark.cuda
@pytest.mark.parametrize("how", ["graph", "compile"])
@pytest.mark.parametrize("case", JOINED)
def test_on_a_gpu(case, how, request):
    if request.config.getoption("--cuda-simulated") and how == "compile":
        pytest.skip("a simulated GPU has no compiler")
    plain = shaken(case, model_end=False).double().cuda()
    model = shaken(case, how, model_end=False).double().cuda()
    options = {"batch_size": 2, "max_new_frames": 300, "temperature": 0.0}
    want, got = (m.generate(**options) for m in (plain, model))
    assert torch.equal(got.codes, want.codes)
    wanted = requests(model)
    made = run(Engine(model, 3), wanted, 4)
    for number, one in enumerate(wanted):
        assert torch.equal(made[number], run(Engine(plain, 1), [one], 1)[0])
