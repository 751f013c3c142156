"""The decoding loop: prompts verbatim, items independent of the batch, ends where they belong."""

import pytest
import torch

from rvqlm.batch import PAD, Batch
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.patterns import PATTERNS

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)


@pytest.fixture(params=PATTERNS)
def model(request):
    torch.manual_seed(0)
    model = CodecLM(
        CodecLMConfig(pattern=request.param, decoder_dim=32, nhead=2, num_decoder_layers=2), INFO
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def test_prompts_verbatim_and_batch_independent(model):
    prompts = torch.randint(V, (3, 6, K))
    lengths = torch.tensor([6, 2, 4])
    made = model.generate(prompts, lengths, max_frames=11, seed=5)
    for b, n in enumerate(lengths.tolist()):
        assert torch.equal(made.codes[b, :n], prompts[b, :n])
    # row 0 alone draws the same uniforms as row 0 of a batch
    alone = model.generate(prompts[:1], lengths[:1], max_frames=11, seed=5)
    assert torch.equal(alone.items()[0], made.items()[0])
    again = model.generate(prompts, lengths, max_frames=11, seed=5)
    assert torch.equal(again.codes, made.codes)
    other = model.generate(prompts, lengths, max_frames=11, seed=6)
    assert not torch.equal(other.codes[0, :3], made.codes[0, 6:9])


@pytest.mark.parametrize("bias,expected", [(50.0, 4), (-50.0, 9)])
def test_end_decision_is_obeyed(model, bias, expected):
    with torch.no_grad():
        model.end_head.linear.weight.zero_()
        model.end_head.linear.bias.fill_(bias)
    made = model.generate(torch.zeros(1, 2, K), max_frames=9, min_frames=4)
    assert made.lengths.tolist() == [expected]
    assert made.stop == ["eos" if bias > 0 else "length"]
    assert (made.codes[0, :expected] >= 0).all()


def test_a_continuation_has_the_frames_that_were_asked_for(model):
    """An end that a model learned comes when it likes, unless `min_new_frames` forbids it."""
    torch.nn.init.zeros_(model.end_head.linear.weight)
    torch.nn.init.constant_(model.end_head.linear.bias, 50.0)  # ends at once
    prompts = torch.randint(V, (2, 6, K))
    lengths = torch.tensor([6, 3])
    assert model.generate(prompts, lengths, 5).lengths.tolist() == [6, 3]
    made = model.generate(prompts, lengths, 5, min_new_frames=5)
    assert made.lengths.tolist() == [11, 8]
    assert model.generate(prompts, lengths, 5, min_new_frames=3).lengths.tolist() == [9, 6]
    with pytest.raises(UserError, match="min_new_frames 6: give at least 0 and at most"):
        model.generate(prompts, lengths, 5, min_new_frames=6)


def test_items_that_end_early_are_padded(model):
    made = model.generate(batch_size=8, max_frames=30, seed=1)
    assert made.codes.shape[1] == int(made.lengths.max())
    for codes, n in zip(made.codes, made.lengths.tolist()):
        assert (codes[:n] >= 0).all() and (codes[:n] < V).all() and (codes[n:] == PAD).all()


def test_refusals(model):
    with pytest.raises(UserError, match="leaves nothing"):
        model.generate(torch.zeros(1, 5, K), max_frames=5)
    with pytest.raises(UserError, match=r"wanted \(B, P, 3\)"):
        model.generate(torch.zeros(1, 2, K + 1), max_frames=5)
    with pytest.raises(UserError, match="must lie in"):
        model.generate(torch.full((1, 2, K), V), max_frames=5)


def test_rows_and_limits_per_item(model):
    model.end_head = None
    made = model.generate(batch_size=3, max_frames=9, limits=torch.tensor([4, 9, 6]), seed=2)
    assert made.lengths.tolist() == [4, 9, 6]
    third = model.generate(batch_size=1, max_frames=6, rows=[2], seed=2)
    assert torch.equal(third.items()[0], made.items()[2])
    first = model.generate(batch_size=1, max_frames=4, rows=[0], seed=2)
    assert torch.equal(first.items()[0], made.items()[0])


@torch.no_grad()
def test_past_the_first_table_of_positions():
    """Beyond 1,024 steps, where the rotary table grows under a cache that is in use, generation is
    that of full passes over all that came before."""
    torch.manual_seed(0)
    info = CodecInfo("toy", "0" * 16, 16000, 320, 2, V)
    config = CodecLMConfig(decoder_dim=16, nhead=2, num_decoder_layers=2, model_end=False)
    model = CodecLM(config, info).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    prompt = torch.randint(V, (2, 1018, 2))
    made = model.generate(prompt, max_new_frames=16, temperature=0)
    grid, valid = model.pattern.interleave(made.codes, made.lengths, V)
    assert grid.shape[1] == 1035 and torch.equal(made.codes[:, :1018], prompt)
    inputs = model.shift(grid)
    full = model.hidden(inputs, made.lengths)
    best = model.heads(full).argmax(-1)
    new = valid & (torch.arange(1035)[:, None] - torch.arange(2) >= 1018)
    assert torch.equal(best[new], grid[new])
    state = model.begin({}, 2, 1035)
    cached = [model.step(inputs[:, :1020], state)[0]]
    assert model.network.transformer.rotary.table.shape[1] > 1024  # grown by the full pass
    model.network.transformer.rotary.table = None
    cached += [model.step(inputs[:, s : s + 1], state)[0] for s in range(1020, 1035)]
    torch.testing.assert_close(torch.stack(cached, 1), full[:, 1019:], atol=1e-5, rtol=1e-4)


def options_of_everything() -> dict:
    sampling = SamplingConfig(
        0.9, 9, 0.95, min_p=0.01, level_temperatures=(1.0, 0.8), repetition_window=4
    )
    return {"sampling": sampling, "logit_bias": -torch.eye(K, V) * 1e9}


def test_any_batch_and_any_longest_length_give_the_same_draws(model):
    """With every way of drawing at once; the first code of each level's row is banned."""
    options = {**options_of_everything(), "seed": 3}
    model.end_head.linear.bias.data.fill_(-50.0)
    made = model.generate(batch_size=3, max_frames=40, **options)
    for level in range(K):
        assert not (made.codes[..., level] == level).any()
    alone = model.generate(batch_size=1, rows=[1], max_frames=40, **options)
    assert torch.equal(alone.codes[0], made.codes[1])
    if not model.pattern.by_length:  # its fine levels begin later
        short = model.generate(batch_size=3, max_frames=25, **options)
        # the last frames know that there are no more
        assert torch.equal(short.codes[:, : 25 - K], made.codes[:, : 25 - K])


def test_repetition_is_looked_for_among_the_last_codes_of_a_level(model):
    """Greedy but for it: a code is drawn again where it is too frequent in the window."""
    model.end_head = None
    torch.nn.init.zeros_(model.heads.weight)
    greedy = SamplingConfig(top_k=1, repetition_window=3, repetition_threshold=0.4)
    bias = torch.zeros(K, V)
    bias[:, 5] = 3.0  # likeliest everywhere
    made = model.generate(batch_size=4, max_frames=30, sampling=greedy, logit_bias=bias, seed=1)
    for codes in made.codes.transpose(1, 2).flatten(0, 1).tolist():
        assert set(codes) > {5}
        for t, code in enumerate(codes):  # another one only where 5 was two of the last three
            assert code == 5 or codes[max(0, t - 3) : t].count(5) >= 2


def test_the_best_of_several_is_the_likeliest(model):
    model.end_head.linear.bias.data.fill_(-50.0)
    prompts = torch.randint(V, (2, 3, K))
    best = model.generate(prompts, None, 6, sampling=SamplingConfig(best_of=3), seed=4)
    found = []
    for row in (0, 1):
        each = []
        for candidate in range(3):
            number = [row + (candidate << 32)]
            made = model.generate(prompts[row : row + 1], None, 6, seed=4, rows=number)
            batch = Batch.from_codes([made.codes[0]], prompt_lengths=[3])
            model.eval()
            with torch.no_grad():
                out = model(batch)
            each.append((float(-out.nats.sum() / out.count.sum()), made.codes[0]))
        found.append(max(each, key=lambda pair: pair[0]))
        assert torch.equal(best.codes[row], found[-1][1])
    wanted = torch.tensor([likelihood for likelihood, _ in found])
    torch.testing.assert_close(best.likelihood, wanted, atol=1e-3, rtol=1e-3)


def test_a_bias_must_leave_a_code(model):
    bias = torch.zeros(K, V)
    bias[1] = -torch.inf
    for wrong in (bias, torch.zeros(K, V + 1)):
        with pytest.raises(UserError, match=rf"logit_bias \({K}, {V}\): a code must be left"):
            model.generate(max_frames=5, logit_bias=wrong)
    with pytest.raises(UserError, match=rf"--ban {K}:0: levels are 0 ... {K - 1}, codes 0 ... "):
        model.generate(max_frames=5, sampling=SamplingConfig(ban=("0:1", f"{K}:0")))
    every = tuple(f"1:{code}" for code in range(V) if code != 4)
    made = model.generate(max_frames=5, min_frames=5, sampling=SamplingConfig(ban=every))
    assert (made.codes[..., 1] == 4).all() and not (made.codes[..., 0] == 4).all()
