"""`Kept`: what was computed of prompts that many requests begin with, so that it is there for the
next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Kept:
    """Bounded memory by content: what is found is of the same codes, whatever they are called. What
    was not asked for longest goes first. For one thread.

    :param most: bytes.
    :param count: told of each look-up: its kind, and whether it found something.

    >>> kept = Kept(most=10)
    >>> for key in (b"ann", b"bob", b"cat"):
    ...     kept.put("model", key, key.decode(), size=4)
    >>> [kept.find("model", key) for key in (b"ann", b"bob", b"cat")]
    [None, 'bob', 'cat']
    """

    def __init__(self, most: int, count: Callable[[str, bool], object] = lambda kind, hit: None):
        self.most, self.count = most, count
        self.size = 0
        """Bytes that are held."""
        self._found: OrderedDict[tuple[str, bytes], tuple[Any, int]] = OrderedDict()

    def find(self, kind: str, key: bytes) -> Any:
        """What was put under a key; None where nothing is."""
        hit = (kind, key) in self._found
        self.count(kind, hit)
        if not hit:
            return None
        self._found.move_to_end((kind, key))
        return self._found[kind, key][0]

    def put(self, kind: str, key: bytes, value: Any, size: int) -> None:
        """Hold a value of so many bytes, unless it is larger than all there may be."""
        if size > self.most:
            return
        self._found[kind, key] = value, size
        self.size += size
        while self.size > self.most:
            self.size -= self._found.popitem(last=False)[1][1]

    def clear(self) -> None:
        self._found.clear()
        self.size = 0
