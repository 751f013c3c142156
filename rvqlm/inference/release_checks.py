"""What a model must not do before it is given to others, each tried on samples to listen to.

Nothing is judged by a number of its own: recordings of the split pass through the codec, the
recogniser and the same measures, and a model may be worse than they are by a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import decode_long
from rvqlm.data.index import TokenDataset
from rvqlm.data.scales import stored_scales
from rvqlm.errors import UserError
from rvqlm.exchange.names import flat_name
from rvqlm.frontends.aligned import sounds
from rvqlm.frontends.symbols import read_symbol
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import ConditionArgs, Given
from rvqlm.inference.files import write_sample
from rvqlm.inference.free_running import Continuation, as_recorded
from rvqlm.inference.generate import OutputArgs, Sample, SampleRequest, generate
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.prompts import Prompt, PromptArgs, from_tokens
from rvqlm.inference.recognize import recognize_samples
from rvqlm.metrics import speech_faults
from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio
from rvqlm.metrics.distances import frechet_distance
from rvqlm.metrics.recognition import edit_distances
from rvqlm.metrics.signal_faults import onset_burst
from rvqlm.models.recognizer import Recognizer

DIMENSIONS = 8
"""Principal directions of a codec's latents in which voices are compared."""
WORD = 3
"""Sounds put in together that are as long as a word."""
CLEAR = 0.5
"""A recogniser that gets more of the recordings wrong judges nobody."""


@dataclass
class CheckConfig:
    """Flags of `rvqlm check`."""

    exp_dir: str
    """Experiment of rvqlm train, a checkpoint file or an exported model."""
    manifest_dir: str
    """Token directory of the recordings to continue, with the texts to say."""
    recognizer: str = ""
    """Experiment of a recogniser of codes (rvqlm recognize): without it nothing is checked of what
    is said."""
    split: str = "test"
    """Split of the recordings."""
    num: int = 8
    """Samples of each kind."""
    seconds: float = 6.0
    """How far a recording is continued, at most."""
    prompt_seconds: tuple[float, ...] = (1.0, 2.0)
    """Lengths of prompts."""
    long_seconds: float = 60.0
    """Length of the long sample, of which the first and last third are compared: 180 for minutes.
    0: none."""
    tolerance: float = 0.1
    """How much worse than recordings a share may be."""
    batch_size: int = 8
    """Samples generated together."""
    seed: int = 0
    """Of the choice of recordings and of the draws."""
    codec: str = ""
    """The codec, by name or directory; empty: the one named in the checkpoint."""
    out_dir: str = ""
    """Where samples and check.json go; empty: EXP/check."""
    model: ModelArgs = field(default_factory=ModelArgs)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    speech: SpeechConfig = field(default_factory=SpeechConfig)

    @property
    def folder(self) -> Path:
        exp = Path(self.exp_dir)
        return Path(self.out_dir or (exp if exp.is_dir() else exp.parent) / "check")

    def check(self) -> None:
        problems = [
            *self.sampling.problems(),
            *self.demask.problems(),
            *self.speech.problems(),
        ]
        above = {"num": self.num, "seconds": self.seconds, "batch_size": self.batch_size}
        above |= {"prompt_seconds": min(self.prompt_seconds, default=0.0)}
        problems += [
            f"--{name.replace('_', '-')} {value:g} must be positive"
            for name, value in above.items()
            if not 0 < value < float("inf")
        ]
        if not 0 <= self.long_seconds < float("inf"):
            problems.append(f"--long-seconds {self.long_seconds:g}: at least 0")
        if not 0 <= self.tolerance < 1:
            problems.append(f"--tolerance {self.tolerance:g}: in [0, 1)")
        if problems:
            raise UserError("; ".join(problems))


@dataclass
class Check:
    """One row of the table."""

    name: str
    verdict: Literal["pass", "fail", "not run"]
    found: str
    """What was measured, or why nothing was."""
    wanted: str = ""
    sample: str = ""
    """The worst one, to hear."""
    value: float | None = None
    limit: float | None = None


