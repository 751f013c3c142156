"""Audio that leaves while it is made.

`Streamer` is a running batch of samples, each with a decoder of the codec that carries on; `stream`
one sample. Codes, audio and description are those of `rvqlm.inference.generate.generate` with the
same prompt, settings, seed and number.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rvqlm.codecs.base import Codec
from rvqlm.codecs.streaming import WHOLE
from rvqlm.errors import UserError
from rvqlm.generation.kept import Kept
from rvqlm.generation.request import Request, make_request
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.generation.slots import Engine, Made
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.generate import (
    WINDOWS,
    Job,
    OutputArgs,
    SampleRequest,
    asked,
    describe,
    frames_of,
)
from rvqlm.inference.long_texts import divided
from rvqlm.inference.prompts import Prompt, PromptArgs, read_prompts
from rvqlm.metrics.audio_metrics import Silence
from rvqlm.models.base import TokenModel

PIECE_SECONDS = 0.2
"""New audio in a call of the codec, about, once there is some: each costs its context again."""


@dataclass
class Heard:
    """What is new of a sample."""

    slot: int
    audio: Tensor
    """(C, n) float32 on the host, what follows that given out before; may be empty."""
    codes: Tensor
    """(t, K) int64 new frames; their audio may come later."""
    ended: Literal["eos", "length"] | None = None
    """Why no more follows; the slot is then free."""
    about: dict | None = None
    """At the end what the JSON of a sample says, and ``first_audio_seconds``."""


class Streamer:
    """Samples that come and go, each heard while it is made. For one thread.

    Models that write from left to right make the codes of all samples together (`Engine`); others,
    and what cannot be made so (``--best-of``, filling in, patterns that need the whole length),
    are made one after the other, a chunk or a window at a time.

    :param slots: most samples at a time.
    :param context_seconds: window of a sequence, see `Engine`; None: as long as it is.
    :param overlap_seconds: of a window that the next is given; None: half of it.
    :param max_seconds: longest sequence that is taken, prompt included; None: any.
    :param piece_seconds: new audio in a call of the codec, about. The first comes as soon as there
        is any, and none is longer than what was heard before it.
    :param first_seconds: what the first piece has at least, where a single frame would be over
        before the codec has the next.
    :param about: entries for the description of each sample: which model it is.
    :param kept: of prompts that are shared (`Prompt.shared`), what model and codec made of them.
    """

    def __init__(
        self,
        model: TokenModel,
        codec: Codec,
        slots: int = 1,
        context_seconds: float | None = None,
        overlap_seconds: float | None = None,
        *,
        max_seconds: float | None = None,
        piece_seconds: float = PIECE_SECONDS,
        first_seconds: float = 0.0,
        about: dict | None = None,
        kept: Kept | None = None,
    ):
        self.kept = kept
        self.model, self.codec, self.slots = model, codec, slots
        self.about, rate = about or {}, float(model.info.frame_rate)
        given = context_seconds, overlap_seconds, max_seconds, piece_seconds, first_seconds
        context, overlap, most, piece, first = (frames_of(seconds, rate) for seconds in given)
        self.windows, self.piece = (context, overlap), max(1, piece)
        self.first = codec.look_ahead[0] + first if first > 1 and codec.look_ahead else 1
        """new codes of a sample before any are decoded"""
        self.most = most
        self._engine = Engine(model, slots, kept=kept) if model.way else None
        self._samples: dict[int, _Sample] = {}
        self._running: dict[int, _Sample] = {}  # by slot of the engine
        self._whole: deque[tuple[_Sample, Iterator[Made]]] = deque()

    @property
    def free(self) -> int:
        """Samples that can be added."""
        return self.slots - len(self._samples)

    def add(
        self,
        prompt: Prompt,
        output: OutputArgs | None = None,
        sampling: SamplingConfig | None = None,
        demask: DemaskConfig | None = None,
        speech: SpeechConfig | None = None,
        row: int = 0,
        with_prompt: bool = False,
    ) -> int:
        """Begin a sample; returns its slot.

        :param prompt: of `rvqlm.inference.prompts`.
        :param row: its number in the random stream.
        :param with_prompt: let the audio of the prompt's codes be heard too, as in a file.
        :raises UserError: nothing is free, or what the model cannot do.
        """
        if not self.free:
            raise UserError(f"all {self.slots} slots are taken")
        request = SampleRequest(
            [prompt],
            output or OutputArgs(),
            sampling or SamplingConfig(),
            demask or DemaskConfig(),
            speech or SpeechConfig(),
        )
        slot = next(n for n in range(self.slots) if n not in self._samples)
        sample = _Sample(self, slot, request, row, with_prompt)
        if self.most is not None and sample.reach() > self.most:
            raise UserError(
                f"a sequence of {sample.reach()} frames, its prompt included, and the longest that "
                f"is taken is {self.most}"
            )
        self._next_part(sample)
        self._samples[slot] = sample
        return slot

    def step(self) -> list[Heard]:
        """A frame of all samples that run together, or a part of one that is made by itself, in
        turns; what is new of each."""
        made = []
        if self._running:
            together = len(self._running)
            for new in self._engine.step():
                made.append((self._running[new.slot], new))
                if new.ended:
                    del self._running[new.slot]
            for sample in {*self._running.values(), *(sample for sample, _ in made)}:
                sample.job.passes += self.model.way.pattern.steps_per_frame
                sample.job.batch_size = max(sample.job.batch_size, together)
        if self._whole:
            sample, parts = self._whole.popleft()
            new = next(parts)
            made.append((sample, new))
            if not new.ended:
                self._whole.append((sample, parts))
        return [heard for sample, new in made if (heard := self._heard(sample, new)) is not None]

    def longest(self, slot: int) -> int:
        """Samples of audio that one can have, its prompt included."""
        job = self._samples[slot].job
        frames = len(job.prompt.codes) + sum(map(job.chain.limit, range(job.chain.number)))
        if job.prompt.after is not None:
            frames += job.prompt.gap + len(job.prompt.after)
        return self.model.info.num_samples(frames)

    def remove(self, slot: int) -> None:
        """Give a sample up; its slot is free at once."""
        sample = self._samples.pop(slot, None)
        if sample is None:
            raise ValueError(f"nothing runs in slot {slot}")
        for number in [n for n, running in self._running.items() if running is sample]:
            self._engine.remove(number)
            del self._running[number]
        self._whole = deque(pair for pair in self._whole if pair[0] is not sample)

    # ---------------------------------------------------------------------------------------

    def _next_part(self, sample: _Sample) -> None:
        """Begin the next piece of a text, or all there is."""
        request = sample.next_request()
        if self.windows[0] is not None and request.context_frames is None:
            request = request.in_windows(*self.windows)
        if self._engine and sample.runs_together(request):
            self._running[self._engine.add(request)] = sample
            return
        self.model.check_request(request)
        sample.job.batch_size = max(sample.job.batch_size, 1)
        self._whole.append((sample, self._parts(sample, request)))

    def _parts(self, sample: _Sample, request: Request) -> Iterator[Made]:
        """A request that is made by itself, part after part."""
        given, done, passes = int(request.prompt_lengths), None, sample.job.passes

        def count(steps: int) -> None:
            sample.job.passes = passes + steps

        request.progress = count
        for made in self.model.generate_parts(request):
            if done is not None:
                yield Made(sample.slot, done.codes[0, given : int(done.lengths)])
                given = int(done.lengths)
            done = made
        if done.likelihood is not None:
            sample.job.likelihood = float(done.likelihood[0])
        yield Made(sample.slot, done.codes[0, given : int(done.lengths)], done.stop[0], done.times)

    def _heard(self, sample: _Sample, new: Made) -> Heard | None:
        codes, over = sample.take(new)
        if over and not sample.job.chain.done:
            try:
                self._next_part(sample)
            except UserError as e:  # of a later piece; others go on
                del self._samples[sample.slot]
                nothing = torch.empty(self.model.info.channels, 0)
                return Heard(sample.slot, nothing, codes, "length", {"error": str(e)})
            over = False
        audio = sample.decode(over)
        if over:
            del self._samples[sample.slot]
        elif not len(codes) and audio is None:
            return None
        if audio is None:
            audio = torch.empty(self.model.info.channels, 0)
        if over:
            return Heard(sample.slot, audio, codes, *sample.finished(self.model, self.about))
        return Heard(sample.slot, audio, codes)


class _Sample:
    """A sample on its way to somebody's ears."""

    def __init__(
        self, streamer: Streamer, slot: int, request: SampleRequest, row: int, with_prompt: bool
    ):
        model, codec, out = streamer.model, streamer.codec, request.output
        self.began, self.first_audio = time.perf_counter(), None
        self.model, self.slot, self.request = model, slot, request
        info, longest = model.info, max(1, round(out.seconds * float(model.info.frame_rate)))
        (prompt,) = request.prompts
        if out.divide_texts:
            (prompt,) = divided([prompt], model, longest, request.speech, out.seed)
        self.job = Job(row, prompt, prompt.name, model, longest)
        self.rate, self.most = float(info.frame_rate), streamer.piece
        self.made, self.first = 0, streamer.first
        self.decoder = codec.piecewise(scales=prompt.scales)
        self.silence = Silence(info.sampling_rate)
        given = len(prompt.codes)
        # of the prompt no more is decoded than what follows depends on
        skipped = 0
        if not with_prompt and type(codec).piecewise is Codec.piecewise:
            reach = codec.decode_context_frames
            skipped = 0 if reach is None else max(0, given - reach)
        self.waiting = [prompt.codes[skipped:]] if given else []  # codes that were not decoded
        decoded = 0
        if given and prompt.shared and streamer.kept is not None and not with_prompt:
            decoded = self._begin_with(self.waiting.pop(), prompt.scales, streamer.kept)
        self.heard, self.hop = 0, info.hop  # samples of new audio, and those of a frame
        # samples that are still those of the prompt, and whether they are to be heard
        self.lead = info.num_samples(given - skipped) - decoded
        self.with_prompt = with_prompt
        # and those to come that the model makes
        self.new = WHOLE
        if prompt.after is not None:
            self.new = info.num_samples(given + prompt.gap) - info.num_samples(given)

    def _begin_with(self, codes: Tensor, scales: Tensor | None, kept: Kept) -> int:
        """Let the decoder begin with the codes of a prompt, or as one did before; how much audio it
        then has given."""
        key = b"".join(x.numpy().tobytes() for x in (codes, scales) if x is not None)
        if (found := kept.find("codec", key)) is None:
            audio = self.decoder(codes)
            decoder, size = self.decoder.copied()
            found = decoder, 0 if audio is None else audio.shape[1]
            kept.put("codec", key, found, size)
        self.decoder, _ = found[0].copied()
        return found[1]

    def reach(self) -> int:
        """Frames of the longest sequence that it takes, about."""
        chain = self.job.chain
        longest = max(chain.limit(number) for number in range(chain.number))
        if chain.carried:
            return longest + (round(chain.tail) if chain.aligned else longest)
        return longest + len(self.job.prompt.codes)

    def next_request(self) -> Request:
        """Of the next piece of the text."""
        number, prompt = self.job.chain.take()
        asked_for = asked(self.model, [(self.job, number, prompt)], self.request)
        device, behind = next(self.model.parameters()).device, prompt.after
        if behind is not None:
            total = torch.tensor([len(prompt.codes) + prompt.gap])
            asked_for |= {"limits": total, "min_frames": total, **dict.fromkeys(WINDOWS)}
        made = make_request(self.model.info, device, **asked_for)
        if behind is not None:
            made.suffix_codes = behind[None].to(device).long()
        made.shared = prompt.shared
        self.number, self.codes = number, [prompt.codes]
        # what follows the text is cut where another piece does
        self.room = WHOLE
        if number < self.job.chain.number - 1 and self.job.chain.aligned:
            ids = prompt.given.values["text"]
            with torch.no_grad():
                times = self.model.place_text(made).conditions["text"].times
            self.room = max(1, round(float(times[0, len(ids) - 1, 1])) - len(prompt.codes))
        return made

    def runs_together(self, r: Request) -> bool:
        """Whether it can be made step by step beside others."""
        in_order = self.model.in_order or r.demask.frame_by_frame
        return in_order and r.sampling.best_of == 1 and r.suffix_codes is None

    def take(self, new: Made) -> tuple[Tensor, bool]:
        """New codes of the piece: those that are to be heard, and whether it is at its end."""
        self.codes.append(new.codes)
        heard = new.codes[: self.room]
        self.waiting.append(heard)
        self.made += len(heard)
        self.room -= len(heard)
        if new.ended:
            times = None if new.times is None else new.times[0]
            codes = torch.cat([c.cpu() for c in self.codes])
            self.job.chain.add(self.number, codes, times, new.ended)
        return heard, bool(new.ended)

    def decode(self, last: bool) -> Tensor | None:
        """New audio, if it is time for some."""
        count = sum(map(len, self.waiting))
        heard = self.heard // self.hop  # of which whoever listens has as much until the next
        early = not self.heard and self.made < self.first
        if not last and (early or count < min(self.most, max(1, heard))):
            return None
        codes = torch.cat([c.cpu() for c in self.waiting]) if count else None
        self.waiting = []
        audio = self.decoder(codes, last)
        if audio is None:
            return None
        lead = min(self.lead, audio.shape[1])
        self.lead -= lead
        new = audio[:, lead:]
        if new.shape[1]:
            self.heard += new.shape[1]
            self.silence.add(new[:, : self.new])
            self.new = max(0, self.new - new.shape[1])
            if self.first_audio is None:
                self.first_audio = time.perf_counter() - self.began
        return audio if self.with_prompt else new

    def finished(self, model: TokenModel, about: dict) -> tuple[str, dict]:
        """Why it ended, and its description."""
        job = self.job
        job.elapsed = time.perf_counter() - self.began
        job.new_seconds = (len(job.chain.finished().codes) - len(job.prompt.codes)) / self.rate
        row = describe(model, job, self.request, about, self.silence.ratio())
        return row["stop"], row | {"first_audio_seconds": self.first_audio}


