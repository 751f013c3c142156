"""`--cuda-graphs` trains as single operations do, on a simulated GPU, and is given up where a graph
is not what was captured."""

import gc
import re
from contextlib import nullcontext
from dataclasses import replace

import gpu_checks as checks
import pytest
import simulated_graphs
import torch
from families import make, random_batch
from simulated_cuda import simulated_cuda
from token_fixtures import make_tokens

from rvqlm.bin import trainer
from rvqlm.checkpoints.file import load_checkpoint
from rvqlm.errors import UserError
from rvqlm.training import passes as module
from rvqlm.training import run
from rvqlm.training.config import OptimConfig
from rvqlm.training.guards import LossScale
from rvqlm.training.optim import build_optimizer
from rvqlm.training.passes import GraphedPasses, Passes, another, require_few, why_not_graphed

FLAGS = (
    "--model-name masked --decoder-dim 16 --nhead 2 --num-decoder-layers 1 --dropout 0.1 "
    "--window-frames 10 --max-duration 3 --max-steps 6 --accum 2 --valid-every-steps 4 "
    "--device cuda --precision fp32 --no-memory-check --warmup-steps 0"
)


@pytest.fixture
def gpu():
    gc.freeze()  # what tests before this have left need not be looked through at each capture
    with simulated_cuda() as gpu:
        yield gpu
    gc.unfreeze()


def test_training_by_graphs_and_resumed_is_training_without(gpu, tmp_path):
    """Bit for bit, with dropout and two micro-batches a step."""
    folders, device = {n: tmp_path / n for n in ("plain", "graphs")}, torch.device("cuda", 0)

    def made(name: str, steps: int):
        options = {"steps": steps, "graphs": name == "graphs"}
        shape = {"num_decoder_layers": 1, "dropout": 0.1}
        found = checks.trainer(folders[name], "delay", device, **options, **shape)
        found.train.batch = random_batch(found.model, [9, 9])
        return found

    plain = made("plain", 6)
    plain.fit()
    made("graphs", 3).fit()
    rest = made("graphs", 6)
    rest.resume(folders["graphs"] / "latest.pt")
    rest.fit()
    assert torch.equal(checks.weights(rest), checks.weights(plain))
    assert checks.losses(folders["graphs"]) == checks.losses(folders["plain"])
    assert len(rest.passes.graphs) == 1 and not rest.passes.off
    counts = []
    for found in (plain, rest):
        gpu.launches.clear()
        found.model.train()
        found.train_step()
        counts.append(gpu.launches.total())
    assert gpu.launches["graph"] == 2 and counts[1] < counts[0] / 2
    assert sum(checks.waited(rest.train_step).values()) == 1


def test_the_command_with_validation_and_averages(gpu, tmp_path, monkeypatch, capfd):
    """Weights bit for bit, of `masked` in windows of one length; too many shapes are refused."""
    loader = run.TokenLoader
    unpinned = lambda *a, pin, **k: loader(*a, pin=False, **k)  # noqa: E731 - its thread sees no GPU
    monkeypatch.setattr(run, "TokenLoader", unpinned)
    make_tokens(tmp_path / "tokens", [30, 40, 20, 35, 30, 40])
    argv = ["--manifest-dir", str(tmp_path / "tokens"), "--valid-split", "train", "--no-mfu"]
    argv += FLAGS.split()
    made = []
    for name in ("plain", "graphs"):
        exp, flags = tmp_path / name, ["--cuda-graphs"] if name == "graphs" else []
        assert trainer.main(["--exp-dir", str(exp), *argv, *flags]) == 0
        made.append(load_checkpoint(exp / "latest.pt"))
    said = capfd.readouterr().err
    assert said.count("captured and tried") == 2 and "without graphs" not in said
    for part in ("model", "ema"):
        want, got = (state[part] for state in made)
        assert all(torch.equal(value, got[key]) for key, value in want.items())
    monkeypatch.setattr(module, "MOST_GRAPHS", 1)
    assert trainer.main(["--exp-dir", str(tmp_path / "few"), *argv, "--cuda-graphs"]) == 2
    assert "epoch have 2 shapes" in capfd.readouterr().err


