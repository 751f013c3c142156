"""Masks: as many units as asked for, the units of each kind, and no others."""

import pytest
import torch

from rvqlm.modules.masking import MASKINGS, draw_mask, lowest

B, T, K = 40, 9, 3
FREE = torch.arange(T) < torch.arange(1, B + 1).clamp(max=T)[:, None]


def masks(masking, share, seed=0):
    keys = torch.rand(B, T, K, generator=torch.Generator().manual_seed(seed))
    level = torch.arange(B) % K
    return draw_mask(masking, FREE, torch.full((B,), share), keys, level), level


@pytest.mark.parametrize("masking", MASKINGS)
def test_hidden_cells_are_free_and_predicted_ones_are_hidden(masking):
    mask, _ = masks(masking, 0.4)
    assert not (mask.hidden & ~FREE[..., None]).any()
    assert not (mask.predicted & ~mask.hidden).any()


@pytest.mark.parametrize("share", [1e-6, 0.25, 0.5, 1.0])
def test_number_of_units(share):
    frames = FREE.sum(1)
    wanted = (share * frames).ceil()
    hidden = masks("frame", share)[0].hidden
    assert torch.equal(hidden.sum(1), wanted.long()[:, None].expand(B, K))
    hidden = masks("level", share)[0].hidden
    assert torch.equal(hidden.sum((1, 2)), (share * frames * K).ceil().long())
    mask, level = masks("coarse_first", share)
    by_level = mask.predicted.sum(1)
    assert torch.equal(by_level.gather(1, level[:, None])[:, 0], wanted.long())
    assert torch.equal(by_level.sum(1), wanted.long())


def test_coarse_first_knows_the_coarser_and_hides_the_finer():
    mask, level = masks("coarse_first", 0.5)
    for b in range(B):
        q = int(level[b])
        assert not mask.hidden[b, :, :q].any()
        assert torch.equal(mask.hidden[b, :, q], mask.predicted[b, :, q])
        assert torch.equal(mask.hidden[b, :, q + 1 :], FREE[b, :, None].expand(T, K - q - 1))


def test_any_unit_can_be_hidden_alike():
    """Chi-square of the number of times that each of 6 frames is among 2."""
    free, n = torch.ones(6000, 6, dtype=torch.bool), 6000
    keys = torch.rand(n, 6, 2, generator=torch.Generator().manual_seed(3))
    mask = draw_mask("frame", free, torch.full((n,), 2 / 6), keys, torch.zeros(n))
    times = mask.hidden[..., 0].sum(0).double()
    assert float(((times - n / 3) ** 2 / (n / 3)).sum()) < 20  # 5 degrees of freedom: p = 0.001


def test_lowest_takes_what_there_is():
    keys, allowed = torch.rand(3, 5), torch.zeros(3, 5, dtype=torch.bool)
    allowed[1, 2] = allowed[2] = True
    found = lowest(keys, allowed, torch.tensor([4, 4, -1]))
    assert found.sum(1).tolist() == [0, 1, 0]
