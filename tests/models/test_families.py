"""What must hold for every family x pattern x condition."""

import json
from pathlib import Path

import pytest
import torch
from families import ALL, INFO, PAIRWISE, K, V, make, random_batch, single, tell_times

from rvqlm.batch import PAD, Batch, Padded
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig
from rvqlm.models.factory import build_model, config_dict
from rvqlm.patterns import PATTERNS

GOLDEN = Path(__file__).with_name("golden_losses.json")
LENGTHS = [9, 3, 6]
AUTOREGRESSIVE = [c for c, (name, _) in PAIRWISE.items() if name == "codec-lm"]
conditioned = [c for c, (_, config) in PAIRWISE.items() if config.get("conditions")]


@pytest.mark.parametrize("case", PAIRWISE)
def test_padding_and_batch_composition_change_nothing(case):
    model = make(case).eval()
    batch = random_batch(model, LENGTHS, prompt_lengths=[2, 0, 3])
    with torch.no_grad():
        together = model(batch)
        alone = [model(single(batch, i)) for i in range(3)]
    for name in ("loss", "nats", "normalizer", "count"):
        got, want = getattr(together, name), sum(getattr(o, name) for o in alone)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    if model.name == "masked":  # of what random masks hide
        assert 0 < float(together.count.min()) <= float(together.count.max()) < 3 * sum(LENGTHS)
    else:
        assert together.count.tolist() == [sum(LENGTHS) - 5.0] * K  # prompts are not scored
    if model.duration_head is not None:
        assert float(together.sums["duration_nats"][1]) == 2 + sum(
            int(n) for n in batch.conditions["text"].lengths[[0, 2]]
        )
        for got, *want in zip(*(o.sums["duration_nats"] for o in (together, *alone))):
            torch.testing.assert_close(got, sum(want), rtol=1e-4, atol=1e-4)
    for of_items, name in zip(together.items, ("nats", "count")):  # (B, K)
        want = torch.stack([getattr(o, name) for o in alone])
        torch.testing.assert_close(of_items, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", PAIRWISE)
def test_every_parameter_takes_part(case):
    """Data parallelism waits for the gradients of all parameters."""
    model = make(case).train()
    batch = random_batch(model, LENGTHS)
    for kind in batch.conditions:  # some item without, some with
        batch.conditions[kind].lengths[0] = 0
    torch.manual_seed(1)
    model(batch).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    if model.duration_head is not None:  # of a batch without a single time, too
        model.zero_grad()
        batch.conditions["text"] = batch.conditions["text"]._replace(times=None)
        out = model(batch)
        out.loss.backward()
        assert [float(x) for x in out.sums["duration_nats"]] == [0.0, 0.0]
        assert all(p.grad is not None for p in model.duration_head.parameters())


@pytest.mark.parametrize("case", PAIRWISE)
def test_saved_weights_give_the_same_loss(case):
    model = make(case).eval()
    again = build_model(model.name, config_dict(model), INFO, model.conditions).eval()
    batch = random_batch(model, LENGTHS)
    with torch.no_grad():
        before = again(batch).loss
        again.load_state_dict(model.state_dict())
        assert torch.equal(model(batch).loss, again(batch).loss)
        assert not torch.equal(before, again(batch).loss)


def golden_loss(case) -> list[float]:
    """Loss of fixed weights on fixed codes: numbers from formulas, not from a random generator."""
    model = make(case, shake=False).eval()
    for number, (_, p) in enumerate(sorted(model.named_parameters())):
        values = torch.arange(p.numel(), dtype=torch.float64)
        p.data = (0.3 * torch.sin(values * 0.7 + number)).view(p.shape).float()
    items = [(torch.arange(n * K) * 5 % V).view(n, K) for n in LENGTHS]
    given = {
        kind: [
            torch.stack([(torch.arange(n) * 3 + f) % s for f, s in enumerate(info.sizes)], 1)
            for n in (LENGTHS if kind == "source" else (4, 2, 5))
        ]
        for kind, info in model.conditions.items()
    }
    with torch.no_grad():
        out = model(Batch.from_codes(items, conditions=given, prompt_lengths=[1, 0, 2]))
    return [round(float(out.loss), 3), *[round(float(n), 3) for n in out.nats]]


@pytest.mark.parametrize("case", ALL)
def test_golden_losses(case):
    """A change of these numbers is a change of what trained weights mean. After a wanted one:
    ``PYTHONPATH=tests/helpers python tests/models/test_families.py`` writes them anew."""
    golden = json.loads(GOLDEN.read_text())
    assert case in golden, f"{GOLDEN.name} has no {case}: the command of this docstring writes it"
    torch.testing.assert_close(golden_loss(case), golden[case], rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("case", AUTOREGRESSIVE)
def test_no_gradient_from_the_code_itself_or_later_ones(case):
    """The nats of one code depend on no embedding of a later step, itself included."""
    model = make(case).eval()
    batch = random_batch(model, [7])
    grid, _ = model.pattern.interleave(batch.codes, batch.lengths, model.special)
    vectors = model.embedding(model.shift(grid)).detach().requires_grad_()
    context = model.encode_conditions(batch.conditions, 1)
    positions = model.pattern.positions(torch.arange(grid.shape[1]), batch.lengths)
    hidden = model.network(vectors, context, positions=positions)
    for s in range(0, hidden.shape[1], 3):
        grad = torch.autograd.grad(hidden[:, s].square().sum(), vectors, retain_graph=True)[0]
        assert not grad[:, s + 1 :].any()
        assert grad[:, : s + 1].abs().amax(-1).min() > 0
    # the input of step s is the grid before it
    inputs = model.shift(grid)
    assert (inputs[:, 0] == model.special).all() and torch.equal(inputs[:, 1:], grid[:, :-1])


@pytest.mark.parametrize("case", AUTOREGRESSIVE)
def test_cached_equals_full(case):
    model = make(case).eval()
    batch = random_batch(model, [7, 7])
    grid, _ = model.pattern.interleave(batch.codes, batch.lengths, model.special)
    inputs = model.shift(grid)
    S = inputs.shape[1]
    with torch.no_grad():
        full = model.hidden(inputs, batch.lengths, model.encode_conditions(batch.conditions, 2))
        state = model.begin(batch.conditions, 2, S)
        for start, n in [(0, 4), *[(s, 1) for s in range(4, S)]]:
            steps = torch.arange(start, start + n)
            positions = model.pattern.positions(steps, batch.lengths)
            last, _ = model.step(inputs[:, start : start + n], state, positions)
            torch.testing.assert_close(last, full[:, start + n - 1], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("case", AUTOREGRESSIVE)
def test_greedy_equals_recomputing_everything(case):
    """Each generated code is the most likely one of a full pass over what came before."""
    model = make(case).eval()
    model.end_head = None
    batch = random_batch(model, [6, 6])
    if model.duration_head is not None:  # which would say what is not told
        tell_times(batch, but=None)
    made = model.generate(
        batch.codes[:, :2], max_frames=6, temperature=0, conditions=batch.conditions
    )
    assert made.stop == ["length"] * 2 and made.lengths.tolist() == [6, 6]
    with torch.no_grad():
        grid, valid = model.pattern.interleave(made.codes, made.lengths, V)
        hidden = model.hidden(
            model.shift(grid), made.lengths, model.encode_conditions(batch.conditions, 2)
        )
        targets = grid.masked_fill(~valid, 0)
        logits = model.heads(hidden.flatten(0, 1), targets.flatten(0, 1))
        best = logits.argmax(-1).view(grid.shape)
    cells = model.pattern.cells(torch.arange(grid.shape[1]), made.lengths)
    new = valid & (cells >= 2)
    assert torch.equal(best[new], grid[new])


@pytest.mark.parametrize("case", PAIRWISE)
def test_prompts_verbatim_and_items_independent_of_the_batch(case):
    model = make(case).eval()
    batch = random_batch(model, [6, 6, 6])
    lengths = torch.tensor([6, 2, 4])
    options = {"max_frames": 11, "seed": 5, "min_frames": 9}
    made = model.generate(batch.codes, lengths, conditions=batch.conditions, **options)
    for b, n in enumerate(lengths.tolist()):
        assert torch.equal(made.codes[b, :n], batch.codes[b, :n].long())
    for codes, n in zip(made.codes, made.lengths.tolist()):
        assert 9 <= n <= 11
        assert ((codes[:n] >= 0) & (codes[:n] < V)).all() and (codes[n:] == PAD).all()
    second = single(batch, 1)
    alone = model.generate(second.codes[:, :2], rows=[1], conditions=second.conditions, **options)
    assert torch.equal(alone.items()[0], made.items()[1])
    other = model.generate(
        batch.codes, lengths, conditions=batch.conditions, **{**options, "seed": 6}
    )
    assert any(not torch.equal(a, b) for a, b in zip(other.items(), made.items()))


@pytest.mark.parametrize("case", ["aligned-masked-spread", "aligned-valle-spread"])
def test_cast_to_bf16(case):
    model = make(case).eval().bfloat16()
    batch = random_batch(model, [6, 4])
    made = model.generate(max_frames=9, conditions=batch.conditions)
    assert made.lengths.min() > 0 and made.lengths.max() <= 9


@pytest.mark.parametrize("case", conditioned)
def test_guidance(case):
    """Scale 1 is no guidance, 0 forgets the condition, others change the outcome."""
    model = make(case).eval()
    batch = random_batch(model, [6] * 8)

    def made(scale, conditions):
        sampling = SamplingConfig(temperature=1.0, cfg_scale=scale)
        options = {"max_frames": 9, "min_frames": 9, "sampling": sampling}
        return model.generate(batch_size=8, conditions=conditions, **options).codes

    given = batch.conditions
    plain = made(1.0, given)
    assert torch.equal(made(0.0, given), made(1.0, {}))
    assert not torch.equal(plain, made(1.0, {}))
    assert not torch.equal(made(50.0, given), plain)
    # u + 1 (c - u) is c but for rounding: the doubled batch says the same
    assert torch.equal(made(1.0 + 1e-7, given), plain)


@pytest.mark.parametrize("case", PAIRWISE)
def test_what_a_family_cannot_do_is_refused(case):
    model = make(case)
    if not model.conditions:
        with pytest.raises(UserError, match="trained with conditions"):
            model.generate(max_frames=4, sampling=SamplingConfig(cfg_scale=2.0))
    else:
        with pytest.raises(UserError, match="nothing to be guided by"):
            model.generate(max_frames=4, sampling=SamplingConfig(cfg_scale=2.0))
    with pytest.raises(UserError, match="condition"):
        model.generate(max_frames=4, conditions={"smell": Padded.of([torch.ones(2)], 1)})
    if case in AUTOREGRESSIVE:
        with pytest.raises(UserError, match="only masked models"):
            model.generate(max_frames=4, demask=DemaskConfig(steps=3))
        with pytest.raises(UserError, match="cannot fill a gap"):
            model.infill(torch.zeros(1, 2, K), torch.zeros(1, 2, K), 3)


def test_one_level_works_everywhere():
    info = CodecInfo("toy", "0" * 16, 16000, 320, 1, V)
    codes = [c[:, :1] for c in [torch.randint(V, (5, 3))]]
    for pattern in PATTERNS:
        config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "pattern": pattern}
        model = build_model("codec-lm", config, info)
        assert model.exact_likelihood
        assert model(Batch.from_codes(codes)).count.tolist() == [5.0]
        assert model.generate(max_frames=4, min_frames=4).lengths.tolist() == [4]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({case: golden_loss(case) for case in ALL}, indent=1) + "\n")
    print(f"wrote {GOLDEN}")
