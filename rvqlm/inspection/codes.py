"""A look at codes: how many of each level's are used, how evenly, and a histogram in text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from rvqlm.data.stats import unigram_entropy
from rvqlm.errors import UserError
from rvqlm.exchange.items import Skipped, TokenItem

BINS = 32
_BARS = "▁▂▃▄▅▆▇█"
_LARGEST = 1 << 24  # counters; more levels or codes than any codec has
_BLOCK = 1 << 20  # codes counted at once


@dataclass
class CodeCounts:
    """How often every code occurs in some items of an input."""

    counts: np.ndarray
    """(K, V) int64"""
    items: int
    frames: int
    total: int | None = None
    """items that there are, where known"""

    def to_dict(self) -> dict:
        """Per level, for JSON: codes used, entropy in bits, the most frequent code and its share,
        and the shares of `BINS` equal ranges of codes."""
        counts, V = self.counts, self.counts.shape[1]
        share = counts / max(1, self.frames)
        return {
            "items": self.items,
            "of_items": self.total,
            "frames": self.frames,
            "codebook_size": V,
            "levels": [
                {
                    "used": int((row > 0).sum()),
                    "entropy_bits": float(bits),
                    "most_frequent": int(row.argmax()),
                    "most_frequent_share": float(part.max()),
                    "histogram": [round(float(x), 6) for x in _binned(part)],
                }
                for row, part, bits in zip(counts, share, unigram_entropy(counts))
            ],
        }

    def lines(self) -> list[str]:
        """The same as a table."""
        about = self.to_dict()
        V, bins = about["codebook_size"], len(about["levels"][0]["histogram"])
        what = f"{self.items:,}" + (f" of {self.total:,}" if self.total else "")
        lines = [
            f"codes of {what} items, {self.frames:,} frames; bars: codes 0..{V - 1} "
            f"in {bins} ranges, square root of their share",
            f"{'level':>5}  {f'used of {V:,}':>16}  {'entropy, bits':>13}  {'most frequent':>15}",
        ]
        for level, row in enumerate(about["levels"]):
            used = f"{row['used']:,} ({row['used'] / V:.0%})"
            most = f"{row['most_frequent']} ({row['most_frequent_share']:.1%})"
            # square roots: one code of silence would flatten all others
            top = max(row["histogram"]) or 1.0
            heights = [(x / top) ** 0.5 for x in row["histogram"]]  # a dot: no code at all
            bars = "".join(_BARS[min(7, int(8 * h))] if h else "·" for h in heights)
            lines.append(
                f"{level:>5}  {used:>16}  {row['entropy_bits']:>13.2f}  {most:>15}  {bars}"
            )
        return lines


def count_codes(
    items: Iterable[TokenItem | Skipped],
    codebook_size: int | None = None,
    max_items: int = 1000,
    total: int | None = None,
) -> CodeCounts | None:
    """Count the codes of at most `max_items` items; None where that is 0 or there are no codes.

    Args:
        items: all with the same number of levels.
        codebook_size: V; None takes the largest code of the first item that has any.
        max_items: where `total` is known and larger, every n-th item is taken.
        total: of items.

    Memory is that of the counters and of one block. Raises `UserError` naming an item with codes
    outside 0..V-1.
    """
    if not max_items:
        return None
    stride = max(1, (total or 0) // max_items)
    counts: np.ndarray | None = None
    seen = frames = 0
    bar = tqdm(items, "codes", total, unit=" items", leave=False, disable=None)
    for number, item in enumerate(bar):
        if seen == max_items:
            break
        if isinstance(item, Skipped) or number % stride:
            continue
        if counts is None:
            V = codebook_size or (int(item.codes.max()) + 1 if item.codes.size else 0)
            if V == 0:
                continue
            if item.codes.shape[1] * V > _LARGEST:
                return None
            counts = np.zeros(item.codes.shape[1] * V, np.int64)
        _add(counts, item, V)
        seen, frames = seen + 1, frames + len(item.codes)
    if counts is None:
        return None
    return CodeCounts(counts.reshape(-1, V), seen, frames, total)


def _add(counts: np.ndarray, item: TokenItem, V: int) -> None:
    K = len(counts) // V
    step = max(1, _BLOCK // K)
    for first in range(0, len(item.codes), step):
        block = item.codes[first : first + step].astype(np.int64)
        if int(block.min()) < 0 or int(block.max()) >= V:
            bad = int(block[(block < 0) | (block >= V)][0])
            raise UserError(f"{item.id}: code {bad} outside 0..{V - 1}: damaged, or another codec")
        counts += np.bincount((block + np.arange(K) * V).reshape(-1), minlength=len(counts))


def _binned(share: np.ndarray) -> np.ndarray:
    """(V,) -> sums over at most `BINS` ranges of codes."""
    edges = np.linspace(0, len(share), min(BINS, len(share)) + 1).astype(int)[:-1]
    return np.add.reduceat(share, edges)
