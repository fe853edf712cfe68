"""Rows of numbers as text: in Markdown, or plain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["format_value", "table"]


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, style: str = "markdown"
) -> str:
    """Rows of `{column: value}` as a table.

    Args:
        rows: one mapping per line; a missing or None value prints as `-`.
        columns: which columns, in order; by default every column, in order of first appearance.
        style: `"markdown"` (aligned, so it also reads well as text) or `"text"` (no bars).

    Raises:
        ValueError: unknown style.
    """
    if style not in ("markdown", "text"):
        raise ValueError(f"style: got {style!r}, want 'markdown' or 'text'")
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    formats = [_column_format([row.get(name) for row in rows]) for name in names]
    cells = [names, *([f(row.get(name)) for name, f in zip(names, formats, strict=True)] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(names))]
    right = [all(_is_number(row.get(name)) for row in rows) and bool(rows) for name in names]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True)]
        return f"| {' | '.join(padded)} |" if style == "markdown" else "  ".join(padded).rstrip()

    if style == "markdown":
        bars = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]
    else:
        bars = ["-" * w for w in widths]
    return "\n".join([line(cells[0]), line(bars), *(line(row) for row in cells[1:])])


def format_value(value: Any) -> str:
    """A single value as it would stand in a table."""
    return _column_format([value])(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _column_format(values: Sequence[Any]) -> Callable[[Any], str]:
    """One number of decimals for a whole column, by its largest value; whole numbers stay whole.

    A column whose small numbers that would cut to one digit gives each number decimals of its own.
    """
    floats = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
    largest, smallest = max(floats, default=0.0), min((v for v in floats if v), default=0.0)
    style = ".2e" if 0 < largest < 1e-3 else f",.{_decimals(largest)}f"
    wide = smallest > 0 and smallest * 10 ** _decimals(largest) < 10 and largest >= 100

    def show(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return str(value).replace("|", "/").replace("\n", " ")
        if isinstance(value, int):
            return f"{value:,}"
        return format(value, f",.{_decimals(abs(value))}f" if wide and math.isfinite(value) else style)

    return show


def _decimals(value: float) -> int:
    """Decimals that leave four digits, or what there is of them before the point."""
    return next((n for limit, n in ((1, 4), (10, 3), (100, 2), (1000, 1)) if value <= limit), 0)
