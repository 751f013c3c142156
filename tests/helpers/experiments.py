"""Experiment directories as trainer, evaluate and generate leave them, without any of these."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import soundfile
import yaml

CODEC = {"name": "toy", "fingerprint": "0123456789abcdef", "sampling_rate": 8000, "hop": 160,
         "num_codebooks": 2, "codebook_size": 64}  # fmt: skip
FLAGS = {"model-name": "codec-lm", "decoder-dim": 192, "num-decoder-layers": 6,
         "base-lr": 0.004, "seed": 0, "max-minutes": 3.0}  # fmt: skip


def write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def add_training(exp: Path, steps: int = 20, minutes: float = 3.0, **flags) -> None:
    """config.yaml, run.json and metrics.jsonl: two records, 1,000 frames of 10 % and 3,000 of
    none padding, and a validation."""
    exp.mkdir(parents=True, exist_ok=True)
    pattern = {} if "model-name" in flags else {"pattern": "delay"}
    flags = FLAGS | pattern | {"exp-dir": str(exp), "manifest-dir": "tokens"} | flags
    (exp / "config.yaml").write_text(yaml.safe_dump(flags))
    run = {
        "commands": [f"rvqlm trainer --exp-dir {exp}"], "started": ["2026-01-02T03:04:05+00:00"],
        "commit": "feedc0ffee12", "model": flags["model-name"], "parameters": 5_804_161,
        "machine": {"cpu": "Test CPU 3000", "cores": 2, "gpus": [], "torch": "2.13.0"},
        "data": {"codec": CODEC, "train": {"cuts": 9, "frames": 900, "hours": 5.1},
                 "valid": {"cuts": 1, "frames": 90, "hours": 0.1}},
    }  # fmt: skip
    write(exp / "run.json", run)
    rows = [
        {"kind": "train", "step": steps // 2, "frames": 900, "padding": 0.1, "memory_mb": 900.0,
         "total_frames": 900, "elapsed": 30 * minutes},
        {"kind": "train", "step": steps, "frames": 3000, "padding": 0.0, "memory_mb": 800.0,
         "total_frames": 3900, "elapsed": 60 * minutes - 1},
        {"kind": "valid", "step": steps, "frames": 90, "padding": 0.5, "memory_mb": 5000.0,
         "elapsed": 60 * minutes},
    ]  # fmt: skip
    (exp / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_evaluation(exp: Path, nats=(2.5, 3.0), bound: bool = True, split="test", **more) -> None:
    unigram = [3.5, 3.75]
    values = {
        "split": split, "step": 20, "cuts": 628, "frames": 136_868, "prompt_fraction": 0.0,
        "nats": list(nats), "bits_per_second": sum(nats) / log(2) * 50, "bound": bound,
        "uncertainty": {"recordings": 628, "nats": [None, None], "bits_per_second": None,
                        "plus_minus": None},
        "unigram_nats": unigram, "unigram_bits_per_second": sum(unigram) / log(2) * 50,
        "command": f"rvqlm evaluate --exp-dir {exp}",
    } | more  # fmt: skip
    write(exp / f"eval_{split}.json", values)


def add_sample(exp: Path, name: str, **about) -> Path:
    """A second of prompt, two new ones, made by 100 passes within half a second."""
    values = {
        "kind": "continuation", "step": 20, "codec": CODEC, "prompt": f"cut of {name}",
        "conditions": {}, "prompt_seconds": 1.0, "seconds": 3.0, "stop": "eos", "seed": 0,
        "settings": {"temperature": 0.9, "top_k": 200, "top_p": 1.0, "cfg_scale": 1.0},
        "silence_ratio": 0.2, "repetition_ratio": 0.1, "batch_size": 1, "passes": 100,
        "generation_seconds": 0.5, "real_time_factor": 4.0,
        "command": f"rvqlm generate --exp-dir {exp}",
    } | about  # fmt: skip
    wav = exp / "samples" / f"{name}.wav"
    write(wav.with_suffix(".json"), values)
    soundfile.write(wav, np.zeros(80), 8000)
    return wav
