"""Several ranks of torchrun on one output folder."""

import pytest
from tokenize_fixtures import config, contents, in_a_process, spoil

from rvqlm.data import tokenize

pytestmark = pytest.mark.usefixtures("peaks")


def test_ranks_share_the_shards(corpus, tmp_path):
    spoil(corpus)
    tokenize.tokenize(config(corpus, tmp_path / "whole", jobs=2))
    out = tmp_path / "out"
    ranks = [in_a_process(config(corpus, out, jobs=0), RANK=str(r), WORLD_SIZE="2") for r in (1, 0)]
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    assert contents(out) == contents(tmp_path / "whole")
