"""Where weights of codecs lie on this machine: as given, ``RVQLM_CODECS``, downloads, the hub's
cache."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rvqlm.errors import UserError

CODECS_ENV = "RVQLM_CODECS"
"""Environment variable: folders (separated like PATH) that hold codecs by hub name, with or without
the owner: ``$RVQLM_CODECS/descript/dac_44khz/config.json`` or ``$RVQLM_CODECS/dac_44khz/...``; and
native weight files by file name: ``$RVQLM_CODECS/weights_44khz_8kbps_0.0.1.pth``."""

HUB = "https://huggingface.co/"


def candidates(name: str) -> list[Path]:
    """Where `name` may lie on this machine: as given, and in the folders of ``RVQLM_CODECS``."""
    found = [Path(name).expanduser()]
    for root in filter(None, os.environ.get(CODECS_ENV, "").split(os.pathsep)):
        found += [Path(root).expanduser() / name, Path(root).expanduser() / Path(name).name]
    return found


def download_folders() -> tuple[Path, Path]:
    """Where descript-audio-codec and encodec put what they download."""
    return (
        Path.home() / ".cache" / "descript" / "dac",
        Path(torch.hub.get_dir()) / "checkpoints",
    )


def find_files(name: str | os.PathLike) -> list[Path]:
    """The weight files that `name` may mean: a path, or a file's name in ``RVQLM_CODECS`` or where
    the packages keep their downloads (``~/.cache/descript/dac``,
    ``~/.cache/torch/hub/checkpoints``)."""
    name = os.fspath(name)
    places = (*candidates(name), *(folder / Path(name).name for folder in download_folders()))
    return [path for path in places if path.is_file()]


def find_file(name: str | os.PathLike) -> Path:
    """The first of `find_files`; `UserError` if there is none."""
    for path in find_files(name):
        return path
    raise UserError(
        f"codec {name}: no such file, and none of that name in {CODECS_ENV} or the packages' "
        "downloads; `rvqlm codecs` says where published weights come from"
    )


def remembered(name: str | os.PathLike, path: Path) -> str:
    """What tokens remember of `name`: an absolute path, or a bare file name that was looked up."""
    return str(path.resolve()) if Path(name).expanduser().is_file() else os.fspath(name)


def cached(repository: str, file: str) -> Path | None:
    """A file of the hub's `repository` (``owner/name``) that lies in the Hugging Face cache."""
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None
