"""What a grid has made so far, in a folder; and which of it is the best."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rvqlm.data.index import TokenDataset
from rvqlm.errors import UserError
from rvqlm.files import atomic_write, read_json, write_json
from rvqlm.generation.sampling import DemaskConfig, SamplingConfig, SpeechConfig
from rvqlm.metrics.bootstrap import bootstrapped, interval
from rvqlm.metrics.losses import count_codes

JUDGES = ("errors", "kl", "nats", "repetition")


@dataclass
class Axes:
    """Settings: give several values of those to compare; what is not given stays as it is in rvqlm
    generate"""

    weights: tuple[Literal["float32", "bf16", "int8"], ...] = ()
    """What generates: the weights as they are, or as rvqlm generate has them with --precision bf16
    and with --weights int8. Nats are of the weights as they are. Not given: float32."""
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


class Results:
    """The settings that are done, in a folder: each a JSON and the codes of its samples (NPZ)."""

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
            if name == "kl" and scatter is not None:
                # drawn twice, a recording brings no new codes: each draw is farther from the split
                # than the samples are, so that only the scatter of the draws counts
                scatter += value - scatter.mean()
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
