"""Alignments of texts and codes: when each symbol is said, by a recogniser of codes.

The likeliest way through the recogniser's decisions (`rvqlm.metrics.viterbi`) says which of them
are which symbol. What lies between two symbols goes half to each, or, where it is a pause, to the
white space and punctuation between them. Measured against the times of a synthesiser on unseen
sentences of one voice (docs/tts.md), other shares were worse, and so was a span for every space.

A text's score is how much less likely it is than what the recogniser would have written itself, in
nats a symbol: 0 at best. A text that is not what is said stands out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from rvqlm.condition_info import ConditionInfo
from rvqlm.data.index import TokenDataset
from rvqlm.data.ragged import Ragged
from rvqlm.frontends.aligned import Labels, fill_between
from rvqlm.inference.recognize import in_batches
from rvqlm.metrics.viterbi import Path, ctc_viterbi, decisions_needed
from rvqlm.models.recognizer import Recognizer

PAUSE = 0.2
"""Seconds between the decisions for two symbols from which on these are a pause."""
MARGIN = 0.02
"""Seconds that a symbol lasts beyond its decisions before and after a pause."""
CHUNK = 256
"""Cuts that are sorted by length, and kept in memory, at a time."""


class Aligned(NamedTuple):
    """What was found of one cut."""

    times: np.ndarray | None
    """(S, 2) float64 seconds, begin and end of each symbol; None: not aligned, or without text."""
    score: float | None = None
    """Nats a symbol, 0 at best."""
    problem: str = ""
    """Why a text has no alignment."""


class SplitTexts(NamedTuple):
    """A split with its text."""

    dataset: TokenDataset
    column: Ragged
    info: ConditionInfo
    labels: Labels


def symbol_times(path: Path, spoken: Sequence[int], each: float, seconds: float) -> np.ndarray:
    """Begin and end of each symbol, (S, 2) float64 seconds.

    :param spoken: places of the symbols that are no white space or punctuation.
    :param each: seconds a decision.
    :param seconds: of the cut.
    """
    times, of = np.full((len(path.first), 2), np.nan), np.asarray(spoken, int)
    if len(of):
        begin, end = path.first[of] * each, (path.last[of] + 1) * each
        between, pause = (begin[1:] + end[:-1]) / 2, begin[1:] - end[:-1] > PAUSE
        times[of[0], 0], times[of[-1], 1] = begin[0] - MARGIN, end[-1] + MARGIN
        times[of[1:], 0] = np.where(pause, begin[1:] - MARGIN, between)
        times[of[:-1], 1] = np.where(pause, end[:-1] + MARGIN, between)
    return fill_between(times.clip(0.0, seconds), seconds)


class ByRecognizer:
    """Alignments by a trained recogniser."""

    def __init__(self, model: Recognizer, where: str, batch_seconds: float):
        """where: its checkpoint, for messages."""
        self.model, self.where, self.batch_seconds = model, where, batch_seconds
        self.each = model.config.frames_per_step / model.decisions / float(model.info.frame_rate)

    def about(self) -> dict:
        """What decides the result, beside codes and text."""
        return {
            "weights": fingerprint_of(self.model),
            "pause_seconds": PAUSE,
            "margin_seconds": MARGIN,
        }

    def align(self, texts: SplitTexts) -> Iterator[Aligned]:
        """Of all cuts of a split in their order.

        Raises `UserError` for tokens or text of another kind than the recogniser's.
        """
        model, dataset, column = self.model, texts.dataset, texts.column
        dataset = dataset.first_levels(min(model.info.num_codebooks, dataset.info.num_codebooks))
        model.info.require_same(dataset.info, self.where, str(dataset.directory))
        model.conditions["text"].require_same(texts.info, self.where, str(dataset.directory))
        most, sizes = self.batch_seconds * float(dataset.info.frame_rate), column.lengths
        for begin in range(0, len(dataset), CHUNK):
            rows = np.arange(begin, min(begin + CHUNK, len(dataset)))
            found = {row: Aligned(None) for row in rows.tolist()}
            rows = rows[sizes[rows] > 0]
            rows = rows[np.argsort(dataset.frames[rows], kind="stable")].tolist()
            for batch in in_batches(rows, lambda row: int(dataset.frames[row]), most):
                codes = [torch.from_numpy(dataset.read(r).astype(np.int64)) for r in batch]
                ids = [column.read(r)[:, 0] for r in batch]
                found.update(zip(batch, self._batch(codes, ids, texts.labels)))
            yield from found.values()

    @torch.no_grad()
    def _batch(
        self, codes: list[torch.Tensor], texts: list[np.ndarray], labels: Labels
    ) -> Iterator[Aligned]:
        device = self.model.head.weight.device
        lengths = torch.tensor([len(c) for c in codes])
        padded = torch.nn.utils.rnn.pad_sequence(codes, batch_first=True)
        log_probs, decisions = self.model.log_probs(padded.to(device), lengths.to(device))
        log_probs, decisions = log_probs.cpu().numpy(), decisions.cpu().numpy()
        paths = ctc_viterbi(log_probs, decisions, texts)
        for n, (path, ids, frames) in enumerate(zip(paths, texts, lengths.tolist())):
            if path is None:
                needed = decisions_needed(ids)
                why = "the recogniser's probabilities are not finite"
                if needed > decisions[n]:
                    why = f"its symbols need {needed} decisions, its audio has {decisions[n]}"
                yield Aligned(None, None, why)
                continue
            seconds = frames / float(self.model.info.frame_rate)
            times = symbol_times(path, labels.spoken(ids), self.each, seconds)
            free = float(log_probs[n, : decisions[n]].max(1).sum(dtype=np.float64))
            yield Aligned(times, min(0.0, (path.log_prob - free) / len(ids)))


def fingerprint_of(model: torch.nn.Module) -> str:
    """16 hex digits of the weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