class Run:
    """Steps of passes over batches of some lengths, by graphs or not."""

    def __init__(self, graphs: bool, case="delay", dtype=torch.float32, wrong=None, **changes):
        self.device = torch.device("cuda", 0)
        shape = {"num_decoder_layers": 1, "dropout": 0.1}
        self.model = make(case, **shape, **changes).to(self.device).train()
        if wrong is not None:
            self.model.register_forward_hook(
                lambda _, given, out: replace(out, loss=out.loss * wrong(given[0], out))
            )
        self.scale = LossScale(dtype, 4.0)
        self.optimizers = build_optimizer(self.model, OptimConfig())
        kind = GraphedPasses if graphs else Passes
        self.passes = kind(
            self.model, self.optimizers, self.device, dtype, 0.1, self.scale, nullcontext
        )
        self.steps = 0

    def step(self, *lengths, weights=None) -> tuple[list, list]:
        """Losses of the micro-batches and the gradients of all."""
        self.steps += 1
        torch.manual_seed(self.steps)
        self.model.progress = 0.3 * self.steps % 1
        self.passes.begin()
        losses = []
        for number, of_batch in enumerate(lengths):
            batch = random_batch(self.model, of_batch, seed=10 * self.steps + number)
            conditions = {k: v.widened(module.ROOM) for k, v in batch.conditions.items()}
            batch = replace(batch, conditions=conditions).to(self.device)
            given = None if weights is None else torch.tensor(weights[number]).to(self.device)
            out = self.passes(batch, given)
            losses.append(float(out.loss) + float(out.normalizer))
        grads = [p.grad if p.grad is None else p.grad.cpu() for p in self.optimizers.params]
        return losses, grads


def assert_alike(got, want, **limits):
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert [g is None for g in got[1]] == [w is None for w in want[1]]
    for mine, theirs in zip(got[1], want[1]):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, **limits)


@pytest.mark.parametrize(
    "options", [{"scheduled_sampling": 1.0}, {"dtype": torch.float16, "code_dropout": 0.2}]
)
def test_numbers_of_the_host_are_those_of_now(gpu, options):
    """Share of scheduled sampling, loss scale, level weights; two shapes in turn, and unlike
    lengths."""
    plain, graphs = (Run(g, **options) for g in (False, True))
    weights = [[3.0, 2.0, 1.0], [1.0, 0.0, 2.0], [1.0, 1.0, 1.0]]
    for lengths in ([(9, 4), (7, 7), (5, 9)], [(7, 7), (9, 9), (2, 9)]):
        for one in (plain, graphs):
            one.scale.value *= 2
        want, got = (r.step(*lengths, weights=weights) for r in (plain, graphs))
        assert_alike(got, want, rtol=0, atol=0)
    # 9 frames with padding, 9 without, 7 without
    assert len(graphs.passes.graphs) == 3 and not graphs.passes.off


def test_two_networks_with_conditions(gpu):
    plain, graphs = (Run(g, "valle-midi-cross") for g in (False, True))
    want, got = (r.step((9, 4), (9, 6)) for r in (plain, graphs))
    assert_alike(got, want)
    assert graphs.passes.graphs and not graphs.passes.off


def test_the_way_of_training_levels_has_a_graph_of_its_own(gpu):
    options = {"level_training_schedule": ("0:random", "1:parallel")}
    plain, graphs = (Run(g, "masked", **options) for g in (False, True))
    for epoch in (0, 1):
        for one in (plain, graphs):
            one.model.epoch = epoch
        want, got = (r.step((9, 9)) for r in (plain, graphs))
        assert_alike(got, want, rtol=0, atol=0)
    assert len(graphs.passes.graphs) == 2


