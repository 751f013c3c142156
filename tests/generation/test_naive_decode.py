"""Generation against a loop in the words of the definitions: one item, one code at a time, without
a cache, every pass over all that came before."""

import math

import pytest
import torch
from families import CONDITIONS, INFO, K, V

from rvqlm.batch import Padded
from rvqlm.generation.sampling import SamplingConfig, uniforms
from rvqlm.models.factory import build_model
from rvqlm.patterns import PATTERNS

FAR = 10**6


def model_of(pattern):
    torch.manual_seed(0)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 2, "pattern": pattern,
              "conditions": ("text",)}  # fmt: skip
    model = build_model("codec-lm", config, INFO, CONDITIONS).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def draw(logits, u, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """A code by inverting the cumulative distribution of what the filters leave, of the likeliest
    first where they look for these."""
    order = list(range(len(logits)))
    if temperature == 0:
        return max(order, key=lambda v: logits[v])
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    if top_k or top_p < 1:
        order.sort(key=lambda v: -weights[v])
        order = order[: top_k or None]
        total, nucleus, held = sum(weights[v] for v in order), [], 0.0
        for v in order:
            if held < top_p * total:
                nucleus.append(v)
            held += weights[v]
        order = nucleus
    order = [v for v in order if weights[v] >= min_p * max(weights)]
    point = u * sum(weights[v] for v in order)
    for v in order:
        point -= weights[v]
        if point < 0:
            return v
    return order[-1]


@torch.no_grad()
def naive(model, prompt, text, limit, least, c, bias, seed, row):
    """Frames (T, K) and why they end, by a `SamplingConfig` with everything in it."""
    pattern, special = model.pattern, model.special
    given = {"text": Padded(text[None], torch.tensor([len(text)]))}
    contexts = [model.encode_conditions(given, 1)]
    contexts.append(model.encode_conditions(given, 1, torch.tensor([True])))
    codes = {(t, k): int(prompt[t, k]) for t in range(len(prompt)) for k in range(K)}
    columns, length, step = [[special] * K], limit, 0
    while step < pattern.num_steps(length):
        inputs, now = torch.tensor([columns]), torch.tensor([length])
        with_text, without = (model.hidden(inputs, now, x)[0, -1] for x in contexts)

        def guided(head):
            u, g = head(without).double(), head(with_text).double()  # noqa: B023
            return u + c.cfg_scale * (g - u)

        noise = uniforms(seed, [row], 1, 2 * K + 1, step)[0, 0].double().tolist()
        # level 0 of a frame would stand here: does the sequence end before it?
        frame = int(pattern.cells(torch.tensor([step]), torch.tensor([FAR]))[0, 0, 0])
        if max(least, len(prompt), 1) <= frame < length == limit:
            u = noise[K] if c.temperature else 0.5
            if guided(model.end_head) > math.log(u / (1 - u)):
                length = frame
        logits = guided(model.heads) + bias
        column = []
        for k, t in enumerate(pattern.cells(torch.tensor([step]), torch.tensor([length]))[0, 0]):
            t = int(t)
            if not 0 <= t < length:
                column.append(special)
                continue
            if t >= len(prompt):
                heat = c.level_temperatures[min(k, len(c.level_temperatures) - 1)]
                mine = logits[k].tolist()
                code = draw(mine, noise[k], heat, c.top_k, c.top_p, c.min_p)
                last = [codes.get((t - n, k)) for n in range(1, c.repetition_window + 1)]
                if last.count(code) > c.repetition_threshold * c.repetition_window:
                    code = draw(mine, noise[K + 1 + k], 1.0)
                codes[t, k] = code
            column.append(codes[t, k])
        columns.append(column)
        step += 1
    frames = [[codes[t, k] for k in range(K)] for t in range(length)]
    return torch.tensor(frames), "eos" if length < limit else "length"


SETTINGS = {
    "all": SamplingConfig(0.9, 9, 0.95, 0.02, (1.2, 0.8), 4, 0.3, ban=("0:2",), cfg_scale=1.7),
    "plain": SamplingConfig(1.0, level_temperatures=(1.0,), cfg_scale=0.5),
    "greedy": SamplingConfig(0.0, level_temperatures=(0.0,), cfg_scale=3.0),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_option_is_what_its_definition_says(pattern, setting):
    """Per-level temperatures, top-k, top-p, min-p, repetition, guidance in one pass, bias and bans,
    the end where the pattern has it, least and most frames; items of a batch each by itself."""
    model, config = model_of(pattern), SETTINGS[setting]
    model.end_head.linear.bias.data.fill_(-1.0)
    bias = torch.randn(K, V)
    prompts, lengths = torch.randint(V, (4, 3, K)), torch.tensor([3, 0, 2, 1])
    texts = [torch.randint(9, (n, 1)) for n in (4, 2, 5, 1)]
    limits, least = torch.tensor([9, 7, 10, 8]), torch.tensor([0, 3, 6, 8])
    made = model.generate(
        prompts, lengths, limits=limits, max_frames=10, min_frames=least, sampling=config,
        logit_bias=bias, conditions={"text": Padded.of(texts, 1)}, seed=5,
    )  # fmt: skip
    banned = config.bias(K, V)
    for row, found in enumerate(made.items()):
        prompt = prompts[row, : lengths[row]]
        wanted, stop = naive(
            model, prompt, texts[row], int(limits[row]), int(least[row]), config,
            bias if banned is None else bias + banned, 5, row,
        )  # fmt: skip
        assert found.tolist() == wanted.tolist() and made.stop[row] == stop
    assert len(made.items()[3]) == 8
