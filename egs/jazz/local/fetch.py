"""Fetch the audio of a playlist, or of one video, by yt-dlp: a file a recording, in its order.

    python local/fetch.py --url URL --out-dir data/1_download

Files are NUMBER-ID.SUFFIX, as they come: nothing is converted. ``archive.txt`` beside them lists
what is complete and is not fetched again; ``playlist.jsonl`` every entry, with its file or the
reason why there is none. An interrupted file goes on where it ended. What cannot be had is counted
and named, and tried again by the next run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from rvqlm.audio.ffmpeg import find_ffmpeg
from rvqlm.cli import counted, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import atomic_open, json_line, read_jsonl, write_text
from rvqlm.locks import locked

SHOWN = 5  # failures that are named


@dataclass
class Flags:
    """Fetch the audio of a playlist."""

    url: str
    """A playlist, a video, or whatever else yt-dlp knows."""
    out_dir: Path
    """Folder of the files."""
    format: str = "bestaudio/best"
    """Which of the formats that there are, as yt-dlp's --format."""


class _Log:
    """What yt-dlp says: errors are kept, warnings shown, the rest is left out."""

    def __init__(self):
        self.errors: list[str] = []

    def debug(self, message: str) -> None:
        pass

    def warning(self, message: str) -> None:
        print(message, file=sys.stderr)

    def error(self, message: str) -> None:
        self.errors.append(message.removeprefix("ERROR: ").strip().splitlines()[0])


class Entry(TypedDict):
    """A line of playlist.jsonl: an entry of a playlist, and its file or why there is none."""

    number: int
    url: str
    title: str
    file: str | None
    reason: str | None


def fetch(url: str, folder: Path, format: str = "bestaudio/best") -> str:
    """Fetch what is not there yet; returns the summary.

    :raises UserError: there is no such playlist, or nothing of it could be had.
    """
    try:
        import yt_dlp
    except ImportError:
        raise UserError("yt-dlp is not installed: tools/setup.sh --extra jazz") from None
    folder.mkdir(parents=True, exist_ok=True)
    archive, listed, log = folder / "archive.txt", folder / "playlist.jsonl", _Log()
    before = {}
    with contextlib.suppress(UserError):  # the first run
        before = {e["url"]: e for e in read_jsonl(listed, "entries", "", Entry)}
    options = {
        "format": format,
        "paths": {"home": str(folder), "temp": ".partial"},
        "download_archive": _complete(archive, folder),
        "restrictfilenames": True,
        "trim_file_name": 150,
        "overwrites": False,
        "ignoreerrors": True,
        "noprogress": True,
        "updatetime": False,
        "socket_timeout": 60,
        "retries": 5,
        "cachedir": False,
        "ffmpeg_location": find_ffmpeg(),
        "logger": log,
    }
    entries: list[Entry] = []
    with yt_dlp.YoutubeDL(options) as program:
        found = program.extract_info(url, download=False, process=False)
        if found is None:
            raise UserError(f"--url {url}: {(log.errors or ['nothing is there'])[0]}")
        items = found["entries"] if found.get("_type") == "playlist" else [found]
        for number, item in enumerate(items, 1):  # one by one: an error is of one of them
            log.errors.clear()
            where = item.get("webpage_url") or item["url"]
            print(f"{number} {item.get('title') or where}", file=sys.stderr, flush=True)
            program.params["outtmpl"]["default"] = f"{number:05d}-%(id)s.%(ext)s"
            done = program.process_ie_result(item, True)
            files = [Path(f) for f in _files(done)] or [
                folder / (before.get(where, {}).get("file") or "")
            ]
            file = next((f.name for f in files if f.is_file()), None)
            reason = None if file else (log.errors or ["there is no audio in it"])[0]
            title = str((done or item).get("title") or "")
            entries.append(Entry(number=number, url=where, title=title, file=file, reason=reason))
    with contextlib.suppress(OSError):  # it holds what is interrupted
        (folder / ".partial").rmdir()
    with atomic_open(listed) as lines:
        lines.writelines(map(json_line, entries))
    failed = [e for e in entries if not e["file"]]
    if len(failed) == len(entries):
        why = failed[0]["reason"] if failed else "the playlist is empty"
        raise UserError(f"--url {url}: nothing of it could be fetched: {why}")
    if failed:
        named = "; ".join(f"{e['number']}, {e['url']}: {e['reason']}" for e in failed[:SHOWN])
        print(
            f"{len(failed)} of {len(entries)} could not be fetched: {named}"
            f"{'; ...' * (len(failed) > SHOWN)} (all in {listed}); the same command tries again",
            file=sys.stderr,
        )
    return f"{folder}: {counted(len(entries) - len(failed), 'recording')}"


def _files(done: dict[str, Any] | None) -> Iterator[str]:
    """Where what was fetched lies, of a playlist within the playlist too."""
    for item in (done or {}).get("requested_downloads") or ():
        yield item["filepath"]
    for entry in (done or {}).get("entries") or ():
        yield from _files(entry)


def _complete(archive: Path, folder: Path) -> str:
    """The archive, without what has been removed from the folder since; its path."""
    if archive.exists():
        here = [p.stem.partition("-")[2] for p in folder.iterdir()]
        lines = archive.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.partition(" ")[2] in here]
        if kept != lines:
            write_text(archive, "".join(line + "\n" for line in kept))
    return str(archive)


def _run(argv) -> int:
    flags = parse(Flags, "fetch.py", Flags.__doc__, argv)
    with locked(flags.out_dir, "fetch.py", make=True):
        print(fetch(flags.url, flags.out_dir, flags.format))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(_run, None, "fetch.py"))
