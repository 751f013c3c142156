"""How a running `rvqlm serve` holds up: closed loops of clients that speak texts and listen.

    rvqlm serve --exp-dir exp/mine --slots 16 &
    python tools/bench/serve.py --url http://127.0.0.1:8000 --concurrency 1 2 4 8

Each of so many clients sends a text of a fixed list, takes the WAV as it streams, and at its end
sends the next. Per concurrency: requests that failed (any that was not measured to its end counts
as failed), first audio (from the request to the first sample, p50 and p99), real-time factor of all
together and of one request (median), underruns (parts of audio that arrived later than a listener
would have needed them who plays from the first sample on), continuity (share of requests without
one), and the same for a listener who waits --head seconds with the first sample. Nothing of a
concurrency in which a request failed is a measurement: the status is 1.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from rvqlm.cli import parse, run_main
from rvqlm.errors import UserError
from rvqlm.runtime import describe_machine
from rvqlm.serving.metrics import PlayClock

TEXTS = (
    "The old captain carried seven green lanterns home.",
    "Good morning to you, and thank you for coming so early.",
    "Nobody in the village knew where the road behind the mill went.",
    "She counted the money twice and put it back into the drawer.",
    "When the rain came, all the children ran into the long barn.",
    "He asked for bread, cheese and a cup of warm milk.",
    "The letter lay on the table for nine days before anybody read it.",
    "Turn left at the church, then follow the river to the bridge.",
)


@dataclass
class Args:
    url: str = "http://127.0.0.1:8000"
    """Of the server; on this machine, as nothing else should lie between."""
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Clients at a time, one number after the other."""
    requests: int = 3
    """Of each client."""
    model: str = ""
    voice: str = "default"
    continue_seconds: float = 0.0
    """Instead of texts: go on from the voice for so long; of models without text."""
    token: str = ""
    head: float = 0.25
    """Seconds that the second listener waits with the first sample."""
    timeout: float = 600.0
    """Seconds after which a request has failed."""
    json: str = ""
    """File for the figures."""


@dataclass
class Result:
    """Of one request."""

    first: float = 0.0
    """Seconds to the first sample."""
    seconds: float = 0.0
    """Of audio."""
    took: float = 0.0
    underruns: int = 0
    with_head: int = 0
    """Underruns of who begins a little later."""
    error: str = ""


async def speak(args: Args, text: str, seed: int) -> Result:
    result = Result()
    try:
        await asyncio.wait_for(_speak(args, text, seed, result), args.timeout)
    except (OSError, ValueError, EOFError, asyncio.TimeoutError) as e:
        result.error = f"{type(e).__name__}: {e}"[:200]
    if not result.error and result.seconds <= 0:
        result.error = "no audio"
    return result


async def _speak(args: Args, text: str, seed: int, result: Result) -> None:
    """Over a connection of its own: what a client's library does beside is not measured."""
    url = urlsplit(args.url)
    asked = {"model": args.model, "seed": seed, "response_format": "wav", "voice": args.voice}
    path = "continuation" if args.continue_seconds else "speech"
    asked |= {"seconds": args.continue_seconds} if args.continue_seconds else {"input": text}
    body = json.dumps({**asked, "stream": True}).encode()
    head = [
        f"POST /v1/audio/{path} HTTP/1.1", f"Host: {url.netloc}", "Connection: close",
        "Content-Type: application/json", f"Content-Length: {len(body)}",
    ]  # fmt: skip
    if args.token:
        head.append(f"Authorization: Bearer {args.token}")
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    try:
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        if " 200 " not in status:
            raise ValueError(status)
        clock, later = PlayClock(), PlayClock(args.head)
        header, rate, frame = b"", 0, 0
        while size := int(await reader.readline(), 16):
            data = (await reader.readexactly(size + 2))[:-2]
            if len(header) < 44:
                header, data = header + data[: 44 - len(header)], data[44 - len(header) :]
                rate = int.from_bytes(header[24:28], "little")
                frame = int.from_bytes(header[32:34], "little")
            if data:
                now, seconds = time.perf_counter(), len(data) / frame / rate
                result.first = result.first or now - began
                result.underruns += clock.heard(now, seconds)
                result.with_head += later.heard(now, seconds)
                result.seconds += seconds
        result.took = time.perf_counter() - began
    finally:
        writer.close()


async def measure(args: Args, clients: int) -> dict:
    """One row of the table."""

    async def client(number: int) -> list[Result]:
        return [
            await speak(args, TEXTS[(number + turn) % len(TEXTS)], number * 1000 + turn)
            for turn in range(args.requests)
        ]

    began = time.perf_counter()
    results = [r for some in await asyncio.gather(*map(client, range(clients))) for r in some]
    took = time.perf_counter() - began
    good = [r for r in results if not r.error]
    first = sorted(r.first for r in good)
    row = {"clients": clients, "requests": len(results), "failed": len(results) - len(good)}
    if good:
        row |= {
            "first_p50": quantile(first, 0.5),
            "first_p99": quantile(first, 0.99),
            "real_time_factor": sum(r.seconds for r in good) / took,
            "real_time_factor_each": quantile(sorted(r.seconds / r.took for r in good), 0.5),
            "underruns": sum(r.underruns for r in good),
            "continuity": sum(not r.underruns for r in good) / len(results),
            "continuity_with_head": sum(not r.with_head for r in good) / len(results),
        }
    row["errors"] = sorted({r.error for r in results if r.error})
    return row


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)]


HEADS = (
    "clients", "requests", "failed", "first audio p50, s", "p99, s", "real-time factor, all",
    "each (median)", "underruns", "continuity",
    "the same with a head start",
)  # fmt: skip


def line(row: dict) -> str:
    cells = [str(row[name]) for name in ("clients", "requests", "failed")]
    if "underruns" in row:
        names = ("first_p50", "first_p99", "real_time_factor", "real_time_factor_each")
        cells += [f"{row[name]:.2f}" for name in names]
        cells += [str(row["underruns"]), f"{row['continuity']:.0%}"]
        cells.append(f"{row['continuity_with_head']:.0%}")
    else:
        cells += ["–"] * 7
    return "| " + " | ".join(cells) + " |"


def run(argv: Sequence[str] | None) -> int:
    args = parse(Args, "serve.py", "Load a running rvqlm serve and measure it.", argv)
    if urlsplit(args.url).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise UserError(f"--url {args.url}: a server on this machine is measured, no other")
    fixture = hashlib.sha256("\n".join(TEXTS).encode()).hexdigest()[:12]
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, "
          f"commit {machine['commit']}; texts {fixture}")  # fmt: skip
    asyncio.run(speak(args, TEXTS[0], 0))  # what is made once is there
    print("| " + " | ".join(HEADS) + " |\n" + "|--:" * len(HEADS) + "|")
    rows = []
    for clients in args.concurrency:
        rows.append(asyncio.run(measure(args, clients)))
        print(line(rows[-1]), flush=True)
        for error in rows[-1]["errors"]:
            print(f"  failed: {error}", file=sys.stderr)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine, "texts": fixture, "rows": rows}, file, indent=1)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(run_main(run, name="serve.py"))
