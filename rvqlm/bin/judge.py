#!/usr/bin/env python3
"""``rvqlm judge``: recordings, what their codec makes of them, and samples, before judges that no
training of ours has touched.

    rvqlm judge --samples exp/tts --references data/tokens --language en
    rvqlm judge --references my-audio --codec spectral
    rvqlm judge --samples exp/music/samples --references music --unpaired --judges codec-latents

The first judges samples beside the recordings of a split that say the same, and those beside what
their own codes decode to, which no model of these codes is better than. The second does so without
samples, the third compares two folders as sets. Prints a table, and writes JSON with a row for each
clip.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rvqlm.cli import command_line, parse, run_main
from rvqlm.errors import UserError
from rvqlm.files import write_text
from rvqlm.runtime import describe_machine, tune_malloc


def _run(argv: Sequence[str] | None) -> int:
    from rvqlm.judging.judge import Options
    from rvqlm.judging.run import (
        JudgeConfig,
        counted_clips,
        describe_judges,
        judge,
        result_path,
    )
    from rvqlm.judging.summary import table

    description = "Figures of recordings, of their codec and of samples, by judges from outside."
    config = parse(JudgeConfig, "rvqlm judge", description, argv)
    config.check()
    tune_malloc()
    if config.list_judges:
        print("\n".join(describe_judges(Options(config.paths(), config.language))))
        return 0
    findings, about = judge(config)
    out = result_path(config, about)
    summary, columns = findings.summary(), findings.columns()
    print(counted_clips(findings))
    print("\n".join(table(summary, columns)))
    for line in findings.remarks():
        print(line, file=sys.stderr)
    result = {
        **about,
        "not_run": findings.not_run(),
        "left_out": findings.unreadable,
        "figures": {
            name: {"better": better, "percent": percent, "meaning": findings.meanings()[name]}
            for name, (better, percent) in columns.items()
        },
        "summary": summary,
        "machine": describe_machine(),
        "command": command_line("judge", argv),
        "rows": findings.rows,
    }
    write_text(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {out}")
    if not any(summary.values()):
        raise UserError("not one clip could be judged; reasons above")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(_run, argv, "judge")


if __name__ == "__main__":
    sys.exit(main())
