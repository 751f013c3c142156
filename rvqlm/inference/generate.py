"""From a request to samples: prompts -> batches -> codes -> audio, measured and described.

`rvqlm generate` and the samples of a training come from here, so that the same model, prompts,
settings, seed and precision (float32 in a training) give the same audio and the same description
of it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long
from rvqlm.exchange.names import Names
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import pad, pad_durations
from rvqlm.inference.files import write_sample
from rvqlm.inference.prompts import Prompt
from rvqlm.inference.speech import alignment, overrun
from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio
from rvqlm.models.base import TokenModel

ALWAYS = ("temperature", "top_k", "top_p", "cfg_scale")
"""Settings that every sample records; others where they were set."""


@dataclass
class OutputArgs:
    """Output"""

    seconds: float = 5.0
    """Longest new audio per sample, after the prompt; the model may end sooner."""
    min_seconds: float = 0.0
    """The model may not end before this much new audio."""
    num_samples: int = 1
    """Samples per prompt, or in all when unprompted."""
    batch_size: int = 8
    """Samples generated together."""
    seed: int = 0
    """Of the draws; sample i of a call depends on this and i alone."""


@dataclass
class SampleRequest:
    """What samples to make."""

    prompts: list[Prompt]
    """Of `rvqlm.inference.prompts.read_prompts`."""
    output: OutputArgs = field(default_factory=OutputArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)
    taken: Collection[str] = ()
    """Names that no sample may have: those of samples that are to stay."""

    def jobs(self) -> list[tuple[int, Prompt, str]]:
        """Of each sample its number in the random stream, its prompt, and its name."""
        prompts, many, names = self.prompts, self.output.num_samples, Names(self.taken)
        if len(prompts) == 1 and prompts[0].kind == "unprompted":
            prompts, many = prompts * many, 1
        endings = [f"-{j:02d}" for j in range(many)] if many > 1 else [""]
        named = []
        for prompt in prompts:
            stem = names.take(prompt.name, endings, first=0 if prompt.numbered else None)
            named += [(prompt, stem + ending) for ending in endings]
        return [(i, p, name) for i, (p, name) in enumerate(named)]

    def settings(self, model: TokenModel) -> dict:
        """How codes are drawn, and how a model that learned it speaks, for the record."""
        spoken = {} if model.duration_head is None else vars(self.speech)
        plain = vars(SamplingConfig())
        sampling = {k: v for k, v in vars(self.sampling).items() if k in ALWAYS or v != plain[k]}
        return {**sampling, **self.demask.settings(), **spoken}


@dataclass
class Sample:
    """One finished sample."""

    name: str
    """Stem of its file name."""
    codes: Tensor
    """(T, K) int64, prompt included."""
    prompt_frames: int
    audio: Tensor
    """(C, S) float32 on the host, prompt included."""
    sampling_rate: int
    about: dict
    """What its JSON says: how it was made and what it measures."""
    remark: str = ""
    """What the user should know of it."""

    def write(self, folder: Path) -> Path:
        """Write NAME.wav and NAME.json; returns the path of the wav."""
        return write_sample(folder / f"{self.name}.wav", self.audio, self.sampling_rate, self.about)


def generate(
    model: TokenModel,
    codec: Codec,
    request: SampleRequest,
    about: dict,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[Sample]:
    """Samples in the order of the request, each as soon as its batch is generated.

    :param about: entries for the description of each sample: which model it is, the command.
    :param progress: called after each pass of the model.
    :raises UserError: what the model cannot do, see `TokenModel.generate`.
    """
    size = request.output.batch_size
    # what is filled in together has gaps of one length at one place, and as much behind them
    for _, alike in itertools.groupby(request.jobs(), key=lambda job: _shape(job[1])):
        jobs = list(alike)
        for batch in (jobs[i : i + size] for i in range(0, len(jobs), size)):
            yield from _generate_batch(model, codec, batch, request, about, progress)


def _shape(prompt: Prompt) -> tuple[int, ...] | None:
    return None if prompt.after is None else (len(prompt.codes), prompt.gap, len(prompt.after))


def _generate_batch(
    model, codec, jobs, request: SampleRequest, about: dict, progress
) -> Iterator[Sample]:
    info, rate, out = model.info, float(model.info.frame_rate), request.output
    prompts = [prompt for _, prompt, _ in jobs]
    lengths = torch.tensor([len(p.codes) for p in prompts])
    passes = 0

    def count(done: int) -> None:
        nonlocal passes
        passes = done
        progress()

    began = time.perf_counter()
    codes = torch.nn.utils.rnn.pad_sequence([p.codes for p in prompts], batch_first=True)
    options = {
        "sampling": request.sampling,
        "demask": request.demask,
        "speech": request.speech,
        "durations": pad_durations([p.given for p in prompts]),
        "conditions": pad([p.given for p in prompts], model.conditions),
        "seed": out.seed,
        "rows": [number for number, _, _ in jobs],
        "progress": count,
    }
    new_frames = max(1, round(out.seconds * rate))
    behind = 0 if prompts[0].after is None else len(prompts[0].after)
    if prompts[0].after is not None:
        after = torch.stack([p.after for p in prompts])
        made = model.infill(codes, after, prompts[0].gap, **options)
    else:
        made = model.generate(
            codes,
            lengths,
            min_frames=lengths + round(out.min_seconds * rate),
            limits=lengths + new_frames,
            **options,
        )
    elapsed = time.perf_counter() - began
    new_seconds = int((made.lengths - made.prompt_lengths - behind).sum()) / rate
    for n, ((_, prompt, name), codes, stop) in enumerate(zip(jobs, made.items(), made.stop)):
        # a continuation stays as loud as its prompt ended, where a codec keeps loudness apart
        scales = codec.scales_for(len(codes), prompt.scales)
        audio = decode_long(codec, codes.to(codec.device), scales=scales)  # (C, S)
        given, end = len(prompt.codes), len(codes) - behind
        placed, remark = None, ""
        if made.times is not None and "text" in prompt.given.values:
            ids = prompt.given.values["text"][:, 0]
            times = made.times[n, : len(ids)]
            placed = alignment(model.conditions["text"], ids, times, rate)
            seconds = None if behind else out.seconds
            limit = len(codes) if behind else len(prompt.codes) + new_frames
            remark = overrun(float(times[-1, 1]), limit, rate, len(prompt.codes), seconds)
        new = slice(info.num_samples(given), info.num_samples(end) if behind else None)
        row = {
            "kind": prompt.kind,
            **about,
            "codec": info.to_dict(),
            "settings": request.settings(model),
            "seed": out.seed,
            "prompt": prompt.source,
            "conditions": prompt.given.about,
            "prompt_seconds": given / rate,
            **({"infill": [given / rate, end / rate]} if behind else {}),
            "seconds": len(codes) / rate,
            "stop": stop,
            **({} if placed is None else {"alignment": placed}),
            **({} if made.likelihood is None else {"likelihood": float(made.likelihood[n])}),
            # of what the model made, not of what it was given
            "silence_ratio": silence_ratio(audio[:, new], info.sampling_rate),
            "repetition_ratio": repetition_ratio(codes[given:end]),
            # of all items of the batch together
            "batch_size": len(jobs),
            "passes": passes,
            "generation_seconds": elapsed,
            "real_time_factor": new_seconds / elapsed,
        }
        yield Sample(name, codes, given, audio, info.sampling_rate, row, remark)
