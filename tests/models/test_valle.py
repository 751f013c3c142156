"""valle: what its two networks are given, what counts in the loss, which options change what."""

from dataclasses import replace

import pytest
import torch
from valle_models import (
    OPTIONS,
    TEXT,
    K,
    V,
    make,
    naive,
    random_items,
    texts,
)

from rvqlm.batch import Batch
from rvqlm.cli import parse
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.models.valle import Valle, ValleConfig
from rvqlm.modules.durations import times_of


@pytest.mark.parametrize("option", ["plain", "prepend_bos", "share_embedding", "add_prenet"])
def test_loss_equals_a_naive_one(option):
    model, items, prompts = make(**OPTIONS[option]), random_items([7, 4, 5]), [3, 0, 4]
    out = model(Batch.from_codes(items, prompt_lengths=prompts))
    each = [naive(model, c, p) for c, p in zip(items, prompts)]
    nats, ends = (sum(parts) for parts in zip(*each))
    torch.testing.assert_close(out.nats, nats)
    torch.testing.assert_close(out.loss, nats.sum() + ends)
    torch.testing.assert_close(out.sums["end_nats"][0], ends)
    assert float(out.sums["end_nats"][1]) == 4 + 4 + 1 + 3
    assert out.count.tolist() == [4.0 + 4 + 1] * K and float(out.normalizer) == 9 * K


def test_untrained_loss_is_ln_v_and_whole_sequences_are_scored():
    out = make(shake=False)(Batch.from_codes(random_items([7, 3])))
    assert out.count.tolist() == [10.0] * K and out.sums["accuracy"][0].tolist() == [0.0] * K
    torch.testing.assert_close(out.nats / out.count, torch.full((K,), float(V)).log())


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
def test_coarse_sees_prompts_whole_and_of_the_rest_level_0_before(option):
    model = make(**OPTIONS[option])
    codes, P = random_items([7])[0], 3
    lengths, prompts = torch.tensor([7]), torch.tensor([P])
    shift = model.ar.shift

    def hidden(c):
        """(7, d): row t predicts frame t."""
        columns = model.ar.columns(c[None], lengths, prompts)
        return model.ar.network(model.ar.inputs(columns))[0, shift:]

    before = hidden(codes)
    for t in range(7):
        for k in range(K):
            changed = codes.clone()
            changed[t, k] = (changed[t, k] + 1) % V
            differs = (hidden(changed) != before).any(-1)  # by frame
            visible = k == 0 or t < P
            assert differs[P:].tolist() == [visible and s > t for s in range(P, 8)]


def test_no_gradient_from_later_frames():
    model = make()
    ids = model.ar.columns(random_items([6])[0][None], torch.tensor([6]), torch.tensor([2]))
    vectors = model.ar.inputs(ids).detach().requires_grad_()
    hidden = model.ar.network(vectors)
    for s in range(6):
        grad = torch.autograd.grad(hidden[0, s].square().sum(), vectors, retain_graph=True)[0][0]
        assert grad[s + 1 :].abs().max() == 0 and grad[: s + 1].abs().amax(-1).min() > 0


def test_fine_sees_lower_levels_of_targets_and_all_of_what_is_known():
    model = make()
    codes, lengths = random_items([6])[0], torch.tensor([6])
    known = torch.tensor([[True, False, False, False, False, True]])

    def hidden(c, level):
        return model.nar.hidden(c[None], lengths, known, torch.tensor([level]), None)

    for level in range(1, K):
        before = hidden(codes, level)
        for t in range(6):
            for k in range(K):
                changed = codes.clone()
                changed[t, k] = (changed[t, k] + 1) % V
                differs = (hidden(changed, level) != before).any(-1)[0]
                assert differs.tolist() == [bool(known[0, t]) or k < level] * 6


@pytest.mark.parametrize("option", ["plain", "prepend_bos"])
@pytest.mark.parametrize("conditions", [(), ("text",)])
def test_padding_and_batch_composition_change_nothing(option, conditions):
    model = make(conditions=conditions, **OPTIONS[option])
    items, prompts, given = random_items([9, 2, 5]), [4, 0, 1], texts(3)

    def batch(rows):
        text = {"text": [given[i] for i in rows]} if conditions else None
        picked = [items[i] for i in rows], None, text, [prompts[i] for i in rows]
        return Batch.from_codes(*picked)

    together = model(batch([0, 1, 2]))
    alone = [model(batch([i])) for i in range(3)]
    torch.testing.assert_close(together.loss, sum(o.loss for o in alone))
    torch.testing.assert_close(together.nats, sum(o.nats for o in alone))
    assert torch.equal(together.sums["accuracy"][0], sum(o.sums["accuracy"][0] for o in alone))


def test_crops_do_not_teach_an_end():
    out = make()(Batch.from_codes(random_items([5, 5]), ends=[True, False]))
    assert float(out.sums["end_nats"][1]) == 6 + 5
    assert "end_nats" not in make(model_end=False)(Batch.from_codes(random_items([5]))).sums


