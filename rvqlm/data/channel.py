"""A queue between a thread that reads ahead and the one that uses what it read."""

from __future__ import annotations

import threading
from collections import deque


class Channel:
    """A bounded queue that either side can leave: `close` wakes everyone who waits.

    :param size: items that `put` accepts before the oldest is taken.
    """

    def __init__(self, size: int):
        self._items: deque = deque()
        self._size, self._closed = size, False
        self._changed = threading.Condition()

    def put(self, item) -> bool:
        """Wait for room; False when the other side has closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def get(self):
        """Wait for the oldest item; `RuntimeError` where the channel is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if self._closed:
                raise RuntimeError("closed by another thread while an item was awaited")
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
