"""Whatever holds tokens, opened as a stream of items: the one door of import and decode.

A token directory, a manifest of token cuts or of others' features, or a folder of these for splits,
an export of `rvqlm export` or `rvqlm npq export`, a lhotse Shar folder, .npy arrays or .npq files.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import read_sidecar, splits_of
from rvqlm.data.splits import SAME
from rvqlm.data.store import STORAGE_TYPE
from rvqlm.errors import UserError
from rvqlm.exchange.codec import codec_beside, read_codec
from rvqlm.exchange.directory import read_items, read_token_dir
from rvqlm.exchange.features import is_feature, read_features
from rvqlm.exchange.items import Skipped, TokenItem, TokenSource
from rvqlm.exchange.names import find_files, left_out
from rvqlm.exchange.npq import NpqHeader, read_npq
from rvqlm.exchange.npy import MANIFEST, npy_items, read_npy_manifest
from rvqlm.exchange.shar import read_shar, shar_files
from rvqlm.files import read_jsonl

MANIFESTS = (".jsonl", ".jsonl.gz")


def open_tokens(
    inputs: Sequence[str | os.PathLike], split: str | None = None, order: str | None = None
) -> TokenSource:
    """Find out what the inputs are and open them.

    Args:
        inputs: one folder or manifest; or .npy or .npq files as folders, quoted globs and names.
        split: of a token directory or a Shar export; None: all cuts.
        order: of .npy files without a manifest, "tk" or "kt"; None is "tk".

    Raises `UserError` for what holds no tokens, and for an option that the input has no use for.
    """
    source = _open_one(Path(inputs[0]), split) if len(inputs) == 1 else None
    if source is None:
        source = _open_any_files([os.fspath(i) for i in inputs], order or "tk")
        if split is not None:
            raise UserError(f"--split {split}: {source.kind} have no splits")
    if order is not None and source.kind != ".npy files":
        raise UserError(f"--order {order} is for .npy files; {inputs[0]} says its own")
    return source


def _open_one(path: Path, split: str | None) -> TokenSource | None:
    """An input that describes itself; None for what may be .npy or .npq files."""
    if path.name == "tokens.json" or (
        path.name == MANIFEST and (path.parent / "codec.json").is_file()
    ):
        path = path.parent
    if path.is_file() and path.name.endswith(MANIFESTS):
        if split is not None:
            raise UserError(f"--split {split} is for token directories; {path} is one manifest")
        return _open_manifest(path)
    if not path.is_dir():
        return None
    where, audio = str(path), path / "audio_cuts.jsonl.gz"
    audio = audio if audio.exists() else None
    if (path / "tokens.json").exists():
        sidecar = read_sidecar(path)
        everything = split is None or (split == "all" and "all" not in splits_of(path))
        items = read_token_dir(path, [None if everything else split])
        count = int(sidecar.get("num_cuts", 0)) or None if everything else None
        info = CodecInfo.from_dict(sidecar["codec"])
        return TokenSource("token directory", where, items, info, audio, count)
    info, fields = None, {}
    if (path / "codec.json").is_file():
        info, fields = read_codec(path / "codec.json")
    if (path / MANIFEST).is_file():
        items = read_npy_manifest(path / MANIFEST)
        if split is not None:
            items = (item for item in items if item.split == split)
        return TokenSource("npy", where, items, info, audio)
    if shar_files(path)[0]:
        if split is not None:
            raise UserError(f"--split {split}: {path} is one Shar folder")
        info = info or codec_beside(path / "x", 2)
        return TokenSource("shar", where, read_shar(path), info, audio)
    if fields.get("format") == "shar":
        names = list(fields.get("splits") or [])
        if split is not None and split not in names:
            raise UserError(f"--split {split}: {path} has {', '.join(names) or 'no splits'}")
        folders = [split] if split else names or ["all"]
        parts = (read_shar(path / n, n if n in names else None) for n in folders)
        return TokenSource("shar", where, itertools.chain.from_iterable(parts), info, audio)
    return _open_splits(path, split)


def _open_splits(path: Path, split: str | None) -> TokenSource | None:
    """A folder of manifests over others' features, ``cuts_train.jsonl.gz`` and so on."""
    manifests = {SAME.get(name, name): f"cuts_{name}" for name in splits_of(path)}
    files = {name: path / f"{file}.jsonl.gz" for name, file in manifests.items()}
    if not files:
        return None
    if split is not None and split not in files:
        raise UserError(f"--split {split}: {path} has {', '.join(files)}")
    chosen = [split] if split else [*files]
    for name in chosen:
        first = next(read_jsonl(files[name], f"manifest {files[name]}", "make it again"), {})
        if not is_feature(first):
            raise UserError(
                f"{files[name]}: cuts without codes; give a folder whose cuts have them "
                "as features or arrays"
            )
    parts = (read_features(files[name], name) for name in chosen)
    items = itertools.chain.from_iterable(parts)
    return TokenSource("features", str(path), items, codec_beside(files[chosen[0]]))


