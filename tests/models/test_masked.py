"""masked: what its losses count and what they may see, and that it learns what it is shown."""

import pytest
import torch
import torch.nn.functional as F
from masked_models import INFO, K, V, make, random_items, texts_for

from rvqlm.batch import Batch
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.models.masked import Masked
from rvqlm.modules.masking import MASKINGS

ONE_LEVEL = [{"level_training": "random"}, {"masking": "frame", "level_training": "random"}]
KINDS = [*({"masking": m} for m in MASKINGS), *ONE_LEVEL]


def naive_nats(model, batch, mask, b, t, k):
    """-log p of one cell, from logits of one item by itself and without padding."""
    n = int(batch.lengths[b])
    codes = batch.codes[b : b + 1, :n].long().masked_fill(mask.hidden[b : b + 1, :n], V)
    hidden = model.hidden(codes, torch.tensor([n]), None)
    return F.cross_entropy(model.heads(hidden)[0, t, k], batch.codes[b, t, k].long())


# ------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_training_loss_equals_a_naive_one(kind):
    model = make(predict_length=False, **kind).train()
    batch = Batch.from_codes(random_items([6, 3]))
    torch.manual_seed(4)
    out = model(batch)
    torch.manual_seed(4)
    mask = model.training_mask(batch)
    nats = torch.zeros(K)
    for b, t, k in mask.predicted.nonzero().tolist():
        nats[k] += naive_nats(model, batch, mask, b, t, k).detach()
    torch.testing.assert_close(out.nats, nats)
    torch.testing.assert_close(out.loss.detach(), nats.sum())
    assert out.count.tolist() == mask.predicted.sum((0, 1)).tolist()
    assert float(out.normalizer) == float(out.count.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_scored_is_hidden_real_and_no_prompt(kind):
    model = make(**kind).train()
    batch = Batch.from_codes(random_items([9, 4, 6]), prompt_lengths=[3, 0, 5])
    for mask in [model.training_mask(batch), model.held_out_mask(batch, 0)]:
        assert mask.predicted.any((1, 2)).all()
        assert not (mask.predicted & ~mask.hidden).any()
        assert not (mask.hidden & ~batch.scored()[..., None]).any()
    if kind in ONE_LEVEL:
        assert (model.training_mask(batch).predicted.any(1).sum(1) == 1).all()
        assert (model.held_out_mask(batch, 3).predicted.any(1).sum(1) > 1).any()


def test_hidden_codes_are_not_seen_and_visible_ones_are():
    """Neither the code of a hidden cell nor padding moves any hidden state."""
    model = make().eval()
    batch = Batch.from_codes(random_items([7, 4]))
    mask = model.held_out_mask(batch, 1)
    before = model._masked_hidden(batch, mask, None)
    changed = Batch.from_codes(random_items([7, 4], seed=1))
    changed.codes = torch.where(mask.hidden, changed.codes, batch.codes)
    changed.codes[1, 4:] = 5
    assert (changed.codes != batch.codes).any()
    after = model._masked_hidden(changed, mask, None)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :4], after[1, :4])
    t, k = (~mask.hidden[0]).nonzero()[0].tolist()
    changed.codes[0, t, k] = (changed.codes[0, t, k] + 1) % V
    after = model._masked_hidden(changed, mask, None)
    assert (after[0] != before[0]).any(1).all()  # everywhere, on both sides


def test_schedules_hide_as_much_as_they_say():
    n = 3000
    batch = Batch(
        torch.zeros(n, 10, K, dtype=torch.int16),
        torch.full((n,), 10),
        torch.ones(n, dtype=torch.bool),
        torch.arange(n),
    )

    def hidden(**changes):
        model = make(masking="frame", prompt_fraction=0.0, **changes)
        return model.training_mask(batch).hidden[..., 0].sum(1).float()

    assert (hidden(mask_schedule="fixed", mask_ratio=0.3) == 3).all()
    assert (hidden(mask_schedule="fixed") == 8).all()
    counts = hidden(mask_schedule="uniform").long().bincount(minlength=11)
    assert counts[0] == 0 and (counts[1:] - n / 10).abs().max() < 80
    share = (torch.arange(20_000) / 20_000 * torch.pi / 2).cos()
    assert hidden().mean() == pytest.approx(float((share * 10).ceil().mean()), abs=0.2)


