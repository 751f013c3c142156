"""The families of egs/mini/compare.sh meet on equal terms."""

from pathlib import Path

import torch
from test_configs import load

from rvqlm.cli import flatten
from rvqlm.models.factory import build_model

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "egs/mini/conf/compare").glob("*.yaml"))


def test_equal_parameters_and_training():
    counts, terms = {}, []
    for path in CONFIGS:
        config, info, conditions = load(path)
        assert not config.model.conditions
        with torch.device("meta"):
            model = build_model(config.model_name, config.model, info, conditions)
        counts[path.stem] = sum(p.numel() for p in model.parameters())
        # what the first line of the file promises
        assert f"{counts[path.stem] / 1e6:.2f} M parameters" in " ".join(
            line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#")
        )
        flags = flatten(config)
        names = ("max-duration", "optimizer", "base-lr", "ema-decay", "activation")
        terms.append({k: flags[k] for k in names})
    assert max(counts.values()) < 1.05 * min(counts.values()), counts
    assert all(t == terms[0] for t in terms)


def test_the_script_knows_all_of_them():
    script = (ROOT / "egs/mini/compare.sh").read_text()
    (line,) = [line for line in script.splitlines() if line.startswith("all_families=")]
    assert sorted(line.split('"')[1].split()) == [path.stem for path in CONFIGS]
