"""A running batch: whoever joins, beside whomever, gets what it gets alone."""

import random

import pytest
import torch

from rvqlm.batch import Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.generation.request import Request, make_request
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.generation.slots import Engine
from rvqlm.generation.steps import Decoding
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.masked import Masked, MaskedConfig
from rvqlm.modules import native
from rvqlm.modules.packed import with_weights_in
from rvqlm.modules.stepping import Stepper

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)
CONDITIONS = {
    "text": ConditionInfo("text", (9,), rate=2.0),
    "source": ConditionInfo("source", (V,) * K),
    "prompt": ConditionInfo("prompt", (V,) * K),
}


def randomized(model):
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def lm(conditions: tuple[str, ...] = (), **config) -> CodecLM:
    config = CodecLMConfig(
        decoder_dim=32, nhead=2, num_decoder_layers=2, conditions=conditions, **config
    )
    model = randomized(CodecLM(config, INFO, {kind: CONDITIONS[kind] for kind in conditions}))
    if model.end_head is not None:  # an end now and then
        torch.nn.init.constant_(model.end_head.linear.bias, -2.5)
    return model


def packed(model):
    """In 8 bits, where a step is one call."""
    if native.missing():
        pytest.skip(native.missing())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rvqlm.modules.packed.SMALLEST", 1)
        return with_weights_in(model, torch.bfloat16, int8=True, kernels="native")


