"""What lies below one URL, through fsspec: list, get, put, copy, delete, and create once.

Each request is tried `TRIES` times with growing pauses, which is said; then one line ends it. An
object is fetched in ranges beside its place, compared in size, version and checksum with what the
store says, and only then has its name. Objects appear in the stores whole.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import random
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from rvqlm.errors import UserError
from rvqlm.files import replacing
from rvqlm.remote.urls import SCHEMES, why

T = TypeVar("T")
TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
"""Seconds between tries; half a minute in all."""
RANGE = 32 << 20
"""Bytes of a request."""
_CLIENTS = (
    *("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "http", "httpx", "httpcore"),
    *("huggingface_hub", "requests", "urllib3", "s3fs"),
)


class Entry(NamedTuple):
    """An object as the store lists it."""

    size: int
    version: str
    """changes with every write"""
    md5: str = ""
    """hex, where the store tells one"""


class _Other(Exception):
    """What was fetched is not what it should be."""


class Bucket:
    """The objects whose names begin with a URL; names are relative to it.

    :raises UserError: the client of such URLs is not installed.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url
        scheme = url.partition("://")[0]
        self.read_only = scheme == "hf"
        options: dict = {"use_listings_cache": False}
        if scheme == "s3":  # or the client would try five times within each of our tries
            options["config_kwargs"] = {
                "connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1},
            }  # fmt: skip
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, **options)
        except ImportError:
            raise UserError(
                f"{url}: its client is not installed; pip install 'rvqlm[{SCHEMES[scheme]}]'"
            ) from None
        if scheme == "s3":
            self.fs.retries = 1
        elif scheme in ("gs", "gcs"):  # which tries six times, unsaid; no option of its own says no
            once = inspect.unwrap(type(self.fs)._request)
            self.fs._request = types.MethodType(once, self.fs)
        self.root = self.root.rstrip("/")
        self._md5_of_etags = True

    def path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def shown(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def list(self) -> dict[str, Entry]:
        """All objects by name; of a URL that is an object itself, it alone, by the name ""."""

        def find() -> dict:
            try:
                found = self.fs.find(self.root, detail=True)
            except FileNotFoundError:
                return {}
            return {p: i for p, i in found.items() if i["type"] == "file"}

        found = self._try("", find)
        start = len(self.root.lstrip("/")) + 1
        names = ((path.lstrip("/")[start:], info) for path, info in found.items())
        return {name: self._entry(info) for name, info in names if not name.endswith("/")}

    def entry(self, name: str) -> Entry | None:
        """An object as it is now; None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self._entry(self._try(name, lambda: self._info(name)))
        return None

    def read(self, name: str) -> bytes | None:
        """All of a small object; None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self._try(name, lambda: self.fs.cat_file(self.path(name)))
        return None

    def write(self, name: str, data: bytes, once: bool = False) -> bool:
        """Write a small object; with `once` only where there is none, which the stores themselves
        look at. Whether it was written."""
        mode = {"mode": "create"} if once else {}
        try:
            self._try(name, lambda: self.fs.pipe_file(self.path(name), data, **mode))
        except FileExistsError:
            # an answer may have been lost: what stands there is ours then
            return self.read(name) == data
        except FileNotFoundError:
            raise UserError(f"{self.shown(name)}: there is no such bucket; make it first") from None
        return True

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._try(name, lambda: self.fs.rm_file(self.path(name)))

    def get(self, name: str, entry: Entry, to: Path, sha256: str = "") -> Entry:
        """Fetch an object; what it is now, should it have changed meanwhile.

        :param sha256: that it must have.
        :raises UserError: it is damaged.
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        found = ""
        for _ in range(2):
            before, found = found, ""
            with contextlib.suppress(_Other), replacing(to) as temporary:
                md5, digest = hashlib.md5(usedforsecurity=False), hashlib.sha256()
                with open(temporary, "wb") as file:
                    for begin in range(0, entry.size, RANGE):
                        end = min(begin + RANGE, entry.size)
                        part = self._try(name, lambda b=begin, e=end: self._range(name, b, e))
                        file.write(part)
                        md5.update(part)
                        digest.update(part)
                wanted = sha256 or (entry.md5 if self._md5_of_etags else "")
                found = (digest if sha256 else md5).hexdigest()
                if not sha256 and found == before:
                    # some stores' ETags look like an MD5 and are none (S3 with keys of KMS): two
                    # fetches that agree are what is there
                    self._md5_of_etags, wanted = False, ""
                now = self.entry(name) or entry
                if (wanted and found != wanted) or now.version != entry.version:
                    entry = now
                    raise _Other  # and nothing takes the place of what was there
                return entry
        raise UserError(
            f"{self.shown(name)} is damaged (checksum {found[:12]}, recorded "
            f"{(sha256 or entry.md5)[:12]}), or changes all the time; restore it from a copy, or "
            "make it again"
        )

    def put(self, file: Path, name: str) -> Entry:
        """Upload a file that does not change."""

        def put() -> Entry:
            self.fs.put_file(str(file), self.path(name))
            return self._whole(name, file.stat().st_size)

        try:
            return self._try(name, put)
        except FileNotFoundError:
            raise UserError(f"{self.shown(name)}: there is no such bucket; make it first") from None

    def copy(self, source: str, name: str, size: int) -> Entry:
        """Copy an object within the bucket."""

        def copy() -> Entry:
            self.fs.cp_file(self.path(source), self.path(name))
            return self._whole(name, size)

        return self._try(name, copy)

    # ----------------------------------------------------------------------------- requests

    def _whole(self, name: str, size: int) -> Entry:
        entry = self._entry(self._info(name))
        if entry.size != size:
            raise OSError(f"{entry.size:,} bytes arrived, {size:,} were sent")
        return entry

    def _range(self, name: str, begin: int, end: int) -> bytes:
        part = self.fs.cat_file(self.path(name), start=begin, end=end)
        if len(part) != end - begin:
            raise OSError(f"{len(part):,} bytes came, {end - begin:,} were asked for")
        return part

    def _info(self, name: str) -> dict:
        self.fs.invalidate_cache()
        return self.fs.info(self.path(name))

    def _entry(self, info: dict) -> Entry:
        keys = ("ETag", "generation", "blob_id", "etag", "created", "LastModified")
        version = next((str(info[key]) for key in keys if info.get(key)), "")
        md5 = version.strip('"') if "ETag" in info else ""
        if info.get("md5Hash"):
            md5 = base64.b64decode(info["md5Hash"]).hex()
        return Entry(int(info["size"]), version, md5 if len(md5) == 32 else "")

    def _try(self, name: str, call: Callable[[], T]) -> T:
        """What `call` returns; FileNotFoundError and FileExistsError as they come."""
        what = self.shown(name)
        for number in range(1, TRIES + 1):
            try:
                return call()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as e:
                if _denied(e):
                    raise UserError(
                        f"{what}: access denied ({why(e)}); give credentials as the store's own "
                        "client takes them"
                    ) from None
                if not _may_pass(e):
                    raise
                if number == TRIES:
                    raise UserError(
                        f"{what}: {why(e)}, {TRIES} times; is the store, or the network, down?"
                    ) from None
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
                print(
                    f"{what}: {why(e)}; try {number + 1} of {TRIES} in {wait:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                time.sleep(wait)
        raise AssertionError


def _denied(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    no_keys = {"NoCredentialsError", "DefaultCredentialsError", "NoAuthTokenError"}
    return isinstance(error, PermissionError) or bool(names & no_keys) or (
        isinstance(error, OSError) and str(error).startswith("Forbidden")
    )  # fmt: skip


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: the network, the store, its client; no bug of ours."""
    room = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError, TimeoutError)) or room in _CLIENTS
