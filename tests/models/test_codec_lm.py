"""codec-lm: what its loss counts, what it may see, and that it learns what it is shown."""

import pytest
import torch
import torch.nn.functional as F

from rvqlm.batch import Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.factory import build_model, config_dict
from rvqlm.patterns import PATTERNS

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)


def make(pattern="delay", shake=True, **changes):
    torch.manual_seed(0)
    config = CodecLMConfig(
        pattern=pattern, decoder_dim=32, nhead=2, num_decoder_layers=2, **changes
    )
    model = CodecLM(config, INFO)
    if shake:  # heads and residual branches start at zero
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return model


def random_items(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (n, K), generator=generator) for n in lengths]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_untrained_loss_is_ln_v_and_each_code_counts_once(pattern):
    out = make(pattern, shake=False)(Batch.from_codes(random_items([7, 3, 5])))
    assert out.count.tolist() == [15.0] * K
    assert float(out.normalizer) == 15 * K
    assert out.sums["accuracy"][0].tolist() == [0.0] * K  # all logits are equal
    torch.testing.assert_close(out.nats / out.count, torch.full((K,), float(V)).log())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_loss_equals_a_naive_one(pattern):
    """One item, step by step, cross entropy of every code given the inputs before it."""
    model = make(pattern)
    codes = random_items([6])[0]
    out = model(Batch.from_codes([codes]))
    S = model.pattern.grid_steps(6, with_end=True)
    frames = model.pattern.cells(torch.arange(S), torch.tensor([6]))[0]
    frames = frames.masked_fill(frames >= 6, -1)
    inputs = torch.full((1, S, K), V)
    for s in range(1, S):
        for k in range(K):
            if frames[s - 1, k] >= 0:
                inputs[0, s, k] = codes[frames[s - 1, k], k]
    hidden = model.hidden(inputs, torch.tensor([6]))[0]
    logits = model.heads(hidden)
    nats = torch.zeros(K)
    for s in range(S):
        for k in range(K):
            if (t := int(frames[s, k])) >= 0:
                nats[k] += F.cross_entropy(logits[s, k], codes[t, k])
    torch.testing.assert_close(out.nats, nats)
    end = 0.0
    for t in range(7):
        step = int(model.pattern.end_step(t))
        p = model.end_head(hidden[step]).sigmoid()
        end = end - (p if t == 6 else 1 - p).log()
    torch.testing.assert_close(out.loss, nats.sum() + end)
    assert float(out.sums["end_nats"][1]) == 7


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_code_is_predicted_from_itself_or_later(pattern):
    """Changing a code changes no logit at its own step or before."""
    model = make(pattern)
    codes = random_items([6])[0][None]
    lengths = torch.tensor([6])
    grid, _ = model.pattern.interleave(codes, lengths, V)
    before = model.hidden(model.shift(grid), lengths)
    for t, k in [(0, 0), (2, 1), (5, 2)]:
        changed = codes.clone()
        changed[0, t, k] = (changed[0, t, k] + 1) % V
        after = model.hidden(model.shift(model.pattern.interleave(changed, lengths, V)[0]), lengths)
        step = int(model.pattern.steps(torch.tensor([t]), lengths)[0, 0, k])
        assert torch.equal(before[:, : step + 1], after[:, : step + 1])
        if step + 1 < before.shape[1]:
            assert not torch.equal(before[:, step + 1], after[:, step + 1])


def test_crops_do_not_teach_an_end():
    model = make()
    items = random_items([5, 5])
    out = model(Batch.from_codes(items, ends=[True, False]))
    assert float(out.sums["end_nats"][1]) == 6 + 5
    assert "end_nats" not in make(model_end=False)(Batch.from_codes(items)).sums


def test_level_weights_and_smoothing_change_the_loss_only():
    model = make(model_end=False)
    batch = Batch.from_codes(random_items([8, 4]))
    plain = model(batch)
    weighted = model(batch, level_weights=torch.tensor([1.0, 0.0, 2.0]))
    torch.testing.assert_close(weighted.loss, plain.nats[0] + 2 * plain.nats[2])
    assert float(weighted.normalizer) == 12 * 3
    assert not torch.isclose(model(batch, label_smoothing=0.1).loss, plain.loss)
    torch.testing.assert_close(model(batch, label_smoothing=0.1).nats, plain.nats)


