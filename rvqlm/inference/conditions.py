"""What generation hears beside the prompt, from what a user gives: words, MIDI, recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rvqlm.batch import Padded
from rvqlm.condition_info import ConditionInfo
from rvqlm.errors import UserError


@dataclass
class ConditionArgs:
    """Conditions, for models that were trained with them: one for all samples, or as many as
    prompts"""

    text: tuple[str, ...] = ()
    """What is to be said. With a prompt: its words first, then those to come."""
    text_file: str = ""
    """A text a line, instead of --text."""
    midi: tuple[str, ...] = ()
    """MIDI files to play."""
    source: tuple[str, ...] = ()
    """Audio files to accompany, frame by frame."""
    voice: tuple[str, ...] = ()
    """Audio files of the speaker or instrument to sound like; the condition `prompt`."""
    voice_seconds: float = 3.0
    """How much of each --voice is heard, or of another recording of the speaker where prompts come
    from --manifest-dir."""

    def texts(self) -> list[str]:
        """:raises UserError: both ways of giving texts, or a file that cannot be read."""
        if self.text and self.text_file:
            raise UserError("--text and --text-file exclude each other")
        if not self.text_file:
            return list(self.text)
        try:
            lines = Path(self.text_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"--text-file {self.text_file}: cannot be read ({e})") from None
        if not (texts := [line.strip() for line in lines if line.strip()]):
            raise UserError(f"--text-file {self.text_file}: no text in it")
        return texts


@dataclass
class Given:
    """Conditions of one sample."""

    values: dict[str, Tensor]
    """By kind: (S, F) int64."""
    about: dict[str, str]
    """What the user gave, for the record: texts and paths by kind."""


def from_arguments(
    args: ConditionArgs, infos: dict[str, ConditionInfo], codec, max_frames: int
) -> list[Given]:
    """The conditions that the flags name: empty without any, else one or more samples' worth.

    :param infos: conditions of the model.
    :param codec: encodes ``source`` and ``voice``.
    :param max_frames: a source is heard up to there.
    :raises UserError: a condition that the model does not know, unequal numbers, bad files.
    """
    given: dict[str, list[tuple[str, Tensor]]] = {}
    if texts := args.texts():
        front_end = text_front_end(_known("text", infos))
        given["text"] = [(t, _steps(front_end.encode(t))) for t in texts]
    if args.midi:
        from rvqlm.frontends.midi import MidiFrontEnd

        front_end = MidiFrontEnd.from_info(_known("midi", infos))
        given["midi"] = [(path, _steps(front_end.encode(path))) for path in args.midi]
    rate = float(codec.info.frame_rate)
    for kind, paths, frames in (
        ("source", args.source, max_frames),
        ("prompt", args.voice, max(1, round(args.voice_seconds * rate))),
    ):
        if paths:
            _known(kind, infos)
            given[kind] = [(path, _encode(path, codec, frames)) for path in paths]
    if not given:
        return []
    number = max(len(items) for items in given.values())
    if uneven := [k for k, items in given.items() if len(items) not in (1, number)]:
        counts = ", ".join(f"{len(given[k])} of {k}" for k in [*uneven])
        raise UserError(f"{counts} but {number} in all: give one for all samples or {number}")
    found = []
    for i in range(number):
        chosen = {k: items[i if len(items) > 1 else 0] for k, items in given.items()}
        found.append(
            Given({k: v for k, (_, v) in chosen.items()}, {k: a for k, (a, _) in chosen.items()})
        )
    return found


def text_front_end(info: ConditionInfo):
    """The front end that a checkpoint or token directory describes."""
    from rvqlm.frontends.text import TextFrontEnd

    return TextFrontEnd.from_info(info)


def pad(items: Sequence[Given], infos: dict[str, ConditionInfo]) -> dict[str, Padded]:
    """A batch of conditions; a sample without one of a kind that others have is "not given"."""
    kinds = {kind for item in items for kind in item.values}
    return {
        kind: Padded.of([item.values.get(kind) for item in items], info.num_fields)
        for kind, info in infos.items()
        if kind in kinds
    }


def _known(kind: str, infos: dict[str, ConditionInfo]) -> ConditionInfo:
    if kind not in infos:
        flag = {"prompt": "voice"}.get(kind, kind)
        raise UserError(
            f"--{flag}: the model was trained without --conditions {kind}"
            + (f", only with {', '.join(infos)}" if infos else "")
        )
    return infos[kind]


def _steps(tokens) -> Tensor:
    """(S,) or (S, F) array -> (S, F) int64."""
    tokens = torch.as_tensor(tokens).long()
    return tokens if tokens.ndim == 2 else tokens[:, None]


def _encode(path: str, codec, frames: int) -> Tensor:
    from rvqlm.inference.prompts import encode_file

    return encode_file(path, codec, frames)[0]
