"""The decoding loop: prompts verbatim, items independent of the batch, ends where they belong."""

import pytest
import torch

from rvqlm.batch import PAD
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
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