@pytest.mark.parametrize("pattern", [*PATTERNS, "custom", "depth"])
def test_overfits_and_regenerates_exactly(pattern):
    """8 sequences memorised, continued greedily from 2 frames, ends included."""
    how = {
        "custom": {"pattern": "delay", "delays": (0, 2, 1)},
        "depth": {"pattern": "parallel", "head": "depth", "depth_dim": 16},
    }.get(pattern, {"pattern": pattern})
    model = make(shake=False, **how)
    items = random_items([12, 9, 15, 10, 7, 14, 11, 8], seed=1)
    for i, item in enumerate(items):
        item[0] = i
    batch = Batch.from_codes(items)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # which of the 8 it is cannot be known before the first step: 8 ln 8 nats remain, for each of
    # the codes made in that step
    floor = 8 * torch.tensor(8.0).log() * (K if pattern == "parallel" else 1)
    for _ in range(400):
        out = model(batch)
        if float(out.loss.detach() - floor) < 1:
            break
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert 0 <= float(out.loss.detach() - floor) < 2
    prompts = torch.stack([i[:2] for i in items])
    made = model.generate(prompts, max_frames=20, sampling=SamplingConfig(temperature=0))
    assert made.lengths.tolist() == [len(i) for i in items]
    assert made.stop == ["eos"] * 8
    for got, want in zip(made.items(), items):
        assert torch.equal(got, want)


def test_bf16_autocast_is_near_float32():
    """The path of machines with bf16 units, emulated here at toy size."""
    model = make()
    batch = Batch.from_codes(random_items([9, 6]))
    grads, losses = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(batch)
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert out.nats.dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert losses[0] != losses[1]  # it did compute in bf16
    assert abs(losses[1] / losses[0] - 1) < 0.02
    assert F.cosine_similarity(*grads, dim=0) > 0.99


def test_factory_round_trip_and_errors():
    model = make()
    again = build_model("codec-lm", config_dict(model), INFO)
    again.load_state_dict(model.state_dict())
    batch = Batch.from_codes(random_items([5]))
    assert torch.equal(model(batch).loss, again(batch).loss)
    assert {id(p) for p in model.muon_parameters()} <= {id(p) for p in model.parameters()}
    with pytest.raises(UserError, match="no option depth"):
        build_model("codec-lm", {"depth": 3}, INFO)
    with pytest.raises(UserError, match="unknown model"):
        build_model("gru", {}, INFO)


def test_scheduled_sampling_costs_one_pass_and_only_training_has_it():
    model = make(scheduled_sampling=1.0).train()
    batch = Batch.from_codes(random_items([9, 6]))
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    model.progress = 0.0
    begin = model(batch).loss
    assert len(calls) == 2
    plain = make().train()(batch).loss
    torch.testing.assert_close(begin, plain)  # nothing is replaced yet
    model.progress = 0.7
    mixed = model(batch)
    assert not torch.isclose(mixed.loss, plain)
    assert mixed.count.tolist() == [15.0] * K
    model.eval()
    torch.testing.assert_close(model(batch).loss, plain)  # measured on the data alone


def test_code_dropout_hides_inputs_in_training_alone():
    model = make(code_dropout=0.4).train()
    seen = []
    model.embedding.register_forward_hook(lambda _, args, __: seen.append(args[0].clone()))
    batch = Batch.from_codes(random_items([200]))
    torch.manual_seed(0)
    out = model(batch)
    model.eval()
    plain = make()(batch).loss
    torch.testing.assert_close(model(batch).loss, plain)  # measured with all of the codes
    assert not torch.isclose(out.loss, plain)
    assert out.count.tolist() == [200.0] * K  # what is hidden is still predicted
    hidden, whole = seen
    changed = hidden != whole
    assert (hidden[changed] == V).all()
    assert 0.3 < changed[whole != V].float().mean() < 0.5


def test_all_of_the_inputs_can_be_predictions():
    """With everything replaced, the codes of an item reach its loss as targets only: the inputs of
    a model whose predictions are certain are these predictions."""
    model = make(scheduled_sampling=1.0, model_end=False).train()
    model.progress = 1.0
    seen = []
    model.embedding.register_forward_hook(lambda _, args, __: seen.append(args[0].clone()))
    with torch.no_grad():
        model.heads.weight[:] = 0
    favourite = torch.tensor([4, 7, 1])
    model.heads.forward = lambda hidden, targets: (
        F.one_hot(favourite, V).float().mul(1e4).expand(len(hidden), K, V)
    )
    model(Batch.from_codes(random_items([5])))
    inputs = seen[-1][0]  # (S, K)
    for k in range(K):
        assert (inputs[1 + k : 6 + k, k] == favourite[k]).all()
        assert (inputs[: 1 + k, k] == V).all()


