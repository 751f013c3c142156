"""Filters and draws against their definitions."""

import torch

from rvqlm.generation.sampling import SamplingConfig, filter_logits, sample, uniforms


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = lambda **kw: torch.isfinite(filter_logits(logits[None], **kw))[0].tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=9) == [True] * 4
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(top_k=3, top_p=0.99) == [True, True, True, False]


def test_draws_follow_the_distribution():
    p = torch.tensor([0.1, 0.6, 0.0, 0.3])
    u = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn = sample(p.log().expand(len(u), 4), u, SamplingConfig())
    share = torch.bincount(drawn, minlength=4) / len(u)
    torch.testing.assert_close(share, p, atol=0.01, rtol=0)
    assert share[2] == 0
    cold = sample(p.log().expand(len(u), 4), u, SamplingConfig(temperature=0.5))
    torch.testing.assert_close(
        torch.bincount(cold, minlength=4) / len(u), p**2 / (p**2).sum(), atol=0.01, rtol=0
    )


def test_extremes():
    logits = torch.tensor([[0.0, 2.0, -torch.inf]])
    for u in (0.0, 1 - 2**-24):
        assert sample(logits, torch.tensor([u]), SamplingConfig()) < 2
    assert sample(logits, torch.tensor([0.0]), SamplingConfig(temperature=0)) == 1


def test_uniforms_depend_on_seed_and_row_alone():
    a, b = uniforms(3, [0, 1], 5, 4), uniforms(3, [7, 0, 1], 9, 4)
    assert torch.equal(a, b[1:, :5])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, uniforms(4, [0, 1], 5, 4))


def test_bad_options_all_named():
    found = SamplingConfig(temperature=-1, top_k=-2, top_p=0).problems()
    assert [problem.split()[0] for problem in found] == ["--temperature", "--top-k", "--top-p"]
