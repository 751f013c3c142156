"""Checks of `gpu.py`: codecs both ways, samples that a training makes of them, a second GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_checks import DRAWS, SMALL, Check, Where, apart, check, generate, shaken, train
from torch import Tensor

from rvqlm.codecs.chunking import decode_long, encode_whole
from rvqlm.codecs.registry import load_codec
from rvqlm.models.factory import build_model
from rvqlm.runtime import set_tf32, use_device


def signal(seconds: float, rate: int, channels: int = 1) -> Tensor:
    """(1, C, S) a sweep with noise."""
    t = torch.arange(round(seconds * rate)) / rate
    noise = torch.randn(channels, len(t), generator=torch.Generator().manual_seed(0))
    return (0.4 * torch.sin(400 * t + 300 * t.sin()) * t.cos() + 0.03 * noise)[None]


def codes_and_audio(where: Where, load: Callable, seconds: float) -> str:
    """Both ways, whole and in pieces, as ``rvqlm tokenize`` and ``decode`` do."""
    here, there = load("cpu"), load(where.device)
    audio = signal(seconds, here.info.sampling_rate, here.info.channels)
    want = here.encode(audio)[0]
    set_tf32(True)  # codecs must not heed it
    for way, got in (
        ("encode", there.encode(audio.to(where.device))[0]),
        ("encode in pieces", encode_whole(there, audio[0], seconds / 3).codes[None]),
    ):
        check(float((got.cpu() != want).double().mean()), 1e-3, f"{way}, share of the codes")
    sound = decode_long(here, want[0], seconds / 3)
    for codes in (want, want.to(where.device)):
        got = decode_long(there, codes[0].to(there.device), seconds / 3)
        check(distance := apart(got.cpu(), sound), 1e-3, "decode")
    check(
        apart(there.decode(want.to(where.device)).cpu(), here.decode(want)), 1e-3, "decode, whole"
    )
    return f"{want.numel()} codes, audio {distance:.0e}"


def tiny(name: str, device) -> torch.nn.Module:
    """A codec of transformers with random weights."""
    from tiny_codecs import MODELS, fill_codebooks, noise

    from rvqlm.codecs.pretrained import from_model

    torch.manual_seed(0)
    model = fill_codebooks(MODELS[name]().eval(), noise(1, 1, 4000))
    return from_model(model, name).to(device)


def codec(where: Where) -> Iterator[tuple[str, Check]]:
    seconds = 4.0 if where.simulated else 30.0
    yield "spectral", partial(codes_and_audio, where, partial(load_codec, "spectral"), seconds)
    for name in ("dac", "encodec", "mimi"):
        yield f"{name}, random weights", partial(codes_and_audio, where, partial(tiny, name), 0.5)
    yield "samples by a codec on the CPU", partial(samples, where)
    if torch.cuda.device_count() > 1:
        yield "all on the second GPU", partial(second, where)


def samples(where: Where) -> str:
    """As a training makes them with ``--sample-device cpu``."""
    from rvqlm.inference.generate import OutputArgs, SampleRequest
    from rvqlm.inference.generate import generate as generate_samples
    from rvqlm.inference.prompts import Prompt

    spectral = load_codec("spectral")
    model = shaken(build_model("codec-lm", {**SMALL, "model_end": False}, spectral.info))
    request = SampleRequest([Prompt(torch.empty(0, 8, dtype=torch.int64), "a")], OutputArgs(0.2))
    (want,), (got,) = (
        list(generate_samples(copy.deepcopy(model).double().to(device), spectral, request, {}))
        for device in ("cpu", where.device)
    )
    check(apart(got.audio, want.audio), 1e-6, "audio")
    return f"{got.audio.shape[1]} samples"


def second(where: Where) -> str:
    """A training, a generation and a codec on a GPU that is not the first."""
    there = Where(use_device("cuda:1"), where.folder / "second", where.simulated)
    try:
        said = train(there, "delay", "adamw")
        generate(there, "delay-prompt", DRAWS["guided"])
        codes_and_audio(there, partial(load_codec, "spectral"), 1.0)
    finally:
        use_device(where.device)
    return said
