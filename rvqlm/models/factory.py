"""Models by name: the one list that the trainer, the checkpoints and the help texts read."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Literal, get_args, get_origin, get_type_hints

from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import Infos
from rvqlm.errors import UserError
from rvqlm.files import fits
from rvqlm.models.base import TokenModel
from rvqlm.models.cards import card_of
from rvqlm.models.codec_lm import CodecLM, CodecLMConfig
from rvqlm.models.masked import Masked, MaskedConfig
from rvqlm.models.recognizer import Recognizer, RecognizerConfig
from rvqlm.models.valle import Valle, ValleConfig

MODELS: dict[str, tuple[type, type[TokenModel]]] = {
    "codec-lm": (CodecLMConfig, CodecLM),
    "valle": (ValleConfig, Valle),
    "masked": (MaskedConfig, Masked),
    "recognizer": (RecognizerConfig, Recognizer),
}
"""Name -> (config dataclass, model class)."""


def model_entry(name: str) -> tuple[type, type[TokenModel]]:
    """(config dataclass, model class) of a name or alias; `UserError` where there is none such."""
    return MODELS[card_of(name).name]


def build_model(name: str, config, info: CodecInfo, conditions: Infos | None = None) -> TokenModel:
    """A new model, initialised from torch's random state.

    :param config: the model's config dataclass, or a dict of its fields.
    :param conditions: descriptions of what the config's ``conditions`` name.
    :raises UserError: unknown name or field, or a shape that cannot be built.
    """
    config_class, model_class = model_entry(name)
    if isinstance(config, dict):
        unknown = set(config) - {f.name for f in fields(config_class)}
        if unknown:
            raise UserError(f"model {name} has no option {', '.join(sorted(unknown))}")
        for option, kind in get_type_hints(config_class).items():
            value, choices = config.get(option), get_args(kind)
            if get_origin(kind) is Literal and option in config and value not in choices:
                flag = f"--{option.replace('_', '-')} {value!r}"
                raise UserError(f"{flag}: choose one of {', '.join(choices)}")
        try:
            config = fits(config, config_class)
        except ValueError as e:
            raise UserError(f"options of model {name}: {e}") from None
    return model_class(config, info, conditions or {})


def config_dict(model: TokenModel) -> dict:
    """The model's config as plain values, for checkpoints."""
    return asdict(model.config)


def model_identity(model: TokenModel) -> dict:
    """Everything but weights that `build_model` needs to make the model again, as plain values."""
    return {
        "model_name": model.name,
        "model_config": config_dict(model),
        "codec": model.info.to_dict(),
        "conditions": {kind: info.to_dict() for kind, info in model.conditions.items()},
    }
