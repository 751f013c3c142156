"""Flags that all families share, the shape of the transformer and its conditions; and how flags of
models are checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Annotated, ClassVar, Literal, get_args, get_origin, get_type_hints

import tyro
from torch import nn

from rvqlm.cli import kebab
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import KINDS, Infos
from rvqlm.errors import UserError
from rvqlm.modules.conditioning import ConditionedTransformer
from rvqlm.modules.embeddings import ATTENTION_HEADS, INPUT_SIDES, SumEmbedding
from rvqlm.modules.heads import Heads, LinearHeads, MLPHeads, ResidualHeads, SharedLinearHeads
from rvqlm.modules.transformer import TransformerConfig


@dataclass
class NetworkConfig:
    """Transformer and conditions."""

    may_change: ClassVar[tuple[str, ...]] = ()
    """Flags of how a model is trained, not of what it is: a run that resumes may change them."""

    decoder_dim: Annotated[int, tyro.conf.arg(aliases=["--d-model"])] = 256
    """Width d of the transformer."""
    nhead: int = 4
    """Attention heads; must divide the width."""
    num_decoder_layers: Annotated[int, tyro.conf.arg(aliases=["--num-layers"])] = 6
    """Transformer layers."""
    kv_heads: int = 0
    """Heads of keys and values, each shared by as many heads of queries (grouped-query attention):
    fewer make steps late in a sequence cheaper; must divide the heads; 0 means as many."""
    dim_feedforward: int = 0
    """Inner width of the feed-forward layers; 0 means 4 d (8/3 d for swiglu, which has two)."""
    dropout: float = 0.0
    """Dropout in attention and on each residual branch."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation, without bias. layernorm is one fused kernel on a CPU, rmsnorm several."""
    norm_first: bool = True
    """Norms before the branches; else after each sum, as in the first transformers."""
    activation: Literal["gelu", "relu", "relu2", "swiglu"] = "gelu"
    """Non-linearity of the feed-forward layers."""
    rope_base: float = 10000.0
    """Base of the rotary position frequencies; larger for longer sequences."""
    conditions: tuple[Literal["text", "midi", "source", "prompt"], ...] = ()
    """What the model is conditioned on, one or several: text, midi, source (another stream, frame
    by frame), prompt (another recording of the speaker)."""
    fusion: Literal["prefix", "cross", "spread"] = "prefix"
    """Conditions stand before the codes, or are attended to from every layer; or spread: before the
    codes, and each frame has what lies nearest to its time added to it, which aligns a text much
    sooner."""
    cross_by_time: bool = False
    """With --fusion cross, heads begin by looking at what lies at the time of their step, or of the
    levels that come late, instead of having to find it: what belongs to a moment is learnt at once.
    For a source, notes, and texts of known times."""
    num_encoder_layers: int = 0
    """Transformer layers over the conditions alone."""
    condition_dropout: float = 0.1
    """Chance that an item is trained without its conditions, for classifier-free guidance."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def feedforward(self, dim: int) -> int:
        """Inner width for a transformer of width ``dim``."""
        if self.dim_feedforward:
            return self.dim_feedforward
        if self.activation == "swiglu":  # equal parameters, in multiples of 32
            return max(32, round(4 * dim * 2 / 3 / 32) * 32)
        return 4 * dim

    def transformer(self, **changes) -> TransformerConfig:
        dim = changes.pop("dim", self.decoder_dim)
        # what both call alike, and what they don't
        names = [f.name for f in fields(TransformerConfig) if hasattr(self, f.name)]
        shape = {name: getattr(self, name) for name in names}
        shape |= {"dim": dim, "num_heads": self.nhead, "num_layers": self.num_decoder_layers}
        shape |= {"dim_feedforward": self.feedforward(dim)}
        return TransformerConfig(**shape | changes)

    def build(
        self, infos: Infos, codes: nn.Module | None = None, lag: int = 0, **changes
    ) -> ConditionedTransformer:
        """The conditioned transformer that the flags describe; ``changes`` to its config.

        :param codes: input side to share with conditions that are codes; none: their own.
        :param lag: steps that the latest level of a frame comes after its time.
        """
        if self.cross_by_time:
            changes["cross_lag"] = lag
        return ConditionedTransformer(
            self.transformer(**changes),
            {kind: infos[kind] for kind in self.conditions},
            self.fusion,
            self.num_encoder_layers if self.conditions else 0,
            self.condition_dropout,
            codes,
        )

    def problems(self) -> list[str]:
        """Everything wrong with the flags, in their words; families add their own."""
        found = self.not_a_choice()
        if self.decoder_dim < 1 or self.nhead < 1 or self.decoder_dim % self.nhead:
            found.append(
                f"--decoder-dim {self.decoder_dim} is not a multiple of --nhead {self.nhead}"
            )
        elif (self.decoder_dim // self.nhead) % 2:
            found.append(
                f"--decoder-dim {self.decoder_dim} / --nhead {self.nhead} must be even "
                "(rotary pairs)"
            )
        if self.kv_heads > 0 and self.nhead > 0 and self.nhead % self.kv_heads:
            found.append(f"--kv-heads {self.kv_heads} does not divide --nhead {self.nhead}")
        found += self.outside("[1, inf)", "num_decoder_layers")
        found += self.outside("[0, inf)", "kv_heads", "dim_feedforward", "num_encoder_layers")
        found += self.outside("[0, 1)", "dropout", "condition_dropout")
        if len(set(self.conditions)) < len(self.conditions):
            found.append(f"--conditions {' '.join(self.conditions)}: one kind twice")
        if unknown := set(self.conditions) - set(KINDS):
            found.append(f"--conditions {', '.join(unknown)}: choose of {', '.join(KINDS)}")
        if not self.conditions:
            names = ("num_encoder_layers", "fusion", "condition_dropout")
            found += self.without_effect("--conditions", *names)
        if self.fusion != "cross":
            found += self.without_effect("--fusion cross", "cross_by_time")
        if self.conditions == ("prompt",) and self.fusion == "spread":
            found.append(
                "--fusion spread: a prompt lies before the beginning; give a text or other"
            )
        return found

    def unfit(self, info: CodecInfo) -> list[str]:
        """What does not go with these codes; families say it."""
        return []

    def check(self, info: CodecInfo, conditions: Infos) -> None:
        """Raise one `UserError` with all problems; ``conditions`` are those at hand."""
        found = self.problems()
        if missing := [k for k in self.conditions if k not in conditions]:
            found.append(f"--conditions {', '.join(missing)}: no description of it at hand")
        if found := found + self.unfit(info):
            raise UserError("; ".join(found))

    # ------------------------------------------------------------------------ kinds of problems

    def not_a_choice(self) -> list[str]:
        """Options that are none of the values of their `Literal`."""
        return [
            f"--{kebab(name)} {getattr(self, name)!r}: choose one of {', '.join(map(str, choices))}"
            for name, hint in get_type_hints(type(self)).items()
            if get_origin(hint) is Literal
            and getattr(self, name) not in (choices := get_args(hint))
        ]

    def outside(self, interval: str, *names: str) -> list[str]:
        """Options that do not lie in an interval, such as ``[0, 1)``."""
        low, high = map(float, interval[1:-1].split(","))
        at_low, at_high = interval[0] == "[", interval[-1] == "]"
        words = f"in {interval}"
        if high == inf:
            words = f"at least {low:g}" if at_low else f"more than {low:g}"
        return [
            f"--{kebab(name)} {value}: {words}"
            for name in names
            if not (low < (value := getattr(self, name)) < high)
            and not (at_low and value == low)
            and not (at_high and value == high)
        ]

    def without_effect(self, needed: str, *names: str) -> list[str]:
        """Options that were changed and mean nothing without another."""
        default = {f.name: f.default for f in fields(self)}
        return [
            f"--{kebab(name)} {getattr(self, name)} means nothing without {needed}"
            for name in names
            if getattr(self, name) != default[name]
        ]


@dataclass
class GridConfig(NetworkConfig):
    """Flags of families whose steps take and give codes of several levels at once."""

    input_side: Literal["sum", "weighted", "attention"] = "sum"
    """How the K codes of a step become one vector: sum of embeddings; embeddings through a
    feed-forward layer, summed with learned weights; or attention over the levels."""
    head: Literal["linear", "mlp", "residual"] = "linear"
    """Classifiers over the hidden state: linear; with a hidden layer; or residual, a chain of such
    layers from level to level."""
    shared_head: bool = False
    """One classifier for all levels instead of one each (linear and mlp)."""

    def problems(self) -> list[str]:
        found = super().problems()
        if self.input_side == "attention" and self.decoder_dim % ATTENTION_HEADS:
            found.append(
                f"--input-side attention: --decoder-dim {self.decoder_dim} is not a multiple of "
                f"{ATTENTION_HEADS}"
            )
        if self.head == "residual" and self.shared_head:
            found.append("--shared-head has no meaning with --head residual: a level is its place")
        return found

    def make_embedding(self, info: CodecInfo) -> SumEmbedding:
        ids = info.codebook_size + 1  # the last is the special one
        return INPUT_SIDES[self.input_side](info.num_codebooks, ids, self.decoder_dim)

    def make_heads(self, info: CodecInfo) -> Heads:
        shape = info.num_codebooks, info.codebook_size, self.decoder_dim
        if self.head == "mlp":
            return MLPHeads(*shape, shared=self.shared_head)
        if self.head == "residual":
            return ResidualHeads(*shape)
        return SharedLinearHeads(*shape) if self.shared_head else LinearHeads(*shape)
