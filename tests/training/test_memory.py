"""What batches need, what there is, and what is done about it before the first step."""

import contextlib
import itertools
import re

import pytest
import torch
from families import INFO, make, random_batch
from toy import ToyModel

from rvqlm.batch import Batch
from rvqlm.errors import UserError
from rvqlm.training import memory as module
from rvqlm.training.memory import (
    HEAP,
    USABLE,
    Memory,
    _carefully,
    activation_bytes,
    batch_maker,
    free_memory,
    largest_max_duration,
    prescan,
)

CPU, F32, RATE = torch.device("cpu"), torch.float32, 50.0


def memory_of(model, free, **flags) -> Memory:
    return Memory(model, CPU, F32, 1000, free=lambda: free, **flags)


def batch_of(model, items, frames) -> Batch:
    return random_batch(model, [frames] * (items - 1) + [frames - 1])


def check(batch, memory, max_duration=20.0) -> str:
    return prescan(memory, batch, max_duration=max_duration, frame_rate=RATE)


@pytest.mark.parametrize(
    ("case", "items"),
    [("text-prompt-cross", 2), ("source-cross", 2), ("source-cross", 17), ("valle-text", 17)],
)
def test_a_batch_that_fits_leaves_no_trace(case, items):
    model = make(case, dropout=0.1).eval()
    batch = batch_of(model, items, 24)
    batch.prompt_lengths = torch.full((items,), 20)
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    said = check(batch, memory_of(model, 10**12))
    assert f"{items} x 24 frames" in said and "900 GB usable on cpu" in said
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    assert all(p.grad is None and torch.equal(p, q) for p, q in zip(model.parameters(), weights))


@pytest.mark.parametrize("items, frames", [(40, 25), (2, 400)])
def test_a_batch_that_does_not_fit_is_refused_unseen_with_what_would(monkeypatch, items, frames):
    model = make("text")
    batch = batch_of(model, items, frames)
    whole = memory_of(model, 0).need(batch)
    memory, tried = memory_of(model, 0.7 * whole / USABLE), []

    def measured(model, batch, *others, real=module.activation_bytes):
        tried.append(batch.codes.shape[0] * batch.codes.shape[1])
        return real(model, batch, *others)

    monkeypatch.setattr(module, "activation_bytes", measured)
    with pytest.raises(UserError) as refused:
        check(batch, memory)
    # a pass through more than fits could be the last one on a CPU; a step too far is in the reserve
    assert max(tried) < 0.8 * items * frames
    said = str(refused.value)
    assert "\n" not in said and f"--max-duration 20: a batch of {items} x {frames} frames" in said
    assert "--no-memory-check" in said and "--activation-checkpointing" in said
    remedy = float(re.search(r"give --max-duration ([\d.]+)", said)[1])
    fitting = batch_maker(batch, RATE)
    assert memory.need(fitting(remedy)) <= memory.room()
    item = frames / RATE
    assert memory.need(fitting(remedy + item + 1)) > memory.room()
    assert f"--accum {2 if remedy >= 10 else 3}" in said


def test_nothing_is_checked_where_nothing_is_known():
    model = ToyModel()
    batch = Batch.from_codes([torch.zeros(9, 2)] * 3)
    assert "nothing was checked" in check(batch, memory_of(model, None))
    with pytest.raises(UserError, match="--max-duration auto: cpu doesn't say"):
        largest_max_duration(memory_of(model, None), batch_maker(batch, RATE), frame_rate=RATE)


class Curve(Memory):
    """Bytes by a given law of the frames."""

    def __init__(self, law, room, device=CPU):
        super().__init__(ToyModel(), device, F32, 0)
        self.law, self.given, self.asked = law, room, []

    def room(self):
        return self.given

    def need(self, batch):
        self.asked.append(batch.codes.shape[0] * batch.codes.shape[1])
        return self.law(self.asked[-1])


def items_of(frames):
    return batch_maker(Batch.from_codes([torch.zeros(frames, 2)]), RATE)


LAWS = ((0, 100), (5e6, 1), (1e3, 1e6), (123, 45.6))
FITTING = (13, 60, 1000, 7000)


