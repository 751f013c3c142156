"""Which codec tokens are of that come from elsewhere, and ``codec.json``, which says so.

Exports carry a ``codec.json``. Where there is none, the user names the codec: loaded, its
fingerprint is recorded; by name alone it cannot be, and the tokens say that openly: their
fingerprint is ``unknown:NAME``. Such tokens train and mix with others imported under the same name,
and nothing takes them for tokens of weights that nobody has compared; `rvqlm decode` and `rvqlm npq
to-wav` decode them with the codec that ``--codec`` names, on its user's word.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rvqlm.codec_info import CodecInfo
from rvqlm.data.schemas import FileName
from rvqlm.errors import UserError
from rvqlm.files import read_json, write_json
from rvqlm.hub import read_from_a_file

if TYPE_CHECKING:  # commands import this file for their flags: torch and lhotse must wait
    from rvqlm.codecs.base import Codec
    from rvqlm.exchange.items import TokenItem, TokenSource

UNKNOWN = "unknown:"


@dataclass
class CodecArgs:
    """Codec of the tokens (where the input does not say)"""

    codec: str = ""
    """The codec, by name, folder or weights file as in rvqlm tokenize; it is loaded to record its
    fingerprint."""
    codec_name: str = ""
    """Its name where it is not at hand; the fingerprint is then recorded as unknown."""
    sampling_rate: int = 0
    """With --codec-name: samples per second of its audio."""
    hop: int = 0
    """With --codec-name: samples per frame; follows from the rate of NPQ files."""
    codebook_size: int = 0
    """With --codec-name: codes per level; follows from the vocabularies of NPQ files."""

    def check(self) -> None:
        by_name = self.sampling_rate or self.hop or self.codebook_size
        if self.codec and (self.codec_name or by_name):
            raise UserError(
                "--codec excludes --codec-name, --sampling-rate, --hop and --codebook-size: a "
                "codec that is loaded says all of it"
            )
        if by_name and not self.codec_name:
            raise UserError("--sampling-rate, --hop and --codebook-size go with --codec-name")
        if min(self.sampling_rate, self.hop, self.codebook_size) < 0:
            raise UserError("--sampling-rate, --hop and --codebook-size must be positive")


def is_unknown(info: CodecInfo) -> bool:
    """Whether these tokens' codec is known by name only."""
    return info.fingerprint.startswith(UNKNOWN)


def codec_of(source: TokenSource, args: CodecArgs) -> CodecInfo:
    """The codec of the tokens of a source: what the input says, or what the user named.

    Raises `UserError` when too little is known, the two differ, or the codec that was named cannot
    have made these tokens.
    """
    args.check()
    given = args.codec or args.codec_name
    if source.info is not None and not given:
        return source.info
    first, where = source.peek(), source.where
    if args.codec:
        from rvqlm.codecs.registry import load_codec

        named = load_codec(args.codec, "cpu", first.codes.shape[1]).info
    else:
        named = _by_name(args, first, where)
    first.require_made_by(named)
    if source.info is not None:
        source.info.require_same(named, where, f"--codec {given}")
    return source.info or named


def _by_name(args: CodecArgs, first: TokenItem, where: str) -> CodecInfo:
    if not args.codec_name:
        raise UserError(
            f"{where} does not say which codec its tokens are of; give --codec NAME_OR_PATH, or "
            "--codec-name with --sampling-rate where the codec is not at hand"
        )
    hop = args.hop
    if not hop and args.sampling_rate and first.token_rate:
        hop = max(1, round(args.sampling_rate / first.token_rate))
    size = args.codebook_size or max(first.vocab_sizes or (0,))
    needed = {"--sampling-rate": args.sampling_rate, "--hop": hop, "--codebook-size": size}
    if missing := [flag for flag, value in needed.items() if not value]:
        raise UserError(f"{where} does not say it and --codec-name needs it: {', '.join(missing)}")
    name, levels = args.codec_name, first.codes.shape[1]
    return CodecInfo(name, UNKNOWN + name, args.sampling_rate, hop, levels, size)


def load_codec_for(source: TokenSource, name: str = "", device: str = "cpu") -> tuple[Codec, str]:
    """The codec that decodes the tokens of a source, and a remark for the user ("" mostly).

    Tokens whose codec is known by name only are decoded with the one called `name`, or with the one
    that has their name; shapes and rates must be theirs. Tokens that name none need `name`. Raises
    `UserError` for another codec.
    """
    from rvqlm.codecs.registry import load_codec, load_codec_like

    info = source.info
    if info is None:
        if not name:
            raise UserError(f"{source.where} does not name its codec; give --codec")
        return load_codec(name, device, source.peek().codes.shape[1]), ""
    if not is_unknown(info):
        return load_codec_like(info, name or None, device), ""
    with read_from_a_file(not name):
        codec = load_codec(name or info.name, device, info.num_codebooks)
    made_by = codec.info  # for what is not known of the tokens' codec
    assumed = replace(
        info, fingerprint=made_by.fingerprint, channels=made_by.channels, segment=made_by.segment
    )
    assumed.require_same(codec.info, "the tokens", f"codec {name or info.name}")
    return codec, (
        f"the tokens' codec is known by name only ({info.name}): decoded with {codec.info.name} "
        f"[{codec.info.fingerprint}], unchecked"
    )


# ------------------------------------------------------------------------------- codec.json


def write_codec(path: str | os.PathLike, info: CodecInfo, **more) -> None:
    """Write ``codec.json``: the codec, and whatever else an export has to say."""
    write_json(path, {"codec": info.to_dict(), **more}, checksum=True)


class _Parts(TypedDict, total=False):
    format: str
    splits: list[FileName] | None


class _Described(_Parts):
    codec: CodecInfo


def read_codec(path: str | os.PathLike) -> tuple[CodecInfo, dict]:
    """Codec and all fields of a ``codec.json``; `UserError` when it is damaged."""
    return read_json(
        path,
        "give the codec with --codec",
        convert=lambda fields: (CodecInfo.from_dict(fields["codec"]), fields),
        type=_Described,
    )


def codec_beside(path: str | os.PathLike, levels: int = 4) -> CodecInfo | None:
    """Codec of the ``codec.json`` in the folder of a file, or in one of the folders above it."""
    folder = Path(path).absolute().parent
    for _ in range(levels):
        if (folder / "codec.json").is_file():
            return read_codec(folder / "codec.json")[0]
        folder = folder.parent
    return None