def pinned(batch, out):
    return torch.full((), 2.0).to(out.loss.device, non_blocking=True)


WRONG = {
    "sums of a graph are .* away": lambda batch, out: batch.frames or 1,
    "draws random numbers on the host": lambda batch, out: float(torch.rand(())),
    "called a synchronizing CUDA operation": lambda batch, out: float(out.normalizer),
    "is copied between the host and the GPU": pinned,
}


def test_memory_of_the_host_has_no_part_in_a_graph(gpu, capsys):
    def read_back(batch, out):
        return 1.0 + 0 * out.normalizer.detach().to("cpu", non_blocking=True)

    graphs = Run(True, wrong=read_back)
    graphs.step((9, 9))
    assert "is copied between the host and the GPU" in capsys.readouterr().err


@pytest.mark.parametrize("why", WRONG)
def test_what_is_frozen_is_seen_and_graphs_given_up(gpu, why, capsys):
    plain, graphs = (Run(g, wrong=WRONG[why]) for g in (False, True))
    for lengths in ([(9, 4), (9, 6)], [(9, 9)]):
        want, got = (r.step(*lengths) for r in (plain, graphs))
        assert_alike(got, want, rtol=0, atol=0)
    said = capsys.readouterr().err.splitlines()
    assert graphs.passes.off and not graphs.passes.graphs
    assert len(said) == 1 and re.search(why, said[0])
    assert said[0].endswith("goes on without graphs; --no-cuda-graphs does not try")


def without(name: str):
    """Replays that leave the last operation of a name out."""

    def replay(graph):
        kept = graph.operations
        names = [func._schema.name for func, *_ in kept]
        last = len(names) - 1 - names[::-1].index(f"aten::{name}")
        graph.operations = kept[:last] + kept[last + 1 :]
        try:
            REPLAY(graph)
        finally:
            graph.operations = kept

    return replay


def without_random(graph):
    before = graph.gpu.random
    REPLAY(graph)
    graph.gpu.random = before


REPLAY = simulated_graphs.Graph.replay
REPLAYS = {
    "gradients of a graph are": without("add_"),
    "draws other random numbers": without_random,
}


@pytest.mark.parametrize("why", REPLAYS)
def test_a_graph_that_does_something_else_is_not_used(gpu, why, capsys, monkeypatch):
    monkeypatch.setattr(simulated_graphs.Graph, "replay", REPLAYS[why])
    plain, graphs = Run(False), Run(True)
    for lengths in ([(9, 9), (9, 9)], [(9, 9)]):
        want, got = (r.step(*lengths) for r in (plain, graphs))
        assert_alike(got, want, rtol=0, atol=0)
    assert graphs.passes.off and why in capsys.readouterr().err


def test_memory_that_a_graph_reads_stays_and_weights_that_move_are_seen(gpu):
    plain, graphs = Run(False), Run(True)

    def alike():
        assert_alike(graphs.step((9, 9)), plain.step((9, 9)), rtol=0, atol=0)

    alike()
    graphs.model.network.transformer.rotary.table = None  # as when it grows
    alike()
    (captured,) = graphs.passes.graphs.values()
    captured.read.clear()
    with pytest.raises(RuntimeError, match="given back since it was captured"):
        graphs.step((9, 9))
    plain.steps += 1
    for one in (plain, graphs):  # as averages that were not swapped back
        weight = one.model.heads.weight
        weight.data = 2 * weight.detach()
    alike()
    assert list(graphs.passes.graphs.values()) != [captured]


def test_more_shapes_than_graphs(gpu, monkeypatch, capsys):
    monkeypatch.setattr(module, "MOST_GRAPHS", 1)
    plain, graphs = Run(False), Run(True)
    for lengths in ([(9, 9), (8, 8)], [(8, 8), (7, 7), (9, 9)]):
        want, got = (r.step(*lengths) for r in (plain, graphs))
        assert_alike(got, want, rtol=0, atol=0)
    assert len(graphs.passes.graphs) == 1 and not graphs.passes.off
    assert capsys.readouterr().err.count("1 shapes of batches are graphs; others have none") == 1


