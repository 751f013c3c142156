"""A `Diagnosis` as text for the terminal."""

from __future__ import annotations

from rvqlm.doctor.examine import Diagnosis
from rvqlm.doctor.finding import STATUS
from rvqlm.inspection.text import entries, in_words

_VERDICTS = ("healthy", "findings of concern", "unusable")


def as_text(diagnosis: Diagnosis) -> str:
    """Facts, a row for each module, the log, the comparison, the replay, the findings."""
    d, replay = diagnosis, dict(diagnosis.replay)
    lines = [d.path, *entries(d.facts)]
    lines += _table(d.modules, "module", "parameters", "rms", "max", "ema_distance")
    lines += _log(d.log) if d.log else []
    lines += _comparison(d.comparison) if d.comparison else []
    if replay:
        lines += ["", f"replay of {replay.pop('path')}", *entries(replay)]
    lines.append("")
    for f in d.findings:
        lines.append(f"{f.severity.upper()} [{f.subject}] {f.where}: {f.what}")
        lines += [f"    -> {f.remedy}"] if f.remedy else []
    counts = [(s, sum(f.severity == s for f in d.findings)) for s in reversed(STATUS)]
    counted = [f"{n} {s}{'s' * (n > 1 and s != 'unusable')}" for s, n in counts if n]
    lines.append(": ".join([_VERDICTS[d.status], *filter(None, [", ".join(counted)])]))
    return "\n".join(lines)


def _table(rows: list[dict], *columns: str) -> list[str]:
    """A blank line, names of the columns that any row has, the rows; nothing of no rows."""
    if not rows:
        return []
    columns = [c for c in columns if any(c in row for row in rows)]
    cells = [[c.replace("_", " ") for c in columns]]
    cells += [[in_words(row.get(c), 3) for c in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [""]
    for first, *rest in cells:
        aligned = [first.ljust(widths[0]), *(x.rjust(w) for x, w in zip(rest, widths[1:]))]
        lines.append("  " + "  ".join(aligned))
    return lines


def _log(log: dict) -> list[str]:
    train, valid, damaged = (log[f"{k}_lines"] for k in ("train", "valid", "damaged"))
    lines = ["", f"{log['path']}: {train:,} train and {valid:,} valid lines"]
    lines[-1] += f", {damaged:,} damaged and passed over" if damaged else ""
    for kind in ("train", "valid"):
        if "lowest" in (s := log.get(kind, {})):
            lines.append(
                f"  {kind:<6} lowest {s['lowest']:.4f} at step {s['lowest_step']:,}, epoch "
                f"{s['lowest_epoch']}; last {in_words(s['last'])} at step {s['last_step']:,}"
            )
    skipped = {k.replace("_", " "): n for k, n in log["skipped"].items() if n}
    return lines + ([f"  {in_words(skipped)}"] if skipped else [])


def _comparison(c: dict) -> list[str]:
    lines = ["", f"change from {c['path']} (step {c['step']:,})"]
    for flag, (there, here) in {**c["flags"], **c["model_config"]}.items():
        lines.append(f"  --{flag.replace('_', '-')}: {there} -> {here}")
    return lines + _table(c["modules"], "module", "parameters", "change", "change_per_step")
