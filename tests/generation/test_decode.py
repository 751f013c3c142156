"""The decoding loop: prompts verbatim, company without effect, ends where they should be."""

import pytest
import torch

from rvqlm.batch import PAD
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.generation.sampling import SamplingConfig
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig

K, V = 3, 13
INFO = CodecInfo("toy", "0" * 16, 16000, 320, K, V)


@pytest.fixture(params=["delay", "parallel", "flatten", "coarse_first"])
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
    # row 0 alone draws the same uniforms as row 0 in company
    alone = model.generate(prompts[:1], lengths[:1], max_frames=11, seed=5)
    assert torch.equal(alone.items()[0], made.items()[0])
    again = model.generate(prompts, lengths, max_frames=11, seed=5)
    assert torch.equal(again.codes, made.codes)
    other = model.generate(prompts, lengths, max_frames=11, seed=6)
    assert not torch.equal(other.codes[0, :3], made.codes[0, 6:9])


def test_greedy_equals_recomputing_everything(model):
    """Each generated code is the argmax of the full forward pass over what came before."""
    model.end_head = None
    made = model.generate(batch_size=2, max_frames=6, sampling=SamplingConfig(temperature=0))
    assert made.stop == ["length"] * 2 and made.lengths.tolist() == [6, 6]
    grid, valid = model.pattern.interleave(made.codes, made.lengths, V)
    best = model.heads(model.hidden(model.shift(grid), made.lengths)).argmax(-1)
    assert torch.equal(best[valid], grid[valid])


@pytest.mark.parametrize("bias,expected", [(50.0, 4), (-50.0, 9)])
def test_end_decision_is_obeyed(model, bias, expected):
    with torch.no_grad():
        model.end_head.linear.weight.zero_()
        model.end_head.linear.bias.fill_(bias)
    made = model.generate(torch.zeros(1, 2, K), max_frames=9, min_frames=4)
    assert made.lengths.tolist() == [expected]
    assert made.stop == ["eos" if bias > 0 else "length"]
    assert (made.codes[0, :expected] >= 0).all()


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
