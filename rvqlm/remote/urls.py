"""URLs of object stores, and words that are safe to print.

Credentials come from where each store's client looks for them (environment, profile, instance
role), never from a URL: those that carry any are refused before anything is written, and what is
said of a URL or an error has them cut out.
"""

from __future__ import annotations

import os
import re

from rvqlm.errors import UserError, reason_of

SCHEMES = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "hf": "", "memory": ""}
"""What a URL may begin with, and the extra of setup.py that it needs."""
_URL = re.compile(r"(s3|gs|gcs|hf|memory|file)://(.*)", re.DOTALL)
_SECRETS = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)


def is_remote(value: object) -> bool:
    """Whether a value of a flag names an object store.

    >>> is_remote("s3://bucket/exp"), is_remote("exp/s3"), is_remote("file:///data")
    (True, False, False)
    """
    return isinstance(value, str) and value.partition("://")[0] in SCHEMES and "://" in value


def of_file(value: str) -> str | None:
    """The path of ``file:///PATH``, which is used in place; None for anything else."""
    return value[len("file://") :] or "/" if value.startswith("file://") else None


def checked(url: str) -> str:
    """The URL without slashes at its end; `UserError` for one that carries credentials, or that
    names more than one place."""
    scheme, rest = _URL.fullmatch(url).groups()
    bucket = rest.partition("/")[0]
    if ("@" in bucket and scheme != "hf") or "?" in rest or "#" in rest:
        raise UserError(
            f"{masked(url)}: a URL with credentials or a query is refused, it would stand in logs "
            "and checkpoints; give them as the store's own client takes them (environment, "
            "profile, role)"
        )
    parts = rest.rstrip("/").split("/")
    if not bucket or {"", ".", ".."} & set(parts) or "::" in rest or "*" in rest:
        raise UserError(f"{masked(url)}: not a place in a bucket; give {scheme}://BUCKET/PATH")
    return f"{scheme}://{'/'.join(parts)}"


def masked(text: str) -> str:
    """A text without what follows a ``?`` in a URL, names and passwords in one, and the values of
    the usual environment variables of secrets.

    >>> masked("s3://key:secret@bucket/a?token=1 failed")
    's3://...@bucket/a?... failed'
    """
    for name in _SECRETS:
        if len(secret := os.environ.get(name, "")) > 3:
            text = text.replace(secret, f"${name}")
    text = re.sub(r"(\w+://[^\s?]*)\?[^\s'\")]+", r"\1?...", text)
    return re.sub(r"://[^/\s]*@", "://...@", text)


def why(error: BaseException) -> str:
    """`reason_of`, masked."""
    return masked(reason_of(error))
