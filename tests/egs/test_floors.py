"""No recipe ships below what made it work, and none that names a run of others is another run.

A row a file: of ours the least of what a measured result needed (egs/mini/RESULTS.md, docs/LOG.md),
of the others what their documents say. A new file needs a row.
"""

import re
from pathlib import Path

import pytest
from test_configs import CONFIGS, load

EGS = Path(__file__).parents[2] / "egs"

# Muon against AdamW, seven minutes each: 3.508 and 3.790 nats. Of d256 x 6 and d192 x 6 at equal
# time the smaller one wins; the batch is 60 s (docs/LOG.md, "Seven minutes of training").
SMALL = {
    "optimizer": "muon",
    "activation": "relu2",
    "decoder_dim": 192,
    "num_decoder_layers": 6,
    "ema_decay": 0.99,
    "base_lr": (0.002, 0.008),
}
# What lets one synthetic voice be understood: text at its times, an encoder over the phonemes
# (docs/LOG.md: as a prefix nothing is learned in 520 steps), codes that begin as the codec's.
SPEAKS = {"pattern": "delay", "fusion": "spread", "optimizer": "muon"}
# Half an hour of a reader, 600 steps: 44 % of phonemes wrong with 0.3 hidden, 54 % with nothing;
# 30 % with these after 1,200 (docs/LOG.md, "A voice of half an hour").
OF_LITTLE = {"dropout": 0.1, "code_dropout": 0.5}
# What every family of speech recipes needs to be understood (docs/LOG.md, "Speech by aligned
# texts"); half of the items without a prompt, where sentences are said from their text alone.
TIMED = {"fusion": "spread", "num_encoder_layers": 2, "code_vectors": True}
BASE = {"optimizer": "muon", "decoder_dim": 512, "num_decoder_layers": 12, "ema_decay": 0.999}
RVQ = {
    "sample_every_epochs": 5,
    "sample_seconds": 15.0,
    "sample_temperature": 1.1,
    "num_quantizers": 9,
    "pattern": "parallel",
    "base_lr": 2e-4,
    "optimizer": "adamw",
    "weight_decay": 0.02,
    "ema_decay": 0.999,
    "clip_grad_norm": 1.0,
}
RVQ_BIG = RVQ | {
    "decoder_dim": 768,
    "num_decoder_layers": 16,
    "nhead": 12,
    "dropout": 0.1,
    "label_smoothing": 0.05,
    "level_weights": ("auto",),
    "level_weights_alpha": 0.5,
    "accum": 6,
    "archive_every": 10,
    "keep_archived": 20,
}
SAX = {
    "num_quantizers": 4,
    "pattern": "delay",
    "conditions": ("source",),
    "fusion": "cross",
    "cross_by_time": True,
    "dropout": 0.1,
    "accum": 8,
    "base_lr": 3e-4,
    "betas": (0.9, 0.98),
    "eps": 1e-9,
    "weight_decay": 0.01,
    "warmup_steps": 1000,
    "schedule": "cosine",
    "window_frames": 1500,
}
V2 = {
    "num_quantizers": 8,
    "conditions": ("text", "prompt"),
    "betas": (0.8, 0.95),
    "weight_decay": 0.01,
    "schedule": "constant",
    "warmup_steps": 5000,
    "filter_min_duration": 2.0,
    "filter_max_duration": 8.0,
}
V2_PHASES = {
    "level_training_schedule": ("0:random", "7:parallel"),
    "level_distribution": "normal",
    "level_weights_schedule": ("0:normal", "7:equal"),
}

