"""Patterns against plain-Python references, and against the grids of their docstrings.

A new pattern needs a function in `NAIVE`; what must hold for all of them then tests it too."""

import itertools
import re

import pytest
import torch

from rvqlm.errors import UserError
from rvqlm.patterns import PATTERNS, DelayPattern, make_pattern

EMPTY = -7


def naive_delay(length, K):
    frames = [[s - k for k in range(K)] for s in range(length + K - 1)]
    return [[t if 0 <= t < length else None for t in step] for step in frames]


def naive_parallel(length, K):
    return [[t] * K for t in range(length)]


def naive_flatten(length, K):
    return [[t if j == k else None for j in range(K)] for t in range(length) for k in range(K)]


def naive_coarse_first(length, K):
    coarse = [[t] + [None] * (K - 1) for t in range(length)]
    return coarse + [[None] + [t] * (K - 1) for t in range(length)] if K > 1 else coarse


NAIVE = {
    "delay": naive_delay,
    "parallel": naive_parallel,
    "flatten": naive_flatten,
    "coarse_first": naive_coarse_first,
}
"""Pattern -> (length, K) -> list of steps, each a list of K entries: frame number or None."""

each_pattern = pytest.mark.parametrize("name", PATTERNS)
named_with_levels = pytest.mark.parametrize("name,K", itertools.product(NAIVE, (1, 2, 3, 5, 9)))


def test_every_pattern_has_a_naive_layout():
    missing = [name for name in PATTERNS if name not in NAIVE]
    assert not missing, f"write NAIVE[{missing[0]!r}] above: a list of steps by plain loops"


@each_pattern
def test_the_grid_of_the_docstring(name):
    """Levels below one another, frame and level of each code, as many frames as it shows."""
    rows = re.findall(r"^ +level \d  (.*)$", PATTERNS[name].__doc__, re.M)
    drawn = [row.split() for row in rows]
    K, T = len(drawn), 1 + max(int(cell[0]) for row in drawn for cell in row if cell != ".")
    codes = torch.arange(T)[:, None] * 10 + torch.arange(K)
    grid, mask = make_pattern(name, K).interleave(codes[None], torch.tensor([T]), EMPTY)
    cells = [
        [f"{int(c):02d}" if m else "." for c, m in zip(*row)] for row in zip(grid[0].T, mask[0].T)
    ]
    assert cells == drawn


@each_pattern
def test_what_a_pattern_says_of_itself(name):
    """Exact up to the number of levels from which codes share a step; passes by the formula."""
    assert PATTERNS[name].about and name == PATTERNS[name].name
    T = 6
    for K in (1, 2, 3, 5):
        pattern = make_pattern(name, K)
        _, mask = pattern.interleave(torch.zeros(1, T, K), torch.tensor([T]), EMPTY)
        assert pattern.exact == bool(mask.sum(2).max() == 1)
        if pattern.one_code_a_step:
            assert mask[0].nonzero().tolist() == [[s, s % K] for s in range(T * K)]
        if K > 1:
            formula = re.sub(r"(\w) (?=\w)", r"\1 * ", pattern.passes)
            assert pattern.num_steps(T) == eval(formula, {"T": T, "K": K})


@each_pattern
def test_a_code_is_followed_by_later_ones_of_its_level(name):
    steps = make_pattern(name, 3).steps(torch.arange(9), torch.tensor([9, 5]))
    assert (steps.diff(dim=1) > 0).all() and steps.min() == 0


@named_with_levels
def test_interleaving_equals_naive_reference(name, K):
    generator = torch.Generator().manual_seed(K)
    pattern = make_pattern(name, K)
    for lengths in ([1], [4], [7, 1, 3], [2, 2], [6, 5, 4, 3]):
        T = max(lengths)
        codes = torch.randint(1000, (len(lengths), T, K), generator=generator)
        n = torch.tensor(lengths)
        grid, mask = pattern.interleave(codes, n, EMPTY)
        assert grid.shape == (len(lengths), pattern.num_steps(T), K)
        for b, length in enumerate(lengths):
            layout = NAIVE[name](length, K)
            for s in range(grid.shape[1]):
                for k in range(K):
                    t = layout[s][k] if s < len(layout) else None
                    expected = EMPTY if t is None else int(codes[b, t, k])
                    assert int(grid[b, s, k]) == expected
                    assert bool(mask[b, s, k]) == (t is not None)
        assert mask.sum() == n.sum() * K  # each code once


@named_with_levels
def test_cells_is_the_inverse_map(name, K):
    pattern = make_pattern(name, K)
    lengths = torch.tensor([5, 3, 1])
    S = pattern.num_steps(5)
    cells = pattern.cells(torch.arange(S), lengths).expand(3, S, K)
    for b, length in enumerate(lengths.tolist()):
        layout = NAIVE[name](length, K)
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


def test_delays_are_copied_to_a_device_once():
    pattern = make_pattern("delay", 3, (0, 2, 5))
    frames, lengths = torch.arange(4), torch.tensor([4])
    first = pattern.steps(frames, lengths)
    copy = pattern._copies[frames.device]
    assert pattern.steps(frames, lengths).equal(first) and first[0, 1].tolist() == [1, 3, 6]
    assert pattern._copies == {frames.device: copy}
