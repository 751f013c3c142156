"""What evaluate, check, grid and judge find of an experiment, as their files have it."""

import json
from pathlib import Path

import numpy as np
import soundfile

MARKUP = "<script>alert(1)</script>"
HEBREW = "\u202eשלום עולם"  # begins with a mark that turns what follows round


def free_running(levels: int) -> dict:
    """The entry of an evaluation; of recordings with names that want to be markup."""
    run = {"longest": 16, "mean": 12.625, "of": HEBREW, "shared_with": MARKUP}
    kinds = {"samples": run, "recordings": run | {"longest": 20}, "shuffled": run | {"longest": 1}}
    used = {"coverage": [0.49] * levels, "entropy": [4.57] * levels, "kl": [0.75] * levels}
    return {
        "recordings": 8, "prompt_seconds": 1.0, "frames": 800, "seed": 0,
        "settings": {"temperature": 1.0},
        "agreement": {"frames": [0, 1, 2],
                      "teacher_forced": [[0.625] + [None] * (levels - 1)] * 3,
                      "free_running": [[0.625] * levels, [0.5] * levels, [0.25] * levels]},
        "first_divergence": {"median_frames": 1.0, "mean_frames": 1.1, "median_seconds": 0.02,
                             "never": 2},
        "likelihood": {"own": [1.26] * (levels - 1) + [None], "real": [0.93] * levels,
                       "difference": [0.332] * (levels - 1) + [None],
                       "interval": [[0.208, 0.454]] * (levels - 1) + [[None, None]]},
        "codes": {"samples": used, "recordings": used | {"kl": [0.5] * levels}},
        "shared_runs": {"level_0": kinds, "all_levels": kinds},
    }  # fmt: skip


def evaluated(levels: int) -> dict:
    """What an evaluation of today has more than one of an older version."""
    return {
        "uncertainty": {"recordings": 3, "nats": [0.1] * levels, "plus_minus": 19.6,
                        "nats_intervals": [[2.41, 2.59]] * (levels - 1) + [None]},
        "previous_frame_nats": [3.141] * levels, "previous_frame_bits_per_second": 678.0,
        "gain": {"bits_per_second": 59.5, "interval": [51.5, 67.5]},
        "calibration_error": [0.0123] * levels, "overconfidence": [-0.0004] * levels,
        "free_running": free_running(levels),
    }  # fmt: skip


def add_checks(exp: Path, rate: int = 8000) -> None:
    """check.json with a check of each verdict, and the sample of two of them."""
    folder = exp / "check"
    folder.mkdir(parents=True)
    soundfile.write(folder / "long.wav", 0.1 * np.sin(np.arange(20 * rate)), rate)
    about = {"kind": "conditioned", "step": 490, "conditions": {"text": MARKUP}}
    (folder / "long.json").write_text(json.dumps(about))
    rows = [
        ("loops", "pass", "10.4% (recordings 13.0%)", "at most 23.0%", "long.wav"),
        ("no stutter", "fail", "28.1% do", "at most 10.0%", "long.wav"),
        ("silence", "fail", "99.0%", "at most 39.9%", f"../{HEBREW}.wav"),
        ("voice does not drift", "not run", f"no codec {MARKUP}", "", ""),
    ]
    names = ("name", "verdict", "found", "wanted", "sample")
    checks = [dict(zip(names, row)) | {"value": None, "limit": None} for row in rows]
    result = {"checkpoint": "best.pt", "step": 490, "checks": checks, "command": "rvqlm check exp"}
    (folder / "check.json").write_text(json.dumps(result))


def add_grid(exp: Path, settings: int = 12, **more) -> None:
    """grid.json of so many temperatures, the first of which is the best."""
    rows = [
        {"rank": n + 1, "checkpoint": "best.pt", "step": 490, "temperature": 0.5 + n / 10,
         "errors": {"value": 0.031 + n / 100, "interval": [0.02 + n / 100, 0.042 + n / 100]},
         "kl": {"value": 1.5 + n, "interval": None}, "recordings": ["a", "b"],
         "behind_the_best": [-0.001, 0.02] if n else None}
        for n in range(settings)
    ]  # fmt: skip
    grid = {"about": {"split": "valid"}, "judge": "errors", "certain": False, "settings": rows}
    (exp / "grid").mkdir(parents=True)
    path = exp / "grid" / "grid.json"
    path.write_text(json.dumps(grid | {"command": "rvqlm grid --exp-dir exp"} | more))


def add_listening_test(folder: Path, systems: tuple[str, str], answers: int = 0) -> None:
    """A page of that test with its key, and the answers of so many raters, who prefer the first."""
    key = {
        "test": "ab" * 32, "kind": "preference", "question": f"Which? {MARKUP}",
        "trials": [{"id": f"t{n}", "item": str(n),
                    "clips": [{"system": system, "name": "x"} for system in systems]}
                   for n in range(6)],
    }  # fmt: skip
    (folder / f"a test {HEBREW}.html").write_text("")
    (folder / f"a test {HEBREW}.key.json").write_text(json.dumps(key))
    for n in range(answers):
        answered = {f"t{i}": {"answer": "left"} for i in range(6)}
        result = {"test": "ab" * 32, "rater": MARKUP, "session": str(n), "saved": "2026",
                  "trials": 6, "answers": answered}  # fmt: skip
        (folder / f"listening-{'ab' * 4}-{n}.json").write_text(json.dumps(result))
