"""What a checkpoint, an experiment, an exported model, codec weights or an audio file is."""

from __future__ import annotations

import zipfile
from pathlib import Path

from rvqlm.checkpoints.exported import CONFIG, read_config, read_weights
from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError, reason_of
from rvqlm.files import read_json
from rvqlm.metrics.log import read_run, scan_log

Found = tuple[str, dict, CodecInfo | None]


def look_at_weights(path: Path) -> Found | None:
    """A checkpoint, or a file of codec weights; None for what is neither."""
    name = path.name.lower()
    if zipfile.is_zipfile(path) or name.endswith((".pt", ".pth", ".th", ".ckpt", ".bin")):
        return _torch_file(path)
    if name.endswith(".safetensors"):
        if (found := _codec(path)) is None and (path.parent / "config.json").is_file():
            return look_at_codec(path.parent)
        return found
    return None


def _torch_file(path: Path) -> Found:
    import torch

    try:
        # mapped: the tensors of a large checkpoint stay on the disk
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as e:  # torch raises half a dozen types for damaged files, OSError among them
        state, reason = None, reason_of(e)
    if isinstance(state, dict) and {"model_name", "model_config", "codec"} <= state.keys():
        # in shards they are in the directory beside; `rvqlm doctor` reads them
        whole = "sharded" not in state
        parameters = sum(t.numel() for t in state["model"].values()) if whole else None
        return "checkpoint", facts_of(state, parameters), CodecInfo.from_dict(state["codec"])
    if state is None:
        raise UserError(f"{path}: no checkpoint or codec weights that torch reads ({reason})")
    if found := _codec(path):
        return found
    keys = list(state)[:8] if isinstance(state, dict) else type(state).__name__
    return "PyTorch file (no checkpoint of rvqlm trainer)", {"holds": str(keys)}, None


def facts_of(state: dict, parameters: int | None) -> dict:
    """What a checkpoint or an exported model is and how far it was trained, from its dictionary;
    what is not known is left out."""
    facts = {
        "model": state["model_name"],
        "parameters": parameters,
        "model_config": ", ".join(f"{k} {v}" for k, v in state["model_config"].items()),
        "conditions": ", ".join(state.get("conditions", {})) or None,
        "step": state.get("step"),
        "epoch": state.get("epoch"),
        "frames_trained": state.get("total_frames"),
        "hours_of_training": state["elapsed"] / 3600 if state.get("elapsed") else None,
        "best": state.get("best"),
        "mean_of_steps": state.get("mean_of_steps"),
        "averaged_weights": state.get("averaged_weights", state.get("ema") is not None),
        "rvqlm_version": state.get("rvqlm_version"),
    }
    return {k: v for k, v in facts.items() if v is not None and v != {}}


def look_at_experiment(path: Path) -> Found:
    """A folder with checkpoints: its best one, and what its log says last."""
    which = "best" if (path / "best.pt").is_file() else "latest"
    _, of_model, info = _torch_file(path / f"{which}.pt")
    facts = {"checkpoint": f"{which}.pt", **of_model}
    if (log := path / "metrics.jsonl").is_file():
        last: dict = {}
        for _, record in scan_log(log):
            last = record or last
        short = {k: v for k, v in last.items() if isinstance(v, (int, float, str))}
        facts["last_metrics"] = {k: v for k, v in short.items() if len(str(v)) < 40}
    try:
        commands = read_run(path).get("commands", [])
        facts |= {"starts": len(commands), "command": commands[-1]} if commands else {}
    except UserError as e:
        facts["command"] = f"unknown: {e}"
    facts["samples"] = sum(1 for _ in (path / "samples").glob("*.wav"))
    return "experiment", facts, info


def is_model(folder: Path) -> bool:
    """Whether ``config.json`` is one of `rvqlm export-model`; transformers' codecs have one too."""
    try:
        return read_json(folder / CONFIG, "", type=dict).get("model_type") == "rvqlm"
    except UserError:
        return False


def look_at_pretrained(folder: Path) -> Found:
    """Facts of an exported model; every byte of its weights is checked.

    :raises UserError: it is damaged.
    """
    state = read_config(folder)
    distinct = {t.data_ptr(): t.numel() for t in read_weights(folder, state).values()}
    facts = facts_of(state, sum(distinct.values()))
    return "exported model", facts, CodecInfo.from_dict(state["codec"])


def look_at_codec(folder: Path) -> Found:
    """A folder with ``config.json``: a codec in transformers' format, or some other model."""
    from rvqlm.codecs.registry import load_codec

    config = read_json(folder / "config.json", "give the folder of a model", type=dict)
    kind = str(config.get("model_type"))
    try:
        info = load_codec(folder).info
    except UserError as e:
        return f"transformers folder, model type {kind}, no codec", {"reason": str(e)}, None
    return "codec weights", {"model_type": kind}, info


def _codec(path: Path) -> Found | None:
    """Codec weights in one file, by loading them; None if they are not."""
    from rvqlm.codecs.registry import load_codec

    try:
        return "codec weights", {}, load_codec(path).info
    except UserError:
        return None


def look_at_audio(path: Path) -> Found | None:
    """An audio file; None for what libsndfile does not know and whose name is no audio's."""
    import soundfile

    from rvqlm.audio.read import AUDIO_SUFFIXES, probe

    try:
        about = soundfile.info(str(path))
        form = f"{about.format} {about.subtype}"
    except soundfile.LibsndfileError:
        if path.suffix.lower() not in AUDIO_SUFFIXES:
            return None
        form = f"{path.suffix[1:]}, read by ffmpeg"
    rate, channels, samples = probe(path)
    seconds = samples / rate if samples else None  # None: only decoding would tell
    facts = {"seconds": seconds, "sampling_rate": rate, "channels": channels, "samples": samples}
    return "audio", {**facts, "format": form}, None
