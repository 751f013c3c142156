"""Every YAML of the recipes: parsed as the trainer parses it, built at full size, stepped once."""

from pathlib import Path

import pytest
import torch
import yaml

from rvqlm.batch import Batch
from rvqlm.bin.trainer import read_flags
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo
from rvqlm.models.factory import build_model
from rvqlm.training.config import check

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("egs/*/conf/**/*.yaml"))
CONFIGS = [path for path in CONFIGS if not path.stem.startswith("data")]  # those are no flags
CODECS = {  # by the beginning of a file's name; the published shapes
    "rvq_": CodecInfo("descript/dac_44khz", "", 44100, 512, 9, 1024),
    "saxgpt_": CodecInfo("facebook/encodec_32khz", "", 32000, 640, 4, 2048),
    "audio_lm": CodecInfo("facebook/encodec_32khz", "", 32000, 640, 4, 2048),
    "midi_to_audio": CodecInfo("facebook/encodec_32khz", "", 32000, 640, 4, 2048),
    "v2_": CodecInfo("nvidia/audio-codec-44khz", "", 44100, 512, 8, 1000),
    "": CodecInfo("spectral", "", 16000, 320, 8, 1024),
}
MILLIONS = {  # parameters that the original documents name
    "saxgpt_xsmall": 4,
    "saxgpt_small": 15,
    "saxgpt_medium": 31,
    "saxgpt_large": 60,
    "saxgpt_xlarge": 210,
}
STEPPED = 20_000_000
"""Parameters up to which a model is stepped whole; of larger ones the first layers are."""


def load(path: Path):
    values = yaml.safe_load(path.read_text())
    argv = ["--config", str(path), "--exp-dir", "exp", "--manifest-dir", "tokens"]
    if not {"num-epochs", "max-steps", "max-minutes"} & set(values):
        argv += ["--max-steps", "20000"]
    config = read_flags(argv)
    check(config)
    info = next(i for name, i in CODECS.items() if path.stem.startswith(name))
    assert config.num_quantizers in (0, info.num_codebooks)
    conditions = {
        "text": ConditionInfo("text", (60,), rate=5.0),
        "midi": ConditionInfo("midi", (130, 34, 66, 66, 66, 4), rate=6.0),
        "source": ConditionInfo.of_codes("source", info),
        "prompt": ConditionInfo.of_codes("prompt", info),
    }
    return config, info, conditions


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_loads_builds_and_steps(path):
    config, info, conditions = load(path)
    with torch.device("meta"):
        whole = build_model(config.model_name, config.model, info, conditions)
    count = sum(p.numel() for p in whole.parameters())
    if path.stem in MILLIONS:
        assert count / 1e6 == pytest.approx(MILLIONS[path.stem], rel=0.15)
    if count > STEPPED:
        config.model.num_decoder_layers = 1
        config.model.num_encoder_layers = min(1, config.model.num_encoder_layers)
    torch.manual_seed(0)
    model = build_model(config.model_name, config.model, info, conditions)
    items = [torch.randint(info.codebook_size, (n, info.num_codebooks)) for n in (8, 5)]
    heard = {
        kind: [
            torch.stack([torch.randint(s, (n if kind == "source" else 2,)) for s in c.sizes], 1)
            for n in (8, 5)
        ]
        for kind, c in model.conditions.items()
    }
    model.progress = 0.5
    out = model(Batch.from_codes(items, conditions=heard))
    out.loss.backward()
    assert out.loss.isfinite() and float(out.normalizer) > 0
    before = [p.detach().clone() for p in model.parameters() if p.grad is not None]
    torch.optim.AdamW(model.parameters(), lr=config.optim.base_lr).step()
    after = [p for p in model.parameters() if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(before, after))


def test_each_ancestor_has_one():
    names = {p.stem for p in CONFIGS}
    assert {"rvq_small", "rvq_base", "rvq_fast", "audio_lm", "v2_smaller_masked"} <= names
    assert {f"saxgpt_{s}" for s in ("xsmall", "small", "medium", "large", "xlarge")} <= names
