"""From an experiment to a model that is ready to be served."""

from __future__ import annotations

from pathlib import Path

from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError
from rvqlm.generation.kept import Kept
from rvqlm.inference.model_args import DrawingArgs
from rvqlm.inference.stream import Streamer
from rvqlm.serving.config import Limits, Setup
from rvqlm.serving.metrics import Metrics
from rvqlm.serving.served import Served
from rvqlm.serving.voices import encode_voices, find_voices
from rvqlm.serving.worker import Worker

FIRST_SECONDS = 0.1
"""Of audio in a first piece: a frame alone would have been played before the next comes."""


def open_model(
    name: str,
    exp_dir: str,
    setup: Setup,
    model_args: DrawingArgs,
    limits: Limits,
    metrics: Metrics,
    **draws,
) -> Served:
    """Load a model, its codec and the voices, and start its worker.

    :param draws: `sampling`, `demask` and `pace` of `Served`.
    :raises UserError: no such model, codec or folder of voices.
    """
    model, path, state, device, how = model_args.load_to_draw(exp_dir)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; it cannot be served")
    codec = load_codec_like(model.info, setup.codec or None, device)
    voices = {}
    if setup.voices:
        voices = encode_voices(find_voices(setup.voices), codec, setup.voice_seconds)

    about = {
        "model": name,
        "family": model.name,
        "checkpoint": str(Path(path).name),
        "step": int(state["step"]),
        **how,
    }

    kept = _cache(name, setup.voice_cache_mb, metrics) if setup.voice_cache_mb else None

    def make() -> Streamer:
        if kept is not None:  # after a failure nothing of before is trusted
            kept.clear()
        options = {"first_seconds": FIRST_SECONDS, "about": about, "kept": kept}
        return Streamer(model, codec, limits.slots, setup.context_seconds or None, **options)

    worker = Worker(name, make, model.info.sampling_rate, limits, metrics)
    worker.start()
    own = {"model": name}
    draws |= {"voice_seconds": setup.voice_seconds, "language": setup.language, "how": how}
    return Served(name, model, codec, worker, limits, own, voices, **draws)


def _cache(model: str, megabytes: float, metrics: Metrics) -> Kept:
    """For what was made of voices, with its counts."""
    hits, misses = "rvqlm_voice_cache_hits_total", "rvqlm_voice_cache_misses_total"
    metrics.counter(hits, "voices of which part `model` or `codec` was kept")
    metrics.counter(misses, "voices of which it had to be computed")

    def count(part: str, hit: bool) -> None:
        metrics.add(hits if hit else misses, model=model, part=part)

    kept = Kept(int(megabytes * 1e6), count)
    about = "memory of what was kept of voices"
    metrics.gauge("rvqlm_voice_cache_bytes", about, lambda: kept.size, model=model)
    return kept
