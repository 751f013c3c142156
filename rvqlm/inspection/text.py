"""Facts as text for the terminal."""

from __future__ import annotations


def entries(facts: dict) -> list[str]:
    """A line for each fact that is known."""
    known = {k.replace("_", " "): v for k, v in facts.items() if v is not None}
    return [f"  {name:<18} {in_words(value)}" for name, value in known.items()]


def in_words(value, digits: int = 6) -> str:
    """A value of JSON, numbers to so many digits.

    >>> in_words({"a": [1000, 2.5], "b": True})
    'a: 1,000, 2.5, b: yes'
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {in_words(v, digits)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(in_words(v, digits) for v in value) or "none"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
