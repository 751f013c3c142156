"""The cache of keys and values, allocated once for the longest sequence, with which decoding
continues.

Shapes: B items, J heads of keys and values of width D, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 64
"""Unit of the number of places that a step attends to."""


class KVCache:
    """Keys and values of all layers, allocated once and written in place.

    Steps come several at once, `update`, or one at a time, `write`. Where one goes the tensor
    `places` says, and it attends to a window of places, of which a mask hides those not written
    yet: so the shapes of a step are the same wherever it stands, until the window grows
    (`reserve`), and nothing waits for a number to come back from a device. The window grows by an
    eighth at most, so that a step costs in proportion to what it sees.

    ``position`` is the number of steps held; the transformer advances it once per call, after its
    last layer. Rows may also be filled each on its own, with as many steps as it has (`put`,
    `use`): ``position`` is then that of the longest.

    :param shape: layers, batch, heads of keys, longest sequence in steps, width of a head.
    :param like: a tensor on the same device and of the same dtype. On a CPU float32 is held
        instead of 16 bits, of which torch's attention makes five times slower use.
    :param dtype: of keys and values, if another.
    :param seen: (B, M) bool: which of the first M steps may be seen; all others may.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        like: Tensor,
        seen: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ):
        layers, B, heads, self.longest, width = shape
        device = like.device
        self.dtype = torch.float32 if device.type == "cpu" else like.dtype
        """Of what attention computes with."""
        room = -(-self.longest // WINDOW) * WINDOW
        # what is hidden must be finite: it is multiplied by zero
        dtype, held = self.dtype, dtype or self.dtype
        self._steps = torch.zeros(layers, B, room, 2, heads, width, device=device, dtype=held)
        # (B * room, 2, J, D) each
        self._rows = [self._steps[layer].flatten(0, 1) for layer in range(layers)]
        self._hidden = torch.full((B, room), -torch.inf, device=device, dtype=dtype)
        self._window: list[tuple[Tensor, Tensor]] = []
        self.shown = self._hidden[:, :0]
        """(B, W) of the mask: the window."""
        self.doubling = False
        """Whether the window doubles when it grows, for steps that are made ready for each."""
        self._allowed = torch.zeros_like(self._hidden)
        if seen is not None:
            self._allowed[:, : seen.shape[1]].masked_fill_(~seen, -torch.inf)
        self.position = 0
        self.places = torch.zeros(B, dtype=torch.int64, device=device)
        """(B,) `position`, for each item."""
        self._row = torch.arange(B, device=device) * room
        self._all = self.places, self._row, self._hidden

    def use(self, rows: int, position: int) -> None:
        """Go on with the first ``rows`` rows, which `put` filled, of which the longest holds
        ``position`` steps. Steps then come one at a time."""
        self.places, self._row, self._hidden = (part[:rows] for part in self._all)
        self.position, self._window = position, []

    def put(self, row: int, other: KVCache, source: int, steps: int) -> None:
        """Make a row a copy of the first ``steps`` steps of a row of another cache, or of this."""
        places, rows, hidden = self._all
        self._steps[:, row, :steps] = other._steps[:, source, :steps]
        hidden[row] = -torch.inf
        hidden[row, :steps] = other._all[2][source, :steps]
        places[row] = steps
        rows[row] = row * hidden.shape[1] + steps

    def _require(self, end: int) -> None:
        if end > self.longest:
            raise ValueError(f"KV cache holds {self.longest} steps, {end} asked for")

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, J, n, D) at the current position; return all keys and values so far."""
        end = self.position + keys.shape[2]
        self._require(end)
        steps = self._steps[layer]
        steps[:, self.position : end, 0] = keys.detach().transpose(1, 2)
        steps[:, self.position : end, 1] = values.detach().transpose(1, 2)
        k, v = steps[:, :end].to(keys.dtype).permute(2, 0, 3, 1, 4)
        return k, v

    def reserve(self) -> None:
        """Before one step: a window that it lies in."""
        end = self.position + 1
        self._require(end)
        if not self._window or end > self.shown.shape[1]:
            if self.doubling:
                width = max(4 * WINDOW, 1 << (end - 1).bit_length())
            else:
                unit = max(WINDOW, 1 << max(0, end.bit_length() - 4))
                width = -(-end // unit) * unit
            width = min(width, self._steps.shape[2])
            # (L, 2, B, J, W, D)
            window = self._steps[:, : len(self.places), :width].permute(0, 3, 1, 4, 2, 5)
            self._window = [tuple(layer.unbind(0)) for layer in window.unbind(0)]
            self.shown = self._hidden[:, :width]

    def open(self) -> Tensor:
        """What a step may see, itself included, (B, 1, 1, W), to be added to the scores."""
        self.shown.scatter_(1, self.places[:, None], 0.0)
        return self.shown[:, None, None]

    def write(self, layer: int, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, 2, J, D) of one step; return the keys and values of the window."""
        if torch.compiler.is_compiling():  # wants to see that all are of one tensor
            steps = self._steps[layer]
            steps.flatten(0, 1).index_copy_(0, self._row, keys_values)
            B, W = self.shown.shape
            k, v = steps[:B, :W].permute(2, 0, 3, 1, 4).unbind(0)
            return k, v
        self._rows[layer].index_copy_(0, self._row, keys_values)
        return self._window[layer]

    def shift(self) -> None:
        """All layers have one step more, which `open` took out of the mask; who counts them says
        so by `position`."""
        self.places.add_(1)
        self._row.add_(1)

    def advance(self, steps: int) -> None:
        """All layers have so many steps more."""
        new = slice(self.position, self.position + steps)
        self._hidden[:, new] = self._allowed[:, new]
        self.position += steps
        self.places.add_(steps)
        self._row.add_(steps)

    def counted(self) -> list[Tensor]:
        """What a step changes besides keys and values."""
        return [self.shown, self.places, self._row]

    def tensors(self) -> list[Tensor]:
        """All that a step reads and writes."""
        return [self._steps, *self.counted()]

    def row(self) -> Tensor:
        """Where keys and values of the next step go, for `at` and `put_at`."""
        return self._row.clone()

    def at(self, row: Tensor) -> Tensor:
        """(layers, B, 2, J, D) keys and values of one step."""
        return self._steps.flatten(1, 2).index_select(1, row)

    def put_at(self, row: Tensor, keys_values: Tensor) -> None:
        self._steps.flatten(1, 2).index_copy_(1, row, keys_values)

    @property
    def steps(self) -> Tensor:
        """(layers, B, room, 2, J, D) keys and values of all rows."""
        return self._steps

    @property
    def rows_at(self) -> Tensor:
        """(B,) row * room + the place of its next step."""
        return self._row

    @property
    def mask(self) -> Tensor:
        """(B, room), 0 for places that may be seen and -inf."""
        return self._hidden
