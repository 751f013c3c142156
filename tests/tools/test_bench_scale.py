"""tools/bench/scale.py runs all of its stages at a small size."""

import re

import scale


def test_every_stage_at_a_small_size(tmp_path, capfd):
    folder = tmp_path / "scale"
    args = scale.Args(folder, cuts=400, parts=3, batches=3, tile=2)
    for stage in scale.STAGES[:-1]:
        scale.run_stage(stage, args)
    words = ["--folder", str(folder), "--cuts", "400", "--parts", "3", "--batches", "3"]
    assert scale.main([*words, "--stages", "loader"]) == 0  # in a process of its own
    shown = capfd.readouterr().out
    assert re.findall(r"^(\w+) +[\d.]+ s ", shown, re.M) == list(scale.STAGES)
    assert re.search(r"combine .* 400 cuts, 1 h", shown)
    assert re.search(r"tile .* 794 cuts", shown)
    assert re.search(r"open .* 24 shards", shown)
    assert not folder.exists()
