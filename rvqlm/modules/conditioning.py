"""Conditions become vectors on the time axis of the frames, which a transformer is given.

Each step of a condition is one sum of embeddings and a position in frames, so that attention finds
what belongs to a moment by distance (docs/conditions.md: where the steps of each kind lie). Each
kind leads with one step of its own, which says "given" or "not given"; dropping a condition in
training is "not given", and that is what classifier-free guidance compares with (Ho & Salimans,
2022, arXiv:2207.12598).

    fusion prefix                           fusion cross
    [text . . . prompt . . | frames ->]     frames ->   self-attention
     all see these            causal           ^        cross-attention
                                            [text . . . prompt . .] -> encoder

    fusion spread: as prefix, and each step of the codes has what lies nearest to its time added to
    it. So a text is roughly aligned from the start where the number of frames is known (average
    upsampling: Zhu et al., 2025, arXiv:2506.13053), and a source exactly. Where a text's symbols
    have times of their own, a step has of each symbol as much as it takes of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rvqlm.batch import Batch, Padded, mask_of
from rvqlm.condition_info import ConditionInfo, Infos
from rvqlm.errors import UserError
from rvqlm.modules.documents import Documents
from rvqlm.modules.embeddings import FieldEmbedding
from rvqlm.modules.kv_cache import KVCache
from rvqlm.modules.stepping import Stepper
from rvqlm.modules.time_axis import bits_of, by_clock, laid_out
from rvqlm.modules.transformer import Transformer, TransformerConfig


class Context(NamedTuple):
    """Conditions of a batch, embedded: M steps."""

    x: Tensor
    """(B, M, d)"""
    mask: Tensor
    """(B, M) bool: steps that exist; the first of each kind always does."""
    positions: Tensor
    """(B, M) float, in steps of the transformer they go to."""
    spans: dict[str, tuple[int, int]]
    """First and one past the last step of each kind."""
    edges: Mapping[str, Tensor] = {}
    """(B, S, 2) where the steps of a kind begin and end, of those that know it; the step of the
    transformer at place s reaches from s - 1/2 to s + 1/2."""

    def late(self, steps: int) -> Context:
        """For a transformer whose frames come so many steps late."""
        return self._replace(edges={kind: edges + steps for kind, edges in self.edges.items()})

    def spread(self, kind: str, times: Tensor) -> Tensor:
        """(B, S, d) what a kind says at the times (B, S)."""
        return self.covering(kind, times) if kind in self.edges else self.nearest(kind, times)

    def covering(self, kind: str, times: Tensor) -> Tensor:
        """(B, S, d) the mean of a kind's steps over the step of the transformer around each time;
        where there are none, the first, which says that it is given, or missing where it is.

        What lasts less than a step counts as one around its middle, lest white space between two
        words, which mostly lasts nothing, be nowhere.
        """
        begin, end = self.spans[kind]
        x, mask = self.x[:, begin:end], self.mask[:, begin + 1 : end]
        from_, to = (self.edges[kind] * mask[..., None])[:, None].unbind(-1)  # (B, 1, M)
        wider = (1 - (to - from_)).clamp(min=0) / 2
        at = times[..., None].to(from_.dtype)
        share = torch.minimum(to + wider, at + 0.5) - torch.maximum(from_ - wider, at - 0.5)
        share = share.clamp(min=0) * mask[:, None]
        total = share.sum(2, keepdim=True)
        rest = (1 - total).clamp(min=0)
        return (torch.cat([rest, share], 2) / total.clamp(min=1)).to(x.dtype) @ x

    def nearest(self, kind: str, times: Tensor) -> Tensor:
        """(B, S, d) the step of a kind that lies nearest to each of the times (B, S); before and
        after all of them its first, which says that it is given, or missing where it is."""
        begin, end = self.spans[kind]
        x, mask = self.x[:, begin:end], self.mask[:, begin + 1 : end]
        far = self.positions[:, begin + 1 : end].masked_fill(~mask, torch.inf)
        borders = (far[:, 1:] + far[:, :-1]) / 2  # beyond them the next step is nearer
        times = times.to(borders.dtype).contiguous()
        index = torch.searchsorted(borders.contiguous(), times, right=True)
        if mask.shape[1]:
            # the outer steps reach as far out as in
            last = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
            several = last > 0
            if borders.shape[1]:
                early = 2 * far[:, :1] - borders[:, :1]
                late = 2 * far.gather(1, last) - borders.gather(1, (last - 1).clamp(min=0))
                outside = several & ((times < early) | (times >= late))
                index = torch.where(outside, -1, index)
            index = torch.where(mask[:, :1], index + 1, 0)
        return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class Conditioner(nn.Module):
    """Embeds conditions.

    :param infos: by kind; the order is that of the steps.
    :param dropout: chance that an item of a training batch is given none of its conditions and,
        with several, that it misses a single one.
    :param codes: the model's own input side, which then serves source and prompt too; their ids of
        no code are its last.
    """

    def __init__(
        self, infos: Infos, dim: int, dropout: float = 0.0, codes: nn.Module | None = None
    ):
        super().__init__()
        self.infos, self.dropout = dict(infos), dropout
        own = [k for k in infos if codes is None or k not in ("source", "prompt")]
        self.fields = nn.ModuleDict({k: FieldEmbedding(infos[k].sizes, dim) for k in own})
        for kind, info in infos.items():
            if info.durations is not None:
                self.register_buffer(f"durations_{kind}", bits_of(info.durations), persistent=False)
        self._codes = (codes,)  # no submodule: its weights belong to the model
        self.given = nn.Parameter(torch.randn(len(infos), dim))
        self.missing = nn.Parameter(torch.randn(len(infos), dim))
        self.kind = nn.Parameter(nn.init.normal_(torch.empty(len(infos), dim), std=0.5))

    def forward(
        self,
        conditions: Mapping[str, Padded],
        batch_size: int,
        *,
        steps_per_frame: float = 1.0,
        frames: Tensor | None = None,
        drop: Tensor | None = None,
    ) -> Context:
        """:param conditions: by kind; a kind that is not there is "not given" for all items.
        :param frames: (B,) frames of each item where known: text and notes are spread over them.
        :param drop: (B,) bool, items that are given none.
        :raises UserError: a kind that the model does not know, or other fields.
        """
        if unknown := set(conditions) - set(self.infos):
            raise UserError(
                f"the model was not trained with the condition {', '.join(sorted(unknown))}, only "
                f"with {', '.join(self.infos) or 'none'}"
            )
        device = self.given.device
        dropped = torch.zeros(len(self.infos), batch_size, dtype=torch.bool, device=device)
        if self.training and self.dropout:
            dropped |= torch.rand(1, batch_size, device=device) < self.dropout
            if len(self.infos) > 1:
                dropped |= torch.rand(dropped.shape, device=device) < self.dropout
        if drop is not None:
            dropped |= drop[None, :]
        parts, spans, edges, begin = [], {}, {}, 0
        for number, (kind, info) in enumerate(self.infos.items()):
            given = conditions.get(kind)
            if given is None:
                on = {"dtype": torch.long, "device": device}
                values = torch.empty(batch_size, 0, info.num_fields, **on)
                given = Padded(values, torch.zeros(batch_size, **on))
            if given.values.shape[2] != info.num_fields:
                raise UserError(
                    f"condition {kind} has {given.values.shape[2]} fields, the model wants "
                    f"{info.num_fields}"
                )
            lengths = given.lengths.masked_fill(dropped[number], 0)
            given = given._replace(lengths=lengths)
            *part, reach = self._embed(number, kind, info, given, frames)
            parts.append(part)
            if reach is not None:
                edges[kind] = reach * steps_per_frame - 0.5
            spans[kind] = begin, begin + 1 + given.values.shape[1]
            begin = spans[kind][1]
        x, mask, positions = (torch.cat(p, 1) for p in zip(*parts))
        return Context(x, mask, positions * steps_per_frame, spans, edges)

    def given_steps(self, conditions: Mapping[str, Padded], batch_size: int) -> Tensor:
        """(B, M) bool on the host: which steps `forward` makes, were none dropped."""
        found = []
        for kind in self.infos:
            found.append(torch.ones(batch_size, 1, dtype=torch.bool))
            if kind in conditions:
                given = conditions[kind]
                found.append(mask_of(given.lengths.cpu(), given.values.shape[1]))
        return torch.cat(found, 1)

    def _embed(
        self, row: int, kind: str, info: ConditionInfo, given: Padded, frames: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Steps, mask and places of a kind; where each step begins and ends, if they know it."""
        values, lengths, times = given
        B, S, _ = values.shape
        index = torch.arange(S, device=values.device)
        mask = index < lengths[:, None]  # (B, S)
        first = torch.where((lengths > 0)[:, None], self.given[row], self.missing[row])
        if kind in self.fields:
            steps = self.fields[kind](values)
        else:
            steps = self._codes[0](values.masked_fill(values < 0, info.sizes[0]))
        x = torch.cat([first[:, None], steps.to(first.dtype)], 1)
        at = index.expand(B, S).float()
        begin = torch.zeros(B, 1, device=values.device)
        edges = None
        if kind == "prompt":
            at = at - lengths[:, None]
            begin = begin - lengths[:, None] - 1
        elif info.clock is not None:
            at = by_clock(info, values)
        elif kind != "source":
            durations = getattr(self, f"durations_{kind}", None)
            lead, width = laid_out(info, durations, values[..., 0], mask, frames)
            at = lead + width.cumsum(1) - width / 2
            if info.aligned:
                edges = torch.stack([at - width / 2, at + width / 2], -1)
                if times is not None:
                    edges = torch.where(times.isnan(), edges, times)
                at = edges.mean(-1)
        mask = torch.cat([torch.ones_like(begin, dtype=torch.bool), mask], 1)
        return x + self.kind[row], mask, torch.cat([begin, at], 1), edges


