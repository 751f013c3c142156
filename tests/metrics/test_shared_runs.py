import numpy as np
import pytest

from rvqlm.metrics import shared_runs
from rvqlm.metrics.shared_runs import SharedRuns, symbols_of


def longest(sequence, corpus) -> tuple[int, int]:
    """By trying all runs."""
    best = 0, -1
    texts = ["".join(map(chr, part[:, 0] + 65)) for part in corpus]
    own = "".join(map(chr, sequence[:, 0] + 65))
    for start in range(len(own)):
        while any(own[start : start + best[0] + 1] in t for t in texts):
            if start + best[0] + 1 > len(own):
                break
            run = own[start : start + best[0] + 1]
            best = best[0] + 1, next(n for n, t in enumerate(texts) if run in t)
    return best


def random_parts(rng, kinds, *lengths):
    return [rng.integers(0, kinds, (n, 1)) for n in lengths]


@pytest.mark.parametrize("chunk", [1, 40, 1 << 19])
@pytest.mark.parametrize("kinds", [2, 5, 30])
def test_as_by_trying(chunk, kinds, monkeypatch):
    monkeypatch.setattr(shared_runs, "CHUNK", chunk)
    rng = np.random.default_rng(kinds)
    corpus = random_parts(rng, kinds, 30, 1, 55, 0, 20, 44)
    sequences = [*random_parts(rng, kinds, 25, 3, 0, 40), corpus[2][10:30], np.array([[99]])]
    found = SharedRuns([symbols_of(s) for s in sequences]).search(map(symbols_of, corpus))
    for sequence, run in zip(sequences, found):
        frames, row = longest(sequence, corpus)
        assert run.frames == frames
        if run.frames:
            part = "".join(map(chr, corpus[run.row][:, 0] + 65))
            own = "".join(map(chr, sequence[:, 0] + 65))
            assert any(own[s : s + frames] in part for s in range(len(own) - frames + 1))
        else:
            assert run.row == row == -1


def test_a_run_ends_with_its_recording():
    corpus = [np.array([[1], [2]]), np.array([[3], [4]])]
    (run,) = SharedRuns([symbols_of(np.array([[1], [2], [3], [4]]))]).search(
        map(symbols_of, corpus)
    )
    assert run.frames == 2


def test_frames_are_equal_on_all_levels():
    a, b = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [3, 4]])
    same = symbols_of(a) == symbols_of(b)
    assert same.tolist() == [False, True]
    assert (symbols_of(a[:, :1]) == symbols_of(b[:, :1])).tolist() == [False, True]
    assert symbols_of(a.astype(np.uint16)).tolist() == symbols_of(a).tolist()
