"""From an experiment to a model that is ready to be served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rvqlm.codecs.registry import load_codec_like
from rvqlm.errors import UserError
from rvqlm.inference.stream import Streamer
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
    model, path, state, device = args.model.load(exp_dir)
    if not model.generates:
        raise UserError(f"{path}: a {model.name} predicts no codes; it cannot be served")
    dtype = pick_precision(args.precision, device)
    model = with_weights_in(model, dtype)
    codec = load_codec_like(model.info, args.codec or None, device)
    voices = {}
    if args.voices:
        voices = encode_voices(find_voices(args.voices), codec, args.voice_seconds)

    about = {
        "model": name,
        "family": model.name,
        "checkpoint": str(Path(path).name),
        "step": int(state["step"]),
        "precision": str(dtype).removeprefix("torch."),
    }

    def make() -> Streamer:
        context = args.context_seconds or None
        return Streamer(model, codec, args.limits.slots, context, about=about)

    worker = Worker(name, make, model.info.sampling_rate, args.limits, metrics)
    worker.start()
    groups = {"sampling": args.sampling, "demask": args.demask, "pace": args.speech}
    own = {"model": name}
    return Served(
        name, model, codec, worker, args.limits, own, voices, language=args.language, **groups
    )
