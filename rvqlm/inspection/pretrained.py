"""What the directory of an exported model holds."""

from __future__ import annotations

import json
from pathlib import Path

from rvqlm.checkpoints.exported import CONFIG, read_config, read_weights
from rvqlm.codec_info import CodecInfo
from rvqlm.inspection.model import Found


def is_model(folder: Path) -> bool:
    """Whether ``config.json`` is one of `rvqlm export-model`; transformers' codecs have one too."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "rvqlm"


def look_at_pretrained(folder: Path) -> Found:
    """Facts of an exported model; every byte of its weights is checked.

    :raises UserError: it is damaged.
    """
    state = read_config(folder)
    weights = read_weights(folder, state)
    distinct = {t.data_ptr(): t.numel() for t in weights.values()}
    facts = {
        "model": state["model_name"],
        "parameters": sum(distinct.values()),
        "model_config": ", ".join(f"{k} {v}" for k, v in state["model_config"].items()),
        "conditions": ", ".join(state["conditions"]) or None,
        "step": state["step"],
        "epoch": state.get("epoch"),
        "frames_trained": state.get("total_frames"),
        "hours_of_training": state["elapsed"] / 3600 if state.get("elapsed") else None,
        "best": {k: v for k, v in (state.get("best") or {}).items() if v is not None} or None,
        "mean_of_steps": state.get("mean_of_steps"),
        "averaged_weights": state["averaged_weights"],
        "rvqlm_version": state["rvqlm_version"],
    }
    known = {k: v for k, v in facts.items() if v is not None}
    return "exported model", known, CodecInfo.from_dict(state["codec"])
