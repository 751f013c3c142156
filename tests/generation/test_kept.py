"""Prompts whose keys and values were kept: the same codes, bit for bit, whatever came before."""

import random

import pytest
import torch
from test_slots import K, V, lm, packed, request, run_together

from rvqlm.batch import Padded
from rvqlm.generation.kept import Kept
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.generation.slots import Engine

MODELS = {
    "delay": lm,
    "depth": lambda: lm(pattern="parallel", head="depth"),
    "text-spread": lambda: lm(("text",), fusion="spread"),
    "text-cross": lambda: lm(("text",), fusion="cross", num_encoder_layers=1),
    "native": lambda: packed(lm(("text",), model_end=False)),
}


def orders(model, count: int) -> list[dict]:
    """Of three voices, two of which begin alike, with and without texts, some in windows."""
    draw, torch_draw = random.Random(3), torch.Generator().manual_seed(3)
    one, other = (torch.randint(V, (1, 40, K), generator=torch_draw) for _ in range(2))
    voices, made = [one, one[:, :33], other], []
    for n in range(count):
        voice = voices[n if n < 3 else draw.randrange(3)]
        order = {"prompt_codes": voice, "max_new_frames": draw.randint(1, 12), "seed": n}
        order["sampling"] = SamplingConfig(top_k=5)
        if "text" in model.conditions and n % 4 == 3:
            text = torch.randint(9, (draw.randint(1, 20),), generator=torch_draw)
            order |= {"conditions": {"text": Padded.of([text], 1)}}
        if n % 5 == 4 and "conditions" not in order:
            order["context_frames"] = 42
        made.append(order)
    return made


def made(engine: Engine, orders: list[dict], **how) -> dict[int, torch.Tensor]:
    asked = [request(order) for order in orders]
    for one in asked:
        one.shared = True
    return {n: torch.cat(codes) for n, (codes, _) in run_together(engine, asked, **how).items()}


@pytest.mark.parametrize(
    "case,most,misses", [*((c, 1 << 20, 3) for c in MODELS), ("delay", 70_000, 11)]
)
def test_what_was_kept_gives_the_same_codes(case, most, misses):
    """Each alone, and all in a running batch; with room for all voices, or for two."""
    model, found = MODELS[case](), []
    wanted = orders(model, 12)
    alone = [made(Engine(model, 1), [order])[0] for order in wanted]
    kept = Kept(most, lambda kind, hit: found.append(hit))
    for slots in (1, 4):
        got = made(Engine(model, slots, kept=kept), wanted)
        assert all(torch.equal(got[n], codes) for n, codes in enumerate(alone))
    with_text = sum("conditions" in order for order in wanted)
    assert len(found) == 2 * (12 - with_text)  # those with texts are not looked up
    assert found.count(False) == misses and 0 < kept.size <= most


def test_what_was_kept_is_not_computed_again(monkeypatch):
    model, columns = lm(), []
    fill = model.fill
    monkeypatch.setattr(model, "fill", lambda x, *a: columns.append(x.shape[1]) or fill(x, *a))
    wanted = orders(model, 3)[:1] * 3
    made(Engine(model, 2, kept=Kept(1 << 20)), wanted)
    assert sum(n > 1 for n in columns) == 1
    columns.clear()
    made(Engine(model, 2), wanted)  # nothing to keep it in
    assert sum(n > 1 for n in columns) == 3
