"""A sweep over one number, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["sweep_curve"]


def sweep_curve(
    rows: Sequence[Mapping[str, float]],
    path: str | Path,
    *,
    x: str = "beta",
    best: float | None = None,
    title: str = "",
) -> Path:
    """Draw the columns of a sweep over one of them as a PNG.

    Args:
        rows: one mapping for each point, all with the same columns.
        path: where the PNG goes; its folder must exist.
        x: the column that was swept; every other one is a line.
        best: a value of ``x`` to mark.
        title: printed above.

    Raises:
        ValueError: no rows, or rows without ``x`` or anything beside it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [name for name in (rows[0] if rows else {}) if name != x]
    if not lines or x not in rows[0]:
        raise ValueError(f"rows: got {list(rows[:1])}, want at least one with {x!r} and a value")
    rows = sorted(rows, key=lambda row: row[x])
    figure = Figure(figsize=(5.5, 3.6), dpi=120)
    FigureCanvasAgg(figure)  # a canvas of our own: pyplot's global state stays untouched
    axis = figure.subplots()
    for name in lines:
        axis.plot([row[x] for row in rows], [row[name] for row in rows], marker="o", markersize=4, label=name)
    if best is not None:
        axis.axvline(best, color="grey", linestyle="--", linewidth=1, label=f"best {x} {best:g}")
    axis.set_xlabel(x)
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    if title:
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    path = Path(path)
    figure.savefig(path, format="png")
    return path
