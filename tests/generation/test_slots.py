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
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.masked import Masked, MaskedConfig

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
