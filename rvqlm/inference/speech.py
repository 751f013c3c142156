"""When the words of a sample are said: by pauses in its text, by a TextGrid, as in a recording.

Of a sample's symbols the times are known, or durations alone, or neither; what is not known the
model chooses (`TokenModel.place_text`). Frames count from the beginning of the sample, its prompt
included.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rvqlm.condition_info import ConditionInfo
from rvqlm.data.index import TokenDataset
from rvqlm.data.text_times import TextTimes
from rvqlm.errors import UserError
from rvqlm.exchange.alignments import items_of_tier
from rvqlm.exchange.textgrid import read_textgrid
from rvqlm.frontends.aligned import UNITS, WORD, Labels
from rvqlm.frontends.pauses import encode_with_pauses
from rvqlm.frontends.text import TextFrontEnd, shorten
from rvqlm.frontends.text_clean import has_word
from rvqlm.frontends.text_language import tag_of

RECORDED = "recorded"
"""--durations: those of the recordings."""


class Text(NamedTuple):
    """A text that is to be said."""

    ids: Tensor
    """(S, 1) int64."""
    durations: Tensor | None = None
    """(1 + S,) frames of the silence before it and of each symbol, NaN where that is not said."""
    times: Tensor | None = None
    """(S, 2) frames at which each symbol begins and ends."""


class Texts:
    """Makes what a model is given of texts.

    :param info: of the model's text.
    """

    def __init__(self, info: ConditionInfo, frame_rate: float):
        self.labels, self.aligned = Labels(TextFrontEnd.from_info(info)), info.aligned
        self.frame_rate = frame_rate

    def encode(self, text: str, language: str | None) -> Text:
        """A text with the pauses and /phonemes/ in it; `UserError` where there is no word in it,
        for pauses that are malformed or that the model cannot make, for phonemes that it lacks."""
        ids, seconds = encode_with_pauses(self.labels, text, language)
        if not has_word(text) or not len(ids):
            raise UserError(f"text {text[:60]!r}: no word in it that could be said")
        steps = torch.as_tensor(ids).long()[:, None]
        if seconds is None:
            return Text(steps)
        self._require("a pause", text)
        return Text(steps, torch.from_numpy(seconds * self.frame_rate).float())

    def tag(self, language: str | None) -> str | None:
        """The tag of a text's language, where it has one; None: that of the model's texts."""
        settings = self.labels.front_end.settings
        return tag_of(language or settings.language) if self.labels.type == "phonemes" else None

    def placed(self, text: str, language: str | None, path: str) -> Text:
        """A text whose symbols are said as the words or symbols of a TextGrid.

        :raises UserError: as `encode`, for a text with pauses, for a file that is no TextGrid or
            of another text.
        """
        made = self.encode(text, language)
        self._require("--durations", text)
        if made.durations is not None:
            raise UserError(
                f"text {shorten(text)}: {path} says where its pauses are; leave them out"
            )
        ids, tiers = made.ids[:, 0].numpy(), read_textgrid(path)
        seconds = max((item.end for items in tiers.values() for item in items), default=0.0)
        unit = UNITS[self.labels.type]
        for tier in (unit, WORD):
            if (items := items_of_tier(tiers, tier)) is not None:
                break
        else:
            named = ", ".join(tiers) or "none"
            raise UserError(f"{path}: no tier {unit}s or {WORD}s; there are {named}")
        try:
            times = self.labels.place(ids, items, tier, seconds).times
        except UserError as e:
            raise UserError(f"{path}, tier {tier}s: {e}") from None
        return Text(made.ids, times=torch.from_numpy(times * self.frame_rate).float())

    def _require(self, what: str, text: str) -> None:
        if not self.aligned:
            raise UserError(
                f"text {shorten(text)}: {what} needs a model that was trained on texts with times "
                "(rvqlm align), and this one was not"
            )


def known_times(times: Tensor, prompt: int, gap_end: float = float("inf")) -> Tensor:
    """Of a recorded text's times (S, 2) in frames those that are known where the first ``prompt``
    frames of the recording are given, and those from ``gap_end`` on: of symbols that begin there.
    NaN elsewhere: nothing of what is to be made."""
    told = (times[:, 0] < prompt) | (times[:, 0] >= gap_end)
    return times.masked_fill(~told[:, None], torch.nan)


def with_times(info: ConditionInfo, dataset: TokenDataset, recorded: bool) -> bool:
    """Whether to read the times of a split's texts: where the model wants them and they are there,
    or ``recorded`` ones are asked for."""
    stored = TextTimes.path(dataset.directory, dataset.split)
    return info.aligned and (recorded or stored.exists())


def alignment(
    info: ConditionInfo, ids: Tensor, times: Tensor, frame_rate: float
) -> list[tuple[str, float, float]]:
    """Of each symbol (S,) of a text its name in the table, and the seconds at which it begins and
    ends, by times (S, 2) in frames."""
    names = info.settings["symbols"]
    seconds = (times.double() / frame_rate).tolist()
    return [(names[i], round(b, 4), round(e, 4)) for i, (b, e) in zip(ids.tolist(), seconds)]


def overrun(end: float, limit: int, frame_rate: float, prompt: int, seconds: float | None) -> str:
    """What to say of a text that ends at frame ``end`` where a sample may have ``limit`` frames;
    empty where it fits.

    :param seconds: --seconds, behind a prompt of so many frames; None where a gap is filled.
    """
    if end <= limit + 0.5:
        return ""
    if seconds is None:
        return (
            f"its text ends at {end / frame_rate:.2f} s, the recording at "
            f"{limit / frame_rate:.2f} s: what is behind is not said"
        )
    needed = math.ceil((end - prompt) / frame_rate * 10) / 10
    return (
        f"its text needs {needed:g} s, --seconds is {seconds:g}: its end is cut; give "
        f"--seconds {needed:g}"
    )
