"""Importing the optional packages that some backends stand on."""

from __future__ import annotations

import importlib
from types import ModuleType

from rvqlm.errors import UserError


def import_package(module: str, distribution: str, extra: str, codec: str, instead: str = ""):
    """Import `module`, or say with a `UserError` how to get it.

    Args:
        module: what to import, dots included.
        distribution: the package's name on PyPI.
        extra: the extra of rvqlm that installs it.
        codec: what was asked for, for the message.
        instead: how to do without, for the message.
    """
    try:
        found: ModuleType = importlib.import_module(module)
    except Exception as e:  # torchaudio raises OSError where its libraries don't fit torch
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise UserError(
            f"codec {codec} needs the package {distribution}, and importing it failed ({first}); "
            f"pip install 'rvqlm[{extra}]'{', or ' + instead if instead else ''}"
        ) from None
    return found
