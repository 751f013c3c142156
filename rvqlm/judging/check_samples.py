"""Samples for release checks: texts of several lengths, continuations, a long one; and recordings
that went through the codec, to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

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
from rvqlm.inference.free_running import Continuation
from rvqlm.inference.generate import OutputArgs, Sample, SampleRequest, generate
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.prompts import Prompt, PromptArgs, from_tokens
from rvqlm.inference.recognize import recognize_samples
from rvqlm.metrics.recognition import edit_distances
from rvqlm.models.recognizer import Recognizer


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


class SampleMaker:
    """Makes samples, and the same of recordings through the codec, and has a recogniser listen.

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

    def say_behind(self, seconds: float) -> Group:
        """The rest of the texts of recordings behind so much of these, all of it however long: what
        is cut is no error of the model."""
        prompts = [p for p in self.prompts(seconds) if len(p.given.values.get("text", ()))]
        if not prompts:
            raise UserError(f"no recording with a text behind {seconds:g} s")
        named = [replace(p, name=f"behind-{seconds:g}s-{flat_name(p.source)}") for p in prompts]
        longest = max(len(p.given.values["text"]) for p in prompts)
        return self.make(named, self.seconds_for(longest))

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
