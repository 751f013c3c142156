"""A `Diagnosis` as text for the terminal."""

from __future__ import annotations

from rvqlm.doctor.examine import STATUS, Diagnosis

_VERDICTS = ("healthy", "findings of concern", "unusable")


def as_text(diagnosis: Diagnosis) -> str:
    """Facts, a row for each module, the log, the comparison, the replay, the findings."""
    d, lines = diagnosis, [diagnosis.path]
    lines += [f"  {k.replace('_', ' '):<18} {_value(k, v)}" for k, v in d.facts.items()]
    columns = ("module", "parameters", "rms", "max", "ema_distance", "update_ratio")
    lines += _table(d.modules, columns)
    if d.log:
        lines += ["", *_log(d.log)]
    if d.comparison:
        lines += ["", *_comparison(d.comparison)]
    if d.replay:
        lines += ["", f"replay of {d.replay.get('path')}"]
        lines += [f"  {k.replace('_', ' '):<18} {_value(k, v)}" for k, v in d.replay.items()
                  if k != "path"]  # fmt: skip
    lines.append("")
    for f in d.findings:
        lines.append(f"{f.severity.upper()} [{f.subject}] {f.where}: {f.what}")
        if f.remedy:
            lines.append(f"    -> {f.remedy}")
    counts = {s: sum(f.severity == s for f in d.findings) for s in reversed(STATUS)}
    counted = ", ".join(f"{n} {_plural(s, n)}" for s, n in counts.items() if n)
    lines.append(f"{_VERDICTS[d.status]}" + (f": {counted}" if counted else ""))
    return "\n".join(lines)


def _plural(severity: str, n: int) -> str:
    return severity if n == 1 or severity == "unusable" else f"{severity}s"


def _table(rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    columns = tuple(c for c in columns if any(c in r for r in rows))
    if not rows:
        return []
    cells = [[c.replace("_", " ") for c in columns]]
    cells += [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(r[i]) for r in cells) for i in range(len(columns))]
    return [
        "",
        *(
            "  "
            + "  ".join([r[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(r[1:], widths[1:]))])
            for r in cells
        ),
    ]


def _cell(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _value(name: str, value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_value(k, v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(name, v) for v in value) or "none"
    return f"{value:.5g}" if isinstance(value, float) else _cell(value)


def _log(log: dict) -> list[str]:
    lines = [f"{log['path']}: {log['train_lines']:,} train and {log['valid_lines']:,} valid lines"]
    for kind in ("train", "valid"):
        s = log.get(kind)
        if s and "lowest" in s:
            lines.append(
                f"  {kind:<6} lowest {s['lowest']:.4f} at step {s['lowest_step']:,}, epoch "
                f"{s['lowest_epoch']}; last {_cell(s['last'])} at step {s['last_step']:,}"
            )
    skipped = {k: n for k, n in log.get("skipped", {}).items() if n}
    if skipped:
        lines.append("  " + _value("", {k.replace("_", " "): n for k, n in skipped.items()}))
    return lines


def _comparison(c: dict) -> list[str]:
    lines = [f"change from {c['path']} (step {c['step']:,})"]
    for name in ("flags", "model_config"):
        for flag, (there, here) in (c.get(name) or {}).items():
            lines.append(f"  --{flag.replace('_', '-')}: {there} -> {here}")
    return lines + _table(
        c.get("modules") or [], ("module", "parameters", "change", "change_per_step")
    )