@dataclass
class DecoderState:
    """What the steps of a batch are given, and in decoding what is carried from one to the next."""

    rows_differ: ClassVar[bool] = False
    """Whether each row is at a step of its own (`rvqlm.modules.running`)."""
    cache: KVCache | None = None
    """None: all steps come at once."""
    prefix: Context | None = None
    """What stands before the steps, and may be spread over them."""
    key_mask: Tensor | None = None
    """(B, M + S) bool: steps that may be seen, those of the prefix included."""
    memory: list | None = None
    memory_mask: Tensor | None = None
    stepper: Stepper | None = None
    """Of the cache."""
    whole: object | None = None
    """Of the cache too: `rvqlm.modules.whole_step`."""
    added: Tensor | None = None
    """(B * S, d) what is spread over each step, where steps come one at a time."""

    @property
    def lead(self) -> int | Tensor:
        """Steps in front of the first; where rows differ, (B,)."""
        return 0 if self.prefix is None else self.prefix.x.shape[1]


class Steps(NamedTuple):
    """What `ConditionedTransformer.forward` is given."""

    x: Tensor
    context: Context | None = None
    valid: Tensor | None = None
    documents: Documents | None = None


class ConditionedTransformer(nn.Module):
    """A transformer over steps with conditions as a prefix or by cross-attention.

    :param config: of the transformer; with fusion ``cross`` it gets cross-attention.
    :param num_encoder_layers: non-causal layers over the conditions alone.
    :param codes: see `Conditioner`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        infos: Infos | None = None,
        fusion: str = "prefix",
        num_encoder_layers: int = 0,
        condition_dropout: float = 0.0,
        codes: nn.Module | None = None,
    ):
        super().__init__()
        infos = infos or {}
        self.cross = bool(infos) and fusion == "cross"
        self.spread = nn.ModuleDict()
        if fusion == "spread":  # what lies before the beginning stays a prefix
            kinds = [k for k in infos if k != "prompt"]
            self.spread.update({k: nn.Linear(config.dim, config.dim, bias=False) for k in kinds})
        self.transformer = Transformer(replace(config, cross=self.cross))
        self.conditioner = self.encoder = None
        if infos:
            self.conditioner = Conditioner(infos, config.dim, condition_dropout, codes)
        if infos and num_encoder_layers:
            self.encoder = Transformer(
                replace(config, num_layers=num_encoder_layers, causal=False, adaptive=False)
            )

    def matrices(self) -> list[nn.Parameter]:
        """Matrices between hidden layers."""
        parts = [p for p in (self.transformer, self.encoder, self.spread) if p is not None]
        return [p for part in parts for p in part.parameters() if p.ndim == 2]

    def encode_conditions(
        self, conditions: Mapping[str, Padded], batch_size: int, **how
    ) -> Context | None:
        """Conditions embedded (and encoded); ``how`` as for `Conditioner`. None for a model
        without conditions, which refuses to be given any."""
        return self.encode(self.embed_conditions(conditions, batch_size, **how))[0]

    def embed_conditions(
        self, conditions: Mapping[str, Padded], batch_size: int, **how
    ) -> Context | None:
        """The first half of `encode_conditions`."""
        if self.conditioner is None:
            if conditions:
                raise UserError(
                    f"the model was trained without conditions; {', '.join(conditions)} given"
                )
            return None
        return self.conditioner(conditions, batch_size, **how)

    def encode(self, *contexts: Context | None) -> Sequence[Context | None]:
        """The second half, of several of equally many steps in one pass."""
        if self.encoder is None:
            return contexts
        x, mask, positions = (torch.cat(t) for t in zip(*(c[:3] for c in contexts)))
        x = self.encoder(x, positions=positions, key_mask=mask)
        parts = x.split([len(c.x) for c in contexts])
        return [context._replace(x=part) for context, part in zip(contexts, parts)]

    def documents(self, batch: Batch, rows: Tensor, size: int) -> Documents:
        """Where the items of a batch stand in rows, with the conditions that come before each. What
        is dropped of these has its place too: a device that draws it need not be waited for.

        :param rows, size: as for `Documents`, of the steps alone.
        """
        lead = None
        if self.conditioner is not None and not self.cross:
            lead = self.conditioner.given_steps(batch.here.conditions, len(rows))
        return Documents(rows, size, batch.codes.device, lead)

    def forward(
        self,
        x: Tensor,
        context: Context | None = None,
        valid: Tensor | None = None,
        condition: Tensor | None = None,
        positions: Tensor | None = None,
        causal: bool | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """(B, S, d) -> (B, S, d).

        :param documents: of `documents`: computes the sequences in rows of several.
        :param positions: (B, S) places on the time axis, 0, 1, 2, ... by default.
        :param causal: whether steps see no later ones, where not as the config says.
        :param valid: (B, S) bool, steps that may be seen; needed where attention is not causal
            and items are padded, and not in rows.
        :param condition: (B, d) for adaptive norms.
        """
        state = self._given(context, *x.shape[:2], valid)
        if documents is None:
            return self.step(x, state, positions, condition, causal)
        x, given = self._placed(x, state, positions, documents)
        return documents.unpack(self.transformer(x, condition=condition, causal=causal, **given))

    def together(self, *batches: Steps) -> list[Tensor]:
        """`forward` of each of several batches, in one pass (`Transformer.together`). Memories have
        equally many steps."""
        memories = [None] * len(batches)
        if self.cross:
            memories = self._read([b.context for b in batches])
        placed = []
        for (x, context, valid, documents), memory in zip(batches, memories):
            state = self._given(context, *x.shape[:2], valid, memory)
            placed.append(self._placed(x, state, documents=documents))
        made = self.transformer.together(*zip(*placed))
        return [
            y[:, y.shape[1] - b.x.shape[1] :] if b.documents is None else b.documents.unpack(y)
            for b, y in zip(batches, made)
        ]

    def _read(self, contexts: Sequence[Context]) -> list[list[tuple[Tensor, Tensor]]]:
        """What `Transformer.read` gives of each."""
        x, _, positions = (torch.cat(t) for t in zip(*(c[:3] for c in contexts)))
        sizes = [len(c.x) for c in contexts]
        layers = [[t.split(sizes) for t in kv] for kv in self.transformer.read(x, positions)]
        return [[(k[i], v[i]) for k, v in layers] for i in range(len(contexts))]

    def start(self, context: Context | None, batch_size: int, max_steps: int) -> DecoderState:
        """State before the first step of at most ``max_steps``."""
        state = self._given(context, batch_size, max_steps)
        given = None if state.prefix is None else state.prefix.mask
        prefix = 0 if given is None else given.shape[1]
        state.cache = self.transformer.make_cache(batch_size, prefix + max_steps, given)
        state.stepper = Stepper(self.transformer, state.cache)
        if self.spread:
            at = torch.arange(max_steps, device=state.prefix.x.device).expand(batch_size, -1)
            state.added = self._spread(state.prefix, at.float()).flatten(0, 1)
        return state

    def _spread(self, prefix: Context, positions: Tensor) -> Tensor:
        """(B, S, d) of all kinds that are spread."""
        return sum(project(prefix.spread(k, positions)) for k, project in self.spread.items())

    def _given(
        self,
        context: Context | None,
        batch_size: int,
        steps: int,
        valid: Tensor | None = None,
        memory: list | None = None,
    ) -> DecoderState:
        if context is None:
            return DecoderState(key_mask=valid)
        if self.cross:
            if memory is None:
                memory = self.transformer.read(context.x, context.positions)
            return DecoderState(key_mask=valid, memory=memory, memory_mask=context.mask)
        if valid is None:
            valid = context.mask.new_ones(batch_size, steps)
        return DecoderState(prefix=context, key_mask=torch.cat([context.mask, valid], 1))

    def step(
        self,
        x: Tensor,
        state: DecoderState,
        positions: Tensor | None = None,
        condition: Tensor | None = None,
        causal: bool | None = None,
    ) -> Tensor:
        """Continue by the n steps of x (B, n, d); see `forward`. Positions are by default those
        after the steps that the cache holds."""
        B, n, _ = x.shape
        held = 0
        if not state.rows_differ and state.cache is not None:
            held = state.cache.position
        if (held or state.rows_differ) and n == 1 and condition is None:
            places = state.cache.places - state.lead if positions is None else positions[:, 0]
            if state.added is not None:
                first = torch.arange(B, device=x.device) * (len(state.added) // B)
                x = x + state.added.index_select(0, first + places)[:, None]
            return state.stepper(x, places, state.memory, state.memory_mask)
        if not n and not state.lead:
            return x
        x, given = self._placed(x, state, positions)
        y = self.transformer(x, cache=state.cache, condition=condition, causal=causal, **given)
        return y[:, y.shape[1] - n :]

    def _placed(
        self,
        x: Tensor,
        state: DecoderState,
        positions: Tensor | None = None,
        documents: Documents | None = None,
    ) -> tuple[Tensor, dict]:
        """Steps x (B, n, d) with what is spread over them and stands before, or rows of these, and
        what the transformer is given beside them."""
        (B, n, _), prefix = x.shape, state.lead
        held = 0 if state.cache is None else state.cache.position
        if prefix:
            begin = max(0, held - prefix)
            if positions is None:
                positions = torch.arange(begin, begin + n, device=x.device).expand(B, n)
            positions = positions.float()
            if self.spread:
                x = x + self._spread(state.prefix, positions)
            if held == 0:  # the prefix goes first
                x = torch.cat([state.prefix.x.to(x.dtype), x], 1)
                positions = torch.cat([state.prefix.positions, positions], 1)
        seen = None if state.key_mask is None else state.key_mask[:, : held + x.shape[1]]
        if documents is not None:
            if positions is None:
                positions = torch.arange(n, device=x.device).expand(B, n)
            x, positions, prefix = documents.pack(x), documents.pack(positions), 0
            seen = None if seen is None else documents.pack(seen) | ~documents.real
        given = {"positions": positions, "key_mask": seen, "prefix": prefix}
        given |= {"memory": state.memory, "memory_mask": state.memory_mask}
        return x, given | {"documents": documents}