LEAST = {
    "mini/codec_lm": SMALL | {"max_duration": 60.0, "pattern": "delay"},
    "mini/quick": {"optimizer": "muon", "decoder_dim": 128, "num_decoder_layers": 2},
    "shared/recognizer": {
        "optimizer": "muon",
        "decoder_dim": 192,
        "num_decoder_layers": 3,
        "convolution": 9,
        "code_vectors": True,
    },
    **{
        name: SMALL
        | SPEAKS
        | {"conditions": given, "num_encoder_layers": 2, "code_vectors": True}
        | more
        for name, given, more in (
            ("shared/tts", ("text",), {}),
            ("mini/tts", ("text",), {"code_dropout": 0.3}),
            ("custom/voice", ("text",), OF_LITTLE),
            ("custom/voices", ("text", "prompt"), OF_LITTLE),
        )
    },
    **{
        f"{corpus}/masked": BASE | TIMED | {"model_name": "masked", "conditions": given}
        for corpus, given in (("ljspeech", ("text",)), ("libritts", ("text", "prompt")))
    },
    "libritts/codec_lm": SMALL | SPEAKS | TIMED | {"conditions": ("text", "prompt")},
    "ljspeech/valle": BASE
    | TIMED
    | {"model_name": "valle", "conditions": ("text",), "unprompted_share": 0.5},
    "mini/tts_quick": SPEAKS | {"conditions": ("text",), "decoder_dim": 96},
    **{
        f"mini/compare/{name}": SMALL | {"max_duration": 30.0}
        for name in ("coarse_first", "delay", "flatten", "masked", "parallel")
    },
    "mini/compare/depth": SMALL | {"num_decoder_layers": 4, "head": "depth"},
    "mini/compare/valle": SMALL | {"decoder_dim": 160, "num_decoder_layers": 4},
    "jazz/saxgpt_quick": {"conditions": ("source",), "fusion": "cross", "pattern": "delay"}
    | {"cross_by_time": True},
    "custom/small": SMALL | {"max_duration": 60.0},
    "custom/large": {"decoder_dim": 768, "num_decoder_layers": 16, "ema_decay": 0.999, "accum": 6},
}
AUDIO_LM = {
    "num_quantizers": 4,
    "decoder_dim": 1024,
    "nhead": 16,
    "num_decoder_layers": 12,
    "max_duration": 150.0,
    "num_epochs": 20,
}
ATEPP = AUDIO_LM | {"optimizer": "scaled_adam", "schedule": "eden", "base_lr": 0.05}
AS_DOCUMENTED = {
    "libritts/valle": TIMED  # the sizes are those of arXiv:2301.02111, section 5.1
    | {
        "model_name": "valle",
        "conditions": ("text", "prompt"),
        "decoder_dim": 1024,
        "num_decoder_layers": 12,
        "nhead": 16,
        "dropout": 0.1,
        "prompt_mode": "seconds",
        "prompt_seconds": 3.0,
        "unprompted_share": 0.5,
        "optimizer": "adamw",
        "base_lr": 5e-4,
    },
    "custom/rvq_small": RVQ
    | {"decoder_dim": 512, "num_decoder_layers": 12, "nhead": 8, "num_epochs": 300},
    "custom/rvq_base": RVQ_BIG
    | {"window_frames": 1280, "hop_frames": 640, "warmup_ratio": 0.03, "num_epochs": 350},
    "custom/rvq_fast": RVQ_BIG
    | {"window_frames": 512, "hop_frames": 256, "warmup_ratio": 0.01, "eta_min_ratio": 0.05}
    | {"num_epochs": 250, "sample_device": "cpu", "compile": True},
    "custom/audio_lm": AUDIO_LM
    | {"train_stage": 0, "filter_min_duration": 5.0, "filter_max_duration": 15.0},
    "atepp/audio_lm": ATEPP
    | {"train_stage": 0, "prompt_fraction": 0.4}
    | {"filter_min_duration": 5.0, "filter_max_duration": 15.0},
    "atepp/midi_to_audio": ATEPP | {"conditions": ("midi",), "window_frames": 500},
    **{
        f"custom/saxgpt_{size}": SAX | {"decoder_dim": dim, "nhead": heads, "num_decoder_layers": n}
        for size, dim, heads, n in (
            ("xsmall", 128, 4, 4),
            ("small", 256, 4, 6),
            ("medium", 384, 6, 6),
            ("large", 512, 8, 8),
            ("xlarge", 768, 12, 12),
        )
    },
    "custom/v2_smaller_ar": V2 | {"decoder_dim": 512, "num_decoder_layers": 12, "base_lr": 1e-4},
    "custom/v2_smaller_masked": V2
    | V2_PHASES
    | {"decoder_dim": 512, "num_decoder_layers": 12, "base_lr": 1e-4},
    "custom/v2_larger_masked": V2
    | V2_PHASES
    | {"decoder_dim": 1024, "num_decoder_layers": 24, "base_lr": 3e-4},
}


def name_of(path: Path) -> str:
    return str(path.relative_to(EGS).with_suffix("")).replace("/conf/", "/")


def flags(path: Path) -> dict:
    """All flags of a file by name, whatever group they are in."""
    config, _, _ = load(path)
    found = dict(vars(config))
    for group in list(found.values()):
        if hasattr(group, "__dataclass_fields__"):
            found |= vars(group)
    return found


def below(value, least) -> bool:
    if (
        isinstance(least, tuple)
        and all(isinstance(x, float) for x in least)
        and least[0] < least[1]
    ):
        return not least[0] <= value <= least[1]
    if isinstance(least, (int, float)):
        return value < least
    return value != least


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_no_file_is_below_what_made_it_work(path):
    name = name_of(path)
    assert (name in LEAST) != (name in AS_DOCUMENTED), f"{name}: give it a row, with its source"
    values = flags(path)
    if name in LEAST:
        wrong = {k: (values[k], v) for k, v in LEAST[name].items() if below(values[k], v)}
    else:
        wrong = {k: (values[k], v) for k, v in AS_DOCUMENTED[name].items() if values[k] != v}
    assert not wrong, f"{name}: (is, should be) {wrong}"


def test_rows_are_of_files():
    assert {name_of(p) for p in CONFIGS} == set(LEAST) | set(AS_DOCUMENTED)


@pytest.mark.parametrize(
    "script, least",
    [
        # 15 minutes of speech are memorised within a minute of training; 6 hours in 3.2 epochs
        ("mini/run.sh", {"hours": 2, "train_minutes": 6, "listen_minutes": 1}),
        ("mini/tts.sh", {"hours": 2, "train_minutes": 8, "listen_minutes": 3}),
        ("shared/recipe.sh", {"cfg-scale": 3}),
        ("ljspeech/run.sh", {"train_minutes": 600, "listen_minutes": 60}),
        ("libritts/run.sh", {"train_minutes": 2880, "listen_minutes": 240}),
        ("mini/compare.sh", {"hours": 6, "train_minutes": 4}),
    ],
)
def test_scripts_give_the_time_that_their_results_took(script, least):
    text = (EGS / script).read_text(encoding="utf-8")
    for name, low in least.items():
        values = re.findall(rf"\b{name}=\$\{{{name}:-([\d.]+)\}}|--{name} ([\d.]+)", text)
        values = [float(a or b) for a, b in values]
        assert values and max(values) >= low, f"{script}: {name} {values}, at least {low}"
