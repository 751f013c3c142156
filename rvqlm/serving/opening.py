"""From an experiment to a model that is ready to be served."""

from __future__ import annotations

from pathlib import Path

from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError
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

    def make() -> Streamer:
        context = setup.context_seconds or None
        return Streamer(
            model, codec, limits.slots, context, first_seconds=FIRST_SECONDS, about=about
        )

    worker = Worker(name, make, model.info.sampling_rate, limits, metrics)
    worker.start()
    own = {"model": name}
    draws |= {"language": setup.language, "how": how}
    return Served(name, model, codec, worker, limits, own, voices, **draws)
