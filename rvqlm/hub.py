"""The network that the Hugging Face hub is reached by."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit


def require_network() -> None:
    """Raise OSError at once where there is no network: the hub client retries for half a minute."""
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # names are the proxy's business
    url = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    port = url.port or (80 if url.scheme == "http" else 443)
    socket.create_connection((url.hostname or "", port), timeout=5).close()
