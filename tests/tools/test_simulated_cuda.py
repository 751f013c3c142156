"""The simulated GPU refuses, draws, waits and runs out of memory where a GPU would."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from families import make, random_batch
from simulated_cuda import simulated_cuda
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def gpu():
    with simulated_cuda(count=2, memory=1 << 22) as gpu:
        yield gpu


def test_values_and_gradients_are_those_of_the_cpu():
    torch.manual_seed(0)
    x, w = torch.randn(5, 4), torch.randn(3, 4)
    weight = w.to("cuda").requires_grad_()
    loss = F.linear(x.to("cuda"), weight).softmax(-1).square().sum()
    loss.backward()
    assert loss.device == weight.grad.device == torch.device("cuda", 0) and loss.is_cuda
    w.requires_grad_()
    F.linear(x, w).softmax(-1).square().sum().backward()
    assert torch.allclose(weight.grad.cpu(), w.grad, atol=1e-6)
    assert weight.detach()[1].tolist() == w[1].tolist()


def test_modules_move_and_keep_their_parameters():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    weight = module[0].weight
    assert module.cuda()[0].weight is weight and isinstance(weight, torch.nn.Parameter)
    assert {t.device.type for t in (*module.parameters(), *module.buffers())} == {"cuda"}
    twin = copy.deepcopy(module)
    twin[0].weight.data.zero_()
    assert weight.any() and not twin[0].weight.any()
    assert type(module.cpu()[0].weight) is torch.nn.Parameter


@pytest.mark.parametrize(
    "mix",
    [
        lambda: torch.ones(2, device="cuda") + torch.ones(2),
        lambda: torch.ones(2, device="cuda") + torch.ones(2, device="cuda:1"),
        lambda: torch.ones(2, 2).cuda() @ torch.ones(2, 2),
        lambda: torch.cat([torch.ones(2).cuda(), torch.ones(2)]),
        lambda: torch.where(torch.ones(2, dtype=torch.bool), torch.ones(2).cuda(), 0.0),
        lambda: F.embedding(torch.ones(2, dtype=torch.int64), torch.ones(2, 2).cuda()),
        lambda: torch.equal(torch.ones(2).cuda(), torch.ones(2)),
        lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        lambda: torch.ones(2).copy_(torch.ones(2).cuda()).add_(torch.ones(2).cuda()),
    ],
)
def test_what_lies_on_two_devices_is_refused(mix):
    with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
        mix()


def test_numpy_and_single_numbers():
    x = torch.ones(2, device="cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()
    assert (x + torch.tensor(2.0)).tolist() == [3.0, 3.0]  # numbers may come from the CPU
    assert torch.tensor([1, 2], device="cuda").new_tensor([5]).device.type == "cuda"


def test_random_numbers_are_the_devices_own():
    torch.manual_seed(3)
    here = torch.rand(4)
    torch.manual_seed(3)
    there = torch.rand(4, device="cuda")
    assert torch.rand(4).equal(here) and not there.cpu().equal(here)
    torch.manual_seed(3)
    assert torch.rand(4, device="cuda").equal(there)
    with torch.random.fork_rng([torch.device("cuda", 0)]):
        forked = torch.rand(4, device="cuda")
    assert torch.rand(4, device="cuda").equal(forked)


def test_autocast_is_cudas_and_holds_in_what_is_recomputed():
    x, w = torch.ones(2, 4, device="cuda"), torch.ones(4, 4, device="cuda").requires_grad_()
    kinds = []

    def layer(x):
        y = F.linear(x, w)
        kinds.append((y.dtype, y.softmax(-1).dtype, torch.nn.functional.layer_norm(y, (4,)).dtype))
        return y.sin()

    with torch.autocast("cuda", torch.bfloat16):
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert kinds == [(torch.bfloat16, torch.float32, torch.float32)] * 2
    assert w.grad.dtype == torch.float32


def waits(work) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    assert all(w.filename == __file__ for w in caught)
    return len(caught)


def test_waits_are_counted():
    x, mask = torch.arange(4, device="cuda"), torch.tensor([True, False] * 2, device="cuda")
    for work, count in (
        (lambda: x + 1, 0),
        (lambda: x.sum().item(), 1),
        (lambda: bool(mask.any()), 1),
        (lambda: x[mask], 1),
        (lambda: mask.nonzero(), 1),
        (lambda: x.tolist(), 1),
        (lambda: torch.ones(2).to("cuda"), 1),
        (lambda: torch.ones(2).to("cuda", non_blocking=True), 0),
        (lambda: torch.tensor([1, 2], device="cuda"), 1),
        (lambda: torch.arange(3, device="cuda"), 0),
        (lambda: x[torch.tensor([0, 1])], 1),
        (lambda: x.masked_fill(mask, 0), 0),
    ):
        assert waits(work) == count


def test_a_copy_that_nobody_waited_for_is_not_there():
    x = torch.ones(3, device="cuda")
    assert x.cpu().sum() == 3 and x.to("cpu", non_blocking=True).sum() == 0


def test_memory_is_counted_with_views_once_and_runs_out(gpu):
    before = torch.cuda.memory_allocated()
    x = torch.zeros(1000, device="cuda")
    view = x[:10]
    assert torch.cuda.memory_allocated() - before == 4000
    del x
    assert torch.cuda.memory_allocated() - before == 4000  # the view holds it
    del view
    assert torch.cuda.memory_allocated() == before
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        torch.zeros(1 << 21, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before


def test_inference_mode_and_files(tmp_path):
    layer = torch.nn.Linear(2, 2).cuda()
    with torch.inference_mode():
        assert layer(torch.ones(1, 2).to("cuda:0")).is_inference()
        y = (torch.ones(2, device="cuda") * torch.full((2,), 2.0).to("cuda:0")).unsqueeze(0)
    assert y.shape == (1, 2) and y.cpu().tolist() == [[2.0, 2.0]]
    torch.save({"y": y}, tmp_path / "y.pt")
    loaded = torch.load(tmp_path / "y.pt", weights_only=True)["y"]
    assert type(loaded) is torch.Tensor and loaded.tolist() == [[2.0, 2.0]]


def test_what_is_on_meta_stays_there():
    with torch.device("meta"):
        model = make("delay")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.ones(2, device="meta").is_meta and torch.ones(2).to("meta").is_meta
    model = make("delay").cuda()  # C++ believes these to be, which changes nothing
    model(random_batch(model, [3]).to("cuda")).loss.backward()


def captured(work, pool=None):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        made = work()
    return graph, made


def test_a_graph_does_again_what_was_captured_and_only_when_it_is_replayed():
    x, total = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    factor = 3.0

    def work():
        total.add_(y := x * factor)
        return y[:1]

    graph, made = captured(work)
    assert total.tolist() == [0.0, 0.0]
    factor = 5.0  # of the host
    x.copy_(torch.tensor([1.0, 2.0]))
    graph.replay()
    graph.replay()
    assert total.tolist() == [6.0, 12.0] and made.tolist() == [3.0]


def test_random_numbers_of_a_graph_go_on_from_where_they_are():
    graph, made = captured(lambda: torch.rand(3, device="cuda"))
    torch.manual_seed(3)
    want = [torch.rand(3, device="cuda") for _ in range(2)]
    torch.manual_seed(3)
    for draw in want:
        graph.replay()
        assert made.equal(draw)


def test_gradients_of_a_graph_are_added_where_they_were():
    weight = torch.ones(2, device="cuda").requires_grad_()
    weight.grad = torch.zeros_like(weight)
    graph, _ = captured(lambda: (2 * weight).sum().backward())
    for times in (1, 2):
        graph.replay()
        assert weight.grad.tolist() == [2.0 * times] * 2


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(2).to("cuda"),
        lambda x: x.copy_(torch.ones(2), non_blocking=True),
        lambda x: torch.manual_seed(1),
        lambda x: torch.cuda.get_rng_state(),
    ],
)
def test_what_a_capture_refuses(work):
    x = torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError):
        captured(lambda: work(x))
    assert (x + 1).tolist() == [2.0, 2.0]  # it is over


def test_memory_of_graphs():
    held, pool = [torch.ones(2, device="cuda")], torch.cuda.graph_pool_handle()
    (one, first), (two, second) = (captured(lambda n=n: held[0] + n, pool) for n in (1, 2))
    one.replay()
    assert first.tolist() == [2.0, 2.0]
    two.replay()
    assert first.isnan().all() and second.tolist() == [3.0, 3.0]
    held.clear()
    with pytest.raises(RuntimeError, match="given back"):
        one.replay()


def test_waits_can_be_errors():
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(2, device="cuda").sum().item()
    torch.cuda.set_sync_debug_mode("default")


def test_torch_is_as_before_outside():
    engine = torch.autograd._engine_run_backward
    with simulated_cuda(count=5):
        assert torch.cuda.device_count() == 5
    assert torch.cuda.device_count() == 2 and torch.autograd._engine_run_backward is engine
