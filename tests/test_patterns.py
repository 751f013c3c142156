"""Patterns against a plain-Python reference."""

import itertools

import pytest
import torch

from rvqlm.errors import UserError
from rvqlm.patterns import PATTERNS, DelayPattern, make_pattern

EMPTY, FILL = -7, -9


def naive_layout(name, length, K):
    """List of steps, each a list of K entries: frame number or None."""
    if name == "parallel":
        return [[t] * K for t in range(length)]
    if name == "delay":
        return [
            [s - k if 0 <= s - k < length else None for k in range(K)]
            for s in range(length + K - 1)
        ]
    if name == "flatten":
        return [[t if j == k else None for j in range(K)] for t in range(length) for k in range(K)]
    coarse = [[t] + [None] * (K - 1) for t in range(length)]
    return coarse + [[None] + [t] * (K - 1) for t in range(length)] if K > 1 else coarse


@pytest.mark.parametrize("name,K", itertools.product(PATTERNS, (1, 2, 3, 5, 9)))
def test_round_trip_equals_naive_reference(name, K):
    generator = torch.Generator().manual_seed(K)
    pattern = make_pattern(name, K)
    for lengths in ([1], [4], [7, 1, 3], [2, 2], [6, 5, 4, 3]):
        T = max(lengths)
        codes = torch.randint(1000, (len(lengths), T, K), generator=generator)
        n = torch.tensor(lengths)
        grid, mask = pattern.interleave(codes, n, EMPTY)
        assert grid.shape == (len(lengths), pattern.num_steps(T), K)
        for b, length in enumerate(lengths):
            layout = naive_layout(name, length, K)
            for s in range(grid.shape[1]):
                for k in range(K):
                    t = layout[s][k] if s < len(layout) else None
                    expected = EMPTY if t is None else int(codes[b, t, k])
                    assert int(grid[b, s, k]) == expected
                    assert bool(mask[b, s, k]) == (t is not None)
        assert mask.sum() == n.sum() * K  # each code once
        back = pattern.deinterleave(grid, n, T, FILL)
        real = (torch.arange(T)[None] < n[:, None])[:, :, None].expand_as(codes)
        assert torch.equal(back[real], codes[real])
        assert (back[~real] == FILL).all()


@pytest.mark.parametrize("name,K", itertools.product(PATTERNS, (1, 2, 3, 5, 9)))
def test_cells_is_the_inverse_map(name, K):
    pattern = make_pattern(name, K)
    lengths = torch.tensor([5, 3, 1])
    S = pattern.num_steps(5)
    cells = pattern.cells(torch.arange(S), lengths).expand(3, S, K)
    for b, length in enumerate(lengths.tolist()):
        layout = naive_layout(name, length, K)
        for s, k in itertools.product(range(S), range(K)):
            t = layout[s][k] if s < len(layout) else None
            got = int(cells[b, s, k])
            assert got == t if t is not None else got == -1 or got >= length


@pytest.mark.parametrize(
    "name,end", [("parallel", 6), ("delay", 6), ("flatten", 18), ("coarse_first", 6)]
)
def test_end_is_decided_where_the_next_frame_would_begin(name, end):
    pattern = make_pattern(name, 3)
    assert pattern.end_step(6) == end
    assert pattern.grid_steps(6, with_end=True) == max(pattern.num_steps(6), end + 1)


def test_padding_never_reaches_the_grid():
    pattern = make_pattern("coarse_first", 2)
    codes = torch.full((2, 6, 2), 99)
    codes[0], codes[1, :2] = 1, 2
    grid, mask = pattern.interleave(codes, torch.tensor([6, 2]), EMPTY)
    assert not (grid == 99).any()
    assert (grid[~mask] == EMPTY).all()


def test_custom_delays_and_errors():
    grid, _ = DelayPattern(4, [0, 1, 1, 2]).interleave(
        torch.arange(8).view(1, 2, 4), torch.tensor([2]), EMPTY
    )
    assert grid[0].tolist() == [
        [0, EMPTY, EMPTY, EMPTY],
        [4, 1, 2, EMPTY],
        [EMPTY, 5, 6, 3],
        [EMPTY, EMPTY, EMPTY, 7],
    ]
    pattern = make_pattern("delay", 4, (0, 1, 1, 2))
    assert pattern.num_steps(2) == 4
    cells = pattern.cells(torch.arange(4), torch.tensor([2]))[0]
    assert cells.tolist() == [[0, -1, -1, -1], [1, 0, 0, -1], [2, 1, 1, 0], [3, 2, 2, 1]]
    for delays in ([0, 1], [1, 0, 2], [0, -1, 1]):
        with pytest.raises(UserError, match="do not fit"):
            DelayPattern(3, delays)
    with pytest.raises(UserError, match="only --pattern delay"):
        make_pattern("flatten", 3, (0, 1, 2))
    with pytest.raises(UserError, match="parallel"):
        make_pattern("spiral", 3)