def test_what_is_not_finite_shows_nothing(gpu, capsys):
    graphs = Run(True)
    graphs.step((9, 9), weights=[[float("nan"), 1.0, 1.0]])
    assert not graphs.passes.off and not graphs.passes.graphs
    graphs.step((9, 9), weights=[[1.0, 1.0, 1.0]])
    assert graphs.passes.graphs and "2 x 9 frames captured" in capsys.readouterr().err


def test_random_numbers_that_are_lost_end_the_training(gpu, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("capture invalidated")

    monkeypatch.setattr(GraphedPasses, "_capture", breaks)
    monkeypatch.setattr(torch, "rand", breaks)
    with pytest.raises(UserError, match=r"invalidated; after that .* give --no-cuda-graphs"):
        Run(True).step((9, 9))


def test_batches_of_other_content_have_the_shape(gpu):
    model = make("text-prompt-cross")
    batch = random_batch(model, [9, 4, 6], prompt_lengths=[2, 1, 5])
    made = another(batch)
    assert made.codes.shape == batch.codes.shape and made.lengths.tolist() == [4, 3, 6]
    assert (made.prompt_lengths < made.lengths).all() and made.padded
    for shown, lengths in ((made.codes, made.lengths), made.conditions["text"][:2]):
        real = torch.arange(shown.shape[1]) < lengths[:, None]
        assert (shown[real] >= 0).all() and (shown[~real] == -1).all()
    whole = random_batch(model, [9, 9])
    assert another(whole).lengths.tolist() == [9, 9] and not another(whole).padded


@pytest.mark.parametrize("case", ["aligned-coarse-spread", "valle-midi-cross", "delay-prompt"])
def test_room_behind_conditions_changes_no_loss(case):
    model = make(case).eval()
    batch = random_batch(model, [9, 4, 6])
    wide = {kind: padded.widened(8) for kind, padded in batch.conditions.items()}
    assert any(w.values.shape[1] % 8 == 0 for w in wide.values())
    got, want = (model(b).loss for b in (replace(batch, conditions=wide), batch))
    torch.testing.assert_close(got, want)


def test_what_has_no_graphs(gpu):
    device = torch.device("cuda", 0)
    assert not why_not_graphed(make("delay"), device, 1)
    assert "only on NVIDIA" in why_not_graphed(make("delay"), torch.device("cpu"), 1)
    assert "2 ranks" in why_not_graphed(make("delay"), device, 2)
    assert "CTC loss" in why_not_graphed(checks.EXTRA["recognizer"](), device, 1)
    assert "--activation-checkpointing" in why_not_graphed(checks.EXTRA["recompute"](), device, 1)
    require_few({(1, n) for n in range(32)})
    with pytest.raises(UserError, match=r"33 shapes, .* at most 32: give windows or crops"):
        require_few({(1, n) for n in range(33)})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("", "--cuda-graphs: there are none on --device cpu, only on NVIDIA GPUs; give --no-cuda"),
        ("--compile", "--cuda-graphs and --compile: leave one of them out"),
        ("--packing 60", "--cuda-graphs and --packing: leave one of them out"),
        ("--max-duration auto", "--cuda-graphs and --max-duration auto: leave one of them out"),
    ],
)
def test_refused_in_one_line(tmp_path, capfd, words, why):
    make_tokens(tmp_path / "tokens", [30, 40])
    argv = ["--exp-dir", str(tmp_path / "exp"), "--manifest-dir", str(tmp_path / "tokens")]
    argv += ["--max-steps", "1", "--device", "cpu", "--valid-split", "train", "--cuda-graphs"]
    assert trainer.main([*argv, *words.split()]) == 2
    said = capfd.readouterr().err.strip()
    assert why in said and len(said.splitlines()) == 1
