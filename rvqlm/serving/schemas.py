"""What clients may ask for: OpenAI's fields, and ours beside them. Unknown ones are refused."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from rvqlm.serving.errors import ApiError

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Share = Annotated[float, Meta(ge=0, le=1)]


class VoiceId(Struct, forbid_unknown_fields=True):
    """The other form in which OpenAI's clients name a voice."""

    id: str


class Common(Struct, forbid_unknown_fields=True, kw_only=True):
    """Of every way to ask."""

    model: str = ""
    """Empty: the first that is served."""
    voice: str | VoiceId = ""
    """Name of one of `/v1/voices`; empty or "default": the model's own choice."""
    language: str = ""
    seconds: Positive | None = None
    """Longest audio; at most, and unless given, the server's limit."""
    seed: Annotated[int, Meta(ge=0, lt=1 << 62)] | None = None
    """Of the draws; one at random unless given."""
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Share | None = None
    cfg_scale: Annotated[float, Meta(ge=0, le=100)] | None = None

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id


class Form(Common, kw_only=True):
    """How the audio comes back."""

    response_format: Format = "mp3"
    stream: bool | None = None
    """Whether WAV and FLAC come while they are made, with headers that do not tell the length; the
    other formats come so unless it is false."""
    stream_format: Literal["audio", "sse"] | None = None
    """"audio": as `stream`; "sse": as events with audio in base64."""


class Speech(Form, kw_only=True):
    """`POST /v1/audio/speech`"""

    input: str
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    instructions: str | None = None


class Continuation(Form, kw_only=True):
    """`POST /v1/audio/continuation`: fields of a form with a `file`, or JSON; with neither a file
    nor a voice, audio without a prompt."""

    prompt_seconds: Positive = 3.0
    """How much of the recording the model is given: its end."""
    prompt_text: str = ""
    """What is said in that part of it, for models with text."""
    input: str = ""
    """What is to be said next, for models with text."""
    response_format: Format = "wav"


class Start(Common, kw_only=True):
    """First message of `WS /v1/audio/stream`."""

    type: Literal["start"]
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0


class Say(Struct, forbid_unknown_fields=True, kw_only=True):
    """Further messages there: text, a request to say what there is, the end."""

    type: Literal["text", "flush", "end"]
    text: str = ""


T = TypeVar("T")


def of_json(body: bytes | str, kind: type[T]) -> T:
    """:raises ApiError: 400, with the field at fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise _mistake(e) from None


def of_form(fields: dict[str, str], kind: type[T]) -> T:
    """From the fields of a form, which are all words; :raises ApiError: as `of_json`."""
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as e:
        raise _mistake(e) from None


def _mistake(error: Exception) -> ApiError:
    words = str(error)
    _, _, place = words.partition(" - at `$.")
    return ApiError(400, words, place.rstrip("`") or None)
