"""Flags that all families share: the shape of the transformer and what it hears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro
from torch import nn

from rvqlm.condition_info import KINDS, ConditionInfo
from rvqlm.errors import UserError
from rvqlm.modules.conditioning import ConditionedTransformer
from rvqlm.modules.transformer import TransformerConfig


@dataclass
class NetworkConfig:
    """Transformer and conditions."""

    decoder_dim: Annotated[int, tyro.conf.arg(aliases=["--d-model"])] = 256
    """Width d of the transformer."""
    nhead: int = 4
    """Attention heads; must divide the width."""
    num_decoder_layers: Annotated[int, tyro.conf.arg(aliases=["--num-layers"])] = 6
    """Transformer layers."""
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
    """What the model hears beside the codes, one or several: text, midi, source (another stream,
    frame by frame), prompt (another recording of the speaker)."""
    fusion: Literal["prefix", "cross", "spread"] = "prefix"
    """Conditions stand before the codes, or are attended to from every layer; or spread: before the
    codes, and each frame has what lies nearest to its time added to it, which aligns a text much
    sooner."""
    num_encoder_layers: int = 0
    """Layers over the conditions alone, before they are heard."""
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
        shape = {
            "num_heads": self.nhead,
            "num_layers": self.num_decoder_layers,
            "dim_feedforward": self.feedforward(dim),
            "dropout": self.dropout,
            "norm": self.norm,
            "norm_first": self.norm_first,
            "activation": self.activation,
            "rope_base": self.rope_base,
            "activation_checkpointing": self.activation_checkpointing,
        }
        return TransformerConfig(dim=dim, **{**shape, **changes})

    def build(
        self, infos: Mapping[str, ConditionInfo], codes: nn.Module | None = None, **changes
    ) -> ConditionedTransformer:
        """The conditioned transformer that the flags describe; ``changes`` to its config.

        :param codes: input side to share with conditions that are codes; none: their own.
        """
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
        found = self.transformer().problems()
        if len(set(self.conditions)) < len(self.conditions):
            found.append(f"--conditions {' '.join(self.conditions)}: one kind twice")
        if unknown := set(self.conditions) - set(KINDS):
            found.append(f"--conditions {', '.join(unknown)}: choose of {', '.join(KINDS)}")
        if self.num_encoder_layers < 0:
            found.append(f"--num-encoder-layers {self.num_encoder_layers}: at least 0")
        if not self.conditions and self.num_encoder_layers:
            found.append("--num-encoder-layers has nothing to encode without --conditions")
        if not self.conditions and self.fusion != "prefix":
            found.append(f"--fusion {self.fusion} has nothing to fuse without --conditions")
        if self.conditions == ("prompt",) and self.fusion == "spread":
            found.append(
                "--fusion spread: a prompt lies before the beginning; give a text or other"
            )
        if not 0 <= self.condition_dropout < 1:
            found.append(f"--condition-dropout {self.condition_dropout}: in [0, 1)")
        if not self.conditions:
            found += self.without_effect("--conditions", "condition_dropout")
        return found

    def without_effect(self, needed: str, *names: str) -> list[str]:
        """Problems of options that were changed and mean nothing without another."""
        default = {f.name: f.default for f in fields(self)}
        return [
            f"--{name.replace('_', '-')} {getattr(self, name)} means nothing without {needed}"
            for name in names
            if getattr(self, name) != default[name]
        ]

    def check(self, infos: Mapping[str, ConditionInfo]) -> None:
        """Raise one `UserError` with all problems; ``infos`` are the conditions at hand."""
        found = self.problems()
        if missing := [k for k in self.conditions if k not in infos]:
            found.append(f"--conditions {', '.join(missing)}: no description of it at hand")
        if found:
            raise UserError("; ".join(found))