def orders(model, count: int, options: list[dict]) -> list[dict]:
    """So many requests of all sorts, as `generate` takes them."""
    draw, made = random.Random(1), []
    for n in range(count):
        P = draw.choice([0, 0, 1, 4, 9])
        order = {
            "prompt_codes": torch.randint(V, (1, P, K)),
            "max_new_frames": draw.randint(1, 20),
            "seed": n,
            "rows": [draw.randint(0, 5)],
            **options[n % len(options)],
        }
        order["min_new_frames"] = draw.choice([0, order["max_new_frames"] // 2])
        given = {}
        if "text" in model.conditions and draw.random() < 0.8:
            given["text"] = Padded.of([torch.randint(9, (draw.randint(1, 70),))], 1)
        for kind in ("source", "prompt"):
            if kind in model.conditions and draw.random() < 0.8:
                given[kind] = Padded.of([torch.randint(V, (draw.randint(1, 12), K))], K)
        if given:
            order["conditions"] = given
        elif "sampling" in order and order["sampling"].cfg_scale != 1:
            del order["sampling"]
        made.append(order)
    return made


def request(order: dict) -> Request:
    return make_request(INFO, torch.device("cpu"), **order)


def run_together(engine: Engine, requests: list[Request], gone: int | None = None) -> dict:
    """Add each at a random moment; of each, by number: its new codes and why it ended. The one
    called ``gone`` leaves after a few steps."""
    draw, waiting, running, made = random.Random(2), list(enumerate(requests)), {}, {}
    while waiting or running:
        while waiting and engine.free and draw.random() < 0.4:
            number, one = waiting.pop(0)
            slot = engine.add(one)
            assert slot not in running
            running[slot] = number
            made[number] = [], []
        for new in engine.step():
            codes, ended = made[running[new.slot]]
            codes.append(new.codes)
            if new.ended:
                ended.append(new.ended)
                del running[new.slot]
        if gone in running.values() and draw.random() < 0.3:
            (slot,) = (slot for slot, number in running.items() if number == gone)
            engine.remove(slot)
            del running[slot]
    return made


PLAIN = [{}]
DRAWS = [
    {},
    {"sampling": SamplingConfig(0.8, 5, repetition_window=4)},
    {"sampling": SamplingConfig(0.0), "logit_bias": -torch.eye(K, V) * 1e9},
    {"sampling": SamplingConfig(level_temperatures=(1.0, 0.5), ban=("0:3",))},
]
GUIDED = [{}, {"sampling": SamplingConfig(cfg_scale=2.0)}]


@pytest.mark.parametrize(
    "model,options",
    [
        (lambda: lm(pattern="delay"), DRAWS),
        (lambda: lm(pattern="delay", delays=(0, 2, 2), norm_first=False), PLAIN),
        (lambda: lm(pattern="parallel", head="depth", depth_dim=16, depth_nhead=2), DRAWS),
        (lambda: lm(pattern="flatten", head="mlp"), DRAWS),
        (lambda: lm(pattern="flatten", head="residual", conditions=("text",)), GUIDED),
        (lambda: lm(shared_head=True, conditions=("text", "prompt")), GUIDED),
        (lambda: lm(head="residual", conditions=("text",), fusion="cross"), GUIDED),
        (lambda: lm(conditions=("text", "source"), fusion="spread"), GUIDED),
        (lambda: lm(conditions=("source",), fusion="cross", num_encoder_layers=1), GUIDED),
        (lambda: lm(model_end=False), PLAIN),
        (lambda: packed(lm(conditions=("text",))), GUIDED),
        (lambda: packed(lm(conditions=("text",), fusion="cross", head="mlp")), GUIDED),
    ],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_joining_at_any_moment_gives_what_it_gives_alone(model, options, frames):
    torch.manual_seed(3)
    model = model()
    wanted = orders(model, 12, options)
    engine = Engine(model, 3, max_frames=40, frames=frames)
    made = run_together(engine, [request(order) for order in wanted], gone=5)
    assert engine.free == 3
    for number, order in enumerate(wanted):
        alone = model.generate(**order)
        new = alone.codes[0, order["prompt_codes"].shape[1] :]
        codes, ended = made[number]
        codes = torch.cat(codes) if codes else new[:0]
        if number == 5:  # what it got before it left
            new = new[: len(codes)]
        else:
            assert ended == alone.stop
        assert torch.equal(codes, new), number


@pytest.mark.skipif(bool(native.missing()), reason="no kernels for this machine")
@pytest.mark.parametrize("fusion", ["cross", "spread"])
def test_kernels_of_a_step_see_each_row_where_it_is(monkeypatch, fusion):
    monkeypatch.setattr("rvqlm.modules.packed.SMALLEST", 1)
    model = lm(("text",), fusion=fusion)
    model = with_weights_in(model, torch.bfloat16, kernels="native")
    assert type(model.begin({}, 1, 8).stepper) is not Stepper
    wanted = orders(model, 6, GUIDED)
    made = run_together(Engine(model, 3), [request(order) for order in wanted])
    for number, order in enumerate(wanted):
        alone = model.generate(**order).codes[0, order["prompt_codes"].shape[1] :]
        assert torch.equal(torch.cat([alone[:0], *made[number][0]]), alone), number


def test_a_masked_model_that_writes_frame_by_frame_runs_too():
    config = MaskedConfig(decoder_dim=32, nhead=2, num_decoder_layers=2, ar_share=0.5)
    model = randomized(Masked(config, INFO))
    wanted = orders(model, 4, [{"demask": DemaskConfig(frame_by_frame=True)}])
    made = run_together(Engine(model, 2), [request(order) for order in wanted])
    for number, order in enumerate(wanted):
        alone = model.generate(**order).codes[0, order["prompt_codes"].shape[1] :]
        assert torch.equal(torch.cat(made[number][0]), alone)
    with pytest.raises(UserError, match="joins a running batch with --frame-by-frame only"):
        Engine(model, 2).add(request({"max_new_frames": 4}))


def test_a_row_that_leaves_makes_room_for_others(monkeypatch):
    """Rows move together, and none is computed in vain."""
    model, computed = lm(pattern="parallel", model_end=False), []
    step = CodecLM.step
    monkeypatch.setattr(
        CodecLM, "step", lambda self, x, *rest: computed.append(len(x)) or step(self, x, *rest)
    )
    engine = Engine(model, 4)
    orders = [{"max_new_frames": 30, "rows": [row], "batch_size": 1} for row in range(4)]
    slots = [engine.add(request(order)) for order in orders]
    with pytest.raises(UserError, match="all 4 slots are taken"):
        engine.add(request(orders[0]))
    made = {slot: [new.codes for new in engine.step() if new.slot == slot] for slot in slots[:1]}
    engine.remove(slots[0]), engine.remove(slots[2])
    assert engine.free == 2 and computed == [4]
    with pytest.raises(ValueError, match="nothing runs in slot"):
        engine.remove(slots[0])
    found = {1: [], 3: []}
    while engine.free < 4:
        for new in engine.step():
            found[new.slot].append(new.codes)
    assert computed[1:] == [2] * 29 and engine.step() == []
    for row, parts in found.items():
        alone = model.generate(**orders[row])
        assert torch.equal(torch.cat(parts), alone.codes[0][1:])
    assert torch.equal(made[slots[0]][0], model.generate(**orders[0]).codes[0, :1])


@pytest.mark.parametrize("pattern", ["delay", "parallel", "flatten"])
@pytest.mark.parametrize("frames", [1, 4])
def test_windows_go_on_as_offline(pattern, frames):
    """A sequence beyond its context: the same joined, alone, or cut by hand."""
    model = lm(("prompt",), pattern=pattern)
    voice = {"prompt": Padded.of([torch.randint(V, (4, K))], K)}
    orders = [
        {
            "prompt_codes": torch.randint(V, (1, P, K)),
            "max_new_frames": 60,
            "min_new_frames": least,
            "rows": [P],
            "seed": 2,
            "conditions": voice,
            "context_frames": 16,
            "overlap_frames": 5,
        }
        for P, least in [(0, 60), (3, 40), (16, 60), (40, 11)]
    ]
    alone = [model.generate(**order) for order in orders]
    engine = Engine(model, 2, max_frames=20, frames=frames)
    made = run_together(engine, [request(order) for order in orders])
    for number, (order, wanted) in enumerate(zip(orders, alone)):
        P = order["prompt_codes"].shape[1]
        assert torch.equal(wanted.codes[0, :P], order["prompt_codes"][0])
        assert torch.equal(torch.cat(made[number][0]), wanted.codes[0, P:])
        assert made[number][1] == wanted.stop
        assert len(wanted.codes[0]) - P >= order["min_new_frames"]
    batch = model.generate(
        orders[1]["prompt_codes"].repeat(2, 1, 1), None, 60,
        min_frames=torch.tensor([63, 43]), rows=[9, 3], seed=2, conditions={
            "prompt": voice["prompt"].repeat(2)}, context_frames=16, overlap_frames=5,
    )  # fmt: skip
    assert torch.equal(batch.items()[1], alone[1].items()[0])
    # a window is what the last codes of the one before are continued with, on its own steps
    first = model.generate(
        orders[0]["prompt_codes"], None, 16, min_new_frames=16, rows=[0], seed=2, conditions=voice
    )
    if pattern == "parallel":  # others know where it ends
        assert torch.equal(first.codes[0], alone[0].codes[0, :16])


def test_memory_and_work_are_bounded_however_long_it_runs():
    model = lm(pattern="delay", model_end=False)
    engine = Engine(model, 1, context_frames=16, overlap_frames=4)
    engine.add(request({"max_new_frames": 300, "batch_size": 1}))
    total, longest = 0, 0
    while not engine.free:
        total += sum(len(new.codes) for new in engine.step())
        longest = max(longest, engine._state.cache.position)
    assert total == 300 and longest <= 16 + K
    assert engine._state.cache.longest == 64  # a unit


def test_what_windows_cannot_carry_is_refused():
    model = lm(("text", "source"))
    text = {"text": Padded.of([torch.randint(9, (5,))], 1)}
    order = {"max_new_frames": 30, "context_frames": 16, "conditions": text}
    with pytest.raises(UserError, match="text: cannot be carried on beyond a context of 16 frames"):
        model.generate(**order)
    model.generate(**{**order, "max_new_frames": 16})  # needs no second window
    with pytest.raises(UserError, match="--overlap-seconds must be less than --context-seconds"):
        model.generate(max_new_frames=30, context_frames=8, overlap_frames=8)
    with pytest.raises(UserError, match="--best-of"):
        model.generate(
            max_new_frames=30, context_frames=8, sampling=SamplingConfig(best_of=2), batch_size=1
        )
    with pytest.raises(UserError, match="a sequence of 30 frames, and the longest taken here is 9"):
        Engine(model, 1, max_frames=9).add(request({"max_new_frames": 30, "batch_size": 1}))
    with pytest.raises(UserError, match="makes whole sequences"):
        Engine(lm(pattern="coarse_first"), 1)


def test_a_source_lies_in_every_window_where_it_belongs():
    model = lm(("source",), pattern="parallel", model_end=False)
    source = torch.randint(V, (40, K))
    order = {"max_new_frames": 40, "seed": 1, "context_frames": 16, "overlap_frames": 6}
    made = model.generate(conditions={"source": Padded.of([source], K)}, **order).codes[0]
    other = source.clone()
    other[30:] = (other[30:] + 1) % V
    changed = model.generate(conditions={"source": Padded.of([other], K)}, **order).codes[0]
    assert torch.equal(made[:26], changed[:26]) and not torch.equal(made[26:], changed[26:])


@pytest.mark.parametrize("pattern", ["delay", "parallel"])
@pytest.mark.parametrize("options", [{}, {"sampling": SamplingConfig(cfg_scale=2.0)}])
def test_a_step_as_one_call_draws_what_its_parts_draw(monkeypatch, pattern, options):
    """Windows that follow one another included."""
    model, calls = packed(lm(("prompt",), pattern=pattern)), []
    voice = {"prompt": Padded.of([torch.randint(V, (4, K))], K)}
    order = {
        "batch_size": 1,
        "max_new_frames": 60,
        "min_new_frames": 50,
        "conditions": voice,
        "seed": 5,
        **options,
    }
    take = Decoding.take_whole

    def counting(self, *given):
        calls.append(self.follows)
        take(self, *given)

    for windows in ({}, {"context_frames": 16, "overlap_frames": 5}):
        with monkeypatch.context() as patch:
            patch.setattr(Decoding, "take_whole", counting)
            whole = model.generate(**order, **windows)
        with monkeypatch.context() as patch:
            patch.setattr(CodecLM, "whole_step", lambda self, state: None)
            parts = model.generate(**order, **windows)
        assert torch.equal(whole.codes, parts.codes) and whole.stop == parts.stop
        assert calls and (options or not windows or any(f is not None for f in calls))