def generate_streamed(
    model: TokenModel,
    codec: Codec,
    request: SampleRequest,
    about: dict,
    open_sink: Callable[[str, int], AbstractContextManager[Callable[[Tensor], object]]],
    slots: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Iterator[tuple[str, dict]]:
    """`generate` whose audio goes somewhere while it is made: name and description of each sample
    as it is finished.

    :param open_sink: of a sample, from its name and the most samples of audio that it can have:
        what takes its audio (C, n) piece by piece, the prompt's first.
    :param slots: samples made together.
    """
    streamer, out = Streamer(model, codec, slots, about=about), request.output
    waiting, running = deque(request.jobs()), {}
    with ExitStack() as sinks:
        while waiting or running:
            while waiting and streamer.free:
                row, prompt, name = waiting.popleft()
                how = out, request.sampling, request.demask, request.speech
                slot = streamer.add(prompt, *how, row, with_prompt=True)
                most = streamer.longest(slot)
                sink = sinks.enter_context(ExitStack())
                running[slot] = name, sink, sink.enter_context(open_sink(name, most))
            for heard in streamer.step():
                name, sink, write = running[heard.slot]
                if heard.audio.shape[1]:
                    write(heard.audio)
                if heard.ended:
                    del running[heard.slot]
                    if "error" in heard.about:
                        raise UserError(f"{name}: {heard.about['error']}")
                    sink.close()
                    yield name, heard.about
            progress()


def stream(
    model: TokenModel,
    codec: Codec | None = None,
    *,
    text: str | None = None,
    prompt: str | Tensor | Prompt | None = None,
    seconds: float = 5.0,
    min_seconds: float = 0.0,
    prompt_seconds: float = 3.0,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    demask: DemaskConfig | None = None,
    speech: SpeechConfig | None = None,
    conditions: ConditionArgs | None = None,
    context_seconds: float | None = None,
    overlap_seconds: float | None = None,
) -> Iterator[Tensor]:
    """Audio (C, n) float32 of one new sample, piece by piece, while it is made::

        for audio in rvqlm.stream(model, text="Good morning."):
            play(audio)

    :param codec: of the model; None loads the one that it was trained on.
    :param text: what is to be said, of models with texts; or ``conditions``, which has all kinds.
    :param prompt: an audio file to continue (its first ``prompt_seconds``), codes (P, K), or a
        `Prompt`.
    :param seconds, min_seconds: longest and shortest new audio.
    :param sampling, demask, speech: how codes are drawn, and a text is spoken.
    :param context_seconds, overlap_seconds: see `Streamer`.
    :raises UserError: what the model cannot do, files that cannot be read.
    """
    from rvqlm.codecs.registry import load_codec_like

    codec = codec or load_codec_like(model.info, None, next(model.parameters()).device)
    if not isinstance(prompt, Prompt):
        files = PromptArgs(prompt=() if prompt is None or isinstance(prompt, Tensor) else (prompt,))
        files.prompt_seconds = prompt_seconds
        given = conditions or ConditionArgs(text=() if text is None else (text,))
        frames = max(1, round(seconds * float(model.info.frame_rate)))
        (found,) = read_prompts(files, given, model, codec, frames, seed)
        if isinstance(prompt, Tensor):
            found.codes = prompt.cpu().long()
        prompt = found
    streamer = Streamer(model, codec, 1, context_seconds, overlap_seconds)
    output = OutputArgs(seconds=seconds, min_seconds=min_seconds, seed=seed)
    streamer.add(prompt, output, sampling, demask, speech)
    while streamer.free == 0:
        for heard in streamer.step():
            if heard.audio.shape[1]:
                yield heard.audio
