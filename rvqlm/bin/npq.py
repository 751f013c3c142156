#!/usr/bin/env python3
"""``rvqlm npq``: NPQ files, one recording's RVQ codes each.

rvqlm npq info npq_out
rvqlm npq import --input npq_out --codec descript/dac_44khz --out-dir data/tokens
rvqlm npq export --manifest-dir data/tokens --out-dir npq_out
rvqlm npq to-wav song.npq --codec descript/dac_44khz --out reconstructed.wav
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rvqlm.cli import bar, counted, dispatch, parse, run_main
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs
from rvqlm.locks import locked


@dataclass
class InfoArgs:
    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NPQ files, folders of them, quoted globs."""
    json: bool = False
    """One JSON object per file."""


def _info(argv: Sequence[str] | None) -> int:
    from rvqlm.exchange import npq

    about = (npq.__doc__ or "").split(">>>")[0]
    args = parse(InfoArgs, "rvqlm npq info", "Read headers and check codes.\n\n" + about, argv)
    import json

    from rvqlm.exchange.names import find_files, left_out

    if not args.files:
        raise UserError("give NPQ files, a folder of them or a quoted glob")
    bad = 0
    files = find_files(args.files, npq.SUFFIX)
    for _, path in files:
        try:
            header, _ = npq.read_npq(path)
            found, text = header.to_dict(), f"{path}  {header}"
        except UserError as e:
            bad += 1
            found, text = {"error": str(e)}, str(e)
        print(json.dumps({"path": path, **found}) if args.json else text)
    if remark := left_out(args.files, npq.SUFFIX, files):
        print(f"note: {remark}", file=sys.stderr)
    if bad:
        raise UserError(f"{bad} of {len(files)} files could not be read")
    return 0


@dataclass
class ImportArgs:
    input: tuple[str, ...]
    """NPQ files, folders of them, quoted globs."""
    out_dir: Path
    """Token directory to make; it appears when it is complete."""
    codec: CodecArgs = field(default_factory=CodecArgs)


def _import(argv: Sequence[str] | None) -> int:
    about = (
        "Make a token directory of NPQ files; their codec is given, or a codec.json's beside them."
    )
    args = parse(ImportArgs, "rvqlm npq import", about, argv)
    from rvqlm.bin.importer import make_token_dir
    from rvqlm.exchange.source import open_files

    make_token_dir(open_files(args.input, ".npq"), args.out_dir, args.codec)
    return 0


@dataclass
class ExportArgs:
    manifest_dir: Path
    """Token directory."""
    out_dir: Path
    """A new folder for ID.npq and codec.json; it appears when it is complete."""
    split: str | None = None
    """Only this split; default: all cuts."""
    dtype: Literal["uint8", "uint16", "uint32"] | None = None
    """Type of the codes; default: the narrowest that holds the codebooks."""
    drop_scales: bool = False
    """Write tokens of a codec that stores scales beside its codes, losing the scales."""


def _export(argv: Sequence[str] | None) -> int:
    about = "Write a token directory as NPQ files of version 1."
    args = parse(ExportArgs, "rvqlm npq export", about, argv)
    from rvqlm.codec_info import CodecInfo
    from rvqlm.data.index import read_sidecar
    from rvqlm.exchange.convert import export_npq
    from rvqlm.exchange.directory import read_token_dir

    info = CodecInfo.from_dict(read_sidecar(args.manifest_dir)["codec"])
    items = read_token_dir(args.manifest_dir, [args.split])
    with locked(args.out_dir, "rvqlm npq export", make=True, beside=True):
        count, frames = export_npq(
            bar(items, "export"), info, args.out_dir, args.dtype, args.drop_scales
        )
    print(
        f"{args.out_dir}: {counted(count, 'NPQ file')}, {counted(frames, 'frame')} of "
        f"{info.num_codebooks} codes"
    )
    return 0


@dataclass
class WavArgs:
    file: Annotated[Path, tyro.conf.Positional]
    """One NPQ file."""
    out: Path
    """Wav file to write."""
    codec: str = ""
    """The codec, by name, folder or weights file; empty: the one of a codec.json beside the
    file."""
    subtype: Literal["pcm16", "pcm24", "float"] = "pcm16"
    """Samples of 16 or 24 bits, or 32-bit float."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def _to_wav(argv: Sequence[str] | None) -> int:
    args = parse(WavArgs, "rvqlm npq to-wav", "Print an NPQ file's header and decode it.", argv)
    from rvqlm.runtime import tune_malloc, use_device

    tune_malloc()
    from rvqlm.exchange.codec import load_codec_for
    from rvqlm.exchange.npq import read_npq
    from rvqlm.exchange.source import open_files
    from rvqlm.exchange.wav import decode_to_wav

    print(f"{args.file}  {read_npq(args.file)[0]}")
    source = open_files([args.file], ".npq")
    codec, remark = load_codec_for(source, args.codec, use_device(args.device))
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    seconds = decode_to_wav(codec, source.peek(), args.out, args.subtype)
    info = codec.info
    print(f"{args.out}: {seconds:.2f} s, {info.sampling_rate} Hz, {args.subtype}, by {info.name}")
    return 0


COMMANDS = {
    "info": ("what the headers of NPQ files say", _info),
    "import": ("NPQ files -> token directory", _import),
    "export": ("token directory -> NPQ files", _export),
    "to-wav": ("NPQ file -> audio", _to_wav),
}


def main(argv: Sequence[str] | None = None) -> int:
    return dispatch(
        "rvqlm npq",
        "NPQ files: look into them, convert from and to them, decode them.",
        {name: what for name, (what, _) in COMMANDS.items()},
        lambda name, rest: run_main(COMMANDS[name][1], rest, f"npq {name}"),
        argv,
    )


if __name__ == "__main__":
    sys.exit(main())
