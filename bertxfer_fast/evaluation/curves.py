"""The losses of a run, drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["loss_curves"]

History = Sequence[Mapping[str, Any]]


def loss_curves(histories: Mapping[str, History], path: str | Path, *, title: str = "") -> Path:
    """Draw the losses of a run as a PNG: one row per stage, one panel per objective.

    Args:
        histories: stage name -> `trainer.state.log_history` of that stage. Read are `loss`, `loss/<objective>`
            and their `eval_` counterparts, over `step`. A stage with one objective gets one panel; with more,
            the weighted total comes first.
        path: where the PNG goes; its folder must exist.
        title: printed above the panels.

    Raises:
        ValueError: there is no loss in any history.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {stage: names for stage, history in histories.items() if (names := _panels(history))}
    if not panels:
        raise ValueError(
            "histories: got no logged loss, want one to draw (was the run shorter than logging_steps?)"
        )
    width = max(len(names) for names in panels.values())
    figure = Figure(figsize=(max(4.6 * width, 5.5), 3.4 * len(panels) + (0.4 if title else 0)), dpi=120)
    FigureCanvasAgg(figure)  # a canvas of our own: pyplot's global state stays untouched
    axes = figure.subplots(len(panels), width, squeeze=False)
    for row, (stage, names) in zip(axes, panels.items(), strict=True):
        for axis, name in zip(row, names, strict=False):
            _draw(axis, histories[stage], name)
            label = "total" if name == "loss" else name.partition("/")[2]
            axis.set_title(f"{stage}: {label}" if len(histories) > 1 or stage else label, fontsize=10)
        for axis in row[len(names) :]:
            axis.set_visible(False)
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    path = Path(path)
    figure.savefig(path, format="png")
    return path


def _panels(history: History) -> list[str]:
    """Log keys to draw: the objectives, and the total where it says something they do not."""
    keys = dict.fromkeys(key.removeprefix("eval_") for entry in history for key in entry)
    objectives = [key for key in keys if key.startswith("loss/")]
    return objectives if len(objectives) == 1 else [*(["loss"] if "loss" in keys else []), *objectives]


def _draw(axis: Axes, history: History, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    values: list[float] = []
    for key, label, marker in ((name, "train", ""), (f"eval_{name}", "dev", "o")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry and "step" in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            lone = len(points) == 1  # a single point draws no line
            axis.plot(steps, losses, label=label, marker="o" if lone else marker, markersize=4, linewidth=1.3)
            values += [value for value in losses if math.isfinite(value)]
    if values and min(values) > 0 and max(values) / min(values) > 30:
        axis.set_yscale("log")
    else:
        axis.ticklabel_format(axis="y", useOffset=False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
