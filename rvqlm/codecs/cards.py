"""Published codecs, and where their weights lie on this machine.

A codec class lists its cards in `Codec.cards`. Shapes are those of the published checkpoints.
Licences are those that the publishers state for the weights, where they do; they bind whoever uses
the weights, so read them at the source.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rvqlm.codec_info import CodecInfo
from rvqlm.errors import UserError

EMBEDDED = "in this package"
"""`Card.source` of weights that come with rvqlm."""

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


def cached(source: str, file: str) -> Path | None:
    """A file of a hub repository (``owner/name`` or its address) in the Hugging Face cache."""
    import huggingface_hub

    repository = source.removeprefix(HUB)
    if "://" in repository:
        return None
    path = huggingface_hub.try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


@dataclass(frozen=True)
class Card:
    """A published codec."""

    name: str
    """what --codec takes"""
    num_codebooks: int
    """levels in use unless --num-codebooks says otherwise"""
    available: int
    """levels in the weights"""
    codebook_size: int
    sampling_rate: int
    """Hz"""
    hop: int
    """samples per frame"""
    licence: str
    """of the weights, short"""
    source: str
    """where weights come from"""
    channels: int = 1
    segment: tuple[int, int] | None = None
    native: str = ""
    """weight file in the format of the codec's own project"""
    native_source: str = ""
    """where that comes from"""
    licence_note: str = ""
    note: str = ""
    look_ahead: tuple[int, int] | None = None
    """`Codec.look_ahead`; None: not known before it is loaded"""

    @property
    def info(self) -> CodecInfo:
        """The codec, with an empty fingerprint: that of weights which nobody has loaded."""
        return CodecInfo(
            self.name, "", self.sampling_rate, self.hop, self.num_codebooks, self.codebook_size,
            self.channels, self.segment,
        )  # fmt: skip

    def weights_here(self) -> list[str]:
        """Where its weights lie on this machine; nothing is loaded."""
        if self.source == EMBEDDED:
            return ["embedded"]
        found = [f for f in candidates(self.name) if (f / "config.json").is_file()]
        config = cached(self.source, "config.json")
        found += [config.parent] if config else []
        if self.native:
            file = cached(self.native_source or self.source, self.native)
            found += find_files(self.native) + ([file] if file else [])
        return list(dict.fromkeys(map(str, found)))
