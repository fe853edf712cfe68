"""What is told to people: the student's model card, the loss curves, the summary table, the environment.

Nothing here measures anything. Every number printed is one that was handed in.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, Any]]


# ---- table --------------------------------------------------------------------------------------------------


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
        raise ValueError(f"style: wants 'markdown' or 'text', got {style!r}")
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


# ---- loss curves --------------------------------------------------------------------------------------------


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
        raise ValueError("histories: no logged loss to draw (was the run shorter than logging_steps?)")
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


# ---- model card ---------------------------------------------------------------------------------------------


@dataclass
class ModelCard:
    """What the README.md of a saved student says. Fields left empty leave their section out.

    Attributes:
        recipe: name of the distillation recipe.
        teacher: name of the teacher (a local path is shortened to its last folder: a card is published, a
            machine's folders are not its business).
        student: facts of the student, for example `{"layers": 3, "parameters": 17_000_000}`.
        stages: one mapping per stage, printed as a table.
        data: split name -> number of sequences.
        metrics: measured numbers, one mapping per row (for example teacher and student), printed as given.
        auto_class: the transformers class that loads the student.
        task: what its head does, in words.
    """

    recipe: str = ""
    teacher: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, int] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    auto_class: str = "AutoModel"
    task: str = ""

    def render(self, name: str = "student") -> str:
        """The card as Markdown with a YAML head; `name` is its heading."""
        teacher = short_name(self.teacher)
        head = {"library_name": "transformers", "tags": ["distillation", "bertxfer_fast"]}
        parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---", f"# {name}"]
        origin = f" from `{teacher}`" if teacher else ""
        recipe = f" with the `{self.recipe}` recipe" if self.recipe else ""
        task = f" Task: {self.task}." if self.task else ""
        made = "A student model distilled" if teacher or recipe else "A model trained"
        parts.append(f"{made}{origin}{recipe} by bertxfer_fast.{task}")
        if self.student:
            facts = "\n".join(
                f"- {key.replace('_', ' ')}: {_column_format([value])(value)}"
                for key, value in self.student.items()
            )
            parts.append(f"## Student\n\n{facts}")
        if self.stages:
            parts.append(f"## Training\n\n{table(self.stages)}")
        if self.data:
            sizes = "\n".join(f"- {split}: {count:,} sequences" for split, count in self.data.items())
            parts.append(f"## Data\n\n{sizes}")
        if self.metrics:
            parts.append(f"## Measured\n\n{table(self.metrics)}")
        parts.append(
            "## Use\n\nAn ordinary transformers model; bertxfer_fast is not needed to run it.\n\n"
            f"```python\nfrom transformers import {self.auto_class}, AutoTokenizer\n\n"
            f'model = {self.auto_class}.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
        )
        return "\n\n".join(parts) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write `README.md` into `folder` (which must exist), headed by the folder's name."""
        path = Path(folder) / "README.md"
        path.write_text(self.render(Path(folder).resolve().name), encoding="utf-8")
        return path


def short_name(model: str) -> str:
    """A model's public name: a hub id stays, a path becomes its last folder."""
    looks_like_path = Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    return Path(model).name if looks_like_path or "\\" in model or Path(model).exists() else model


# ---- environment --------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """What `bertxfer info` prints: `versions`, `devices`, `build`, and `ops` (implementation chosen, and why)."""
    import torch

    from .. import __version__, build_info, explain

    versions = {"bertxfer_fast": __version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    devices = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    return {"versions": versions, "devices": devices, "build": build_info(), "ops": explain()}
