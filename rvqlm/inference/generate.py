"""From a request to samples: prompts -> batches -> codes -> audio, measured and described.

`rvqlm generate` and the samples of a training come from here, so that the same model, prompts,
settings, seed and precision (float32 in a training) give the same audio and the same description
of it.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor

from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long
from rvqlm.exchange.names import Names
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import pad, pad_durations
from rvqlm.inference.files import write_sample
from rvqlm.inference.long_texts import Chain, divided
from rvqlm.inference.prompts import Prompt
from rvqlm.inference.speech import alignment, overrun
from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio
from rvqlm.models.base import TokenModel

SILENT = 0.8
"""Share of a sample below -50 dB above which it is warned of (recordings have up to 0.5)."""
SORTED = 8
"""Batches whose samples are ordered by their length."""
LOOPS = 0.5
"""Share of its frames that were there before, likewise."""
WINDOWS = ("context_frames", "overlap_frames")
"""What only a sample that is continued is asked for."""
ALWAYS = ("temperature", "top_k", "top_p", "cfg_scale")
"""Settings that every sample records; others where they were set."""


@dataclass
class OutputArgs:
    """Output"""

    seconds: float = 5.0
    """Longest new audio per sample, after the prompt; the model may end sooner."""
    divide_texts: bool = True
    """Say a text that takes more than --seconds sentence by sentence, each in at most so many, and
    join them. Without it its end is cut."""
    min_seconds: float = 0.0
    """The model may not end before this much new audio."""
    num_samples: int = 1
    """Samples per prompt, or in all when unprompted."""
    batch_size: int = 8
    """Samples generated together."""
    seed: int = 0
    """Of the draws; sample i of a call depends on this and i alone."""
    context_seconds: float | None = None
    """Show a model that writes from left to right no more than this: a longer sample goes on in
    windows, --overlap-seconds of the one before (half by default) being the prompt of the next, so
    that a frame costs the same however long it runs. Unset: all that came before."""
    context_overlap: tyro.conf.Suppress[float | None] = None
    """--overlap-seconds of these windows."""


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
        return [
            (place if p.number is None else p.number, p, name)
            for place, (p, name) in enumerate(named)
        ]

    def settings(self, model: TokenModel) -> dict:
        """How codes are drawn, and how a model that learned it speaks, for the record."""
        spoken = {} if model.duration_head is None else vars(self.speech)
        plain = vars(SamplingConfig())
        sampling = {k: v for k, v in vars(self.sampling).items() if k in ALWAYS or v != plain[k]}
        windows = {}
        if self.output.context_seconds is not None:
            windows["context_seconds"] = self.output.context_seconds
            windows["overlap_seconds"] = self.output.context_overlap
        return {**sampling, **self.demask.settings(), **spoken, **windows}


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

    @property
    def warnings(self) -> list[str]:
        """What is likely to be wrong with it."""
        return self.about.get("warnings", [])

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
    """Samples in the order of the request, each as soon as it and those before it are made.

    :param about: entries for the description of each sample: which model it is, the command.
    :param progress: called after each pass of the model.
    :raises UserError: what the model cannot do, see `TokenModel.generate`.
    """
    out = request.output
    new_frames = max(1, round(out.seconds * float(model.info.frame_rate)))
    if out.divide_texts:
        divide = divided(request.prompts, model, new_frames, request.speech, out.seed)
        request = replace(request, prompts=divide)
    waiting = deque(Job(*job, model, new_frames) for job in request.jobs())
    todo, size = _alike(waiting, out.batch_size * SORTED), out.batch_size
    while waiting:
        if waiting[0].chain.done:
            yield _sample(model, codec, waiting.popleft(), request, about)
            continue
        _make(model, _ready(todo, size), request, progress)
        todo = [job for job in todo if not job.chain.done]


def _alike(jobs: Iterable[Job], window: int) -> list[Job]:
    """Jobs in an order in which those of a batch end together, as far as is known."""
    found, jobs = [], iter(jobs)
    while some := [*itertools.islice(jobs, window)]:
        found += sorted(some, key=lambda job: job.prompt.given.frames)
    return found


class Job:
    """A sample on its way."""

    def __init__(self, number: int, prompt: Prompt, name: str, model: TokenModel, longest: int):
        self.number, self.prompt, self.name = number, prompt, name
        self.chain = Chain(prompt, model, longest)
        self.likelihood: float | None = None
        # of all items of its batches together
        self.passes, self.elapsed, self.new_seconds, self.batch_size = 0, 0.0, 0.0, 0


def _ready(waiting: Iterable[Job], size: int) -> list[tuple[Job, int, Prompt]]:
    """Pieces to make together, of the first jobs: what is filled in has gaps of one length at one
    place, and as much behind them."""
    found: list[tuple[Job, int, Prompt]] = []
    for job in itertools.islice(waiting, size):
        while len(found) < size and job.chain.ready():
            if found and _shape(job.prompt) != _shape(found[0][0].prompt):
                break
            found.append((job, *job.chain.take()))
    return found


def _shape(prompt: Prompt) -> tuple[int, ...] | None:
    return None if prompt.after is None else (len(prompt.codes), prompt.gap, len(prompt.after))


def frames_of(seconds: float | None, frame_rate: float) -> int | None:
    return None if seconds is None else round(seconds * frame_rate)


def asked(model: TokenModel, pieces: list[tuple[Job, int, Prompt]], request: SampleRequest) -> dict:
    """What `TokenModel.generate` is asked for."""
    rate, out = float(model.info.frame_rate), request.output
    prompts = [prompt for _, _, prompt in pieces]
    lengths = torch.tensor([len(p.codes) for p in prompts])
    least = round(out.min_seconds * rate)
    shortest = torch.tensor([least if job.chain.alone else 0 for job, _, _ in pieces])
    longest = torch.tensor([job.chain.limit(piece) for job, piece, _ in pieces])
    return {
        "prompt_codes": torch.nn.utils.rnn.pad_sequence(
            [p.codes for p in prompts], batch_first=True
        ),
        "prompt_lengths": lengths,
        "min_frames": lengths + shortest,
        "limits": lengths + longest,
        "sampling": request.sampling,
        "demask": request.demask,
        "speech": request.speech,
        "durations": pad_durations([p.given for p in prompts]),
        "conditions": pad([p.given for p in prompts], model.conditions),
        "seed": out.seed,
        "context_frames": frames_of(out.context_seconds, rate),
        "overlap_frames": frames_of(out.context_overlap, rate),
        "rows": [job.number + (piece << 48) for job, piece, _ in pieces],
    }


def _make(
    model: TokenModel,
    pieces: list[tuple[Job, int, Prompt]],
    request: SampleRequest,
    progress: Callable[[], object],
) -> None:
    """Make pieces in one batch, and hand them to their chains."""
    rate, passes = float(model.info.frame_rate), 0
    prompts = [prompt for _, _, prompt in pieces]

    def count(done: int) -> None:
        nonlocal passes
        passes = done
        progress()

    began = time.perf_counter()
    behind = 0 if prompts[0].after is None else len(prompts[0].after)
    options = {**asked(model, pieces, request), "progress": count}
    if prompts[0].after is not None:
        before = options.pop("prompt_codes")
        after = torch.stack([p.after for p in prompts])
        for name in ("prompt_lengths", "min_frames", "limits", *WINDOWS):
            del options[name]
        made = model.infill(before, after, prompts[0].gap, **options)
    else:
        made = model.generate(**options)
    elapsed = time.perf_counter() - began
    new_seconds = int((made.lengths - made.prompt_lengths - behind).sum()) / rate
    for n, ((job, piece, _), codes) in enumerate(zip(pieces, made.items())):
        times = None if made.times is None else made.times[n]
        job.chain.add(piece, codes, times, made.stop[n])
        if made.likelihood is not None:
            likelihood = float(made.likelihood[n])
            job.likelihood = min(likelihood, job.likelihood or likelihood)
    for job in {id(job): job for job, _, _ in pieces}.values():
        job.batch_size = max(job.batch_size, len(pieces))
        job.passes, job.elapsed = job.passes + passes, job.elapsed + elapsed
        job.new_seconds += new_seconds


def _sample(
    model: TokenModel, codec: Codec, job: Job, request: SampleRequest, about: dict
) -> Sample:
    """A finished one: decoded, measured and described."""
    info, codes, prompt = model.info, job.chain.finished().codes, job.prompt
    # a continuation stays as loud as its prompt ended, where a codec keeps loudness apart
    scales = codec.scales_for(len(codes), prompt.scales)
    audio = decode_long(codec, codes.to(codec.device), scales=scales)  # (C, S)
    given, behind = len(prompt.codes), 0 if prompt.after is None else len(prompt.after)
    end = info.num_samples(len(codes) - behind) if behind else None
    new = audio[:, info.num_samples(given) : end]
    row = describe(model, job, request, about, silence_ratio(new, info.sampling_rate))
    return Sample(job.name, codes, given, audio, info.sampling_rate, row)


def describe(
    model: TokenModel, job: Job, request: SampleRequest, about: dict, silent: float
) -> dict:
    """What there is to say of a finished sample, of whose new audio a share is ``silent``."""
    rate, chain, prompt = float(model.info.frame_rate), job.chain, job.prompt
    made, codes = chain.finished(), chain.finished().codes
    behind = 0 if prompt.after is None else len(prompt.after)
    given, end = len(prompt.codes), len(codes) - behind
    row = {
        "kind": prompt.kind,
        **about,
        "codec": model.info.to_dict(),
        "settings": request.settings(model),
        "seed": request.output.seed,
        "prompt": prompt.source,
        "conditions": prompt.given.about,
        "prompt_seconds": given / rate,
        **({"infill": [given / rate, end / rate]} if behind else {}),
        **({"infill_after": prompt.behind} if prompt.behind else {}),
        "seconds": len(codes) / rate,
        "stop": made.stop,
    }
    overran = ""
    if made.times is not None and len(made.ids):
        row["alignment"] = alignment(model.conditions["text"], made.ids, made.times, rate)
        if chain.alone:
            seconds = None if behind else request.output.seconds
            limit = len(codes) if behind else given + chain.longest
            overran = overrun(float(made.times[-1, 1]), limit, rate, given, seconds)
    if not chain.alone:
        row["sentences"] = chain.sentences(rate)
    if job.likelihood is not None:
        row["likelihood"] = job.likelihood
    # of what the model made, not of what it was given
    row["silence_ratio"] = silent
    row["repetition_ratio"] = repetition_ratio(codes[given:end])
    if found := suspect(row, request.output, overran):
        row["warnings"] = found
    return row | {
        "batch_size": job.batch_size,
        "passes": job.passes,
        "generation_seconds": job.elapsed,
        "real_time_factor": job.new_seconds / job.elapsed,
    }


def suspect(about: dict, output: OutputArgs, overran: str = "") -> list[str]:
    """What is likely to be wrong with a sample by its description, the kind first.

    :param overran: of `rvqlm.inference.speech.overrun`.
    """
    found = [f"cut: {overran}"] if overran else []
    if about["silence_ratio"] > SILENT:
        found.append(f"silent: {about['silence_ratio']:.0%} of it")
    elif about["repetition_ratio"] > LOOPS:
        found.append(f"loops: {about['repetition_ratio']:.0%} of it is there twice")
    wanted = output.min_seconds < output.seconds and "infill" not in about
    text = {"text", "phonemes"} & {*about["conditions"]}
    said = about["alignment"][-1][2] if about.get("alignment") else 0.0
    on = about["stop"] == "length" and about["seconds"] - said > 1.0
    if on and wanted and text and not overran:
        found.append(f"limit: stopped by --seconds {output.seconds:g}, not by itself")
    return found