def test_known_ends_in_training():
    n = 2000
    codes = torch.zeros(n, 20, K, dtype=torch.int16)
    batch = Batch(codes, torch.full((n,), 20), torch.ones(n, dtype=torch.bool), torch.arange(n))
    fixed = {"mask_schedule": "fixed", "mask_ratio": 1.0}
    hidden = make(prompt_fraction=0.4, **fixed).training_mask(batch).hidden[..., 0]
    first = hidden.int().argmax(1)
    after = hidden.flip(1).int().argmax(1)
    assert torch.equal(first + after + hidden.sum(1), torch.full((n,), 20))  # one gap
    assert int((first + after).max()) == 7  # fewer than 0.4 * 20
    assert 0.1 < float((after > 0).float().mean()) < 0.25
    assert 0.3 < float((first + after == 0).float().mean()) < 0.5
    assert make(prompt_fraction=0.0, **fixed).training_mask(batch).hidden.all()
    batch.prompt_lengths = torch.full((n,), 3)
    hidden = make(prompt_fraction=0.4, **fixed).training_mask(batch).hidden
    assert not hidden[:, :3].any() and hidden[:, 3:].all()


@pytest.mark.parametrize(
    "distribution,shares",
    [("uniform", [1, 1, 1]), ("coarse", [3, 2, 1]), ("normal", [0.41, 1, 0.41])],
)
def test_distribution_of_the_one_level(distribution, shares):
    n = 4000
    codes = torch.zeros(n, 2, K, dtype=torch.int16)
    batch = Batch(codes, torch.full((n,), 2), torch.ones(n, dtype=torch.bool), torch.arange(n))
    for kind in ({"masking": "coarse_first"}, {"masking": "frame", "level_training": "random"}):
        mask = make(level_distribution=distribution, **kind).training_mask(batch)
        found = mask.predicted.any(1).float().mean(0)
        torch.testing.assert_close(found, torch.tensor(shares) / sum(shares), atol=0.03, rtol=0)


def test_one_level_first_and_all_later():
    batch = Batch.from_codes(random_items([6, 6, 6, 6]))
    model = make(masking="frame", level_training_schedule=("0:random", "2:parallel"))
    for epoch, levels in ((0, 1), (1, 1), (2, K), (9, K)):
        model.epoch = epoch
        mask = model.training_mask(batch)
        assert (mask.predicted.any(1).sum(1) == levels).all()
        assert (mask.hidden.any(1).sum(1) == K).all()
    for wrong, message in (
        ({"level_training_schedule": ("0:one",)}, "level-training-schedule 0:one: expected EPOCH"),
        ({"level_training_schedule": ("1:random",)}, "epochs begin with 0"),
        ({"level_training_schedule": ("0:random",), "level_training": "random"}, "exclude each"),
        ({"level_training_schedule": ("0:random",), "masking": "coarse_first"}, "scores one level"),
        ({"level_training_schedule": ("0:parallel",), "level_distribution": "normal"}, "nothing"),
    ):
        with pytest.raises(UserError, match=message):
            make(**wrong)


def test_level_weights_and_smoothing_change_the_loss_only():
    batch = Batch.from_codes(random_items([8, 4]))
    for mode in (True, False):
        model = make(predict_length=False).train(mode)

        def out(model=model, **options):
            torch.manual_seed(1)
            return model(batch, **options)

        plain, weighted = out(), out(level_weights=torch.tensor([1.0, 0.0, 2.0]))
        torch.testing.assert_close(weighted.loss.detach(), plain.nats[0] + 2 * plain.nats[2])
        assert float(weighted.normalizer) == float(plain.count[0] + 2 * plain.count[2])
        smooth = out(label_smoothing=0.1)
        assert not torch.isclose(smooth.loss, plain.loss)
        torch.testing.assert_close(smooth.nats, plain.nats)


# ---------------------------------------------------------------------------------------- length


def test_length_counts_for_whole_items_only():
    model = make()
    items = random_items([5, 7])
    both, one = (model(Batch.from_codes(items, ends=[True, e])) for e in (True, False))
    assert float(both.sums["length_nats"][1]) == 2 and float(one.sums["length_nats"][1]) == 1
    assert float(both.sums["length_nats"][0]) > float(one.sums["length_nats"][0])
    assert "length_nats" not in make(predict_length=False)(Batch.from_codes(items)).sums


