#!/usr/bin/env python3
"""``rvqlm npq``: NPQ files, one recording's RVQ codes each.

rvqlm npq info npq_out/*.npq
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

from rvqlm.cli import dispatch, parse, run_main
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs

COMMANDS = {
    "info": "what the headers of NPQ files say",
    "import": "NPQ files -> token directory",
    "export": "token directory -> NPQ files",
    "to-wav": "NPQ file -> audio",
}
LAYOUT_HELP = "Header layout and order of the codes, for files that fit several: v1:kt, no-kbps:tk."
Layout = Annotated[str | None, tyro.conf.arg(help=LAYOUT_HELP + " See rvqlm npq info --help.")]


@dataclass
class InfoArgs:
    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """NPQ files, folders of them, quoted globs."""
    layout: Layout = None
    json: bool = False
    """One JSON object per file."""


def _info(argv: Sequence[str] | None) -> int:
    from rvqlm.exchange import npq_layouts

    about = npq_layouts.__doc__ or ""
    args = parse(InfoArgs, "rvqlm npq info", "Read headers and check codes.\n\n" + about, argv)
    import json

    from rvqlm.exchange.names import find_files
    from rvqlm.exchange.npq import read_npq

    if not args.files:
        raise UserError("give NPQ files, a folder of them or a quoted glob")
    bad = 0
    files = find_files(args.files, ".npq")
    for _, path in files:
        try:
            header, _ = read_npq(path, args.layout)
        except UserError as e:
            bad += 1
            print(json.dumps({"path": path, "error": str(e)}) if args.json else f"{e}")
            continue
        print(
            json.dumps({"path": path, **header.to_dict()})
            if args.json
            else f"{path}  {line(header)}"
        )
    if bad:
        raise UserError(f"{bad} of {len(files)} files could not be read")
    return 0


def line(header) -> str:
    """A header in one line."""
    sizes = header.vocab_sizes
    if sizes is None:
        vocab = "not stated"
    else:
        same = len(set(sizes)) == 1
        vocab = f"{sizes[0]} x {len(sizes)}" if same else " ".join(map(str, sizes))
    kbps = f", from {header.orig_kbps:g} kbps" if header.orig_kbps else ""
    return (
        f"{header.layout}:{header.order}  K={header.num_codebooks}  fps={header.token_rate:.3f}  "
        f"seq_len={header.num_frames} ({header.seconds:.2f} s)  vocab={vocab}  "
        f"dtype={header.dtype.name}  payload at {header.offset}{kbps}"
    )


@dataclass
class ImportArgs:
    input: tuple[str, ...]
    """NPQ files, folders of them, quoted globs."""
    out_dir: Path
    """Token directory to make; it appears when it is complete."""
    layout: Layout = None
    codec: CodecArgs = field(default_factory=CodecArgs)


def _import(argv: Sequence[str] | None) -> int:
    description = (
        "Make a token directory of NPQ files. Their codec is the one of a codec.json beside them, "
        "or given by --codec, or by --codec-name."
    )
    args = parse(ImportArgs, "rvqlm npq import", description, argv)
    from tqdm import tqdm

    from rvqlm.bin.importer import report
    from rvqlm.exchange.names import find_files
    from rvqlm.exchange.npq_tokens import import_npq

    def progress(files):
        return tqdm(files, "import", unit=" files", leave=False, disable=None)

    files = find_files(args.input, ".npq")
    written, info = import_npq(files, str(args.out_dir), args.codec, args.layout, progress)
    report(args.out_dir, written, info)
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
    description = "Write a token directory as NPQ files of version 1."
    args = parse(ExportArgs, "rvqlm npq export", description, argv)
    from tqdm import tqdm

    from rvqlm.codec_info import CodecInfo
    from rvqlm.data.index import read_sidecar
    from rvqlm.exchange.directory import read_token_dir
    from rvqlm.exchange.npq_tokens import export_npq

    info = CodecInfo.from_dict(read_sidecar(args.manifest_dir)["codec"])
    items = tqdm(
        read_token_dir(args.manifest_dir, [args.split]),
        "export",
        unit=" cuts",
        leave=False,
        disable=None,
    )
    count, frames = export_npq(items, info, args.out_dir, args.dtype, args.drop_scales)
    print(f"{args.out_dir}: {count} NPQ files, {frames} frames of {info.num_codebooks} codes")
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
    layout: Layout = None
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def _to_wav(argv: Sequence[str] | None) -> int:
    args = parse(WavArgs, "rvqlm npq to-wav", "Print an NPQ file's header and decode it.", argv)
    from rvqlm.runtime import pick_device, tune_malloc

    tune_malloc()
    from rvqlm.codecs.registry import load_codec
    from rvqlm.exchange.codec import codec_beside, load_codec_for
    from rvqlm.exchange.directory import TokenItem
    from rvqlm.exchange.npq import read_npq
    from rvqlm.exchange.wav import decode_to_wav, require_tokens_of

    header, codes = read_npq(args.file, args.layout)
    print(f"{args.file}  {line(header)}")
    device, info = pick_device(args.device), codec_beside(args.file)
    if info is not None:
        codec, remark = load_codec_for(info, args.codec, device)
    elif args.codec:
        codec, remark = load_codec(args.codec, device, header.num_codebooks), ""
    else:
        raise UserError(f"{args.file} does not name its codec; give --codec")
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    item = TokenItem(str(args.file), codes, token_rate=header.token_rate)
    require_tokens_of(codec.info, item)
    seconds = decode_to_wav(codec, item, args.out, args.subtype)
    info = codec.info
    print(f"{args.out}: {seconds:.2f} s, {info.sampling_rate} Hz, {args.subtype}, by {info.name}")
    return 0


_RUN = {"info": _info, "import": _import, "export": _export, "to-wav": _to_wav}


def _one(name: str, argv: list[str]) -> int:
    return run_main(_RUN[name], argv, f"npq {name}")


def main(argv: Sequence[str] | None = None) -> int:
    description = "NPQ files: look into them, make tokens of them, make them of tokens, hear them."
    return dispatch("rvqlm npq", description, COMMANDS, _one, argv)


if __name__ == "__main__":
    sys.exit(main())
