"""What the server counts, as text that Prometheus reads (exposition format 0.0.4), and the clock by
which a listener would hear a gap."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and histograms of one server; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._gauges: dict[str, dict[Labels, Callable[[], float]]] = defaultdict(dict)
        self._buckets: dict[str, tuple[float, ...]] = {}
        self._counts: dict[str, dict[Labels, list[int]]] = defaultdict(dict)

    def counter(self, name: str, about: str) -> None:
        self._help[name] = "counter", about

    def gauge(self, name: str, about: str, value: Callable[[], float], **labels: str) -> None:
        self._help[name] = "gauge", about
        self._gauges[name][_labels(labels)] = value

    def histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> None:
        self._help[name], self._buckets[name] = ("histogram", about), buckets

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """To a counter."""
        with self._lock:
            self._values[name][_labels(labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """In a histogram."""
        bounds, key = self._buckets[name], _labels(labels)
        with self._lock:
            counts = self._counts[name].setdefault(key, [0] * (len(bounds) + 1))
            counts[next((i for i, bound in enumerate(bounds) if value <= bound), -1)] += 1
            self._values[name][key] += value

    def text(self) -> str:
        lines = []
        with self._lock:
            for name, (kind, about) in self._help.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
                if kind == "histogram":
                    lines += self._histogram(name)
                    continue
                values = dict(self._values[name])
                values |= {key: value() for key, value in self._gauges[name].items()}
                lines += [_line(name, key, value) for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        lines = []
        for key, counts in self._counts[name].items():
            total = 0
            for bound, count in zip((*self._buckets[name], "+Inf"), counts):
                total += count
                lines.append(_line(f"{name}_bucket", (*key, ("le", str(bound))), total))
            lines.append(_line(f"{name}_sum", key, self._values[name][key]))
            lines.append(_line(f"{name}_count", key, total))
        return lines


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _line(name: str, labels: Labels, value: float) -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inner = ",".join(f'{key}="{quoted(value)}"' for key, value in labels)
    return f"{name}{{{inner}}} {value:.10g}" if inner else f"{name} {value:.10g}"


class PlayClock:
    """Tells whether audio comes later than a listener who plays it from its first sample on would
    need it.

    :param head: seconds that the listener waits with the first, after each gap too.

    >>> clock = PlayClock()
    >>> [clock.heard(now, seconds) for now, seconds in [(5.0, 1.0), (5.9, 1.0), (8.0, 1.0)]]
    [False, False, True]
    """

    def __init__(self, head: float = 0.0) -> None:
        self._head = head
        self._runs_dry: float | None = None

    def heard(self, now: float, seconds: float) -> bool:
        """Audio of so many seconds is there; whether the one before had run out. Then the listener
        begins anew."""
        late = self._runs_dry is not None and now > self._runs_dry
        start = now + self._head if late or self._runs_dry is None else self._runs_dry
        self._runs_dry = start + seconds
        return late

    def reset(self) -> None:
        """What comes next isn't the continuation of what was."""
        self._runs_dry = None
