"""tools/cost.py: its arithmetic, and that docs/scale.md shows what it prints."""

import re
import shlex
from pathlib import Path

import cost
import pytest

ROOT = Path(__file__).parents[2]


def reckoned(**changes) -> dict[str, str]:
    return dict(cost.reckon(cost.Args(**changes)))


def test_one_hour_by_hand():
    """One hour at 50 frames of 8 codes of 2 bytes is 2.88 MB."""
    found = reckoned(
        hours=1, frame_rate=50, levels=8, parts=2, shards=1, encode_rate=10, encode_price=500,
        parameters=1e9, flops=6e12, mfu=0.5, gpus=8, gpu_price=10, epochs=2,
    )  # fmt: skip
    assert found["cuts"] == "360"
    assert found["audio as it comes"] == "57.6 MB"
    assert found["codes"] == "2.88 MB in 2 shards of 1.44 MB"
    assert found["indexes"] == "4.32 kB"
    assert found["encoding"] == "0 hours of a core or GPU, 0 a part; $50"
    # 500 frames a second of 6 billion operations each; 2 x 180,000 frames
    assert found["a GPU"].startswith("1.8 million frames an hour, 14.4 million tokens; reads 0.0")
    assert found["training"] == "0 GPU-hours, 0.0 days on 8; $2.00"


def test_ten_times_the_hours_are_ten_times_the_bytes():
    small, large = reckoned(hours=1e5), reckoned(hours=1e6)
    assert small["codes"].startswith("558 GB") and large["codes"].startswith("5.58 TB")
    assert small["cuts"] == "36 million" and large["cuts"] == "360 million"
    assert small["a GPU"] == large["a GPU"]


def test_prices_and_sizes_are_arguments():
    base = reckoned()
    for flag in cost.Args.__dataclass_fields__:
        value = getattr(cost.Args(), flag) * 8
        assert reckoned(**{flag: value}) != base, flag


def test_the_page_shows_what_is_printed(capsys):
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\n\$ python tools/cost.py([^\n]*)\n(.*?)^```", text, re.M | re.S)
    assert shown
    for flags, output in shown:
        assert cost.main(shlex.split(flags)) == 0
        assert capsys.readouterr().out == output


@pytest.mark.parametrize("flags, message", [
    (["--hours", "-1"], "hours is negative"), (["--mfu", "0"], "mfu is 0"),
])  # fmt: skip
def test_mistakes(flags, message, capsys):
    assert cost.main(flags) == 2
    assert message in capsys.readouterr().err
