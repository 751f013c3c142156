"""A step of decoding from code to code as one call of `rvqlm.modules.native`: embeddings, layers,
classifiers, draws, and the books that `rvqlm.generation.decode` keeps of its sequences.

What is done between two calls costs far more than it takes by itself: the weights, which are read
in each, have driven it out of all caches.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from rvqlm.modules import native
from rvqlm.modules.conditioning import DecoderState
from rvqlm.modules.embeddings import SumEmbedding
from rvqlm.modules.native import NativeLinear, Program, _Draw, _Frame
from rvqlm.modules.packed import PackedLinearHeads
from rvqlm.modules.stepping import NativeStepper


class WholeStep:
    """Of sequences whose steps follow those in the cache of a state, with codes of all levels each.

    :param end_head: (..., d) -> logits of an end, by its ``linear``; or None.
    """

    def __init__(
        self,
        embedding: SumEmbedding,
        heads: PackedLinearHeads,
        end_head: nn.Module | None,
        state: DecoderState,
    ):
        self.state, self.stepper, self.cache = state, state.stepper, state.cache
        self.embedding, self.heads = embedding, heads.product(None)
        self.end = None if end_head is None else NativeLinear.of(end_head.linear)
        self.levels, self.codes = heads.weight.shape[:2]
        rows = self.cache.steps.shape[1]
        self.logits = torch.zeros(rows, self.levels * self.codes)
        self.ends = torch.zeros(rows, 1)
        self.drawn = torch.zeros(rows, self.levels, dtype=torch.int64)
        self.places = torch.zeros(rows, dtype=torch.int64)
        self._base: Program | None = None
        self._frame, self._draw = _Frame(), _Draw()

    @classmethod
    def of(cls, embedding, heads, end_head, state: DecoderState) -> WholeStep | None:
        """None where the model, or how it is held, is another than the kernels know."""
        known = (
            type(embedding) is SumEmbedding
            and type(heads) is PackedLinearHeads
            and isinstance(state.stepper, NativeStepper)
            and embedding.weight.dtype == torch.float32
        )
        if not known or not isinstance(heads.product(None), NativeLinear):
            return None
        if state.whole is None:
            state.whole = cls(embedding, heads, end_head, state)
        return state.whole

    def _program(self) -> Program:
        """What is there for all steps; made anew where the stepper's is."""
        base = self.stepper.program(self.state.memory, self.state.memory_mask)
        if base is self._base:
            return self._whole
        hidden = self.stepper.output

        def classify(program: Program) -> None:
            program.product(self.heads, hidden, self.logits)
            if self.end is not None:
                program.product(self.end, hidden, self.ends)

        self._base, self._whole = base, base.then(classify)
        f, d, table = self._frame, self._draw, self.embedding
        f.levels, f.width, f.special = self.levels, hidden.shape[1], table.num_embeddings - 1
        f.tables, f.offsets = table.weight.data_ptr(), table.offsets.data_ptr()
        f.x, f.places = self.stepper.input.data_ptr(), self.places.data_ptr()
        f.end = None if self.end is None else self.ends.data_ptr()
        self.scratch = torch.empty(64 * (2 * self.codes + 8), dtype=torch.int64)
        d.levels, d.codes, d.logits = self.levels, self.codes, self.logits.data_ptr()
        d.drawn, d.scratch = self.drawn.data_ptr(), self.scratch.data_ptr()
        return self._whole

    def __call__(
        self,
        column: Tensor,
        lengths: Tensor,
        grid: Tensor,
        cells,
        temperatures: Tensor | None,
        filters: tuple[int, float, float],
        guidance: float | None,
        follows: Tensor | None = None,
    ) -> None:
        """Draw the next ``column`` (B, K) in place of the last; ``lengths`` (B,) and ``grid``
        (B, W, K) are changed too.

        :param cells: `rvqlm.generation.decode.Cells` of the step.
        :param temperatures: (K) above 0; None: the likeliest codes.
        :param filters: top-k, top-p, min-p.
        :param guidance: strength; the state then has twice as many rows. None: no guidance.
        :param follows: (B,) the sequence that gives what is known of a column.
        """
        B, cache, state = len(column), self.cache, self.state
        rows = B if guidance is None else 2 * B
        program, f, d = self._program(), self._frame, self._draw
        lead = state.lead
        if not isinstance(lead, Tensor):
            lead = torch.full((rows,), lead)
        if self.stepper.counts:
            cache.reserve()
            cache.position += 1
        f.sequences, f.guidance = B, guidance or 0.0
        f.column, f.lengths, f.grid = column.data_ptr(), lengths.data_ptr(), grid.data_ptr()
        f.follows = None if follows is None else follows.data_ptr()
        f.added = None
        if state.added is not None:
            f.added, f.added_steps = state.added.data_ptr(), len(state.added) // rows
        f.mask, f.rows_at, f.held = (
            part.data_ptr() for part in (cache.mask, cache.rows_at, cache.places)
        )
        f.lead = lead.data_ptr()
        for name in _Frame.OF_STEP:
            part = getattr(cells, name)
            setattr(f, name, part.data_ptr())
            setattr(f, "of_" + name, part.stride(0))
        d.rows, d.uniform, d.of_uniform = B, cells.noise.data_ptr(), cells.noise.stride(0)
        d.temperatures = None if temperatures is None else temperatures.data_ptr()
        d.top_k, d.top_p, d.min_p = filters
        called = program._called(rows, cache.rows_at, self.places)
        native._library().frame(*called, ctypes.addressof(f), ctypes.addressof(d))