TOGETHER = {
    "no conditions": {"masking": "frame"},
    "prefix": {"conditions": ("text",), "condition_dropout": 0.5},
    "sum": {"conditions": ("text",), "fusion": "spread", "condition_dropout": 0.5},
    "cross": {
        "conditions": ("text",), "fusion": "cross", "num_encoder_layers": 1,
        "condition_dropout": 0.5, "activation_checkpointing": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
@pytest.mark.parametrize("training", [True, False])
def test_lengths_cost_no_pass_and_change_nothing(case, training):
    """Loss, nats and gradients are those of a pass for the codes and one for the lengths."""
    model = make(**TOGETHER[case]).double().train(training)
    given = texts_for([6, 3, 8]) if model.conditions else {}
    batch = Batch.from_codes(random_items([6, 3, 8]), conditions=given)
    names = [name for name, _ in model.named_parameters()]

    def apart():
        context = model.encode_conditions(batch.conditions, batch.lengths)
        masks, score = [model.training_mask(batch)], model._hidden_codes
        if not training:
            masks = [model.held_out_mask(batch, draw) for draw in range(model.config.eval_draws)]
            score = model._all_codes
        states = [model._masked_hidden(batch, mask, context) for mask in masks]
        out = score(batch, masks, states, 0.0, None)
        nats = model.length_head.nats(*model.length(batch.conditions, 3), batch.lengths).sum()
        return out.loss + nats, out.nats, nats

    found = []
    for work in (lambda: model(batch), apart):
        model.zero_grad()
        torch.manual_seed(4)
        made = work()
        if not isinstance(made, tuple):
            made = made.loss, made.nats, made.sums["length_nats"][0]
        made[0].backward()
        found.append([*made, *(p.grad for p in model.parameters())])
    for name, got, want in zip(("loss", "nats", "length nats", *names), *found):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("fusion", ["prefix", "cross"])
def test_length_sees_the_conditions_and_nothing_else(fusion):
    model = make(conditions=("text",), fusion=fusion).eval()
    conditions = Batch.from_codes(random_items([4, 9]), conditions=texts_for([4, 9])).conditions
    centre, scale = model.length(conditions, 2)
    assert centre[0] != centre[1] and scale[0] != scale[1]
    out = [
        model(Batch.from_codes(random_items([4, 9], seed), conditions=texts_for([4, 9])))
        for seed in (0, 1)
    ]
    assert torch.equal(out[0].sums["length_nats"][0], out[1].sums["length_nats"][0])
    # the number of frames does not come in through the places of the text either
    nats = [
        model(Batch.from_codes(random_items([n]), conditions=texts_for([4]))).sums["length_nats"]
        for n in (4, 40)
    ]
    centre, scale = model.length(
        {
            "text": conditions["text"]._replace(
                values=conditions["text"].values[:1, :3], lengths=conditions["text"].lengths[:1]
            )
        },
        1,
    )
    for (found, _), n in zip(nats, (4, 40)):
        want = model.length_head.nats(centre, scale, torch.tensor([n])).sum()
        torch.testing.assert_close(found, want.detach())


def test_length_follows_the_text():
    """How often one symbol stands in the text says how long it is, by a rate of its own."""
    model = make(shake=False, conditions=("text",), condition_dropout=0.0, num_decoder_layers=1)
    generator = torch.Generator().manual_seed(0)

    def batch_of(number):
        steps = torch.randint(3, 12, (number,), generator=generator).tolist()
        texts = [torch.randint(9, (s, 1), generator=generator) for s in steps]
        lengths = [int(s + 3 * (t == 4).sum()) for s, t in zip(steps, texts)]
        return Batch.from_codes([torch.zeros(n, K) for n in lengths], conditions={"text": texts})

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        batch = batch_of(32)
        centre, scale = model.length(batch.conditions, 32)
        loss = model.length_head.nats(centre, scale, batch.lengths).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = batch_of(200)
    with torch.no_grad():
        centre, _ = model.length(batch.conditions, 200)
    error = (centre.exp() / batch.lengths - 1).abs()
    plain = (centre.exp().mean() / batch.lengths - 1).abs()
    assert float(error.mean()) < 0.1 < 0.3 < float(plain.mean())
    options = {"max_frames": 40, "conditions": batch.conditions, "demask": DemaskConfig(steps=1)}
    made = model.generate(temperature=0, **options)
    assert torch.equal(made.lengths, centre.exp().round().long().clamp(max=40))
    assert set(made.stop) == {"eos"}
    drawn = model.generate(temperature=1.0, **options)
    assert not torch.equal(drawn.lengths, made.lengths)
    short = model.generate(temperature=0, **{**options, "max_frames": 8})
    assert torch.equal(short.lengths, made.lengths.clamp(max=8))
    assert [s == "eos" for s in short.stop] == (made.lengths < 8).tolist()
    prompts = torch.zeros(200, 9, K)
    long = model.generate(prompts, temperature=0, **options)
    assert torch.equal(long.lengths, made.lengths.clamp(min=10))
    least = model.generate(temperature=1.0, min_frames=20, **options)
    assert int(least.lengths.min()) >= 20
    fixed = model.generate(temperature=1.0, min_frames=40, **options)
    assert (fixed.lengths == 40).all() and set(fixed.stop) == {"length"}


# ------------------------------------------------------------------------------------ as a whole


def learn_by_heart(model, batch, steps, lr=1e-2):
    """Every step sees each item under four masks."""
    items = torch.arange(len(batch.lengths)).repeat(4)
    fields = (batch.codes, batch.lengths, batch.ends, batch.index)
    four = Batch(*(x[items] for x in fields))
    four.conditions = {k: p.repeat(4) for k, p in batch.conditions.items()}
    if batch.prompt_lengths is not None:
        four.prompt_lengths = batch.prompt_lengths[items]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        out = model(four)
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        out = model.eval()(batch)
    assert float(out.nats.sum() / out.count.sum()) < 0.1


GREEDY = {"sampling": SamplingConfig(temperature=0), "demask": DemaskConfig(score_noise=0.0)}


@pytest.mark.parametrize("masking,steps", [("level", 160), ("coarse_first", 240)])
def test_texts_learnt_by_heart_give_their_codes_and_lengths(masking, steps):
    lengths = [7, 9, 5, 8, 6, 10, 4, 6]
    items = random_items(lengths, seed=1)
    batch = Batch.from_codes(items, conditions=texts_for(lengths))
    model = make(
        shake=False,
        masking=masking,
        mask_schedule="uniform",
        conditions=("text",),
        condition_dropout=0.0,
        prompt_fraction=0.2,
    )
    learn_by_heart(model, batch, steps)
    made = model.generate(max_frames=20, conditions=batch.conditions, **GREEDY)
    assert made.lengths.tolist() == lengths and made.stop == ["eos"] * 8
    for got, want in zip(made.items(), items):
        assert torch.equal(got, want)


def test_prompts_and_gaps_learnt_by_heart():
    items = torch.stack(random_items([7] * 8, seed=3))
    items[:, :2] = torch.arange(8)[:, None, None]  # which of them it is
    batch = Batch.from_codes(list(items), prompt_lengths=[2] * 8)
    model = make(shake=False, masking="frame", mask_schedule="uniform", predict_length=False)
    learn_by_heart(model, batch, 340)
    made = model.generate(items[:, :2], max_frames=7, **GREEDY)
    assert torch.equal(made.codes, items)
    filled = model.infill(items[:, :2], items[:, 5:], 3, **GREEDY)
    assert torch.equal(filled.codes, items) and filled.stop == ["length"] * 8
    assert filled.prompt_lengths.tolist() == [2] * 8


@pytest.mark.parametrize("changes", [{}, {"fusion": "cross"}, {"fusion": "spread"}])
def test_a_stretch_lies_where_it_lies(changes):
    """Frames 5 ... 8 alone, with the conditions of all, as if no others could be seen."""
    model = make(conditions=("text",), **changes).eval()
    codes = torch.stack(random_items([12, 12]))
    frames, stretch = torch.tensor([12, 12]), torch.arange(5, 9).expand(2, 4)
    given = Batch.from_codes(list(codes), conditions=texts_for([12, 12])).conditions
    with torch.no_grad():
        context = model.encode_conditions(given, frames)
        seen = (torch.arange(12) >= 5) & (torch.arange(12) < 9)
        want = model.network(model.embedding(codes), context, seen.expand(2, 12))[:, 5:9]
        got = model.hidden(codes[:, 5:9], torch.tensor([4, 4]), context, stretch)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    made = model.generate(
        codes[:, :4], max_frames=12, min_frames=12, conditions=given,
        demask=DemaskConfig(steps=2, chunk_seconds=0.06, overlap_seconds=0.04),
    )  # fmt: skip
    assert torch.equal(made.codes[:, :4], codes[:, :4]) and (made.codes < V).all()


@pytest.mark.parametrize("masking", MASKINGS)
def test_fills_gaps_verbatim_on_both_sides(masking):
    model = make(masking=masking)
    before, after = torch.stack(random_items([4, 4])), torch.stack(random_items([2, 2], seed=1))
    made = model.infill(before, after, 3)
    assert made.codes.shape == (2, 9, K) and made.lengths.tolist() == [9, 9]
    assert torch.equal(made.codes[:, :4], before) and torch.equal(made.codes[:, 7:], after)
    assert ((made.codes >= 0) & (made.codes < V)).all()
    # what comes after is seen
    other = model.infill(before, (after + 1) % V, 3)
    assert not torch.equal(other.codes[:, 4:7], made.codes[:, 4:7])


@pytest.mark.parametrize(
    "changes",
    [{"head": "mlp", "input_side": "weighted"}, {"shared_head": True, "input_side": "attention"},
     {"head": "residual", "input_side": "attention"}],
)  # fmt: skip
def test_heads_and_input_sides(changes):
    model = make(**changes)
    batch = Batch.from_codes(random_items([6, 4]))
    model.train()(batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    again = Masked(model.config, INFO, {}).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch).loss, again(batch).loss)
    assert {id(p) for p in model.muon_parameters()} <= {id(p) for p in model.parameters()}
    assert model.generate(max_frames=5, min_frames=5).lengths.tolist() == [5]


def test_bf16_autocast_is_near_float32():
    model = make()
    batch = Batch.from_codes(random_items([9, 6]))
    for mode in (True, False):
        losses = []
        for enabled in (False, True):
            torch.manual_seed(2)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = model.train(mode)(batch)
            losses.append(float(out.loss.detach()))
            assert out.nats.dtype == torch.float32
        assert losses[0] != losses[1] and abs(losses[1] / losses[0] - 1) < 0.02


def test_refusals():
    with pytest.raises(UserError) as e:
        make(
            masking="time",
            mask_ratio=1.5,
            level_distribution="normal",
            prompt_fraction=1.0,
            eval_draws=0,
            num_decoder_layers=0,
        )
    for flag in ("masking", "mask-ratio", "level-distribution", "prompt-fraction", "eval-draws"):
        assert f"--{flag}" in str(e.value)
    assert "--num-decoder-layers" in str(e.value)
    with pytest.raises(
        UserError, match=r"mask-ratio 0\.5 means nothing without --mask-schedule fixed"
    ):
        make(mask_ratio=0.5)
    with pytest.raises(UserError, match="scores one level anyway"):
        make(masking="coarse_first", level_training="random")
    model = make()
    with pytest.raises(UserError, match="fine-steps 2"):
        model.generate(max_frames=4, demask=DemaskConfig(fine_steps=2))
    with pytest.raises(UserError, match=r"steps 0 must.*fine-steps 0 must.*score-noise goes with"):
        options = {"steps": 0, "fine_steps": 0, "score": "random", "score_noise": 1.0}
        model.generate(max_frames=4, demask=DemaskConfig(**options))
    with pytest.raises(UserError, match="trained with conditions"):
        model.generate(max_frames=4, sampling=SamplingConfig(cfg_scale=2.0))


def test_parts_of_recordings_teach_no_length():
    model = make().eval()
    batch = Batch.from_codes(random_items([7, 5, 6]), ends=[True, True, False])
    batch.begins = torch.tensor([True, False, True])
    whole = Batch.from_codes(random_items([7, 5, 6])[:1])
    with torch.no_grad():
        got, want = model(batch).sums["length_nats"], model(whole).sums["length_nats"]
    assert float(got[1]) == 1.0
    torch.testing.assert_close(got, want)