@pytest.mark.parametrize(
    ("law", "fitting", "item"),
    [
        (LAWS[n], FITTING[m], (1, 40, 180)[(n + m) % 3])
        for n, m in itertools.product(range(4), range(4))
    ],
)
def test_a_few_passes_find_the_largest(law, fitting, item):
    """`fitting` frames fit, in items of `item` frames."""
    fixed, each = law
    curve = Curve(lambda frames: fixed + each * frames, fixed + each * (fitting + 0.5))
    if item > fitting:
        with pytest.raises(UserError, match=f"one item of {item} frames needs"):
            largest_max_duration(curve, items_of(item), frame_rate=RATE)
        return
    found = largest_max_duration(curve, items_of(item), frame_rate=RATE)
    frames = items_of(item)(found).codes.shape[:2].numel()
    assert frames <= fitting
    assert found <= 150 and frames >= min(0.9 * fitting, 150 * RATE) - item - 0.1 * RATE
    assert found * RATE >= item
    assert len(curve.asked) <= 9 and len(set(curve.asked)) == len(curve.asked)
    # on a CPU a pass that is too large could be the last: only the first, small one may be
    assert all(frames <= max(fitting, 10 * RATE, item) for frames in curve.asked)


def test_the_parabola_of_attention_that_keeps_its_matrices_is_foretold():
    def law(frames):
        return 1e6 + 50 * frames + 0.3 * frames**2

    batch = items_of(25)(20.0)  # 40 items, 1000 frames
    for room, tried in ((0.9 * law(1000), 500), (1.1 * law(1000), 1000)):
        curve = Curve(law, room)
        need = _carefully(curve, batch, room)
        assert need == pytest.approx(law(1000)) and max(curve.asked) == tried


class Card:
    """A GPU of so many bytes, as torch.cuda tells of it."""

    def __init__(self, monkeypatch, size):
        self.size, self.peak, self.log = size, 0, []
        monkeypatch.setattr(Batch, "to", lambda batch, *a, **k: batch)
        monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
        monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda *a: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 500 + self.peak)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, size))

    def model(self, each):
        card = self

        class OnCard(ToyModel):
            def forward(self, batch):
                frames = batch.codes.shape[:2].numel()
                card.log.append(frames)
                card.peak = each * frames
                out = super().forward(batch)

                def take(gradient):
                    if card.peak > card.size:  # in the middle of the backward pass
                        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
                    return gradient

                self.head.weight.register_hook(lambda gradient: gradient)
                out.loss.register_hook(lambda gradient: gradient)
                out.loss = Late.apply(out.loss, take)
                return out

        return OnCard()


class Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, take):
        ctx.take = take
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.take(gradient), None


def test_a_gpu_that_runs_out_is_caught_and_half_of_it_tried(monkeypatch):
    card = Card(monkeypatch, 10_000_000)
    cuda = torch.device("cuda")
    model = card.model(each=30_000)  # 333 frames in all, 300 of 0.9
    memory = Memory(model, cuda, F32, 0)
    found = largest_max_duration(memory, items_of(10), frame_rate=RATE)
    frames = items_of(10)(found).codes.shape[:2].numel()
    assert 280 <= frames <= 300 and card.log[0] == 500  # the first was too large
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(UserError) as refused:
        check(items_of(10)(20.0), memory)
    said = str(refused.value)
    assert "needs more memory than there is" in said and f"give --max-duration {found:g} " in said
    assert "activation" not in said  # a model without that flag
    card.log.clear()
    said = check(items_of(10)(5.0), memory, max_duration=5.0)
    assert (
        card.log == [250]
        and said == "largest batch 25 x 10 frames: 0.01 GB of 0.01 GB usable on cuda"
    )
    with pytest.raises(UserError, match="one item of 400 frames needs more memory than there is"):
        largest_max_duration(memory, items_of(400), frame_rate=RATE)


def test_states_to_come_count_on_a_gpu(monkeypatch):
    card = Card(monkeypatch, 10_000_000)
    cuda = torch.device("cuda")
    model = card.model(each=30_000)
    found = largest_max_duration(Memory(model, cuda, F32, 6_000_000), items_of(10), frame_rate=RATE)
    assert 80 <= items_of(10)(found).codes.shape[:2].numel() <= 100


