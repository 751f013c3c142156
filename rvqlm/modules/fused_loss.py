"""Cross-entropy of K classifiers that never holds all their logits.

The logits of a batch, frames x K x V in float32, are by far the largest tensor of a token model
(150 s of DAC: 12,900 x 9,216 x 4 bytes = 475 MB, and three of them live at once in a plain
implementation). `Scorer` works through the rows in blocks small enough for the cache: one matmul,
softmax and gradient in place, gradients added to accumulators, logits dropped. The backward pass
then only scales what is there. Same idea as fused linear cross entropy in Liger (Hsu et al., 2024,
arXiv:2410.10989), for K heads at once. Only scored cells cost anything: rows without one are
dropped, and where few cells of the others count (random level training, coarse-first patterns)
each level works on its own rows.

Which cells are scored only the device knows, and it would have to be waited for to tell. A CPU is
asked. On a GPU as many rows are worked on as can be scored at most, chosen there: `Most` says how
many, where the caller knows.

In bf16 on a CPU `rvqlm.modules.native_training`, where it can be had, does this level by level.

A head with layers of its own before the classifiers (its ``trunk``) is treated the same way:
forward, loss and backward of a chunk of rows, then the next, so that K activations a frame never
live at once either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvqlm.batch import Most
from rvqlm.modules import native_training

BLOCK_ELEMENTS = 1 << 22
"""Logits held at once on a CPU: 16 MiB in float32, about the last-level cache of one die."""

GPU_BLOCK_ELEMENTS = 1 << 25
"""The same on other devices, which need larger matrices to be busy: 128 MiB."""

GRADIENT_ELEMENTS = 1 << 25
"""Gradients of logits held at once in half precision, 64 MiB: a product is converted before it is
added to the classifiers' gradient, so that those of several blocks are multiplied together."""

CHUNK_STATES = 1 << 13
"""Rows x levels that pass through a trunk at once on a CPU."""

GPU_CHUNK_STATES = 1 << 15
"""The same on other devices."""

DENSE = 0.7
"""Share of scored cells from which computing all cells in large matmuls is the faster way."""


CELL_METRICS = ("nats", "accuracy")
"""What `Scorer._score` adds up per level, of every scored code."""

GAPS = tuple(f"gap_{n}" for n in range(10))
"""Within `calibration` also these: of the codes whose likeliest value has a probability in the n-th
tenth, that probability less whether it was the right one."""

GPU_ITEM_ELEMENTS = 1 << 26
"""Weights of classifiers held at once where each item has one: 128 MiB in bf16."""

_wanted = CELL_METRICS


@contextmanager
def calibration() -> Iterator[None]:
    """Add `GAPS` to the metrics of losses without gradients."""
    global _wanted
    before, _wanted = _wanted, (*CELL_METRICS, *GAPS)
    try:
        yield
    finally:
        _wanted = before


class HeadLoss(NamedTuple):
    loss: Tensor
    """Scalar to back-propagate: weighted, smoothed sum."""
    sums: dict[str, Tensor]
    """Per level (K,), float32, detached, by the name of the mean they make: ``nats``, -log p of the
    targets, neither weighted nor smoothed; ``accuracy``, targets whose logit is larger than all
    others; and what else `CELL_METRICS` names."""
    cells: Tensor | None = None
    """Nats of each target, weighted as in the sums, float32 in the shape of the targets, 0 where
    not valid; of a loss without gradients only."""