def judge(
    name: str,
    values: Sequence[float],
    of: Sequence[str],
    limit: float,
    unit: Callable[[float], str] = "{:.1%}".format,
    least: bool = False,
    what: str = "",
) -> Check:
    """Pass where the mean of some values is at most the limit, or at least where ``least``.

    :param of: the samples that have them.
    """
    if not len(values) or not np.isfinite(values).any():
        return Check(name, "not run", "no sample to measure it of")
    values = np.asarray(values, float)
    mean = float(np.nanmean(values))
    worst = of[int(np.nanargmin(values) if least else np.nanargmax(values))]
    passed = mean >= limit if least else mean <= limit
    wanted = f"{'at least' if least else 'at most'} {unit(limit)}"
    found = unit(mean) + (f" {what}" if what else "")
    return Check(name, "pass" if passed else "fail", found, wanted, worst, mean, limit)


@dataclass
class Group:
    """Samples of one kind, with what was to be said and was heard of it, sounds only."""

    samples: list[Sample]
    paths: list[Path]
    said: list[list[int]] = field(default_factory=list)
    heard: list[list[int]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [path.name for path in self.paths]

    def each(self, measure: Callable[[list[int], list[int]], float]) -> list[float]:
        return [float(measure(s, h)) for s, h in zip(self.said, self.heard)]

    def rates(self) -> list[float]:
        errors = edit_distances(self.said, self.heard)
        return [float(e / max(1, len(s))) for e, s in zip(errors, self.said)]

    def rate(self) -> float:
        """Of all together."""
        errors = edit_distances(self.said, self.heard)
        return float(errors.sum() / max(1, sum(map(len, self.said))))


class ReleaseChecks:
    """Makes the samples and measures them.

    :raises UserError: a model that makes no codes, a recogniser that is none, or data that is of
        another codec or kind.
    """

    def __init__(self, config: CheckConfig, load_codec: Callable[..., Codec]):
        self.config = config
        self.model, self.path, self.state, self.device = config.model.load(config.exp_dir)
        model = self.model
        if not model.generates:
            raise UserError(f"{self.path}: a {model.name} predicts no codes")
        self.codec = load_codec(model.info, config.codec or None, self.device)
        self.rate = float(model.info.frame_rate)
        self.dataset = TokenDataset.open(
            config.manifest_dir, config.split, model.info.num_codebooks
        )
        self.listener = None
        if config.recognizer:
            own = replace(config.model, checkpoint="best")
            self.listener, where, *_ = own.load(config.recognizer)
            if not isinstance(self.listener, Recognizer):
                raise UserError(f"--recognizer {where}: this is a {self.listener.name}")
        self.table = None
        if "text" in model.conditions:
            self.table = TextFrontEnd.from_info(model.conditions["text"]).table
            told = self.listener and self.listener.conditions["text"]
            if (
                told
                and told.settings.get("symbols") != model.conditions["text"].settings["symbols"]
            ):
                raise UserError(
                    f"--recognizer {config.recognizer}: its symbols are others than the model's"
                )

    # ------------------------------------------------------------------------------- samples

    def prompts(self, seconds: float) -> list[Prompt]:
        """Recordings of the split with so much of their codes, and their conditions."""
        source = PromptArgs(
            manifest_dir=self.config.manifest_dir,
            split=self.config.split,
            num_prompts=self.config.num,
            prompt_seconds=seconds,
        )
        frames = round(seconds * self.rate)
        return from_tokens(source, ConditionArgs(), frames, self.model, self.config.seed)

    def make(self, prompts: list[Prompt], seconds: float, least: float = 0.0) -> Group:
        """Generate, and write the samples."""
        c = self.config
        output = OutputArgs(seconds, least, batch_size=c.batch_size, seed=c.seed)
        request = SampleRequest(prompts, output, c.sampling, c.demask, c.speech)
        if not any(prompt.given.values for prompt in prompts):
            request.sampling = replace(c.sampling, cfg_scale=1.0)
        about = {"model": self.model.name, "step": int(self.state["step"])}
        samples = list(generate(self.model, self.codec, request, about))
        return Group(samples, [sample.write(c.folder) for sample in samples])

    def decoded(self, items: list[Continuation], name: str) -> Group:
        """The recordings as the codec gives them back, written beside the samples."""
        scales = stored_scales(
            self.config.manifest_dir, self.config.split, self.dataset.info, {i.name for i in items}
        )
        found = Group([], [])
        for item in items:
            known = self.codec.scales_for(len(item.real), scales.get(item.name))
            audio = decode_long(self.codec, item.real.to(self.codec.device), scales=known)
            about = {"kind": "codec", "conditions": item.given.about}
            stem = f"{name}-{flat_name(item.name)}"
            rate = self.codec.info.sampling_rate
            found.paths.append(write_sample(self.config.folder / f"{stem}.wav", audio, rate, about))
            found.samples.append(Sample(stem, item.real, item.prompt, audio, rate, about))
        return found

    def listen(self, group: Group) -> Group:
        """Have the recogniser listen to a group."""
        heard = recognize_samples(
            group.paths, self.listener, self.config.codec or None, self.device
        )
        front_end = TextFrontEnd.from_info(self.listener.conditions["text"])
        silent = {i for i in front_end.table.ids if not sounds(read_symbol(front_end.table[i]))}
        group.said = [[i for i in h.reference if i not in silent] for h in heard]
        group.heard = [[i for i in h.recognized if i not in silent] for h in heard]
        return group

    # -------------------------------------------------------------------------------- checks

    def run(self) -> Iterator[Check]:
        """All checks, each as soon as it is done; what cannot be run says why."""
        yield from self._continuations()
        reason = ""
        if self.table is None:
            reason = "the model is told no text"
        elif self.listener is None:
            reason = "give --recognizer"
        if reason:
            for name in SPOKEN:
                yield Check(name, "not run", reason)
        else:
            yield from self._speech()
        yield self._drift()

    def _continuations(self) -> Iterator[Check]:
        """Of the new parts behind prompts, beside the same parts of the recordings."""
        seconds, tolerance = self.config.prompt_seconds[-1], self.config.tolerance
        prompts = self.prompts(seconds)
        frames = round(seconds * self.rate)
        most = frames + round(self.config.seconds * self.rate)
        items = as_recorded(prompts, self.dataset, frames, most)
        real, made = self.decoded(items, "recording"), self.make(prompts, self.config.seconds)

        def new(sample: Sample) -> np.ndarray:
            start = self.model.info.num_samples(sample.prompt_frames)
            return sample.audio[:, start:].float().cpu().numpy().mean(0)

        rate, names = self.codec.info.sampling_rate, made.names
        silent, real_silent = (
            [silence_ratio(new(s), rate) for s in group.samples] for group in (made, real)
        )
        more = np.mean(real_silent) + 2 * tolerance
        yield judge("silence", silent, names, more, what=f"(recordings {np.mean(real_silent):.1%})")
        loops, real_loops = (
            [repetition_ratio(s.codes[s.prompt_frames :]) for s in group.samples]
            for group in (made, real)
        )
        limit = np.mean(real_loops) + tolerance
        yield judge("loops", loops, names, limit, what=f"(recordings {np.mean(real_loops):.1%})")
        yield self._bursts(
            "burst after a prompt", *([*map(new, g.samples)] for g in (made, real)), names
        )
        if "text" in self.model.conditions:
            endless = [s.about["stop"] == "length" for s in made.samples]
            short = [len(i.real) - i.prompt < self.config.seconds * self.rate * 0.6 for i in items]
            kept = [n for n, ok in enumerate(short) if ok]
            yield judge(
                "ends where its text does",
                [endless[n] for n in kept],
                [names[n] for n in kept],
                tolerance,
                what="go on to --seconds",
            )

    def _bursts(self, name: str, made: list, real: list, names: list[str]) -> Check:
        """Share of samples whose beginning is louder than all but the loudest recording's."""
        rate = self.codec.info.sampling_rate
        levels, usual = ([onset_burst(a, rate) for a in of] for of in (made, real))
        if not np.isfinite(levels).any() or not np.isfinite(usual).any():
            return Check(name, "not run", "all samples or recordings are shorter than 0.2 s")
        most = max(0.0, float(np.nanmax(usual)))
        bursts = [float(level > most + 1.0) for level in levels]
        found = judge(name, bursts, names, self.config.tolerance, what=f"above {most:+.0f} dB")
        return replace(found, sample=names[int(np.nanargmax(levels))])

    def _speech(self) -> Iterator[Check]:
        """What is said: texts of several lengths, prompts of several lengths, a long one."""
        tolerance = self.config.tolerance
        prompts = [p for p in self.prompts(0) if len(p.given.values.get("text", ()))]
        if not prompts:
            for name in SPOKEN:
                yield Check(name, "not run", f"no text in split {self.config.split}")
            return
        items = as_recorded(prompts, self.dataset, 0, 1 << 40)
        real = self.listen(self.decoded(items, "sentence-recording"))
        floor = real.rate()
        if floor > CLEAR:
            for name in SPOKEN:
                yield Check(name, "not run", f"the recogniser gets {floor:.1%} of recordings wrong")
            return
        groups = {
            name: self.listen(self.say(prompts, words, name))
            for name, words in (("one-word", 1), ("three-words", 3), ("sentence", 0), ("two", -1))
        }
        short = [groups[name] for name in ("one-word", "three-words")]
        exact = [float(s == h) for g in short for s, h in zip(g.said, g.heard)]
        likely = float(np.mean([(1 - floor) ** len(s) for g in short for s in g.said]))
        names = [name for g in short for name in g.names]
        wanted = max(0.0, likely - tolerance)
        yield judge("short texts, exactly", exact, names, wanted, least=True, what="of them")
        spoken = [groups[name] for name in groups]
        names = [name for g in spoken for name in g.names]
        for name, fault in (
            ("nothing behind the end", lambda s, h: speech_faults.behind_end(s, h) >= 2),
            ("no stutter", lambda s, h: speech_faults.stutters(s, h) > 0),
            ("no word too many", lambda s, h: speech_faults.longest_insertion(s, h) >= WORD),
        ):
            limit = float(np.mean(real.each(fault))) + tolerance
            yield judge(name, [x for g in spoken for x in g.each(fault)], names, limit, what="do")
        waves = [
            [s.audio.float().cpu().numpy().mean(0) for g in of for s in g.samples]
            for of in (spoken, [real])
        ]
        yield self._bursts("burst at the beginning", *waves, names)
        for name, group in groups.items():
            yield self._errors(f"errors, {name.replace('-', ' ')}", group, floor)
        for seconds in self.config.prompt_seconds:
            behind = self.make(self.prompts(seconds), self.config.seconds)
            yield self._errors(f"errors behind {seconds:g} s", self.listen(behind), floor)
        yield self._long(floor)

    def _errors(self, name: str, group: Group, floor: float) -> Check:
        limit, rate = floor + self.config.tolerance, group.rate()
        found = judge(name, group.rates(), group.names, limit)
        verdict = "pass" if rate <= limit else "fail"  # of all symbols alike
        what = f"{rate:.1%} (recordings {floor:.1%})"
        return replace(found, verdict=verdict, found=what, value=rate)

    def say(self, prompts: list[Prompt], words: int, name: str) -> Group:
        """Texts of so many words from those of recordings; 0: whole; -1: of two after another."""
        texts = [prompt.given.values["text"][:, 0].tolist() for prompt in prompts]
        made = []
        for n, (prompt, text) in enumerate(zip(prompts, texts)):
            if words > 0:
                text = self.first_words(text, words)
            elif words < 0:
                text = self.joined([text, texts[(n + 1) % len(texts)]])
            made.append(self.with_text(prompt, text, f"{name}-{flat_name(prompt.source)}"))
        longest = max(len(p.given.values["text"]) for p in made)
        return self.make(made, self.seconds_for(longest))

    def seconds_for(self, symbols: int) -> float:
        """Twice as long as so many symbols usually take, and two seconds."""
        return 2 + 2 * symbols * self.model.conditions["text"].rate / self.rate

    def with_text(self, prompt: Prompt, ids: list[int], name: str) -> Prompt:
        """A prompt that is to say something else, whenever the model likes."""
        info = self.model.conditions["text"]
        front_end = TextFrontEnd.from_info(info)
        key = "phonemes" if front_end.settings.type == "phonemes" else "text"
        values = prompt.given.values | {"text": torch.tensor(ids)[:, None]}
        return replace(prompt, name=name, given=Given(values, {key: front_end.decode(ids)}))

    def _words(self, ids: list[int]) -> list[list[int]]:
        """A text in words, each with what stands before the next, but not the space between."""
        words: list[list[int]] = [[]]
        for i in ids:
            symbol = read_symbol(self.table[i])
            if symbol.isspace():
                words.append([])
            elif symbol.startswith("▁"):
                words.append([i])
            else:
                words[-1].append(i)
        return [w for w in words if any(sounds(read_symbol(self.table[i])) for i in w)]

    def first_words(self, ids: list[int], number: int) -> list[int]:
        """The first words of a text, without what is not said behind them."""
        found = self.joined(self._words(ids)[:number])
        while found and not sounds(read_symbol(self.table[found[-1]])):
            found.pop()
        return found

    def joined(self, parts: list[list[int]]) -> list[int]:
        """One after the other, with a space between where there is one."""
        space = [i for i in self.table.ids if read_symbol(self.table[i]) == " "]
        found: list[int] = []
        for part in parts:
            found += [*(space[:1] if found else []), *part]
        return found

    def _long(self, floor: float) -> Check:
        """A text of several sentences: is its end said as its beginning is?"""
        name = "a long text to its end"
        if not self.config.long_seconds:
            return Check(name, "not run", "--long-seconds 0")
        long = self.listen(self.long)
        of_parts = speech_faults.coverage(long.said[0], long.heard[0])
        limit = 1 - floor - 2 * self.config.tolerance
        found = judge(name, of_parts, long.names * len(of_parts), limit, least=True)
        shares = ", ".join(f"{share:.0%}" for share in of_parts)
        verdict = "pass" if min(of_parts) >= limit else "fail"
        what = f"{shares} of its thirds heard"
        return replace(found, verdict=verdict, found=what, value=min(of_parts))

    @cached_property
    def long(self) -> Group:
        """A sample of --long-seconds: a text of so many sentences, or what follows a prompt."""
        seconds, prompts = self.config.long_seconds, []
        if self.table is not None:
            prompts = [p for p in self.prompts(0) if len(p.given.values.get("text", ()))]
        if not prompts:
            prompt = self.prompts(self.config.prompt_seconds[-1])[0]
            return self.make([replace(prompt, name="long")], seconds, seconds)
        wanted = seconds * self.rate / self.model.conditions["text"].rate
        parts: list[list[int]] = []
        while sum(map(len, parts)) < wanted:
            parts.append(prompts[len(parts) % len(prompts)].given.values["text"][:, 0].tolist())
        text = self.joined(parts)
        return self.make([self.with_text(prompts[0], text, "long")], self.seconds_for(len(text)))

    def _drift(self) -> Check:
        """How far the last third of a long sample is from its first, in the codec's latents, beside
        as much of recordings of one speaker."""
        name, vectors = "voice does not drift", self.codec.code_vectors()
        if not self.config.long_seconds:
            return Check(name, "not run", "--long-seconds 0")
        if vectors is None:
            return Check(name, "not run", f"codes of {self.codec.info.name} are no sum of vectors")
        vectors = vectors[: self.model.info.num_codebooks].double().cpu().numpy()
        streams = self._streams(vectors)
        centre = np.concatenate(streams)[:100_000]
        directions = np.linalg.svd(centre - centre.mean(0), full_matrices=False)[2][:DIMENSIONS].T
        sample = self.long.samples[0]
        latents = _latents(sample.codes[sample.prompt_frames :].cpu().numpy(), vectors) @ directions
        window = min(len(latents) // 3, max(map(len, streams)) // 2)
        if window < 4 * DIMENSIONS:
            return Check(name, "not run", f"too short: {window} frames to compare with each other")
        usual = []
        for stream in streams:
            for start in range(0, len(stream) - 2 * window + 1, 2 * window):
                pair = stream[start : start + 2 * window] @ directions
                usual.append(frechet_distance(pair[:window], pair[window:]))
        found = frechet_distance(latents[:window], latents[-window:])
        most = float(np.percentile(usual, 95))
        limit = most * (1 + self.config.tolerance)
        what = f"of {window / self.rate:.1f} s (recordings of one speaker up to {most:.3g})"
        return judge(name, [found], self.long.names, limit, "{:.3g}".format, what=what)

    def _streams(self, vectors: np.ndarray) -> list[np.ndarray]:
        """Latents (T, D) of the recordings of each speaker one after the other; of all where none
        is named."""
        by_speaker: dict[str, list[np.ndarray]] = {}
        frames = 0
        for row, cut in enumerate(self.dataset.cuts()):
            named = (s.get("speaker") for s in cut.get("supervisions") or [])
            speaker = next((s for s in named if s), "")
            codes = self.dataset.read(row)
            by_speaker.setdefault(speaker, []).append(_latents(codes, vectors))
            frames += len(codes)
            if frames > 3600 * self.rate:  # an hour says enough
                break
        return [np.concatenate(of) for of in by_speaker.values()]


SPOKEN = (
    *("short texts, exactly", "nothing behind the end", "no stutter", "no word too many"),
    *("burst at the beginning", "errors by length", "a long text to its end"),
)
"""Checks that need a recogniser."""


def _latents(codes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(T, K) codes -> (T, D): what the decoder is given."""
    return sum(vectors[k][codes[:, k].astype(np.int64)] for k in range(codes.shape[1]))
