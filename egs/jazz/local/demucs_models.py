"""Published models of Demucs, read without running anything that is in them.

A model is one .th file or several (a bag), ``{"klass": class, "args": ..., "kwargs": ..., "state":
weights, ...}`` as a pickle. It is unpickled with ``weights_only=True``: of what it may name there
are Demucs' own classes of models, fractions and numbers, nothing else. The package's own loading
(`demucs.states.load_model`, `demucs.pretrained`) takes whatever a file asks for and is not used.
"""

from __future__ import annotations

import hashlib
import re
from fractions import Fraction
from pathlib import Path

import demucs.pretrained
import numpy as np
import torch
from demucs.apply import BagOfModels
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs

from rvqlm.errors import UserError, reason_of
from rvqlm.files import Finite, Name, fits, read_yaml

CLASSES = (Demucs, HDemucs, HTDemucs)
_NUMBER = np.float64(0.0)  # files of older numpy call its maker by another name
ALLOWED = [
    *CLASSES,
    Fraction,
    np.dtype,
    *(type(np.dtype(t)) for t in ("float64", "float32", "int64")),
    _NUMBER.__reduce__()[0],
    (_NUMBER.__reduce__()[0], "numpy.core.multiarray.scalar"),
]


def load(model: str, weights: str | Path | None = None) -> tuple[BagOfModels, str]:
    """A model by name, or the path of its .th file; and a hash of the files that it is made of.

    :param weights: folder of the .th files of a named model (and perhaps NAME.yaml, which lists
        them). None: the cache of torch.hub, into which they are downloaded where they are missing.
    :raises UserError: not to be had, damaged, or more than weights and settings.
    """
    if model.endswith(".th"):
        paths, bag = [Path(model)], {}
    else:
        paths, bag = _bag(model, None if weights is None else Path(weights))
    found, digest = [], hashlib.sha256()
    for path in paths:
        one, sha = _read(path)
        found.append(one)
        digest.update(sha.encode())
    for name in ("sources", "samplerate", "audio_channels"):
        if len({str(getattr(one, name)) for one in found}) > 1:
            raise UserError(f"demucs model {model}: its files differ in their {name}")
    return BagOfModels(found, bag.get("weights"), bag.get("segment")).eval(), digest.hexdigest()


def _bag(name: str, weights: Path | None) -> tuple[list[Path], dict]:
    """The files of a named model, and what its YAML says beside them."""
    published = Path(demucs.pretrained.REMOTE_ROOT)
    lists = [folder / f"{name}.yaml" for folder in (weights, published) if folder is not None]
    there = next((path for path in lists if path.exists()), None)
    if there is None:
        known = ", ".join(sorted(p.stem for p in published.glob("*.yaml")))
        raise UserError(f"demucs model {name}: give the path of a .th file, or one of {known}")
    schema = {"models": list[Name], "weights": list[list[Finite]] | None, "segment": Finite | None}
    bag = read_yaml(there, f"demucs model {there}", dict)
    unfit = f"demucs model {there}: not a list of models"
    if "models" not in bag or not bag["models"]:
        raise UserError(unfit)
    try:
        bag = {key: fits(bag[key], kind) for key, kind in schema.items() if key in bag}
    except ValueError as e:
        raise UserError(f"{unfit}: {e}") from None
    return [_file(signature, weights) for signature in bag["models"]], bag


def _file(signature: str, weights: Path | None) -> Path:
    """The .th file of a signature: SIGNATURE.th, or SIGNATURE-SHA256.th as it is published."""
    folder = weights or Path(torch.hub.get_dir(), "checkpoints")
    if not re.fullmatch(r"[\w.]+", signature):
        raise UserError(f"demucs model: {signature!r} is no signature")
    for path in sorted(folder.glob(f"{signature}*.th")):
        if re.fullmatch(rf"{re.escape(signature)}(-[0-9a-f]+)?", path.stem):
            return path
    url = demucs.pretrained._parse_remote_files(demucs.pretrained.REMOTE_ROOT / "files.txt").get(
        signature
    )
    if weights is not None or url is None:
        raise UserError(f"demucs model: no {signature}-*.th in {folder}")
    path = folder / url.rsplit("/", 1)[1]
    folder.mkdir(parents=True, exist_ok=True)
    try:  # into a temporary file that takes the name once its checksum is right
        torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[1], progress=False)
    except (OSError, RuntimeError) as e:
        raise UserError(
            f"demucs model: {url} could not be fetched ({reason_of(e)}); put the file into {folder}"
        ) from None
    return path


def _read(path: Path) -> tuple[torch.nn.Module, str]:
    """The model of one file, and the SHA-256 of the file."""
    what = f"demucs model {path}"
    try:
        with open(path, "rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"{what}: {reason_of(e)}") from None
    promised = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if promised and not sha.startswith(promised[1]):
        raise UserError(
            f"{what}: damaged: its checksum is {sha[: len(promised[1])]}; fetch it again"
        )
    try:
        with torch.serialization.safe_globals(ALLOWED):
            package = torch.load(path, map_location="cpu", weights_only=True)
        kind, args, kwargs, state = (package[k] for k in ("klass", "args", "kwargs", "state"))
    except Exception as e:  # torch raises anything for a damaged file
        why = reason_of(e)
        if "Weights only" in why:
            why = "holds more than weights and settings of a model of Demucs"
        raise UserError(f"{what}: not loaded: {why}") from None
    if kind not in CLASSES:
        raise UserError(f"{what}: not a model of Demucs but {kind!r}")
    if not isinstance(state, dict) or "__quantized" in state:
        raise UserError(
            f"{what}: quantised weights (mdx_q, mdx_extra_q) are not read; take htdemucs_6s"
        )
    try:
        model = kind(*args, **kwargs)
        model.load_state_dict(state)
    except Exception as e:
        raise UserError(f"{what}: {kind.__name__}: {reason_of(e)}") from None
    return model, sha