class Scorer:
    """Adds up loss, sums per level and the classifiers' gradient over calls. Matmuls are in the
    dtype of autocast or of ``hidden``, sums in float32 (float64 for float64).

    :param weight: (K, V, d) classifiers, or (1, V, d): one for all levels.
    """

    def __init__(self, hidden, weight, level_weights, num_levels, smoothing):
        device, kind = weight.device, hidden.device.type
        self.mixed = torch.is_autocast_enabled(kind)
        self.dtype = torch.get_autocast_dtype(kind) if self.mixed else hidden.dtype
        self.smoothing, self.with_grad = smoothing, torch.is_grad_enabled()
        self.sum_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.native = native_training.classifies(self.dtype, weight)
        kept = weight.dtype if self.native else self.dtype
        self.weight = weight.detach().to(kept).contiguous()
        self.block_elements = BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
        if level_weights is None:
            level_weights = torch.ones(num_levels, device=device)
        self.level_weights = level_weights.to(self.sum_dtype)
        self.loss = torch.zeros((), device=device, dtype=self.sum_dtype)
        wanted = CELL_METRICS if self.with_grad else _wanted
        self.sums = {name: torch.zeros_like(self.level_weights) for name in wanted}
        self._grad_weight = self.cells = None

    @property
    def grad_weight(self) -> Tensor | None:
        """Gradient by the classifiers so far; of a loss without gradients None."""
        if self._grad_weight is None and self.with_grad:
            self._grad_weight = torch.zeros_like(self.weight, dtype=self.sum_dtype)
        return self._grad_weight

    def keep_cells(self, targets: Tensor) -> None:
        """Note the nats of each cell of ``targets``, (N, K) or (N,), in `cells`: too much work for
        training."""
        if not self.with_grad:
            self.cells = torch.zeros(targets.shape, dtype=self.sum_dtype, device=targets.device)

    def add(
        self,
        hidden: Tensor,
        targets: Tensor,
        valid: Tensor,
        at: Tensor | None = None,
        most: Most | None = None,
    ) -> Tensor | None:
        """Score rows.

        :param hidden: (N, d), or (N, K, d) with a state per level.
        :param targets: (N, K) int64; anything where not valid.
        :param valid: (N, K) bool, or weights of the cells, 0 where they do not count.
        :param at: (N,) rows of `cells`, where these have others too.
        :return: gradient of the loss by ``hidden``, if asked for.
        """
        if at is None:
            at = torch.arange(len(hidden), device=hidden.device)
        hidden = hidden.detach().to(self.dtype)
        some, (N, K) = valid.any(1), valid.shape
        asked = hidden.device.type == "cpu"
        if asked:
            kept, cells = torch.stack([some.sum(), valid.count_nonzero()]).tolist()
        else:
            most = Most(N, N) if most is None else Most(min(most.rows, N), min(most.cells, N))
            kept, cells = most.rows, K * most.cells
        if cells < DENSE * kept * K:
            if asked:
                level, rows = valid.T.nonzero(as_tuple=True)
                counts = valid.count_nonzero(0).tolist()
            else:
                rows, counts = _first(valid.T, most.cells).flatten(), [most.cells] * K
                level = torch.arange(K, device=rows.device)[:, None].expand(K, most.cells).flatten()
            weights = None if asked and valid.dtype == torch.bool else valid[rows, level]
            places = at[rows], level
            return self.add_by_level(hidden, targets[rows, level], rows, counts, weights, places)
        if kept == N:
            return self._add_dense(hidden, targets, valid, at)
        rows = some.nonzero().squeeze(1) if asked else _first(some, kept)
        grad = self._add_dense(hidden[rows], targets[rows], valid[rows], at[rows])
        return grad.new_zeros(hidden.shape).index_copy_(0, rows, grad) if self.with_grad else None

    def add_by_level(
        self,
        hidden: Tensor,
        targets: Tensor,
        rows: Tensor,
        counts: Sequence[int],
        weights: Tensor | None,
        places: tuple[Tensor, ...],
    ) -> Tensor | None:
        """Score single cells, level after level.

        :param hidden: (N, d) or (N, K, d).
        :param targets: (M,) int64 of the cells, in the order of their levels.
        :param rows: (M,) row of each cell; a level has no row twice.
        :param counts: K numbers of cells.
        :param weights: (M,) of the cells; None: all count alike.
        :param places: indices (M,) of each in `cells`.
        """
        hidden = hidden.detach().to(self.dtype)
        shared_state = hidden.ndim == 2  # then several levels add to the gradient of one row
        grad = None
        if self.with_grad:
            grad = hidden.new_zeros(hidden.shape, dtype=self.sum_dtype if shared_state else None)
        start, block = 0, max(1, self.block_elements // self.weight.shape[1])
        if self.native:
            block = max(1, *counts)
        for level, count in enumerate(counts):
            k = level if len(self.weight) > 1 else 0
            weight, end = self.weight[k], start + count  # (V, d)
            while start < end:
                part = slice(start, min(start + block, end))
                at = (rows[part],) if shared_state else (rows[part], level)
                h = hidden[at]  # (n, d)
                use = None if weights is None else weights[part]
                if self.native:
                    nats, new = self._judge(h, targets[part], use, level)
                else:
                    logits = (h @ weight.T).to(self.sum_dtype)
                    nats = self._score(logits, targets[part], use, level=level)
                    if self.with_grad:
                        g = logits.to(self.dtype)
                        _add_product(self.grad_weight[k], g.T, h)
                        new = g @ weight
                self._keep(nats, *(place[part] for place in places))
                if self.with_grad and shared_state:
                    grad.index_add_(0, rows[part], new.to(grad.dtype))
                elif self.with_grad:
                    grad[at] = new.to(grad.dtype)
                start = part.stop
        return grad

    def add_items(
        self, hidden: Tensor, targets: Tensor, level: Tensor, valid: Tensor
    ) -> Tensor | None:
        """Score items of which each has one level, with its classifier.

        :param hidden: (B, T, d); targets and ``valid`` (B, T), level (B,).
        """
        B, T, d = hidden.shape
        V, hidden = self.weight.shape[1], hidden.detach().to(self.dtype)
        grad = torch.empty_like(hidden) if self.with_grad else None
        for items in torch.arange(B).split(max(1, GPU_ITEM_ELEMENTS // (V * d))):
            items = slice(int(items[0]), int(items[-1]) + 1)
            of_items, weight = level[items], self.weight[level[items]]  # (b, V, d)
            total = torch.zeros_like(weight, dtype=self.sum_dtype) if self.with_grad else None
            block = max(1, self.block_elements // (len(of_items) * V))
            for start in range(0, T, block):
                part = items, slice(start, start + block)
                logits = torch.bmm(hidden[part], weight.mT).to(self.sum_dtype)
                nats = self._score(logits, targets[part], valid[part], rows=1, level=of_items)
                self._keep(nats, *part)
                if self.with_grad:
                    g = logits.to(self.dtype)
                    grad[part] = torch.bmm(g, weight)
                    _add_product(total, g.mT, hidden[part])
            if self.with_grad:
                self.grad_weight.index_add_(0, of_items, total)
        return grad

    def _add_dense(self, hidden, targets, valid, at) -> Tensor | None:
        """All cells of all rows; hidden (N, d) or (N, K, d)."""
        if self.native:
            nats, grad = self._judge(hidden, targets, valid)
            self._keep(nats, at)
            return grad
        # one matmul serves all levels unless both states and classifiers differ between them
        if hidden.ndim == 3 and len(self.weight) > 1:
            return self._add_levels(hidden, targets, valid, at)
        K, (W, V, d) = targets.shape[1], self.weight.shape
        flat = self.weight.view(W * V, d)
        grad = torch.empty_like(hidden) if self.with_grad else None
        block = max(1, self.block_elements // (K * V))
        half = self.with_grad and self.dtype != self.sum_dtype
        together = block * max(1, GRADIENT_ELEMENTS // (block * K * V)) if half else block
        for first in range(0, len(hidden), together):
            rows = slice(first, min(first + together, len(hidden)))
            h = hidden[rows].reshape(-1, d)  # (n or n K, d)
            g = h.new_empty(rows.stop - first, K, V) if half else None
            for start in range(first, rows.stop, block):
                part = slice(start, min(start + block, rows.stop))
                logits = (hidden[part].reshape(-1, d) @ flat.T).view(-1, K, V).to(self.sum_dtype)
                self._keep(self._score(logits, targets[part], valid[part]), at[part])
                if half:
                    g[start - first : part.stop - first] = logits
            if self.with_grad:
                g = (g if half else logits).view(-1, W * V)
                torch.mm(g, flat, out=grad[rows].view(-1, d))
                _add_product(self.grad_weight.view(W * V, d), g.T, h)
        return grad

    def _add_levels(self, hidden, targets, valid, at) -> Tensor | None:
        """`_add_dense` of hidden (N, K, d) and a classifier a level: a matmul a level."""
        K, V = self.weight.shape[:2]
        grad = torch.empty_like(hidden) if self.with_grad else None
        block = max(1, self.block_elements // (K * V))
        for start in range(0, len(hidden), block):
            part = slice(start, start + block)
            h = hidden[part].transpose(0, 1)  # (K, n, d)
            logits = torch.bmm(h, self.weight.mT).to(self.sum_dtype)
            self._keep(self._score(logits, targets[part].T, valid[part].T, rows=1).T, at[part])
            if self.with_grad:
                g = logits.to(self.dtype)
                grad[part] = torch.bmm(g, self.weight).transpose(0, 1)
                _add_product(self.grad_weight, g.mT, h)
        return grad

    def _judge(
        self, hidden: Tensor, targets: Tensor, use: Tensor | None, level: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Add up a block by the kernels of `rvqlm.modules.native_training`; hidden (N, d) or
        (N, K, d) of cells (N, K), or (N, d) of the cells (N,) of one ``level``.

        :return: weighted nats of the cells, and the gradient by ``hidden``, float32.
        """
        if use is not None:
            use, targets = use.to(self.sum_dtype), targets.masked_fill(use == 0, -1)
        factors = self._factors(use, 0, level).expand(targets.shape)
        shared = len(self.weight) == 1
        k = slice(None) if level is None or shared else slice(level, level + 1)
        first = self.with_grad and self._grad_weight is None and level is None
        if first:
            self._grad_weight = torch.empty_like(self.weight)
        # where the classifiers are shared, cells are rows
        cells = (-1, 1) if shared or level is not None else targets.shape
        judged = native_training.classify(
            hidden.reshape(-1, hidden.shape[-1]) if shared else hidden,
            self.weight[k], targets.reshape(cells), factors.reshape(cells), self.smoothing,
            self.grad_weight[k] if self.with_grad else None, add=not first,
        )  # fmt: skip
        found = (values.view(targets.shape) for values in judged[:4])
        nats = self._add_up(*found, use, factors, 0, level)
        return nats, judged.grad_hidden.view(hidden.shape) if self.with_grad else None

    def _keep(self, nats: Tensor, *place: Tensor) -> None:
        if self.cells is not None:
            self.cells[place] = nats

    def _score(
        self, logits, targets, use, rows: int = 0, level: int | Tensor | None = None
    ) -> Tensor:
        """Add up loss and `CELL_METRICS` of a block; its logits (n, K, V), (K, n, V) with ``rows``
        1, or (n, V) of one ``level``, or (b, n, V) of levels (b,), become the gradient of the loss,
        in place.

        :param use: bool or weights of the cells; None: all.
        :return: weighted nats of the cells, in the shape of ``targets``.
        """
        t = (targets if use is None else targets.masked_fill(use == 0, 0)).unsqueeze(-1)
        at_target = logits.gather(-1, t)
        mean = logits.mean(-1) if self.smoothing else None
        # a hit is strictly above all others: ties, frequent in bf16, are none
        others = logits.scatter_(-1, t, -torch.inf).amax(-1, keepdim=True)
        hits = (at_target > others).squeeze(-1).to(logits.dtype)
        top = torch.maximum(others, at_target)
        logits.scatter_(-1, t, at_target)
        p = logits.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        log_total = total.log() + top
        nats = (log_total - at_target).squeeze(-1)
        mean = None if mean is None else mean - log_total.squeeze(-1)
        sure = total.reciprocal().squeeze(-1) if GAPS[0] in self.sums else None
        use = None if use is None else use.to(logits.dtype)
        factors = self._factors(use, rows, level)
        nats = self._add_up(nats, hits, sure, mean, use, factors, rows, level)
        if self.with_grad:
            # d nll / d logits = softmax - (1 - smoothing) onehot - smoothing / V
            scale = factors.expand(nats.shape).unsqueeze(-1)
            p.mul_(scale / total)
            p.scatter_add_(-1, t, -(1 - self.smoothing) * scale)
            if self.smoothing:
                p.sub_(scale * (self.smoothing / logits.shape[-1]))
        return nats

    def _factors(self, use: Tensor | None, rows: int, level: int | Tensor | None) -> Tensor:
        """Of cells in the loss; see `_score`."""
        factors = self.level_weights[... if level is None else level]
        factors = factors.unsqueeze(-1) if rows else factors
        return factors if use is None else factors * use

    def _add_up(self, nats, hits, sure, mean, use, factors, rows: int, level) -> Tensor:
        """Add cells to the loss and the sums; see `_score`.

        :param sure: highest probability, for `GAPS`; ``mean``: mean log p of all codes, where
            smoothed.
        :return: ``nats``, weighted.
        """
        smoothing, nll = self.smoothing, nats
        if smoothing:
            nll = (1 - smoothing) * nll - smoothing * mean
        cells = {"nats": nats, "accuracy": hits}
        if GAPS[0] in self.sums:
            tenth = (sure * len(GAPS)).long().clamp(max=len(GAPS) - 1)
            cells |= {name: (sure - hits) * (tenth == n) for n, name in enumerate(GAPS)}
        if use is not None:
            cells = {name: v * use for name, v in cells.items()}
        for name, values in cells.items():
            if isinstance(level, Tensor):
                self.sums[name].index_add_(0, level, values.sum(rows))
            else:
                self.sums[name][... if level is None else level].add_(values.sum(rows))
        self.loss += (nll * factors).sum()
        return cells["nats"]

    def loss_of(self, compute: Callable[[], Sequence[Tensor]], *inputs: Tensor) -> HeadLoss:
        """The loss, once ``compute``, outside of autocast, has added all cells up and returned its
        gradients by ``inputs``."""
        loss, *sums = _GradientsInForward.apply(self, compute, *inputs)
        return HeadLoss(loss, dict(zip(self.sums, sums)), self.cells)


def _first(marked: Tensor, count: int) -> Tensor:
    """(..., count) places along the last dimension, those that are marked first, in order."""
    return (marked == 0).byte().argsort(stable=True, dim=-1)[..., :count]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, of matrices or stacks of them."""
    if total.dtype != a.dtype:
        total += a @ b
    elif total.ndim == 2:
        total.addmm_(a, b)
    else:
        total.baddbmm_(a, b)


class _GradientsInForward(torch.autograd.Function):
    """A loss whose gradients by ``inputs`` are computed together with it."""

    @staticmethod
    def forward(ctx, scorer, compute, *inputs):
        with torch.autocast(inputs[0].device.type, enabled=False):
            grads = compute()
        if scorer.with_grad:
            ctx.save_for_backward(*grads)
        ctx.dtypes = [i.dtype for i in inputs]
        ctx.mark_non_differentiable(*scorer.sums.values())
        return scorer.loss, *scorer.sums.values()

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grads = [g.to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes)]
        # not on a GPU, which would have to be waited for
        if grad_loss.device.type == "cpu" and grad_loss == 1:
            return None, None, *grads
        return None, None, *(g * grad_loss.to(g.dtype) for g in grads)


def fused_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    valid: Tensor,
    level_weights: Tensor | None = None,
    smoothing: float = 0.0,
    most: Most | None = None,
) -> HeadLoss:
    """Loss of classifiers (K or 1, V, d) on hidden states (N, d) or (N, K, d)."""
    scorer = Scorer(hidden, weight, level_weights, targets.shape[1], smoothing)
    scorer.keep_cells(targets)

    def compute():
        return scorer.add(hidden, targets.long(), valid, most=most), scorer.grad_weight

    return scorer.loss_of(compute, hidden, weight)


def fused_loss_of_level(
    hidden: Tensor,
    weight: Tensor,
    level: Tensor,
    targets: Tensor,
    valid: Tensor,
    level_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> HeadLoss:
    """The same where each item of hidden states (B, T, d) has one level (B,) and one target a row:
    (B, T), like ``valid``."""
    scorer = Scorer(hidden, weight, level_weights, len(weight), smoothing)
    scorer.keep_cells(targets)

    def compute():
        if hidden.device.type != "cpu":
            return scorer.add_items(hidden, targets.long(), level, valid), scorer.grad_weight
        item, row = valid.nonzero(as_tuple=True)
        order = level[item].argsort(stable=True)
        item, row = item[order], row[order]
        counts = level[item].bincount(minlength=len(weight)).tolist()
        weights = None if valid.dtype == torch.bool else valid[item, row]
        of_rows = item * targets.shape[1] + row, counts, weights, (item, row)
        grad = scorer.add_by_level(hidden.flatten(0, 1), targets[item, row].long(), *of_rows)
        return None if grad is None else grad.view(hidden.shape), scorer.grad_weight

    return scorer.loss_of(compute, hidden, weight)


def fused_trunk_loss(
    trunk: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    valid: Tensor,
    level_weights: Tensor | None = None,
    smoothing: float = 0.0,
    most: Most | None = None,
) -> HeadLoss:
    """Loss of classifiers on the states that ``trunk(hidden, targets) -> (n, K, w)`` makes of rows.

    :param trunk: works on each row by itself, without random numbers.
    :param parameters: all that ``trunk`` depends on.
    :param hidden: (N, d) or (N, K, d).
    :param weight: (K or 1, V, w).
    """
    K, device_type = targets.shape[1], hidden.device.type
    scorer = Scorer(hidden, weight, level_weights, K, smoothing)
    scorer.keep_cells(targets)
    parameters = [p for p in parameters if p.requires_grad]

    def compute():
        some = valid.any(1)
        if device_type == "cpu":
            rows = some.nonzero().squeeze(1)
        else:
            rows = _first(some, len(some) if most is None else most.rows)
        states_at_once = CHUNK_STATES if device_type == "cpu" else GPU_CHUNK_STATES
        grad_hidden = torch.zeros_like(hidden) if scorer.with_grad else None
        grads = [torch.zeros_like(p) for p in parameters] if scorer.with_grad else []
        for chunk in rows.split(max(1, states_at_once // K)):
            h, t = hidden.detach()[chunk].requires_grad_(), targets[chunk].long()
            autocast = torch.autocast(device_type, scorer.dtype, enabled=scorer.mixed)
            with torch.set_grad_enabled(scorer.with_grad), autocast:
                states = trunk(h, t)
            grad_states = scorer.add(states, t, valid[chunk], at=chunk)
            if scorer.with_grad:
                grad_h, *new = torch.autograd.grad(
                    states, [h, *parameters], grad_states.to(states.dtype)
                )
                grad_hidden.index_copy_(0, chunk, grad_h)
                torch._foreach_add_(grads, new)
        return grad_hidden, scorer.grad_weight, *grads

    return scorer.loss_of(compute, hidden, weight, *parameters)