def _open_manifest(path: Path) -> TokenSource:
    """Token cuts that lie in some token directory, beside the manifest or where it points to."""
    first = next(read_jsonl(path, f"manifest {path}", "give one that exists"), None)
    if first is None:
        raise UserError(f"{path}: an empty manifest")
    if is_feature(first):
        info = codec_beside(path)
        return TokenSource("features", str(path), read_features(path), info)
    if first.get("type") == "MixedCut":
        raise UserError(
            f"{path}: cut {first.get('id')!r} mixes several recordings (a MixedCut) and has no "
            "tokens; give token cuts"
        )
    features = first.get("features") or {}
    if not isinstance(features, dict):
        raise UserError(f"{path}: features that are a {type(features).__name__}; make it again")
    shard = Path(features.get("storage_path") or "")
    for folder in (path.parent, shard.parent.parent):
        if (folder / "tokens.json").is_file():
            info = CodecInfo.from_dict(read_sidecar(folder)["codec"])
            return TokenSource("token cuts", str(path), read_items(path, info, folder), info)
    if not features:
        raise UserError(
            f"{path}: cuts without tokens; give token cuts, cuts.jsonl.gz for example, or cuts "
            "whose features are arrays of codes"
        )
    if features.get("storage_type") != STORAGE_TYPE:
        raise UserError(
            f"{path}: features stored as {features.get('storage_type')!r}; copy them to files of "
            "numpy first (lhotse copy-feats --storage-type numpy_files)"
        )
    raise UserError(
        f"{path}: no tokens.json beside it, nor where its first cut points to ({shard}); put the "
        "manifest into its token directory"
    )


def open_files(inputs: Sequence[str | os.PathLike], suffix: str, order: str = "tk") -> TokenSource:
    """``.npq`` files or, with an `order`, ``.npy`` files without a manifest, and the codec of a
    ``codec.json`` beside them; `inputs` are folders, quoted globs and names."""
    files = find_files(inputs, suffix)
    items = _npq_items(files) if suffix == ".npq" else npy_items(files, order)
    info = codec_beside(files[0][1])
    remark = left_out(inputs, suffix, files)
    kind = f"{suffix} files"
    return TokenSource(kind, str(inputs[0]), items, info, count=len(files), remark=remark)


def _open_any_files(inputs: list[str], order: str) -> TokenSource:
    """.npq files if there is one among the inputs, else .npy files."""
    for suffix in (".npq", ".npy"):
        try:
            files = find_files(inputs, suffix)
        except UserError:
            continue
        if all(path.lower().endswith(suffix) for _, path in files):
            return open_files(inputs, suffix, order)
    raise UserError(
        f"{inputs[0]}: no tokens there; give a token directory, a manifest of token cuts, an "
        "export, .npy or .npq files"
    )


def _npq_items(files: list[tuple[str, str]]) -> Iterator[TokenItem | Skipped]:
    """The tokens of NPQ files, (id, path) each; `UserError` at a file of another codec."""
    first: tuple[str, NpqHeader] | None = None
    for id, path in files:
        try:
            header, codes = read_npq(path)
        except UserError as e:
            yield Skipped.of(id, path, e)
            continue
        first = first or (path, header)
        if header.vocab_sizes != first[1].vocab_sizes:
            raise UserError(
                f"{path} (vocabularies {header.vocabularies}) and {first[0]} (vocabularies "
                f"{first[1].vocabularies}) are of different codecs; import them apart"
            )
        custom = {"orig_kbps": header.orig_kbps} if header.orig_kbps else {}
        yield TokenItem(
            id, codes, custom=custom, token_rate=header.token_rate, vocab_sizes=header.vocab_sizes
        )
