#!/usr/bin/env python3
"""``rvqlm grid``: which settings of generation are the best, and how sure that is.

    rvqlm grid --exp-dir exp/tts --manifest-dir data/tokens --recognizer exp/recognizer \\
        --temperature 0.7 1 --cfg-scale 1.5 2 3

Every combination of the values generates the same recordings of a split with the same random
numbers. Interrupted, the same command goes on; further values are added to what is there. Writes
EXP/grid/grid.csv and grid.json.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence

from rvqlm.cli import command_line, parse, run_main
from rvqlm.files import write_json, write_text
from rvqlm.judging.grid import GridConfig, run_grid
from rvqlm.judging.grid_results import describe, table
from rvqlm.locks import locked
from rvqlm.runtime import tune_malloc

SHOWN = 10


def _run(argv: Sequence[str] | None) -> int:
    description = "Settings of generation compared on the same recordings."
    config = parse(GridConfig, "rvqlm grid", description, argv)
    config.check()
    tune_malloc()
    with locked(config.folder, "rvqlm grid", make=True):
        result = run_grid(config, lambda line: print(line, flush=True))
        result["command"] = command_line("grid", argv)
        header, lines = table(result)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        write_text(config.folder / "grid.csv", text.getvalue())
        write_json(config.folder / "grid.json", result, checksum=True)
    print_result(result)
    print(f"wrote {config.folder / 'grid.csv'} and grid.json")
    return 0


def print_result(result: dict) -> None:
    """The best settings, and whether the first is."""
    judge, rows = result["judge"], result["settings"]
    form = ".1%" if judge == "errors" else ".4f"
    print(f"{judge}, least first, of {len(rows[0]['recordings'])} recordings:")
    for row in rows[:SHOWN]:
        figure, behind = row[judge], row["behind_the_best"]
        within = figure["interval"]
        line = f"{row['rank']:3d}. {describe(row)}: {figure['value']:{form}}"
        line += f" ({within[0]:{form}} to {within[1]:{form}})" if within else ""
        line += f", {behind[0]:+{form}} to {behind[1]:+{form}} from the best" if behind else ""
        print(line)
    if len(rows) > SHOWN:
        print(f"     and {len(rows) - SHOWN} more")
    if len(rows) > 1:
        sure = "certain" if result["certain"] else "not certain with these recordings"
        print(f"best: {describe(rows[0])}; that it is better than the second is {sure} (95 %)")


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "grid")


if __name__ == "__main__":
    sys.exit(main())