# ------------------------------------------------------------------------------------- training


def test_training_scores_one_level_of_each_item_and_on_average_all(monkeypatch):
    model = make(model_end=False)
    batch = Batch.from_codes(random_items([6, 4, 9, 5]), prompt_lengths=[2, 0, 3, 1])
    weights = torch.tensor([2.0, 1.0, 0.5, 3.0])
    kinds = {"plain": {}, "weighted": {"level_weights": weights, "label_smoothing": 0.1}}
    whole = {kind: model(batch, **options) for kind, options in kinds.items()}
    model.train()
    out = model(batch)
    targets = batch.scored().sum(1).tolist()
    assert out.count[0] == sum(targets)
    assert out.count[1:].sum() == sum(targets)
    assert float(out.normalizer) == sum(targets) * K
    torch.testing.assert_close(out.loss, out.nats[0] + (K - 1) * out.nats[1:].sum())
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        seen.add(tuple(model._levels(4, torch.device("cpu"))[0].tolist()))
        torch.manual_seed(seed)
        first = model(batch).nats
        torch.manual_seed(seed)
        assert torch.equal(first, model(batch).nats)
    assert len(seen) > 10 and {level for levels in seen for level in levels} == {1, 2, 3}
    for kind, options in kinds.items():
        # over all levels in turn the mean of the loss is the loss of all levels, and so is the
        # gradient's
        total = 0.0
        for level in range(1, K):
            monkeypatch.setattr(
                model, "_levels", lambda n, device, level=level: [torch.full((n,), level)]
            )
            out = model(batch, **options)
            total = total + out.loss / (K - 1)
            assert float(out.normalizer) == float(whole[kind].normalizer)
        torch.testing.assert_close(total, whole[kind].loss)
        wanted = torch.autograd.grad(whole[kind].loss, model.nar.heads.weight)[0]
        got = torch.autograd.grad(total, model.nar.heads.weight)[0]
        torch.testing.assert_close(got, wanted)


def test_smoothing_changes_the_loss_only():
    model, batch = make(), Batch.from_codes(random_items([8, 4]))
    assert not torch.isclose(model(batch, label_smoothing=0.1).loss, model(batch).loss)
    torch.testing.assert_close(model(batch, label_smoothing=0.1).nats, model(batch).nats)


def test_split_into_prompt_and_target():
    lengths = torch.tensor([1, 2, 10, 101, 1000])
    whole = {"unprompted_share": 0.0}
    assert make(**whole).split(lengths).tolist() == [0, 0, 4, 40, 400]
    assert make(prompt_fraction=0.999, **whole).split(lengths).tolist() == [0, 1, 9, 100, 999]
    seconds = make(prompt_mode="seconds", prompt_seconds=2.0, **whole)  # of 50 frames
    assert seconds.split(lengths).tolist() == [0, 1, 5, 50, 100]
    assert make(prompt_mode="none").split(lengths).tolist() == [0] * 5
    torch.manual_seed(0)
    prompts = make(unprompted_share=0.25).split(torch.full((4000,), 10))
    assert prompts.unique().tolist() == [0, 4]
    assert 0.22 < (prompts == 0).float().mean() < 0.28


def test_own_split_in_training_only_and_prompts_are_never_scored():
    model = make(unprompted_share=0.0, infill_share=0.0)
    batch = Batch.from_codes(random_items([10, 20]))
    assert model(batch).count.tolist() == [30.0] * K
    model.train()
    out = model(batch)
    assert out.count[0] == out.count[1:].sum() == 6 + 12
    assert float(out.sums["end_nats"][1]) == 7 + 13
    assert model(Batch.from_codes(random_items([10]), prompt_lengths=[9])).count[0] == 1
    assert batch.prompt_lengths is None  # the caller's batch is as it was


