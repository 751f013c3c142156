"""A model from anything that holds one: experiment, checkpoint file, exported model, hub name."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from rvqlm.checkpoints.exported import CONFIG, WEIGHTS, is_exported, read_config, read_weights
from rvqlm.checkpoints.file import NAMES, load_checkpoint
from rvqlm.codec_info import CodecInfo
from rvqlm.condition_info import ConditionInfo, Infos
from rvqlm.errors import UserError
from rvqlm.models.factory import build_model
from rvqlm.remote.session import localize
from rvqlm.runtime import shapes_only

_SMALL = 1 << 20  # numbers that need no weights to account for them


def from_pretrained(path: str | Path, device: torch.device | str = "cpu"):
    """A trained model, ready to generate; ``model.info`` is its codec.

    :param path: directory of `rvqlm export-model`, experiment, checkpoint, or a repository of the
        Hugging Face hub, "owner/name", where no such path exists.
    :raises UserError: nothing usable is there.
    """
    return load_model(locate(path), device=device)[0]


def load_model(
    exp_dir_or_path: str | Path,
    which: str = "best",
    device: torch.device | str = "cpu",
    use_ema: bool = True,
):
    """Model for evaluation and generation.

    :param exp_dir_or_path: experiment directory, checkpoint file or directory of an exported model.
    :param which: ``best``, ``latest``, ``average`` or the path of a file, within an experiment.
    :param use_ema: averaged weights, where the training kept them.
    :return: (model in eval mode, `CodecInfo`, checkpoint dictionary; of an exported model all of
        it but weights and optimizer).
    :raises UserError: nothing usable there, or an exported model has averaged weights alone where
        `use_ema` is not wanted.
    """
    path = find_checkpoint(exp_dir_or_path, which)
    weights, state = read(path, use_ema)
    if is_exported(path) and state["averaged_weights"] and not use_ema:
        raise UserError(
            f"{path}: only the averaged weights were exported; export with --raw-weights"
        )
    try:
        info = CodecInfo.from_dict(state["codec"])
        conditions = {k: ConditionInfo.from_dict(c) for k, c in state["conditions"].items()}
        require_size(weights, state, info, conditions)
        model = build_model(state["model_name"], state["model_config"], info, conditions)
    except (UserError, TypeError, ValueError, LookupError, AttributeError, RuntimeError) as e:
        raise UserError(
            f"{path}: the model cannot be built ({_line(e)}); use the version that wrote it "
            f"({state.get('rvqlm_version', 'unknown')})"
        ) from e
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise UserError(f"{path}: weights don't fit model {model.name}: {_line(e)}") from e
    return model.to(device).eval(), info, state


def require_size(weights: dict, state: dict, info: CodecInfo, conditions: Infos) -> None:
    """Raise `UserError`, before any memory is taken, for options of a model much larger than the
    weights there are."""
    stored, tensors = sum(w.numel() for w in weights.values()), len(weights)
    options = {k: v for k, v in state["model_config"].items() if isinstance(v, int)}
    sizes = [info.codebook_size, *(size for c in conditions.values() for size in c.sizes)]
    layers = max((v for k, v in options.items() if "layers" in k), default=0)
    if max([*options.values(), *sizes]) <= stored + _SMALL and layers <= tensors + 1:
        with shapes_only():
            model = build_model(state["model_name"], state["model_config"], info, conditions)
        tensors = (*model.parameters(), *model.buffers())
        if sum(t.numel() for t in tensors) <= 2 * stored + _SMALL:
            return
    raise UserError(f"its options are of a model much larger than {stored:,} weights")


def read(path: Path, use_ema: bool = True) -> tuple[dict[str, torch.Tensor], dict]:
    """Weights and the dictionary of a checkpoint file or an exported model.

    :param use_ema: averaged weights, where a checkpoint has them.
    """
    if is_exported(path):
        state = read_config(path)
        return read_weights(path, state), state
    # mapped: what isn't wanted, the optimizer's state above all, is never read into memory
    state = load_checkpoint(path, mapped=True)
    averaged = use_ema and state.get("ema") is not None
    return state["ema" if averaged else "model"], state


def find_checkpoint(where: str | Path, which: str = "best") -> Path:
    """``best``, ``latest``, ``average`` or a path, in an experiment directory; or `where` itself if
    it is a file or the directory of an exported model."""
    where = Path(where)
    if where.is_file():
        return where
    if not where.is_dir():
        raise UserError(f"{where}: no such experiment; give the --exp-dir of a training")
    if which not in NAMES:
        return Path(which)
    if is_exported(where):
        return where
    where = last_stage(where)  # a model trained in stages is whole after the last
    path = where / f"{which}.pt"
    if not path.exists():
        others = [p for p in (where / f"{name}.pt" for name in NAMES) if p.exists()]
        hint = f"; there is {others[0]}" if others else "; train first"
        if which == "average" and others:
            hint = f"; rvqlm average {where} makes it"
        raise UserError(f"{path}: no such checkpoint{hint}")
    return path


def last_stage(exp_dir: Path) -> Path:
    """Where the latest training of an experiment is: the directory itself, or of a model trained
    in stages EXP/stageN with the highest N."""
    if (exp_dir / "latest.pt").exists() or (exp_dir / "best.pt").exists():
        return exp_dir
    staged = [p.parent for p in exp_dir.glob("stage[0-9]*/*.pt")]
    return max(staged, key=lambda p: int(p.name.removeprefix("stage")), default=exp_dir)


def locate(path: str | Path) -> Path:
    """`path`, or the local copy of the bucket or Hugging Face repository that it names."""
    path = localize(path)
    name = str(path)
    if Path(path).exists():
        return Path(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise UserError(
            f"{name}: no such file or directory; give an exported model, an experiment, a "
            "checkpoint or the name of a Hugging Face repository (owner/name)"
        )
    import huggingface_hub
    from huggingface_hub import constants

    from rvqlm.hub import require_network

    files = [CONFIG, WEIGHTS]
    local = all(isinstance(huggingface_hub.try_to_load_from_cache(name, f), str) for f in files)
    try:
        if not local and not constants.HF_HUB_OFFLINE:
            require_network(name)
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=files, local_files_only=local
        )
    except Exception as e:  # the hub's client raises a dozen types, from OSError on
        raise UserError(
            f"{name}: no such path, and the Hugging Face repository is neither in the cache nor to "
            f"be had from the network ({type(e).__name__}); check the name"
        ) from e
    folder = Path(folder)
    if not is_exported(folder):
        raise UserError(f"{name}: the repository has no {CONFIG} and {WEIGHTS} at its top")
    return folder


def _line(error: Exception) -> str:
    """torch's messages have several."""
    return " ".join(str(error).split())[:200]
