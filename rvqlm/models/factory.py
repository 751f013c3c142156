"""Models by name: the one list that the trainer, the checkpoints and the help texts read."""

from __future__ import annotations

from dataclasses import asdict, fields

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError
from rvqlm.models.base import TokenModel
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig

MODELS: dict[str, tuple[type, type[TokenModel]]] = {"codec-lm": (CodecLMConfig, CodecLM)}
"""Name -> (config dataclass, model class)."""


def build_model(name: str, config, info: CodecInfo) -> TokenModel:
    """A new model, initialised from torch's random state.

    :param config: the model's config dataclass, or a dict of its fields.
    :raises UserError: unknown name or field, or a shape that cannot be built.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    config_class, model_class = MODELS[name]
    if isinstance(config, dict):
        unknown = set(config) - {f.name for f in fields(config_class)}
        if unknown:
            raise UserError(f"model {name} has no option {', '.join(sorted(unknown))}")
        config = config_class(**config)
    return model_class(config, info)


def config_dict(model: TokenModel) -> dict:
    """The model's config as plain values, for checkpoints."""
    return asdict(model.config)
