"""The network that the Hugging Face hub is reached by."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

_local = False


@contextlib.contextmanager
def local_only() -> Iterator[None]:
    """In the block the network is not reached, as where there is none: what somebody's file names
    is looked for on this machine alone."""
    global _local
    before, _local = _local, True
    try:
        yield
    finally:
        _local = before


def require_network() -> None:
    """Raise OSError at once where there is no network, or where it is not to be reached: the hub
    client retries for half a minute."""
    if _local:
        raise OSError("only local files were asked for")
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # names are the proxy's business
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = url.port or (80 if url.scheme == "http" else 443)
    socket.create_connection((url.hostname or "", port), timeout=5).close()
