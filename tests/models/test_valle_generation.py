"""valle: that it draws what it has learnt, prompts and both sides of a gap verbatim."""

import pytest
import torch
from valle_models import (
    GREEDY,
    INFO,
    OPTIONS,
    K,
    V,
    coarse_logits,
    fine_logits,
    make,
    random_items,
    texts,
)

from rvqlm.batch import Batch, Padded
from rvqlm.errors import UserError
from rvqlm.generation.decode import decode
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.models.valle_parts import CoarseDecoder


@pytest.mark.parametrize("option", ["plain", "prepend_bos", "share_embedding", "nar_scale_factor"])
def test_greedy_equals_recomputing_everything(option):
    """Prompts of unequal lengths in one batch: verbatim, then the most likely codes of the naive
    networks."""
    model = make(**OPTIONS[option])
    prompts, lengths = torch.stack(random_items([5] * 3)), [5, 0, 2]
    options = {"max_frames": 9, "min_frames": 7, "sampling": GREEDY}
    made = model.generate(prompts, torch.tensor(lengths), **options)
    assert made.prompt_lengths.tolist() == lengths
    for codes, prompt, P, stop in zip(made.items(), prompts, lengths, made.stop):
        T = len(codes)
        assert torch.equal(codes[:P], prompt[:P]) and 7 <= T <= 9
        for t in range(P, T):
            logits, end = coarse_logits(model, codes, P, t)
            assert int(logits.argmax()) == int(codes[t, 0])
            assert t < 7 or end < 0
        if stop == "eos":
            assert coarse_logits(model, codes, P, T)[1] > 0
        for level in range(1, K):
            best = fine_logits(model, codes, [t < P for t in range(T)], level).argmax(-1)
            assert torch.equal(best[P:], codes[P:, level])


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
def test_cached_coarse_logits_equal_full(option):
    model = make(conditions=("text",), **OPTIONS[option])
    codes, P = torch.stack(random_items([7, 7])), torch.tensor([2, 4])
    given = {"text": Padded.of(texts(2), 1)}
    request = make_request(INFO, codes.device, codes[:, :4], P, max_frames=7, conditions=given)
    decoder, shift = CoarseDecoder(model.ar, request), model.ar.shift
    with torch.no_grad():
        context = model.ar.network.encode_conditions(given, 2)
        columns = model.ar.columns(codes, torch.tensor([7, 7]), P)
        full = model.ar.network(model.ar.inputs(columns), context)[:, shift:]  # by frame
        # what the loop feeds: a frame of specials, known frames whole, drawn ones with level 0
        fed = model.ar.columns(codes, torch.tensor([7, 7]), P)
        if shift:
            fed = torch.stack([torch.cat([c[: p + 1], c[p + 2 :]]) for c, p in zip(fed, P)])
        state = decoder.begin(given, 2, 7, None)
        for start, n in [(0, 3), *[(s, 1) for s in range(3, 7)]]:
            last, _ = decoder.step(fed[:, start : start + n], state)
            frame = start + n - 1
            for b in range(2):
                if frame >= P[b]:
                    torch.testing.assert_close(last[b], full[b, frame], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
def test_draws_depend_on_seed_and_row_alone(option):
    model = make(**OPTIONS[option])
    prompts, lengths = torch.stack(random_items([6] * 3)), torch.tensor([6, 2, 4])
    options = {"max_frames": 10, "min_frames": 9, "seed": 5}
    made = model.generate(prompts, lengths, **options)
    for b, n in enumerate(lengths.tolist()):
        assert torch.equal(made.codes[b, :n], prompts[b, :n])
        alone = model.generate(prompts[b : b + 1, :n], rows=[b], **options)
        assert torch.equal(alone.items()[0], made.items()[b])
    same = model.generate(prompts[:1].repeat(2, 1, 1), rows=[7, 7], **options).codes
    assert torch.equal(*same)
    others = [
        model.generate(prompts, lengths, **options | {"seed": 6}).codes,
        model.generate(prompts, lengths, rows=[3, 4, 5], **options).codes,
        model.generate(prompts, lengths, sampling=SamplingConfig(top_k=1), **options).codes,
    ]
    assert not any(torch.equal(o[:, 6:9], made.codes[:, 6:9]) for o in others)


def test_temperature_and_top_k_reach_the_fine_levels():
    model = make()
    prompts = torch.stack(random_items([4] * 2))
    greedy = model.generate(prompts, max_frames=9, min_frames=9, sampling=GREEDY)
    for sampling in (SamplingConfig(top_k=1), SamplingConfig(temperature=1e-4)):
        made = model.generate(prompts, max_frames=9, min_frames=9, sampling=sampling, seed=4)
        assert torch.equal(made.codes, greedy.codes)
    # the AR draws from a column of the noise of its own: level 0 is as if there were no NAR
    request = make_request(INFO, prompts.device, prompts, max_frames=9, min_frames=9, seed=2)
    with torch.no_grad():
        coarse = decode(CoarseDecoder(model.ar, request), request).codes
    made = model.generate(prompts, max_frames=9, min_frames=9, seed=2).codes
    assert torch.equal(made[..., 0], coarse[..., 0]) and (coarse[:, 4:, 1:] == V).all()
    assert (made >= 0).all() and (made < V).all()


def test_levels_are_drawn_independently():
    """All codes equally likely: levels that shared their noise would be equal."""
    codes = make(shake=False, model_end=False).generate(batch_size=4, max_frames=50).codes
    for a in range(K):
        for b in range(a):
            assert (codes[..., a] == codes[..., b]).float().mean() < 0.2  # 1 / V is 0.09


def test_the_nar_spreads_texts_over_the_known_length():
    model = make(conditions=("text",))
    given = {"text": Padded.of([torch.ones(4), torch.ones(2)], 1)}
    context = model.nar.encode_conditions(given, torch.tensor([20, 30]))
    assert context.positions[0, 1:].tolist() == [2.5, 7.5, 12.5, 17.5]
    assert context.positions[1, 1:3].tolist() == [7.5, 22.5]


def test_bf16_autocast_is_near_float32():
    model, losses = make(), []
    for enabled in (False, True):
        torch.manual_seed(0)
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(Batch.from_codes(random_items([9, 6])))
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        assert out.nats.dtype == out.count.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != losses[1]  # it did compute in bf16
    assert abs(losses[1] / losses[0] - 1) < 0.02


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
def test_guidance(option):
    model = make(conditions=("text",), **OPTIONS[option])
    given = {"text": Padded.of(texts(3), 1)}
    prompts, lengths = torch.stack(random_items([3] * 3)), torch.tensor([1, 3, 2])

    def made(scale, conditions):
        sampling = SamplingConfig(cfg_scale=scale)
        options = {"max_frames": 8, "min_frames": 8, "sampling": sampling, "seed": 0}
        return model.generate(prompts, lengths, conditions=conditions, **options).codes

    plain, unconditional = made(1.0, given), made(1.0, {})
    assert not torch.equal(plain, unconditional)
    assert torch.equal(made(0.0, given), unconditional)
    assert torch.equal(made(1.0 + 1e-7, given), plain)  # the doubled batch says the same
    guided = made(8.0, given)
    assert not torch.equal(guided[..., 0], plain[..., 0])
    # with the same level 0, the finer levels too are guided
    known = torch.arange(8) < lengths[:, None]
    full = torch.full((3,), 8)
    noise = torch.full((3, 8, K - 1), 0.5)
    drop = torch.tensor([False] * 3 + [True] * 3)
    twice = model.nar.encode_conditions({"text": given["text"].repeat(2)}, full.repeat(2), drop)
    once = model.nar.encode_conditions(given, full)
    fine = [
        model.nar.fill(plain, full, known, context, noise, SamplingConfig(cfg_scale=8.0), int)
        for context in (once, twice)
    ]
    assert torch.equal(fine[0][..., 0], fine[1][..., 0])
    assert not torch.equal(fine[0][..., 1:], fine[1][..., 1:])


def test_infill_keeps_both_sides_and_the_nar_sees_them():
    model = make()
    before, after = torch.stack(random_items([4, 4])), torch.stack(random_items([3, 3], seed=1))
    made = model.infill(before, after, 5, seed=2)
    assert made.codes.shape == (2, 12, K) and made.lengths.tolist() == [12, 12]
    assert torch.equal(made.codes[:, :4], before) and torch.equal(made.codes[:, 9:], after)
    assert (made.codes >= 0).all() and (made.codes < V).all()
    assert made.stop == ["length"] * 2 and made.prompt_lengths.tolist() == [4, 4]
    other = model.infill(before, (after + 1) % V, 5, seed=2).codes[:, 4:9]
    gap = made.codes[:, 4:9]
    assert torch.equal(gap[..., 0], other[..., 0])  # level 0 sees only what is before
    assert not torch.equal(gap[..., 1:], other[..., 1:])
    greedy = model.infill(before, after, 5, sampling=GREEDY).codes
    known = [t < 4 or t >= 9 for t in range(12)]
    for level in range(1, K):
        for codes in greedy:
            best = fine_logits(model, codes, known, level).argmax(-1)
            assert torch.equal(best[4:9], codes[4:9, level])
    alone = model.infill(before[1:], after[1:], 5, seed=2, rows=[1])
    assert torch.equal(alone.codes[0], made.codes[1])
    assert model.infill(before[:, :0], after, 2).codes.shape == (2, 5, K)
    with pytest.raises(UserError, match="codes must lie in"):
        model.infill(before, after + V, 5)


def test_progress_counts_every_step_of_both_networks():
    steps = []
    make(model_end=False).generate(max_frames=6, progress=steps.append)
    assert steps == list(range(1, 6 + K))


def train(model, batch, steps):
    """Until both networks have memorised the batch; whether they have."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for step in range(steps):
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                done = float(model(batch).loss) < 2.0
            model.train()
            if done:
                break
        optimizer.zero_grad()
        model(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        schedule.step()
    return done


LENGTHS = [12, 9, 15, 10, 7, 14, 11, 8]


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
def test_overfits_prompted_items_and_regenerates_them(option):
    model, items = make(shake=False, **OPTIONS[option]), random_items(LENGTHS, seed=1)
    for i, item in enumerate(items):
        item[0] = i
    assert train(model, Batch.from_codes(items, prompt_lengths=[2] * 8), 400)
    prompts = torch.stack([i[:2] for i in items])
    made = model.generate(prompts, max_frames=20, temperature=0)
    assert made.lengths.tolist() == LENGTHS and made.stop == ["eos"] * 8
    assert all(torch.equal(got, want) for got, want in zip(made.items(), items))


def test_overfits_texts_and_speaks_them():
    model = make(shake=False, conditions=("text",), condition_dropout=0.0, prompt_mode="none")
    items, given = random_items(LENGTHS, seed=1), texts(8)
    for i, text in enumerate(given):
        text[0] = i
    assert train(model, Batch.from_codes(items, conditions={"text": given}), 400)
    made = model.generate(max_frames=20, temperature=0, conditions={"text": Padded.of(given, 1)})
    assert made.lengths.tolist() == LENGTHS and made.stop == ["eos"] * 8
    assert all(torch.equal(got, want) for got, want in zip(made.items(), items))
