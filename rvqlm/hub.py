"""The Hugging Face hub: whether it may be asked at all, and whether it can be.

A codec is fetched where a user names it (``--codec NAME``). A name that was read from a file, such
as the ``tokens.json`` of somebody else, is looked for on this machine only.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from urllib.parse import urlsplit

from rvqlm.errors import UserError

_asked: ContextVar[bool] = ContextVar("asked", default=True)


@contextlib.contextmanager
def read_from_a_file(really: bool = True) -> Iterator[None]:
    """Names that are loaded within the block come from a file: nothing is fetched, and nothing
    loaded that could run code. `really`: whether that is so."""
    token = _asked.set(_asked.get() and not really)
    try:
        yield
    finally:
        _asked.reset(token)


def require_asked(name: str, why: str = "it is not on this machine") -> None:
    """`UserError` where `name` was read from a file."""
    if not _asked.get():
        raise UserError(
            f"codec {name}: {why}, and its name was read from a file, not given by you; give "
            f"--codec {name} (once, to any command that takes it: it is then there for all)"
        )


def require_network(name: str) -> None:
    """`require_asked`, and OSError at once where there is no network: the hub client retries for
    half a minute."""
    require_asked(name)
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # names are the proxy's business
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = url.port or (80 if url.scheme == "http" else 443)
    socket.create_connection((url.hostname or "", port), timeout=5).close()