def test_infill_share_shows_the_nar_ends_and_the_ar_none():
    model = make(unprompted_share=0.0, infill_share=0.5).train()
    batch = Batch.from_codes(random_items([10] * 200))
    batch.prompt_lengths = torch.full((200,), 4)
    torch.manual_seed(0)
    tails = model._known(batch, random=True)[:, 4:].sum(1)
    assert tails.unique().tolist() == [0, 1, 2, 3, 4, 5]  # a frame is left in any case
    assert 0.3 < (tails > 0).float().mean() < 0.55
    batch.prompt_lengths = None
    out = model(batch)
    assert out.count[0] == 200 * 6 and 200 < out.count[1:].sum() < 200 * 6
    # the weight of the NAR in a step follows what it scored
    assert out.normalizer == out.count[0] + (K - 1) * out.count[1:].sum()
    model.config.infill_share = 0.0
    assert model(batch).count[1:].sum() == 200 * 6


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stages_train_their_part_only(stage):
    given = {"conditions": ("text",), "infos": {"text": replace(TEXT["text"], aligned=True)}}
    model = make(train_stage=stage, **given).train()
    assert model.stage == stage
    batch = Batch.from_codes(random_items([9, 6]), conditions={"text": texts(2)})
    times = times_of(torch.full((2, 5), 1.5))
    batch.conditions["text"] = batch.conditions["text"]._replace(times=times)
    parts = {"ar": stage in (0, 1), "nar": stage in (0, 2), "duration_head": stage in (0, 1)}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    out = model(batch)
    out.loss.backward()
    for name, p in model.named_parameters():  # all that is trained takes part
        assert (p.grad is not None) == p.requires_grad == parts[name.split(".")[0]]
    optimizer.step()
    changed = {n.split(".")[0] for n, p in model.named_parameters() if (p != before[n]).any()}
    assert changed == {name for name, trained in parts.items() if trained}
    assert (out.count[0] > 0) == parts["ar"] == ("end_nats" in out.sums)
    assert ("duration_nats" in out.sums) == parts["ar"]
    assert (out.count[1:].sum() > 0) == parts["nar"]
    assert all(p.requires_grad for p in model.muon_parameters())
    assert len(model.muon_parameters()) > 0
    model.eval()
    scored = [15.0] * (1 if stage == 1 else K) + [0.0] * (K - 1 if stage == 1 else 0)
    assert model(batch).count.tolist() == scored
    assert model(batch).sums["duration_nats"][1] > 0
    # weights go from stage to stage
    joint = make(**given, shake=False)
    joint.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(batch).nats[0], joint(batch).nats[0])


@pytest.mark.parametrize("option", OPTIONS)
def test_saved_weights_give_the_same_loss_and_codes(option):
    model, again = make(**OPTIONS[option]), make(shake=False, **OPTIONS[option])
    batch = Batch.from_codes(random_items([6, 3]))
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(batch).loss, again(batch).loss)
    made = [m.generate(batch_size=2, max_frames=6, seed=3).codes for m in (model, again)]
    assert torch.equal(*made)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_another_model_and_trains(option):
    model, plain = make(shake=False, **OPTIONS[option]), make(shake=False)
    if option != "plain":
        count = [sum(p.numel() for p in m.parameters()) for m in (model, plain)]
        names = [set(m.state_dict()) for m in (model, plain)]
        assert count[0] != count[1] or names[0] != names[1]
    batch = Batch.from_codes(random_items([8, 8, 8, 8]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.no_grad():
        first = model(batch).nats
    model.train()
    for _ in range(25):
        optimizer.zero_grad()
        out = model(batch)
        out.loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (model(batch).nats < 0.97 * first).all()


def test_prenet_has_dropout():
    model = make(add_prenet=True, dropout=0.5).train()
    ids = torch.zeros(1, 3, K, dtype=torch.long)
    assert not torch.equal(model.ar.inputs(ids), model.ar.inputs(ids))
    model.eval()
    assert torch.equal(model.ar.inputs(ids), model.ar.inputs(ids))


# ------------------------------------------------------------------------------------ refusals


def test_all_problems_in_one_message():
    config = ValleConfig(
        decoder_dim=30,
        nhead=2,
        train_stage=3,
        prompt_mode="half",
        prompt_fraction=1.5,
        prompt_seconds=-1.0,
        unprompted_share=2.0,
        infill_share=-0.5,
        nar_scale_factor=0.7,
        num_nar_layers=-1,
        conditions=("midi",),
    )
    with pytest.raises(UserError) as error:
        Valle(config, CodecInfo("mono", "0" * 16, 16000, 320, 1, V))
    for part in (
        "--decoder-dim 30 / --nhead 2 must be even",
        "--train-stage 3",
        "--prompt-mode 'half'",
        "--prompt-fraction 1.5",
        "--prompt-seconds -1.0",
        "--unprompted-share 2.0",
        "--infill-share -0.5",
        "--nar-scale-factor 0.7 makes the NAR 21 wide",
        "--num-nar-layers -1",
        "--conditions midi: no description",
        "mono has 1",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"nar_scale_factor": 0.01}, "0.32 wide"),
        ({"nar_scale_factor": 0.0}, "more than 0"),
        ({"prompt_mode": "seconds", "prompt_seconds": 0.001}, "less than a frame"),
    ],
)
def test_bad_shapes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_a_first_stage_does_not_generate():
    with pytest.raises(UserError, match="--train-stage 2"):
        make(train_stage=1).generate(max_frames=4)
    with pytest.raises(UserError, match="--train-stage 2"):
        make(train_stage=1).infill(torch.zeros(1, 2, K), torch.zeros(1, 2, K), 3)
    assert make(train_stage=2).generate(max_frames=4, min_frames=4).lengths.tolist() == [4]


def test_flags():
    line = ["--d-model", "64", "--num-layers", "3", "--train-stage", "2", "--no-norm-first"]
    config = parse(ValleConfig, "valle", "", [*line, "--prompt-mode", "seconds"])
    assert (config.decoder_dim, config.num_decoder_layers) == (64, 3)
    assert (config.train_stage, config.norm_first, config.prompt_mode) == (2, False, "seconds")
