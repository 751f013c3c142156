"""The bench of codecs on narrow models: the sizes are the published ones, and what is made in
chunks equals the whole while chunks without state or context do not."""

import re
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools/bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import codec
        import codec_models
    finally:
        sys.path.remove(str(BENCH))
    return codec, codec_models


def test_geometries_are_the_published_ones(bench):
    _, models = bench
    for name in models.GEOMETRY:
        codec = models.build(name, narrow=True)
        assert models.geometry(codec) == models.GEOMETRY[name]
        assert codec.bounded_memory
        assert (codec.info.segment == (150, 47520)) == (name == "encodec-48khz")


@pytest.mark.parametrize("name", ["dac-16khz", "encodec-24khz"])
def test_mismatch_of_chunks_and_of_naive_ones(bench, name):
    codec_bench, models = bench
    args = codec_bench.Args(seconds=3.0, chunk_seconds=0.5, threads=(1,))
    lines = list(codec_bench.mismatch(models.build(name, narrow=True), args))
    shares = [float(re.findall(r"([\d.]+)%", line)[0]) for line in lines]
    assert "float64" in lines[0] and shares[0] == 0  # as they are made
    assert shares[1] < 1  # rounding
    assert shares[2] > 1  # without anything
    assert shares[-1] < 0.1 < shares[-2]  # the overlap that suffices ends the list
