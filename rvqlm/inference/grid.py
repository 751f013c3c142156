"""Every combination of settings of generation, judged on the same recordings with the same random
numbers, so that two settings are compared recording by recording.

A setting that is done is a JSON and a NPZ file, so that a grid that was interrupted goes on, and
one that is asked for more values makes only what is new.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rvqlm.codecs.registry import load_codec_like
from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.files import atomic_write, read_json, write_json
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import ConditionArgs
from rvqlm.inference.free_running import Continuation, as_recorded, score
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.model_args import ModelArgs
from rvqlm.inference.prompts import PromptArgs, read_prompts
from rvqlm.inference.recognize import recognize_samples
from rvqlm.metrics.audio_metrics import repetition_ratio
from rvqlm.metrics.bootstrap import bootstrapped, interval
from rvqlm.metrics.losses import count_codes
from rvqlm.metrics.recognition import edit_distances
from rvqlm.models.recognizer import Recognizer

LEAST_SECONDS = 0.5
"""A sample is no shorter, lest there be nothing to judge."""
JUDGES = ("errors", "kl", "nats", "repetition")


@dataclass
class Axes:
    """Settings: give several values of those to compare; what is not given stays as it is in rvqlm
    generate"""

    temperature: tuple[float, ...] = ()
    top_k: tuple[int, ...] = ()
    top_p: tuple[float, ...] = ()
    min_p: tuple[float, ...] = ()
    cfg_scale: tuple[float, ...] = ()
    best_of: tuple[int, ...] = ()
    repetition_window: tuple[int, ...] = ()
    speed: tuple[float, ...] = ()
    duration_temperature: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    fine_steps: tuple[int, ...] = ()
    score: tuple[Literal["confidence", "random"], ...] = ()
    score_noise: tuple[float, ...] = ()

    def settings(self) -> list[dict[str, Any]]:
        """Every combination of the values that are given.

        :raises UserError: what is wrong with any of them.
        """
        given = {f.name: values for f in fields(self) if (values := getattr(self, f.name))}
        found = [dict(zip(given, values)) for values in itertools.product(*given.values())]
        problems = [
            p for setting in found for config in configs(setting) for p in config.problems()
        ]
        if problems:
            raise UserError("; ".join(dict.fromkeys(problems)))
        return found


def configs(setting: dict[str, Any]) -> tuple[SamplingConfig, DemaskConfig, SpeechConfig]:
    """A setting as generation takes it."""
    kinds = (SamplingConfig, DemaskConfig, SpeechConfig)
    names = ([f.name for f in fields(kind)] for kind in kinds)
    return tuple(
        kind(**{k: v for k, v in setting.items() if k in own}) for kind, own in zip(kinds, names)
    )


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
    seconds: float = 8.0
    """Longest new audio."""
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


class Results:
    """The settings that are done, in a folder."""

    def __init__(self, folder: Path, about: dict, overwrite: bool):
        """:raises UserError: results there that are of something else."""
        self.folder, self.path = folder / "settings", folder / "about.json"
        if overwrite:
            for path in self.folder.glob("*.*"):
                path.unlink()
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            before = read_json(self.path, "give --overwrite", type=dict)
            if changed := [k for k in about if before.get(k) != about[k]]:
                was = ", ".join(f"{k} {before.get(k)} (now {about[k]})" for k in changed)
                raise UserError(
                    f"{folder}: the results there are of {was}; give another --out-dir, or "
                    "--overwrite"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, about, checksum=True)

    def _path(self, setting: dict) -> Path:
        key = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{key}.json"

    def has(self, setting: dict) -> bool:
        return self._path(setting).exists()

    def add(self, setting: dict, row: dict, codes: list[np.ndarray]) -> None:
        path = self._path(setting)
        lengths = np.array([len(c) for c in codes])
        save = dict(codes=np.concatenate(codes), lengths=lengths)

        def write(to: Path) -> None:
            with open(to, "wb") as file:
                np.savez_compressed(file, **save)

        atomic_write(path.with_suffix(".npz"), write)
        write_json(path, {"setting": setting, **row}, checksum=True)  # last: now it is done

    def read(self) -> Iterator[tuple[dict, list[np.ndarray]]]:
        """Each row with the codes (T, K) of its samples, in the order of their settings."""
        rows = [
            (read_json(path, "delete it and run the grid again", type=dict), path)
            for path in sorted(self.folder.glob("*.json"))
        ]
        for row, path in sorted(rows, key=lambda item: json.dumps(item[0]["setting"])):
            try:
                with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
                    codes, lengths = stored["codes"], stored["lengths"]
            except (OSError, ValueError, KeyError) as e:
                name = path.with_suffix(".npz")
                raise UserError(f"{name}: damaged ({e}); delete {path} and run again") from None
            yield row, np.split(codes, np.cumsum(lengths)[:-1])


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

    def __call__(self, setting: dict) -> tuple[dict, list[np.ndarray]]:
        c = self.config
        least = min(LEAST_SECONDS, c.seconds)
        output = OutputArgs(c.seconds, least, batch_size=c.batch_size, seed=c.seed)
        request = SampleRequest(self.prompts, output, *configs(setting))
        with tempfile.TemporaryDirectory() as folder:
            samples = list(generate(self.model, self.codec, request, {}))
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


# ------------------------------------------------------------------------------------- comparison


def _figures(row: dict, codes: list[np.ndarray], others: np.ndarray, info) -> dict[str, Callable]:
    """Of each judge the columns (N, ...) that are summed over recordings, and what sums mean."""
    own, real = np.array(row["own_nats"]), np.array(row["real_nats"])
    N, K, V = len(own), info.num_codebooks, info.codebook_size

    def nats(own, own_count, real, real_count):
        own, real = own / np.maximum(own_count, 1e-9), real / np.maximum(real_count, 1e-9)
        return (real + np.abs(own - real)).sum(-1)

    def kl(counts):
        p = (counts.reshape(-1, K, V) + 1.0) / (counts.reshape(-1, K, 1, V).sum(-1) + V)
        return (p * (np.log(p) - np.log(others))).sum((1, 2))

    apart = np.abs(np.array(row["repetition"]) - np.array(row["real_repetition"]))
    found = {
        "kl": ([np.stack([count_codes([c], info).ravel() for c in codes])], kl),
        "nats": ([own[:, 0], own[:, 1], real[:, 0], real[:, 1]], nats),
        "repetition": ([apart, np.ones(N)], lambda apart, n: apart / n),
    }
    if "errors" in row:
        found["errors"] = (
            [np.array(row["errors"]), np.array(row["symbols"])],
            lambda errors, symbols: errors / symbols,
        )
    return found


def compare(results: Results, dataset: TokenDataset, judge: str) -> dict:
    """All settings of a folder, the best first, and how sure it is that it is the best."""
    info = dataset.info
    counts = count_codes((dataset.view(row) for row in range(len(dataset))), info) + 1.0
    others = counts / counts.sum(1, keepdims=True)
    rows, drawn = [], []
    for row, codes in results.read():
        figures = {}
        for name, (columns, mean) in _figures(row, codes, others, info).items():
            value = float(mean(*(c.sum(0)[None] for c in columns))[0])
            scatter = bootstrapped(mean, *columns) if len(columns[0]) > 1 else None
            figures[name] = {"value": value, "interval": scatter is not None and interval(scatter)}
            if name == judge:
                drawn.append(scatter)
        if judge not in figures:
            raise UserError(f"{results.folder}: no {judge} in there; give --recognizer")
        keep = ("recordings", "ended", "seconds", "generation_seconds")
        means = {k: float(np.mean(row[k])) for k in ("silence", "real_repetition")}
        rows.append({**row["setting"], **figures, **means, **{k: row[k] for k in keep}})
    order = sorted(range(len(rows)), key=lambda n: rows[n][judge]["value"])
    best = drawn[order[0]]
    ranked = []
    for rank, n in enumerate(order, 1):
        behind = None if best is None or rank == 1 else interval(drawn[n] - best)
        ranked.append({"rank": rank, **rows[n], "behind_the_best": behind})
    second = ranked[1]["behind_the_best"] if len(ranked) > 1 else None
    return {
        "about": read_json(results.path, "give --overwrite", type=dict),
        "judge": judge,
        "certain": second is not None and second[0] > 0,
        "settings": ranked,
    }


def describe(row: dict) -> str:
    """The setting of a row in words.

    >>> describe({"checkpoint": "best.pt", "step": 7, "temperature": 0.9, "top_k": 50, "rank": 1})
    'best.pt (step 7), temperature 0.9, top-k 50'
    """
    names = [f.name for f in fields(Axes) if f.name in row]
    values = [f"{name.replace('_', '-')} {row[name]}" for name in names]
    return ", ".join([f"{row['checkpoint']} (step {row['step']})", *values])


def table(result: dict) -> tuple[list[str], list[list]]:
    """Header and rows of grid.csv: a row a setting, a column a number."""
    axes = [f.name for f in fields(Axes) if any(f.name in row for row in result["settings"])]
    judges = [j for j in JUDGES if any(j in row for row in result["settings"])]
    header = ["rank", "checkpoint", "step", *axes]
    header += [f"{judge}{end}" for judge in judges for end in ("", "_low", "_high")]
    header += ["behind_low", "behind_high", "silence", "ended", "recordings"]
    header += ["seconds", "generation_seconds"]
    lines = []
    for row in result["settings"]:
        line = [row["rank"], row["checkpoint"], row["step"], *(row.get(a, "") for a in axes)]
        for judge in judges:
            figure = row.get(judge)
            line += (
                ["", "", ""]
                if figure is None
                else [figure["value"], *(figure["interval"] or ["", ""])]
            )
        line += row["behind_the_best"] or ["", ""]
        line += [row["silence"], row["ended"], len(row["recordings"])]
        lines.append([*line, row["seconds"], row["generation_seconds"]])
    return header, lines