@pytest.mark.parametrize("held", [False, True])
def test_gradients_that_lie_there_already_are_measured_with_it(monkeypatch, held):
    card = Card(monkeypatch, 10_000_000)
    model, cuda = card.model(each=1), torch.device("cuda")
    seen = []
    model.register_forward_pre_hook(lambda m, _: seen.extend(p.grad for p in m.parameters()))
    Memory(model, cuda, F32, 0, gradients=held).need(items_of(10)(1.0))
    assert len(seen) > 0 and all((g is not None) == held for g in seen)
    assert all(p.grad is None for p in model.parameters())


def test_batches_of_a_duration_have_the_longest_items_and_their_conditions():
    model = make("text-prompt-cross")
    batch = random_batch(model, (5, 9, 3))
    made = batch_maker(batch, RATE)(2.0)  # 100 frames: 11 items of 9
    assert made.codes.shape == (11, 9, INFO.num_codebooks)
    assert made.lengths.tolist() == [9, 5, 3] * 3 + [9, 5]
    text = batch.conditions["text"]
    assert made.conditions["text"].lengths[:3].tolist() == text.lengths[[1, 0, 2]].tolist()
    assert torch.equal(made.conditions["text"].values[4], text.values[0])
    assert len(batch_maker(batch, RATE)(0.01).codes) == 1


MB = 2**20


@pytest.fixture
def system(tmp_path):
    """Write files of a system by path, then ask how much memory is free."""

    def free(**files: str) -> int | None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return free_memory(tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")

    return free


MEMINFO = f"MemTotal: 9999999 kB\nMemFree: 12 kB\nMemAvailable:   {8000 * 1024} kB\n"


def test_without_groups_it_is_what_the_kernel_calls_available(system):
    assert system() is None
    assert system(meminfo="nonsense") is None
    assert system(meminfo=MEMINFO) == 8000 * MB
    assert system(cgroup="0::/nowhere\n") == 8000 * MB


def test_version_2_counts_every_limit_above(system):
    v2 = {
        "meminfo": MEMINFO,
        "cgroup": "0::/job/step\n",
        "fs__job__step__memoryDOTmax": "max\n",
        "fs__job__step__memoryDOTcurrent": f"{900 * MB}\n",
    }
    assert system(**v2) == 8000 * MB
    job = {
        "fs__job__memoryDOTmax": f"{4000 * MB}\n",
        "fs__job__memoryDOTcurrent": f"{3000 * MB}\n",
        "fs__job__memoryDOTstat": f"anon 7\ninactive_file {500 * MB}\nactive_file 9\n",
    }
    assert system(**job) == 1500 * MB  # cache can be dropped
    assert system(fs__job__step__memoryDOTmax=f"{1000 * MB}\n") == 100 * MB
    assert system(fs__job__step__memoryDOTcurrent=f"{1001 * MB}\n") == 0
    assert system(meminfo=f"MemAvailable: {50 * 1024} kB") == 0


def test_version_1_and_a_container_whose_path_is_the_hosts(system):
    v1 = {
        "meminfo": MEMINFO,
        "cgroup": "5:cpu,cpuacct:/\n4:memory:/on/the/host\n0::/\n",
        "fs__memory__memoryDOTlimit_in_bytes": "9223372036854771712\n",
        "fs__memory__memoryDOTusage_in_bytes": f"{700 * MB}\n",
    }
    assert system(**v1) == 8000 * MB
    assert system(fs__memory__memoryDOTlimit_in_bytes=f"{1000 * MB}\n") == 300 * MB
    stat = f"inactive_file 1\ntotal_inactive_file {200 * MB}\n"
    assert system(fs__memory__memoryDOTstat=stat) == 500 * MB


def test_what_is_counted():
    cpu, f32, model = torch.device("cpu"), torch.float32, make("delay")
    batch = random_batch(model, [10, 10, 10, 9])

    def memory_of(free, **flags):
        return Memory(model, cpu, f32, 1000, free=lambda: free, **flags)

    weights = sum(4 * p.numel() for p in model.parameters())
    kept = activation_bytes(model, batch, cpu, f32)
    assert memory_of(0).need(batch) == 1000 + weights + HEAP * kept
    assert memory_of(10**9).room() == int(USABLE * 10**9)
    assert memory_of(10**9, processes=4).room() == int(USABLE * 10**9 / 4)
    assert Memory(model, torch.device("mps"), f32, 0).room() is None
