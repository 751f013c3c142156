"""Weights of judges: inside packages, whose code is not run, or where a path says.

Several packages bring good weights and ask for what cannot be had with a current Python (a compiler
for webrtcvad, torchaudio, TensorFlow). ``pip install --no-deps`` brings the file alone; the network
is a page of ours. What is read is a dictionary of tensors (`weights_only`) or an ONNX graph.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
from pathlib import Path

from rvqlm.errors import reason_of
from rvqlm.judging.judge import NotRun, Options

_LARGEST = 4 << 30


def packaged(options: Options, judge: str, package: str, file: str) -> tuple[bytes, str]:
    """The weights of a judge, and what to call them: package, release, the first digits of their
    SHA-256.

    :param package: on PyPI; it need not be complete, its code is not imported.
    :param file: path within what it installs.
    :raises NotRun: neither the package nor a path given with ``--weights JUDGE=FILE``.
    """
    given = options.weights.get(judge)
    if given:
        return _read(judge, Path(given), Path(given).name)
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotRun(
            f"the package {package} is not installed: pip install --no-deps {package}"
        ) from None
    path = Path(os.fspath(found.locate_file(file)))
    return _read(judge, path, f"{package.lower()}-{found.version}")


def given_path(options: Options, judge: str, what: str) -> Path:
    """The path that ``--weights JUDGE=PATH`` gives.

    :param what: the file or folder it should be, for the message.
    :raises NotRun: none was given, or nothing is there.
    """
    given = options.weights.get(judge)
    if not given:
        raise NotRun(f"no weights given: --weights {judge}=PATH, {what}")
    if not Path(given).exists():
        raise NotRun(f"--weights {judge}={given}: nothing there; give {what}")
    return Path(given)


def _read(judge: str, path: Path, name: str) -> tuple[bytes, str]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST)
    except OSError as e:
        raise NotRun(f"{path}: {reason_of(e)}; give another with --weights {judge}=FILE") from None
    return data, f"{name}-{digest(data)}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


def state_of(data: bytes, where: str, key: str | None = None) -> dict:
    """The tensors of a PyTorch file.

    :param key: where the file holds more than them, the entry that they are.
    :raises NotRun: something else.
    """
    import torch

    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = found[key] if key else found
        if not all(isinstance(v, torch.Tensor) for v in found.values()):
            raise ValueError("not a dictionary of tensors")
    except Exception as e:  # of a damaged file anything can be raised
        raise NotRun(f"weights of {where} cannot be read: {reason_of(e)}") from None
    return found


def load_into(net, state: dict, where: str):
    """The network with its weights, for inference; other tensors of the file are left out.

    :raises NotRun: tensors that are missing, or of other shapes.
    """
    import torch

    wanted = net.state_dict()
    wrong = [
        name
        for name, tensor in wanted.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        raise NotRun(f"weights of {where} are another network's: no {wrong[0]} of its shape")
    net.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net.eval().to(torch.float32)


def onnx_session(data: bytes, where: str):
    """An ONNX graph ready to run on one thread of the CPU.

    :raises NotRun: no onnxruntime, or a file that it does not take.
    """
    try:
        import onnxruntime
    except ImportError:
        raise NotRun("onnxruntime is not installed: pip install 'rvqlm[judges]'") from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise NotRun(f"weights of {where} cannot be read: {reason_of(e)}") from None