@pytest.mark.parametrize("kind", ["prefix", "cross"])
def test_learns_to_say_what_the_text_says(kind):
    """Which of the 8 items it is follows from the text alone: nothing remains unexplained."""
    infos = {"text": ConditionInfo("text", (9,), rate=2.0)}
    torch.manual_seed(0)
    config = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2, "conditions": ("text",)}
    config |= {"fusion": kind, "num_encoder_layers": int(kind == "cross"), "condition_dropout": 0.0}
    model = build_model("codec-lm", config, INFO, infos)
    items = random_items([12, 9, 15, 10, 7, 14, 11, 8], seed=1)
    texts = [torch.tensor([[1 + i % 4], [5 + i // 4], [3]]) for i in range(8)]
    batch = Batch.from_codes(items, conditions={"text": texts})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        out = model(batch)
        if float(out.loss.detach()) < 1:
            break
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert float(out.loss.detach()) < 2
    made = model.generate(max_frames=20, temperature=0, conditions=batch.conditions)
    assert made.lengths.tolist() == [len(i) for i in items]
    for got, want in zip(made.items(), items):
        assert torch.equal(got, want)


@pytest.mark.parametrize("pattern", ["delay", "flatten"])
def test_what_a_source_says_of_its_time_is_learnt_at_once(pattern):
    """All levels, whichever step they come at: without --cross-by-time some are still at ln V."""
    torch.manual_seed(0)
    config = {"decoder_dim": 32, "nhead": 2, "num_decoder_layers": 2, "conditions": ("source",),
              "fusion": "cross", "cross_by_time": True, "condition_dropout": 0.0,
              "pattern": pattern, "model_end": False}  # fmt: skip
    infos = {"source": ConditionInfo.of_codes("source", INFO)}
    model = build_model("codec-lm", config, INFO, infos)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        source = torch.randint(V, (16, 12, K))
        out = model(Batch.from_codes(list((source + 3) % V), conditions={"source": list(source)}))
        optimizer.zero_grad()
        (out.loss / out.normalizer).backward()
        optimizer.step()
    assert (out.nats / out.count).max() < 0.5


@pytest.mark.parametrize(
    "changes",
    [{"depth_layers": 4}, {"depth_dim": 8, "head": "mlp"}, {"head_expansion": 2.0},
     {"condition_dropout": 0.3}, {"cross_by_time": True}],
)  # fmt: skip
def test_options_without_effect_are_refused(changes):
    flag = next(k for k in changes if k != "head").replace("_", "-")
    with pytest.raises(UserError, match=f"--{flag} .* means nothing without"):
        make(**changes)


def test_all_problems_in_one_message():
    with pytest.raises(UserError) as e:
        make("flatten", activation="tanh", dropout=1.0, head="depth", depth_dim=6, depth_layers=0,
             shared_head=True, input_side="mean", scheduled_sampling=2.0, norm="batch")  # fmt: skip
    for words in (
        "--activation 'tanh': choose one of gelu, relu, relu2, swiglu", "--dropout 1.0: in [0, 1)",
        "--head depth models", "--depth-dim 6 is not a multiple", "--depth-layers 0: at least 1",
        "--shared-head has no meaning", "--input-side 'mean': choose one of sum, weighted, attent",
        "--scheduled-sampling 2.0: in [0, 1]", "--norm 'batch': choose one of layernorm, rmsnorm",
    ):  # fmt: skip
        assert words in str(e.value)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"decoder_dim": 30, "nhead": 4, "num_decoder_layers": 0},
         "--decoder-dim 30 is not a multiple of --nhead 4; --num-decoder-layers 0: at least 1"),
        ({"decoder_dim": 6, "input_side": "attention"}, "--decoder-dim 6 is not a multiple of 4"),
        ({"nhead": 4, "kv_heads": 3}, "--kv-heads 3 does not divide --nhead 4"),
        ({"nhead": 4, "kv_heads": -2}, "--kv-heads -2: at least 0"),
        ({"head": "mlp", "head_expansion": 0.0}, "--head-expansion 0.0 must be positive"),
        ({"head": "conv"}, "--head 'conv': choose one of linear, mlp, residual, depth"),
        ({"pattern": "spiral"}, f"--pattern 'spiral': choose one of {', '.join(PATTERNS)}"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_built(changes, words):
    with pytest.raises(UserError, match=words):
        build_model("codec-lm", {"nhead": 1, **changes}, INFO)


def test_depth_needs_levels():
    one = CodecInfo("toy", "0" * 16, 16000, 320, 1, V)
    with pytest.raises(UserError, match="--head depth needs at least 2 codebooks"):
        build_model("codec-lm", {"pattern": "parallel", "head": "depth"}, one)
