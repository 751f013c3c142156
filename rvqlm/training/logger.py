"""Where the figures of a run go: metrics.jsonl, TensorBoard, the progress bar, lines on the
terminal.

A resumed run first takes back the lines after its checkpoint, so that the log of a run that was
killed any number of times is, apart from timings, that of a run that never was.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from math import exp
from pathlib import Path

from tqdm import tqdm

from rvqlm.cli import clock
from rvqlm.files import write_text

TIMINGS = (
    *("elapsed", "seconds", "frames_per_second", "memory_mb", "mfu"),
    *("time_data", "time_forward", "time_backward", "time_step", "threads", "other_cores"),
)
"""Entries of a log line that differ between two runs of the same command."""
_RETRY_SECONDS = 60.0
"""Between tries to write to TensorBoard again: each makes a thread and a file."""


class MetricsLog:
    """``metrics.jsonl`` and ``tensorboard/`` of an experiment; writes nothing if not `enabled`.

    A log that cannot be written costs a line on stderr and never the training: what must not fail
    silently are checkpoints. One that was deleted meanwhile is begun anew.

    :param step: the run continues after this step; later lines are dropped.
    """

    def __init__(self, exp_dir: str | Path, step: int = 0, enabled: bool = True):
        self.enabled = enabled
        self.path = Path(exp_dir) / "metrics.jsonl"
        self._complained = self._torn = False
        self._board_again = 0.0
        """When TensorBoard is tried again, on the clock of time.monotonic."""
        if not enabled:
            return
        _truncate(self.path, step)
        try:
            self._open_board(step)
        except OSError as e:
            self.board = None
            self._complain(e)

    def _open_board(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(str(self.path.with_name("tensorboard")), purge_step=step + 1)

    def write(self, kind: str, step: int, epoch: int, values: dict) -> None:
        """Append one line; numbers and per-level lists become TensorBoard scalars as well."""
        if not self.enabled:
            return
        line = json.dumps({"kind": kind, "step": step, "epoch": epoch, **values})
        if self._torn:  # a full disk may have taken half a line
            line = "\n" + line
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            self._torn = False
        except OSError as e:
            self._torn = True
            self._complain(e)
        self._on_board(step, lambda board: _scalars(board, kind, step, values))

    def audio(self, name: str, step: int, samples, sampling_rate: int) -> None:
        """A sound for TensorBoard: (T,) floats in [-1, 1]."""
        self._on_board(step, lambda b: b.add_audio(name, samples, step, sampling_rate))

    def histogram(self, name: str, step: int, values, bins) -> None:
        """Counts of integers for TensorBoard."""
        self._on_board(step, lambda b: b.add_histogram(name, values, step, bins=bins))

    def _on_board(self, step: int, write) -> None:
        """TensorBoard's thread dies with its folder or disk and says so at the next call: a new one
        is tried a while later."""
        if not self.enabled or time.monotonic() < self._board_again:
            return
        try:
            if self.board is None or not Path(self.board.log_dir).is_dir():
                self._open_board(step - 1)
            write(self.board)
        except OSError as e:
            self.board, self._board_again = None, time.monotonic() + _RETRY_SECONDS
            self._complain(e)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            print(
                f"rvqlm: the log of {self.path.parent} cannot be written ({error}); training "
                "continues without",
                file=sys.stderr,
                flush=True,
            )

    def sync(self) -> None:
        """Put everything written on the disk, before a checkpoint that counts on it."""
        if self.enabled and self.path.exists():
            with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        if self.enabled and self.board is not None:
            with contextlib.suppress(OSError):
                self.board.close()


def _scalars(board, kind: str, step: int, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, list):
            for level, v in enumerate(value):
                if v is not None:
                    board.add_scalar(f"{kind}_{name}/level_{level}", v, step)
        elif isinstance(value, (int, float)):
            board.add_scalar(f"{kind}/{name}", value, step)


def _truncate(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a last line torn by a crash."""
    if not path.exists():
        return
    kept, lines = [], path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if step == 0:
        kept = []
    if kept != lines:
        write_text(path, "".join(kept))


class Progress:
    """A bar on a terminal; in a file or pipe, a line every half minute. ``quiet``: neither, and of
    the lines that stay only warnings."""

    def __init__(
        self, share: float, enabled: bool = True, quiet: bool = False, every: float = 30.0
    ):
        self.warns, self.enabled, self.every = enabled, enabled and not quiet, every
        self.started, self.first = time.monotonic(), share
        self.printed = self.started
        self.bar = None
        if self.enabled and sys.stderr.isatty():
            self.bar = tqdm(
                total=100.0,
                initial=100 * share,
                bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
                dynamic_ncols=True,
            )

    def update(
        self, share: float, step: int, loss: float | None, lr: float, frames_per_second: float
    ) -> None:
        """Show where training is: `share` of the budget, loss in nats per code, None where no step
        was taken."""
        if not self.enabled:
            return
        shown = "-" if loss is None else f"{loss:.4f}"
        text = f"step {step} loss {shown} lr {lr:.3g} {frames_per_second:,.0f} frames/s"
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(100 * share - self.bar.n)
            return
        now = time.monotonic()
        if now - self.printed >= self.every:
            self.printed = now
            left = (now - self.started) * (1 - share) / max(share - self.first, 1e-9)
            print(f"{100 * share:3.0f}% {text} ETA {clock(left)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.enabled:
            self.warn(text)

    def warn(self, text: str) -> None:
        """A line that stays, with --quiet too."""
        if self.warns:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def valid_line(step: int, values: dict) -> str:
    bits = values["bits_per_second"]
    return (
        f"step {step} valid {values['loss']:.4f} nats/code"
        + (f", {100 * values['error_rate']:.1f} % errors" if "error_rate" in values else "")
        + (f", {bits:,.0f} bits/s" if bits is not None else "")
        + (" (best)" if values["best"] else "")
    )


def epoch_line(step: int, epoch: int, values: dict, progress: float, lr: float, steps: int) -> str:
    """Train and validation loss, perplexity, nats per level, learning rate, times.

    :param steps: optimizer steps of this epoch that were taken.
    """
    levels = " ".join("-" if n is None else f"{n:.2f}" for n in values["nats"])
    valid, elapsed = values["valid_loss"], values["elapsed"]
    left = elapsed * (1 - progress) / max(progress, 1e-9)
    skips = {k.removeprefix("skipped_"): n for k, n in values.items() if k.startswith("skipped_")}
    skips = ", ".join(f"{n} {reason}" for reason, n in skips.items() if n)
    return (
        f"epoch {epoch + 1} step {step} train {values['loss']:.4f}"
        + (f" valid {valid:.4f} ppl {exp(min(valid, 700)):.1f}" if valid is not None else "")
        + f" levels {levels}"
        + (f" | skipped {skips}" if skips else "")
        + f" | lr {lr:.3g}, {steps:,} steps"
        + f" | {clock(values['seconds'])} this epoch, {clock(elapsed)} in all, ETA {clock(left)}"
    )
