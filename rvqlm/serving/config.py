"""Flags of `rvqlm serve` on who may ask for how much."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from rvqlm.flags import Problems

TOKEN = "RVQLM_TOKEN"
"""Environment variable for what --token says; a command line can be read by other users."""

Some = Annotated[int, Meta(ge=1, le=1_000_000)]


@dataclass
class Setup:
    """Models"""

    codec: str = ""
    """Codec of prompts and audio, by name or directory; empty: the one named in the checkpoint."""
    voices: str = ""
    """Folder of recordings, each a voice of its name, with what is said in NAME.txt beside it."""
    voice_seconds: float = 3.0
    """How much of each voice the model is given."""
    voice_cache_mb: float = 256.0
    """Memory, of each model, for what model and codec made of a voice, which later requests with it
    begin from; the voices asked for longest ago go first. 0: none."""
    language: str = ""
    """Of texts whose request names none; empty: the one of most texts in training."""
    context_seconds: float = 0.0
    """Window in which a long sequence goes on; 0: none, a model sees all that was before."""

    def problems(self) -> list[str]:
        found = Problems(self)
        found.above(0, "voice_seconds")
        found.at_least(0, "context_seconds", "voice_cache_mb")
        return found


@dataclass
class Limits:
    """Limits"""

    slots: Annotated[int, Meta(ge=1, le=1024)] = 8
    """Requests that are worked on together, by each model."""
    queue: Annotated[int, Meta(ge=0, le=100_000)] = 64
    """Requests that wait for a slot, by each model; further ones are told to come back (429)."""
    max_text: Some = 4096
    """Characters of a text; over WS /v1/audio/stream of what is not yet said."""
    max_seconds: float = 300.0
    """Longest audio made for one request, its prompt not counted."""
    piece_seconds: float = 0.0
    """A text that takes longer is said sentence by sentence, a longer sentence clause by clause; 0:
    10, but 5 where a model makes a piece as a whole, as nothing of it is heard before."""
    max_upload_mb: float = 25.0
    """Largest upload, in MB."""
    max_upload_seconds: float = 600.0
    """Longest upload, decoded."""
    decode_seconds: float = 20.0
    """Longest time that decoding an upload may take."""
    ahead_seconds: float = 30.0
    """Audio that may wait for a WS client to take it before its next sentence is begun."""
    stall_seconds: float = 30.0
    """A client that neither takes nor sends a byte for so long is let go."""
    idle_seconds: float = 300.0
    """A WS client that has nothing to be said for so long is let go."""

    def problems(self) -> list[str]:
        found = Problems(self)
        found.above(0, "max_seconds", "ahead_seconds", "stall_seconds", "idle_seconds")
        found.above(0, "max_upload_mb", "max_upload_seconds", "decode_seconds")
        found.at_least(0, "piece_seconds")
        return found

    @property
    def upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1e6)


@dataclass
class Door:
    """Where it listens, and to whom"""

    host: str = "127.0.0.1"
    """Address to listen on; other than loopback only with a token."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """0: a free one, which is printed."""
    token: str = field(default="", repr=False)
    """What clients have to send as `Authorization: Bearer TOKEN`; empty: the environment variable
    RVQLM_TOKEN, if set, else nothing on loopback. Other users of the machine can read a command
    line."""
    grace: float = 10.0
    """Seconds that running requests get to end when the server is stopped."""

    def resolved(self) -> Door:
        """With the token of the environment where no flag gives one."""
        return Door(self.host, self.port, self.token or os.environ.get(TOKEN, ""), self.grace)

    @property
    def loopback(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return is_loopback(self.host)

    def problems(self) -> list[str]:
        found = Problems(self)
        found.at_least(0, "grace")
        token = self.resolved().token
        if not self.loopback and not token:
            found.append(
                f"--host {self.host}: others could reach it; give a --token or set {TOKEN}"
            )
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            found.append("--token: printable ASCII characters without spaces only")
        return found


def is_loopback(host: str) -> bool:
    """
    >>> [is_loopback(h) for h in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "127.example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
