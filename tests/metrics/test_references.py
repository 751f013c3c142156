from collections import Counter
from itertools import pairwise
from math import log

import numpy as np
import pytest

from rvqlm.codec_info import CodecInfo
from rvqlm.metrics.references import PreviousFrame, pairs_fit

INFO = CodecInfo("test", "0" * 16, 16000, 320, num_codebooks=2, codebook_size=6)


def recordings(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 6, (n, 2)).astype(np.uint16) for n in lengths]


def test_as_counted_one_by_one():
    train, (held_out,) = recordings(30, 1, 17), recordings(25, seed=1)
    found = PreviousFrame(train, INFO).nats(held_out)
    for level in range(2):
        pairs, single = Counter(), Counter()
        for codes in train:
            line = codes[:, level].tolist()
            single.update(line)
            pairs.update(pairwise(line))
        of, kinds = Counter(), Counter()
        for (a, _), count in pairs.items():
            of[a] += count
            kinds[a] += 1
        line = held_out[:, level].tolist()
        for t, (a, b) in enumerate(zip([None, *line], line)):
            p = (single[b] + 1) / (sum(single.values()) + 6)
            if of[a]:
                p = (max(pairs[a, b] - 0.75, 0) + 0.75 * kinds[a] * p) / of[a]
            assert found[t, level] == pytest.approx(-log(p))


def test_it_is_a_distribution():
    of = PreviousFrame(recordings(40), INFO)
    for before in range(6):
        nats = [of.nats(np.array([[before] * 2, [now] * 2]))[1] for now in range(6)]
        assert np.exp(-np.array(nats)).sum(0) == pytest.approx([1, 1])


def test_tables_that_would_not_fit():
    assert pairs_fit(INFO)
    assert not pairs_fit(CodecInfo("large", "0" * 16, 16000, 320, 1, 65536))
