"""One model that is served: from what a client asks to the pieces that its worker makes."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from rvqlm.codecs.base import Codec
from rvqlm.codecs.chunking import encode_whole
from rvqlm.errors import UserError
from rvqlm.frontends.sentences import sentences
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import ConditionArgs, Given, from_arguments
from rvqlm.inference.generate import OutputArgs
from rvqlm.inference.prompts import Prompt
from rvqlm.models.base import TokenModel
from rvqlm.serving.config import Limits
from rvqlm.serving.errors import ApiError
from rvqlm.serving.orders import Piece
from rvqlm.serving.schemas import Common, Continuation, Speech, Start
from rvqlm.serving.voices import DEFAULT, Voice, current
from rvqlm.serving.worker import Worker

_OVERRIDES = ("temperature", "top_k", "top_p", "min_p", "cfg_scale")


@dataclass
class Served:
    """A model, its codec and voices, and how it draws unless a request says otherwise."""

    name: str
    model: TokenModel
    codec: Codec
    worker: Worker
    limits: Limits
    about: dict
    """What the description of every result begins with: checkpoint, step, precision."""
    voices: dict[str, Voice] = field(default_factory=dict)
    voice_seconds: float = 3.0
    """How much of a voice is used."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    demask: DemaskConfig = field(default_factory=DemaskConfig)
    pace: SpeechConfig = field(default_factory=SpeechConfig)
    language: str = ""
    """Of texts whose request names none."""
    how: dict[str, str] = field(default_factory=dict)
    """Its precision, weights and kernels."""
    created: int = field(default_factory=lambda: int(time.time()))

    def card(self) -> dict:
        """As `/v1/models` lists it."""
        info = self.model.info
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "rvqlm",
            "rvqlm": {
                "family": self.model.name,
                **self.how,
                "speaks": self.speaks,
                "has_speed": self.model.duration_head is not None,
                "conditions": sorted(self.model.conditions),
                "sampling_rate": info.sampling_rate,
                "channels": info.channels,
                "frame_rate": float(info.frame_rate),
                "voices": self.voice_names(),
                "max_text": self.limits.max_text,
                "max_seconds": self.limits.max_seconds,
            },
        }

    @property
    def speaks(self) -> bool:
        return "text" in self.model.conditions

    def voice_names(self) -> list[str]:
        return [DEFAULT, *self.voices]

    def voice(self, name: str) -> Voice | None:
        """:raises ApiError: there is none of this name."""
        if name in ("", DEFAULT):
            return None
        if name not in self.voices:
            known = ", ".join(self.voice_names())
            raise ApiError(400, f"no voice {name[:60]!r}; there are {known}", "voice")
        return self.voices[name]

    def seconds(self, asked: Common) -> float:
        """Longest audio of a request."""
        return min(asked.seconds or self.limits.max_seconds, self.limits.max_seconds)

    def check_speech(self, asked: Speech | Start) -> None:
        """What can be said before any text is there; :raises ApiError:"""
        self.voice(asked.voice_name)
        if not self.speaks:
            given = ", ".join(self.model.conditions) or "nothing but codes"
            raise ApiError(
                400,
                f"model {self.name} does not speak: it was trained with {given}, not with text; "
                "it continues recordings, POST /v1/audio/continuation",
                "model",
            )
        if asked.speed != 1 and self.model.duration_head is None:
            raise ApiError(
                400,
                f"speed {asked.speed:g}: model {self.name} was trained without rvqlm align and "
                "does not know how long a symbol is said",
                "speed",
            )

    def check_text(self, text: str, param: str = "input") -> None:
        """:raises ApiError: too long."""
        if len(text) > self.limits.max_text:
            raise ApiError(
                400,
                f"{param}: {len(text):,} characters, at most {self.limits.max_text:,}",
                param,
                "string_above_max_length",
            )

    # ------------------------------------------------------ what takes time: not on the event loop

    def speech(self, asked: Speech | Start, text: str, seed: int, row: int = 0) -> Piece:
        """A text, which is said sentence by sentence where it is long.

        :param row: its number in the random stream.
        :raises UserError: nothing in it that could be said.
        """
        prompt = self._prompt(text, asked.language or self.language, self._read(asked.voice_name))
        speech = replace(self.pace, speed=self.pace.speed * asked.speed)
        in_order = self.model.way is not None
        seconds = self.limits.piece_seconds or (10.0 if in_order else 5.0)
        return self._piece(prompt, asked, seconds, seed, row, text, speech)

    def continuation(self, asked: Continuation, audio: np.ndarray | None, seed: int) -> Piece:
        """What follows a recording, a voice, or nothing.

        :param audio: (C, S) float32 at the codec's rate.
        """
        rate, voice = self.model.info.frame_rate, self._read(asked.voice_name)
        frames = max(1, round(asked.prompt_seconds * float(rate)))
        text = " ".join(filter(None, (asked.prompt_text.strip(), asked.input.strip())))
        if text and not self.speaks:
            raise ApiError(400, f"input: model {self.name} was trained without text", "input")
        given = self._given(text, asked.language or self.language) if text else Given()
        if audio is not None:
            most = self.model.info.num_samples(frames)
            codes, scales = self.encode(audio[:, -most:])
            prompt = Prompt(codes, "continuation", "upload", scales, given)
        elif voice is not None:
            codes = voice.codes[:frames]
            how = {"scales": voice.scales, "given": given, "shared": True}
            prompt = Prompt(codes, "continuation", voice.name, **how)
        else:
            prompt = Prompt(self._no_codes(), "unprompted", given=given)
        return self._piece(prompt, asked, self.seconds(asked), seed, 0, text, self.pace)

    def _read(self, name: str) -> Voice | None:
        """`voice` as its files are now."""
        if (voice := self.voice(name)) is not None:
            voice = self.voices[name] = current(voice, self.codec, self.voice_seconds)
        return voice

    def encode(self, audio: np.ndarray) -> tuple[Tensor, Tensor | None]:
        codes, scales = encode_whole(self.codec, torch.from_numpy(np.ascontiguousarray(audio)))
        return codes.cpu(), scales

    def _piece(
        self,
        prompt: Prompt,
        asked: Common,
        seconds: float,
        seed: int,
        row: int,
        text: str,
        speech: SpeechConfig,
    ) -> Piece:
        changed = {k: v for k in _OVERRIDES if (v := getattr(asked, k)) is not None}
        sampling = replace(self.sampling, **changed)
        output = OutputArgs(seconds=seconds, seed=seed)
        options = {"sampling": sampling, "demask": self.demask, "speech": speech, "row": row}
        return Piece(prompt, output, options, text)

    def _no_codes(self) -> Tensor:
        return torch.empty(0, self.model.info.num_codebooks, dtype=torch.int64)

    def _given(self, text: str, language: str) -> Given:
        args = ConditionArgs(text=(text,), language=language)
        return from_arguments(args, self.model.conditions, self.codec, 1)[0]

    def _prompt(self, text: str, language: str, voice: Voice | None) -> Prompt:
        """What a sentence is made from."""
        if voice is None:
            return Prompt(self._no_codes(), "speech", given=self._given(text, language))
        if "prompt" in self.model.conditions:
            given = self._given(text, language)
            given.values["prompt"], given.about["prompt"] = voice.codes, voice.name
            return Prompt(self._no_codes(), "speech", given=given)
        if voice.text is None:
            raise UserError(
                f"voice {voice.name}: this model needs to know what is said in it; write it to "
                f"{voice.name}.txt beside the recording"
            )
        given = self._given(f"{voice.text} {text}", language)
        how = {"scales": voice.scales, "given": given, "shared": True}
        return Prompt(voice.codes, "speech", voice.name, **how)


def new_seed() -> int:
    return secrets.randbits(31)


class Sentences:
    """A text that arrives in pieces, as sentences as soon as each is known to be complete.

    >>> text = Sentences("en")
    >>> text.add("Good mor"), text.add("ning. How a"), text.add("re you? "), text.rest()
    ([], ['Good morning.'], ['How are you?'], '')
    """

    def __init__(self, language: str | None):
        self._language, self._text = language, ""

    def __len__(self) -> int:
        return len(self._text)

    def add(self, piece: str) -> list[str]:
        # would a sentence that begins here be one of its own?
        *complete, rest = sentences(self._text + piece + "A", self._language)
        self._text = rest[:-1]
        return complete

    def rest(self) -> str:
        """What is left, complete or not."""
        text, self._text = self._text, ""
        return text.strip()
