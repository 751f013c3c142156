"""Numbers and templates for people: the same in pages, tables and terminals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from rvqlm.cli import span


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits below 1000, grouped thousands above.

    >>> number(3401.4), number(0.01234), number(17.0)
    ('3,401', '0.0123', '17')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def signed(value: float | None, digits: int = 2) -> str:
    """With its sign, and no sign of what is nothing.

    >>> signed(0.126), signed(-0.001), signed(-2.5, 1)
    ('+0.13', '+0.00', '-2.5')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # -0.0 + 0.0 is 0.0


def percent(share: float) -> str:
    """
    >>> percent(0.254)
    '25 %'
    """
    return f"{100 * share:.0f} %"


def shown(value, form: str | Callable[[float], str]) -> str:
    """A value by a format (``{:,}`` or a function), or a dash.

    >>> shown(1234, "{:,} MB"), shown(0.5, percent), shown(None, percent)
    ('1,234 MB', '50 %', '-')
    """
    if value is None:
        return "-"
    return form.format(value) if isinstance(form, str) else form(value)


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None without any."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def render_template(file: str, /, **content) -> str:
    """A file of templates/ with its values; those of HTML are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "signed": signed, "span": span}
    return environment.get_template(file).render(content)
