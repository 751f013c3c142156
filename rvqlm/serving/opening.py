"""From an experiment to a model that is ready to be served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError
from rvqlm.modules.packed import with_weights_in
from rvqlm.runtime import pick_precision
from rvqlm.serving.metrics import Metrics
from rvqlm.serving.served import Served
from rvqlm.serving.voices import encode_voices, find_voices
from rvqlm.serving.worker import Worker

if TYPE_CHECKING:
    from rvqlm.bin.serve import ServeArgs


def open_model(name: str, exp_dir: str, args: ServeArgs, metrics: Metrics) -> Served:
    """Load a model, its codec and the voices, and start its worker.

    :raises UserError: no such model, codec or folder of voices.
    """
    from rvqlm.inference.stream import Streamer

    model, path, state, device = args.model.load(exp_dir)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; it cannot be served")
    dtype = pick_precision(args.precision, device)
    model = with_weights_in(model, dtype)
    codec = load_codec_like(model.info, args.codec or None, device)
    voices = {}
    if args.voices:
        voices = encode_voices(find_voices(args.voices), codec, args.voice_seconds)

    def make() -> Streamer:
        return Streamer(model, codec, args.limits.slots, args.context_seconds or None)

    worker = Worker(name, make, model.info.sampling_rate, args.limits, metrics)
    worker.start()
    about = {
        "model": name,
        "family": model.name,
        "checkpoint": str(Path(path).name),
        "step": int(state["step"]),
        "precision": str(dtype).removeprefix("torch."),
    }
    return Served(
        name, model, codec, worker, args.limits, about, voices, args.sampling, args.demask,
        args.speech, args.language,
    )  # fmt: skip
