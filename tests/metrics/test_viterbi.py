"""CTC Viterbi against all ways there are, against a plain loop, and against k2."""

import itertools

import numpy as np
import pytest

from rvqlm.metrics import viterbi
from rvqlm.metrics.viterbi import BLANK, ctc_viterbi


def random_log_probs(rng, *shape, spread=3.0):
    logits = spread * rng.standard_normal(shape)
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def written(decisions):
    """The text of a way: repetitions become one, blanks nothing."""
    return [k for k, _ in itertools.groupby(decisions) if k != BLANK]


def naive(log_probs, text):
    """The plain loop over decisions and states; returns (log p, first, last)."""
    states = [BLANK, *(s for symbol in text for s in (symbol, BLANK))]
    table = [{0: (float(log_probs[0, BLANK]), [0])}]
    if text:
        table[0][1] = (float(log_probs[0, text[0]]), [1])
    for t in range(1, len(log_probs)):
        table.append({})
        for j, symbol in enumerate(states):
            sources = [j, j - 1]
            if j >= 3 and j % 2 and symbol != states[j - 2]:
                sources.append(j - 2)
            found = [table[-2][i] for i in sources if i in table[-2]]
            if found:
                best = max(found, key=lambda way: way[0])
                table[-1][j] = best[0] + float(log_probs[t, symbol]), [*best[1], j]
    ends = [table[-1][j] for j in (len(states) - 1, len(states) - 2) if j in table[-1]]
    log_prob, way = max(ends, key=lambda end: end[0])
    spans = [[t for t, j in enumerate(way) if j == 2 * k + 1] for k in range(len(text))]
    return log_prob, [s[0] for s in spans], [s[-1] for s in spans]


def test_the_best_of_all_ways():
    rng = np.random.default_rng(0)
    for _ in range(60):
        S, V, N = rng.integers(1, 6), rng.integers(2, 4), rng.integers(0, 4)
        log_probs, text = random_log_probs(rng, S, V), rng.integers(1, V, N)
        ways = [w for w in itertools.product(range(V), repeat=S) if written(w) == text.tolist()]
        path = ctc_viterbi(log_probs[None], [S], [text])[0]
        if not ways:
            assert path is None
            continue
        scores = [sum(float(log_probs[t, v]) for t, v in enumerate(w)) for w in ways]
        assert path.log_prob == pytest.approx(max(scores))
        taken = np.zeros(S, int)
        for symbol, first, last in zip(text, path.first, path.last):
            taken[first : last + 1] = symbol
        assert tuple(taken) == ways[int(np.argmax(scores))]


@pytest.fixture(scope="module")
def batch():
    """Items of unequal lengths: without symbols, with doubled ones, that just fit, that do not."""
    rng = np.random.default_rng(1)
    decisions = np.array([30, 12, 41, 9, 5, 1, 33, 0])
    texts = [rng.integers(1, 4, n) for n in (9, 0, 20, 3, 0, 1, 11, 0)]
    texts[4] = np.array([2, 2, 2])  # five decisions, no fewer
    texts.append(np.array([2, 2, 2]))
    log_probs = random_log_probs(rng, 9, 41, 5)
    return log_probs, np.append(decisions, 4), texts


@pytest.mark.parametrize("block", [4, 16, 512])
def test_batches_and_blocks_equal_the_loop(batch, block, monkeypatch):
    monkeypatch.setattr(viterbi, "BLOCK", block)
    log_probs, decisions, texts = batch
    log_probs = log_probs.copy()
    for row, n in zip(log_probs, decisions):
        row[n:] = np.nan  # padding
    paths = ctc_viterbi(log_probs, decisions, texts)
    assert paths[-1] is None and paths[7].log_prob == 0.0
    for row, n, text, path in zip(log_probs, decisions[:7], texts, paths):
        log_prob, first, last = naive(row[:n], text.tolist())
        assert path.log_prob == pytest.approx(log_prob)
        assert (path.first.tolist(), path.last.tolist()) == (first, last)
    # alone, in another order: the same to the last bit
    order = [3, 0, 8, 6]
    again = ctc_viterbi(log_probs[order], decisions[order], [texts[i] for i in order])
    for i, path in zip(order, again):
        alone = ctc_viterbi(log_probs[i : i + 1, : decisions[i]], decisions[i : i + 1], [texts[i]])
        for other in (path, alone[0]):
            assert (other is None) == (paths[i] is None)
            for a, b in zip(other or (), paths[i] or ()):
                np.testing.assert_array_equal(a, b)


def test_what_no_way_can_write_is_left():
    log_probs = np.full((2, 3, 3), -np.inf)
    log_probs[:, :, 1] = 0.0
    impossible, sure = ctc_viterbi(log_probs, [3, 3], [np.array([2]), np.array([1])])
    assert impossible is None
    assert (sure.first.tolist(), sure.last.tolist(), sure.log_prob) == ([0], [2], 0.0)
    assert ctc_viterbi(np.empty((0, 0, 3)), [], []) == []


def test_equals_k2(batch):
    k2 = pytest.importorskip("k2")
    torch = pytest.importorskip("torch")
    log_probs, decisions, texts = batch
    paths = ctc_viterbi(log_probs, decisions, texts)
    rows = [row for row, path in enumerate(paths) if path and len(texts[row])]
    rows.sort(key=lambda row: -decisions[row])
    segments = torch.tensor([[n, 0, decisions[row]] for n, row in enumerate(rows)]).int()
    dense = k2.DenseFsaVec(torch.from_numpy(log_probs[rows]), segments)
    graph = k2.ctc_graph([texts[row].tolist() for row in rows], modified=False)
    lattice = k2.intersect_dense(graph, dense, output_beam=1e6)
    best = k2.shortest_path(lattice, use_double_scores=True)
    scores = best.get_tot_scores(use_double_scores=True, log_semiring=False)
    for n, row in enumerate(rows):
        taken = best[n].labels[best[n].labels >= 0].tolist()
        expected = np.zeros(decisions[row], int)
        for symbol, first, last in zip(texts[row], paths[row].first, paths[row].last):
            expected[first : last + 1] = symbol
        assert taken == expected.tolist()
        assert float(scores[n]) == pytest.approx(paths[row].log_prob, abs=1e-4)
