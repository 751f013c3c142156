"""Every combination of settings of generation, judged on the same recordings with the same random
numbers, so that two settings are compared recording by recording. What was made before an
interruption, or for fewer values, is not made again (`rvqlm.judging.grid_results`).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rvqlm.codecs.registry import load_codec_like
from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.free_running import Continuation, as_recorded, score
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.inference.recognize import recognize_samples
from rvqlm.judging.grid_results import Axes, Results, compare, configs, describe
from rvqlm.metrics.audio_metrics import repetition_ratio
from rvqlm.metrics.recognition import edit_distances
from rvqlm.models.recognizer import Recognizer
from rvqlm.modules.packed import with_weights_in
from rvqlm.runtime import pick_precision

LEAST_SECONDS = 0.5
"""A sample is no shorter, lest there be nothing to judge."""


@dataclass
class GridConfig:
    """Flags of `rvqlm grid`."""

    exp_dir: str
    """Experiment of rvqlm train, or a checkpoint file."""
    manifest_dir: str
    """Token directory of the recordings to continue, or to say the texts of."""
    checkpoints: tuple[str, ...] = ()
    """Several checkpoints to compare: best, latest, average, paths; empty: --checkpoint."""
    recognizer: str = ""
    """Experiment of a recogniser of codes, which judges texts that are said."""
    split: str = "valid"
    """Split of the recordings: not the one that the chosen setting is reported on."""
    num: int = 24
    """How many of them, at most."""
    seconds: float = 12.0
    """Longest new audio; texts that need more are cut, in every setting alike."""
    prompt_seconds: float | None = None
    """How much of each recording is given. Unset: none with --recognizer, 2 without."""
    judge: Literal["auto", "errors", "kl", "nats", "repetition"] = "auto"
    """What the best setting has least of: errors, of symbols, by --recognizer; kl, how far its
    codes are from the split's, over all levels; nats, what the model needs for the recordings and
    how far its own samples are from that; repetition, how far it is from that of the recordings.
    auto: errors with --recognizer, else kl."""
    batch_size: int = 8
    """Samples generated together; changes nothing but the speed."""
    seed: int = 0
    """Of the choice of recordings and of the draws."""
    codec: str = ""
    """The codec, by name or directory; empty: the one named in the checkpoint."""
    out_dir: str = ""
    """Where the results go; empty: EXP/grid."""
    overwrite: bool = False
    """Forget the results there."""
    model: ModelArgs = field(default_factory=ModelArgs)
    axes: Axes = field(default_factory=Axes)

    @property
    def judged_by(self) -> str:
        return ("errors" if self.recognizer else "kl") if self.judge == "auto" else self.judge

    @property
    def prompt(self) -> float:
        given = self.prompt_seconds
        return (0.0 if self.recognizer else 2.0) if given is None else given

    @property
    def folder(self) -> Path:
        exp = Path(self.exp_dir)
        return Path(self.out_dir or (exp if exp.is_dir() else exp.parent) / "grid")

    def check(self) -> None:
        problems = [
            f"--{name.replace('_', '-')} {getattr(self, name):g} must be positive"
            for name in ("num", "seconds", "batch_size")
            if not 0 < getattr(self, name) < float("inf")
        ]
        if not 0 <= self.prompt < float("inf"):
            problems.append(f"--prompt-seconds {self.prompt:g}: at least 0")
        if self.judge == "errors" and not self.recognizer:
            problems.append("--judge errors needs --recognizer")
        if problems:
            raise UserError("; ".join(problems))

    def about(self, dataset: TokenDataset, listener: tuple[Path, int] | None) -> dict:
        """What the results of a folder have in common."""
        return {
            "exp_dir": str(Path(self.exp_dir)),
            "split": self.split,
            "tokens": dataset.fingerprint,
            "num": self.num,
            "seconds": float(self.seconds),
            "prompt_seconds": float(self.prompt),
            "seed": self.seed,
            "recognizer": listener and f"{listener[0]} (step {listener[1]})",
        }


def run_grid(config: GridConfig, tell: Callable[[str], object] = print) -> dict:
    """Make what is not yet done, and compare all that is; the content of grid.json.

    :raises UserError: settings, checkpoints or data that do not fit.
    """
    settings = config.axes.settings()
    listener, heard_by, path = None, None, config.folder
    if config.recognizer:
        own = replace(config.model, checkpoint="best")
        listener, where, state, _ = own.load(config.recognizer)
        if not isinstance(listener, Recognizer):
            raise UserError(f"--recognizer {where}: this is a {listener.name}")
        heard_by = where, int(state["step"])
    results = None
    for checkpoint in config.checkpoints or (config.model.checkpoint,):
        args = replace(config.model, checkpoint=checkpoint)
        model, where, state, device = args.load(config.exp_dir)
        if not model.generates:
            raise UserError(f"{where}: a {model.name} predicts no codes")
        dataset = TokenDataset.open(config.manifest_dir, config.split, model.info.num_codebooks)
        if results is None:
            results = Results(path, config.about(dataset, heard_by), config.overwrite)
            codec = load_codec_like(model.info, config.codec or None, device)
        inside = Path(where).parent == Path(config.exp_dir)
        of = {"checkpoint": where.name if inside else str(where), "step": int(state["step"])}
        to_do = [s for s in settings if not results.has({**of, **s})]
        if not to_do:
            continue
        run = _Run(config, model, codec, dataset, device, listener)
        for setting in to_do:
            row, codes = run(setting)
            results.add({**of, **setting}, row, codes)
            tell(f"{describe({**of, **setting})}: {row['generation_seconds']:.0f} s")
    return compare(results, dataset, config.judged_by)


class _Run:
    """One checkpoint on the chosen recordings."""

    def __init__(self, config: GridConfig, model, codec, dataset: TokenDataset, device, listener):
        self.config, self.model, self.codec = config, model, codec
        self.device, self.listener = device, listener
        rate = float(model.info.frame_rate)
        frames = round(config.seconds * rate)
        source = PromptArgs(
            manifest_dir=config.manifest_dir,
            split=config.split,
            num_prompts=config.num,
            prompt_seconds=config.prompt,
        )
        self.prompts = read_prompts(source, ConditionArgs(), model, codec, frames, config.seed)
        given = round(config.prompt * rate)
        self.items: list[Continuation] = [
            replace(item, given=replace(item.given, times=None, durations=None))
            for item in as_recorded(self.prompts, dataset, given, given + frames)
        ]
        self.recorded = [i.real for i in self.items]
        found = score(model, self.items, self.recorded, device, torch.float32)[1]
        self.real = _by_item(found)
        self.generating = "float32", model

    def _generating(self, weights: str):
        """The model with its weights as they are, or a copy with them in fewer bits."""
        if weights == "float32":
            return self.model
        if self.generating[0] != weights:  # settings come with their weights together
            auto = pick_precision("auto", self.device)
            dtype = torch.bfloat16 if weights == "bf16" else auto
            packed = with_weights_in(copy.deepcopy(self.model), dtype, weights == "int8")
            self.generating = weights, packed
        return self.generating[1]

    def __call__(self, setting: dict) -> tuple[dict, list[np.ndarray]]:
        c, model = self.config, self._generating(setting.get("weights", "float32"))
        least = min(LEAST_SECONDS, c.seconds)
        output = OutputArgs(c.seconds, least, batch_size=c.batch_size, seed=c.seed)
        request = SampleRequest(self.prompts, output, *configs(setting))
        with tempfile.TemporaryDirectory() as folder:
            samples = list(generate(model, self.codec, request, {}))
            errors = {}
            if self.listener is not None:
                wavs = [sample.write(Path(folder)) for sample in samples]
                heard = recognize_samples(wavs, self.listener, c.codec or None, self.device)
                said, found = [h.reference for h in heard], [h.recognized for h in heard]
                errors["errors"] = edit_distances(said, found).tolist()
                errors["symbols"] = [len(s) for s in said]
        codes = [sample.codes.cpu() for sample in samples]
        own = _by_item(score(self.model, self.items, codes, self.device, torch.float32)[1])
        new, real = ([i.new(c) for i, c in zip(self.items, of)] for of in (codes, self.recorded))
        return {
            "recordings": [i.name for i in self.items],
            **errors,
            "own_nats": own.tolist(),
            "real_nats": self.real.tolist(),
            "repetition": [repetition_ratio(n) for n in new],
            "real_repetition": [repetition_ratio(n) for n in real],
            "silence": [s.about["silence_ratio"] for s in samples],
            "ended": sum(s.about["stop"] == "eos" for s in samples),
            "seconds": sum(len(n) for n in new) / float(self.model.info.frame_rate),
            # each sample has the time of its whole batch
            "generation_seconds": sum(
                s.about["generation_seconds"] / s.about["batch_size"] for s in samples
            ),
        }, new


def _by_item(recordings) -> np.ndarray:
    """(N, 2, K) nats and counts."""
    return np.stack([recordings.sums[n] for n in range(len(recordings.sums))])
