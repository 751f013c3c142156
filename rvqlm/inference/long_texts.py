"""Texts that are too long to be said at once: sentence by sentence, with the voice carried over.

A sentence begins where the one before ends: its prompt is the tail of what was said, with the words
of it, of which a model that learned durations is told when they are said. So pace, voice and pauses
go on as within one text. Where a recording says whose voice it is, sentences start from that alone:
nothing adds up over many of them, and they are made together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rvqlm.frontends.aligned import Labels
from rvqlm.frontends.pauses import white_space
from rvqlm.frontends.sentences import divide
from rvqlm.frontends.text import TextFrontEnd
from rvqlm.generation.request import make_request
from rvqlm.generation.sampling import SpeechConfig
from rvqlm.inference.conditions import Given, Piece, pad, pad_durations
from rvqlm.inference.prompts import Prompt
from rvqlm.inference.speech import Text, Texts
from rvqlm.models.base import TokenModel

TAIL_SECONDS = 3.0
"""Of what was said, for the voice of what follows; at most a third of the longest piece."""


_NO_TEXT = torch.empty(0, 1, dtype=torch.int64)
_AT_ONCE = 64
"""Texts whose durations are asked for together."""

SPARE = 1.25
"""Times as many frames as a piece needs it may take, where that is more than the longest."""


class Said(NamedTuple):
    """A piece that is made, without what it was prompted with."""

    codes: Tensor
    """(T, K) int64."""
    ids: Tensor
    """(S,) symbols of its text, with the white space before it."""
    times: Tensor | None
    """(S, 2) frames of these."""
    stop: str


class Chain:
    """A sample whose text is said in pieces, or one piece where it is not divided::

        while chain.ready():
            number, prompt = chain.take()
            ... make it ...
            chain.add(number, codes, times, stop)

    :param prompt: of `divided`, or any other.
    :param longest: frames of new audio that a piece may have.
    """

    def __init__(self, prompt: Prompt, model: TokenModel, longest: int):
        self.prompt, self.pieces = prompt, prompt.given.pieces
        self.alone, self.longest = not self.pieces, longest
        self.carried = not self.alone and _is_carried(prompt.given)
        self.number = max(1, len(self.pieces))
        self.tail = _tail_frames(model, longest)
        self.aligned = model.duration_head is not None
        self.said: dict[int, Said] = {}
        self._taken, self._prompts = 0, {}
        if not self.alone:
            self.labels = Labels(TextFrontEnd.from_info(model.conditions["text"]))

    @property
    def done(self) -> bool:
        return len(self.said) == self.number

    def ready(self) -> bool:
        """Whether a piece can be made now."""
        return self._taken < (min(self.number, len(self.said) + 1) if self.carried else self.number)

    def take(self) -> tuple[int, Prompt]:
        """The next piece: its number, and what it starts from."""
        number = self._taken
        self._taken += 1
        prompt = self.prompt
        if not self.alone:
            prompt = self._start(number)
        self._prompts[number] = prompt
        return number, prompt

    def limit(self, number: int) -> int:
        """Frames of new audio that a piece may have."""
        return self.longest if self.alone else self.pieces[number].frames

    def add(self, number: int, codes: Tensor, times: Tensor | None, stop: str) -> None:
        """What was made of a piece, codes (T, K), its prompt included, and the times (S, 2) of the
        symbols it was given; what follows the text is cut where another piece does."""
        prompt = self._prompts[number]
        ids = prompt.given.values.get("text", _NO_TEXT)[:, 0]
        # a recording that is continued is part of the sample, a tail is there already
        begin, first = (0, 0) if self.alone else (len(prompt.codes), prompt.given.known)
        end, own = len(codes), None
        if times is not None:
            times = times[: len(ids)].cpu()
            own = times[first:] - begin
            if number < self.number - 1:
                end = max(begin + 1, min(end, round(float(times[-1, 1]))))
        self.said[number] = Said(codes[begin:end].cpu(), ids[first:], own, stop)

    def finished(self) -> Said:
        """All of it, one after the other."""
        said = [self.said[n] for n in range(self.number)]
        times, at = [], 0
        for each in said:
            if each.times is not None:
                times.append(each.times + at)
            at += len(each.codes)
        return Said(
            torch.cat([each.codes for each in said]),
            torch.cat([each.ids for each in said]),
            torch.cat(times) if times else None,
            "eos" if all(each.stop == "eos" for each in said) else "length",
        )

    def sentences(self, frame_rate: float) -> list[tuple[str, float, float]]:
        """Of each piece its words and the seconds from and to which it is said."""
        found, at = [], 0
        for n, piece in enumerate(self.pieces):
            end = at + len(self.said[n].codes)
            found.append((piece.words, at / frame_rate, end / frame_rate))
            at = end
        return found

    def _start(self, number: int) -> Prompt:
        given, piece = self.prompt.given, self.pieces[number]
        new = replace(given, values={**given.values, "text": piece.text.ids}, pieces=(), known=0)
        new.durations, new.times = piece.text.durations, piece.text.times
        codes = self.prompt.codes
        if number and self.carried:
            codes = self._carry(self.said[number - 1], piece, new)
        return replace(self.prompt, codes=codes, given=new)

    def _carry(self, before: Said, piece: Piece, new: Given) -> Tensor:
        """Put the tail of what was said before a piece; its codes."""
        ids, times, codes = before.ids, before.times, before.codes
        starts = [int(word[0]) for word in self.labels.words(ids.numpy())] or [0]
        if times is None:
            ids = ids[starts[0] :]
        else:
            late = [s for s in starts if float(times[s, 0]) >= len(codes) - self.tail]
            first = (late or starts[-1:])[0]
            frame = max(0, int(times[first, 0]))
            ids, codes = ids[first:], codes[frame:]
            times = (times[first:] - frame).clamp(min=0)
        own = piece.text.ids[:, 0]
        white = white_space(self.labels, ids.tolist(), own.tolist(), piece.words)
        ids = torch.cat([ids, torch.tensor(white, dtype=torch.int64)])
        new.values = {**new.values, "text": torch.cat([ids, own])[:, None]}
        new.known = len(ids) - len(white)
        if times is not None:
            untold = times.new_full((len(white) + len(own), 2), torch.nan)
            new.times = torch.cat([times, untold])
        if piece.text.durations is not None:
            told = torch.full((1 + len(ids),), torch.nan)
            if white:  # silence before its first word is that of the white space
                told[-1] = piece.text.durations[0]
            new.durations = torch.cat([told, piece.text.durations[1:]])
        return codes


def divided(
    prompts: Sequence[Prompt], model: TokenModel, longest: int, speech: SpeechConfig, seed: int = 0
) -> list[Prompt]:
    """Prompts, those whose text takes more than ``longest`` frames with its `Given.pieces`.

    Texts behind a prompt of codes, in the time of a recording, or beside what has times of its own
    (MIDI, a source), stay whole. What a model that knows no durations needs is estimated.
    """
    if "text" not in model.conditions:
        return list(prompts)
    found = list(prompts)
    places = [n for n, prompt in enumerate(found) if _may_be_divided(prompt)]
    needed = frames_needed(model, [found[n].given for n in places], speech, seed)
    texts = Texts(model.conditions["text"], float(model.info.frame_rate))
    for place, frames in zip(places, needed):
        given = replace(found[place].given, frames=frames)
        found[place] = replace(found[place], given=given)
        if frames > longest:
            parts = _parts(found[place], texts, _room(given, model, longest) / frames)
            if len(parts) > 1:
                alone = [
                    Given({**given.values, "text": t.ids}, durations=t.durations) for _, t in parts
                ]
                room = [SPARE * n for n in frames_needed(model, alone, speech, seed)]
                pieces = (Piece(*p, max(longest, round(n))) for p, n in zip(parts, room))
                found[place] = replace(found[place], given=replace(given, pieces=tuple(pieces)))
    return found


def frames_needed(
    model: TokenModel, given: Sequence[Given], speech: SpeechConfig, seed: int = 0
) -> list[float]:
    """Frames that the texts of samples take."""
    if model.duration_head is not None:
        device, found = next(model.parameters()).device, []
        for some in (given[i : i + _AT_ONCE] for i in range(0, len(given), _AT_ONCE)):
            request = make_request(
                model.info,
                device,
                max_frames=1,
                speech=speech,
                durations=pad_durations(some),
                conditions=pad(some, model.conditions),
                seed=seed,
            )
            with torch.no_grad():
                times = model.place_text(request).conditions["text"].times
            found += times[..., 1].nan_to_num().amax(1).tolist()
        return found
    info = model.conditions["text"]
    durations = torch.tensor(info.durations or [info.rate] * info.sizes[0])
    return [float(durations[g.values["text"][:, 0]].sum()) + sum(info.margins) for g in given]


def _may_be_divided(prompt: Prompt) -> bool:
    given = prompt.given
    told = given.times is not None and not bool(given.times.isnan().all())
    ours = "text" in given.values and not set(given.values) - {"text", "prompt"}
    return ours and not told and not len(prompt.codes) and prompt.after is None


def _is_carried(given: Given) -> bool:
    return "prompt" not in given.values


def _tail_frames(model: TokenModel, longest: int) -> float:
    return min(TAIL_SECONDS * float(model.info.frame_rate), longest / 3)


def _room(given: Given, model: TokenModel, longest: int) -> float:
    """Frames of a piece where it and what it starts from are to have no more than ``longest``."""
    if not _is_carried(given):
        return longest
    return longest - _tail_frames(model, longest) if model.duration_head else longest / 2


def _parts(prompt: Prompt, texts: Texts, share: float) -> list[tuple[str, Text]]:
    """A prompt's text in parts that take at most such a share of it, if there are places to divide
    it."""
    about, ids = prompt.given.about, prompt.given.values["text"][:, 0]
    language = about.get("language")
    if prompt.source is None:
        words = divide(about["text"], share * len(about["text"]), texts.tag(language))
        return [(part, texts.encode(part, language)) for part in words]
    # of a recording its symbols are known, and not as they were written
    spelt = [texts.labels.spelling(i) for i in ids.tolist()]
    text, found, end = "".join(spelt), [], 0
    spoken = texts.labels.type == "phonemes"
    places = torch.tensor([len(s) for s in spelt]).cumsum(0)
    for part in divide(text, share * len(text), texts.tag(None), spoken=spoken):
        begin = text.index(part, end)
        end = begin + len(part)
        own = ids[(places > begin) & (places <= end)]
        found.append((part, Text(own[:, None])))
    return found
