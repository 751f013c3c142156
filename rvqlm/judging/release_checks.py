"""What a model must not do before it is given to others, each tried on samples to listen to.

Nothing is judged by a number of its own: recordings of the split pass through the codec, the
recogniser and the same measures, and a model may be worse than they are by a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rvqlm.errors import UserError
from rvqlm.inference.free_running import as_recorded
from rvqlm.inference.generate import Sample
from rvqlm.judging.check_samples import Group, SampleMaker
from rvqlm.metrics import speech_faults
from rvqlm.metrics.audio_metrics import repetition_ratio, silence_ratio
from rvqlm.metrics.distances import frechet_distance
from rvqlm.metrics.signal_faults import onset_burst

DIMENSIONS = 8
"""Principal directions of a codec's latents in which voices are compared."""
WORD = 3
"""Sounds put in together that are as long as a word."""
CLEAR = 0.5
"""A recogniser that gets more of the recordings wrong judges nobody."""


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


class ReleaseChecks:
    """Measures the samples."""

    def __init__(self, maker: SampleMaker):
        self.maker, self.config, self.model = maker, maker.config, maker.model
        self.codec, self.dataset, self.rate = maker.codec, maker.dataset, maker.rate

    def run(self) -> Iterator[Check]:
        """All checks, each as soon as it is done; what cannot be run says why."""
        try:
            yield from self._continuations()
        except UserError as e:  # no recording is long enough for such prompts
            yield from (Check(name, "not run", str(e)) for name in CONTINUED)
        reason = ""
        if self.maker.table is None:
            reason = "the model is told no text"
        elif self.maker.listener is None:
            reason = "give --recognizer"
        if reason:
            for name in SPOKEN:
                yield Check(name, "not run", reason)
        else:
            yield from self._speech()
        try:
            yield self._drift()
        except UserError as e:
            yield Check(DRIFT, "not run", str(e))

    def _continuations(self) -> Iterator[Check]:
        """Of the new parts behind prompts, beside the same parts of the recordings."""
        seconds, tolerance = self.config.prompt_seconds[-1], self.config.tolerance
        prompts = self.maker.prompts(seconds)
        frames = round(seconds * self.rate)
        most = frames + round(self.config.seconds * self.rate)
        items = as_recorded(prompts, self.dataset, frames, most)
        real = self.maker.decoded(items, "recording")
        made = self.maker.make(prompts, self.config.seconds)

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
            # those whose recording ends long before
            left = [len(i.real) - i.prompt for i in items]
            kept = [n for n, rest in enumerate(left) if rest < 0.6 * (most - frames)]
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
        prompts = [p for p in self.maker.prompts(0) if len(p.given.values.get("text", ()))]
        if not prompts:
            for name in SPOKEN:
                yield Check(name, "not run", f"no text in split {self.config.split}")
            return
        items = as_recorded(prompts, self.dataset, 0, 1 << 40)
        real = self.maker.listen(self.maker.decoded(items, "sentence-recording"))
        floor = real.rate()
        if floor > CLEAR:
            for name in SPOKEN:
                yield Check(name, "not run", f"the recogniser gets {floor:.1%} of recordings wrong")
            return
        groups = {
            name: self.maker.listen(self.maker.say(prompts, words, name))
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
            name = f"errors behind {seconds:g} s"
            try:
                yield self._errors(name, self.maker.listen(self.maker.say_behind(seconds)), floor)
            except UserError as e:
                yield Check(name, "not run", str(e))
        yield self._long(floor)

    def _errors(self, name: str, group: Group, floor: float) -> Check:
        limit, rate = floor + self.config.tolerance, group.rate()
        found = judge(name, group.rates(), group.names, limit)
        verdict = "pass" if rate <= limit else "fail"  # of all symbols alike
        what = f"{rate:.1%} (recordings {floor:.1%})"
        return replace(found, verdict=verdict, found=what, value=rate)

    def _long(self, floor: float) -> Check:
        """A text of several sentences: is its end said as its beginning is?"""
        name = "a long text to its end"
        if not self.config.long_seconds:
            return Check(name, "not run", "--long-seconds 0")
        long = self.maker.listen(self.maker.long)
        of_parts = speech_faults.coverage(long.said[0], long.heard[0])
        limit = 1 - floor - 2 * self.config.tolerance
        found = judge(name, of_parts, long.names * len(of_parts), limit, least=True)
        shares = ", ".join(f"{share:.0%}" for share in of_parts)
        verdict = "pass" if min(of_parts) >= limit else "fail"
        what = f"{shares} of its thirds heard"
        return replace(found, verdict=verdict, found=what, value=min(of_parts))

    def _drift(self) -> Check:
        """How far the last third of a long sample is from its first, in the codec's latents, beside
        as much of recordings of one speaker."""
        name, vectors = DRIFT, self.codec.code_vectors()
        if not self.config.long_seconds:
            return Check(name, "not run", "--long-seconds 0")
        if vectors is None:
            return Check(name, "not run", "the codes of this codec are no sum of vectors")
        vectors = vectors[: self.model.info.num_codebooks].double().cpu().numpy()
        streams = self._streams(vectors)
        centre = np.concatenate(streams)[:100_000]
        directions = np.linalg.svd(centre - centre.mean(0), full_matrices=False)[2][:DIMENSIONS].T
        sample = self.maker.long.samples[0]
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
        return judge(name, [found], self.maker.long.names, limit, "{:.3g}".format, what=what)

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


DRIFT = "voice does not drift"
CONTINUED = ("silence", "loops", "burst after a prompt")
"""Checks of continuations."""
SPOKEN = (
    *("short texts, exactly", "nothing behind the end", "no stutter", "no word too many"),
    *("burst at the beginning", "errors by length", "a long text to its end"),
)
"""Checks that need a recogniser."""


def _latents(codes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(T, K) codes -> (T, D): what the decoder is given."""
    return sum(vectors[k][codes[:, k].astype(np.int64)] for k in range(codes.shape[1]))
