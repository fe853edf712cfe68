"""Benchmark results as tables, as blocks of the documentation, and as plots. Nothing here measures anything.

Ratios are times (or bytes) over ours: above 1, ours is faster (or smaller).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertxfer_fast.errors import InputError
from bertxfer_fast.evaluation.tables import table

from .results import Record, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
LENGTHS = (128, 512, 2048)  # columns of the short table

#: How a plot names and colours an implementation, the same in every figure; others take the colours that are left.
_LABELS = {
    "cpp": "ours",
    "triton": "ours, Triton",
    "cuda": "ours, CUDA",
    "compile": "torch.compile",
    "plain": "plain eager",
    "eager": "our reference",
}
_COLOURS = {"cpp": "black", "cuda": "black", "triton": "C2", "compile": "C1", "plain": "C0", "eager": "C2"}
_OURS = ("cpp", "triton", "cuda")


# ---- tables -------------------------------------------------------------------------------------------------


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The main table: one row for each record that is neither of a ragged batch of one op, nor of overhead."""
    return [
        {
            "op": record.name,
            "shape": record.shape,
            "dtype": record.dtype,
            "ms": record.value(record.ours, "ms"),
            "vs compile": record.value("compile", "ratio"),
            "vs plain": record.value("plain", "ratio"),
            "vs floor": record.value(record.floor, "ratio"),
            "vs float32": record.value("cpp float32", "ratio"),
            "MB": record.value(record.ours, "memory_mb"),
            "MB vs compile": record.value("compile", "memory_ratio"),
            "MB vs plain": record.value("plain", "memory_ratio"),
            "MB / gradients": record.value(record.ours, "memory_per_gradient"),
        }
        for record in records
        if record.gain is None and record.op != "overhead"
    ]


def ragged_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What packing brings on ragged batches."""
    return [
        {
            "op": record.name,
            "shape": record.shape,
            "dtype": record.dtype,
            "real tokens": record.valid,
            "ms packed": record.value(record.ours, "ms"),
            "ms full length": record.value(f"{record.ours} full length", "ms"),
            "gain": record.gain,
            "ideal gain": record.ideal_gain,
        }
        for record in records
        if record.gain is not None
    ]


def overhead_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Microseconds of tiny losses, and how many calls of mse_loss they take."""
    found = []
    for record in records:
        floor = record.value(record.floor, "ratio")
        if record.op == "overhead":
            ours = record.value(record.ours, "ms")
            found.append(
                {
                    "op": record.case,
                    "shape": record.shape,
                    "microseconds": None if ours is None else ours * 1e3,
                    "times mse_loss": 1 / floor if floor else None,
                }
            )
    return found


def tables(results: Results, *, style: str = "markdown") -> str:
    """All tables that have rows, each under its heading."""
    mark = "**" if style == "markdown" else ""
    parts = []
    for heading, make in (
        ("Time and memory", rows),
        ("Ragged batches", ragged_rows),
        ("Overhead", overhead_rows),
    ):
        found = make(results.entries)
        # A column that is empty in every row says nothing.
        columns = [
            name for name in (found[0] if found else {}) if any(row[name] is not None for row in found)
        ]
        if found:
            parts.append(f"{mark}{heading}{mark}\n\n{table(found, columns, style=style)}")
    return "\n\n".join(parts)


def machine_line(machine: Mapping[str, Any]) -> str:
    """What the numbers were made on, in one line."""
    features = ", ".join(machine.get("features") or ())
    allocator = ", ".join(f"{k}={v}" for k, v in (machine.get("allocator") or {}).items())
    return (
        f"{machine.get('processor')} ({features or 'no listed features'}), {machine.get('threads')} threads, "
        f"kernels {machine.get('instruction_set')} built by {machine.get('compiler')}, torch {machine.get('torch')}, "
        f"allocator: {allocator or 'as the system sets it'}"
    )


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The tables for the documentation, under the machine; `plots` are links to figures that follow them."""
    left_out = [
        f"- {record.name} {record.shape} {record.dtype}: without {name}, it {why}"
        for record in results.entries
        for name, why in record.left_out.items()
    ]
    notes = sorted({r.memory_note for r in results.entries if r.memory_note and r.op != "overhead"})
    parts = [
        machine_line(results.machine),
        tables(results),
        *(f"Memory is missing: {note}." for note in notes),
        "\n".join(left_out),
        "\n".join(f"![{Path(link).stem}]({link})" for link in plots),
    ]
    return "\n\n".join(part for part in parts if part)


def readme_markdown(results: Results) -> str:
    """The short table: one row per op, float32, how many times as long torch.compile takes as we do."""
    found: dict[str, dict[str, Any]] = {}
    for record in results.entries:
        ratio = record.value("compile", "ratio")
        if ratio is None or record.gain is not None or record.dtype != "float32":
            continue
        row = found.setdefault(
            record.name, {"op": record.name, **{f"L = {n}": None for n in LENGTHS}, "other": None}
        )
        shown = f"{ratio:.1f}"
        if record.length in LENGTHS:
            row[f"L = {record.length}"] = shown
        else:
            row["other"] = f"{shown} ({record.shape})"
    lines = [
        "Time of `torch.compile` of the plain code over ours, float32, on",
        machine_line(results.machine) + ":",
    ]
    cells = [{key: "-" if value is None else value for key, value in row.items()} for row in found.values()]
    return (
        "\n".join(lines) + "\n\n" + table(cells)
        if cells
        else "No comparison with torch.compile was measured."
    )


# ---- documentation ------------------------------------------------------------------------------------------


def replace_block(page: Path, block: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put `block` between the page's two markers.

    Raises:
        InputError: the page has not exactly one pair of markers.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{page.name}: wants one {begin} and after it one {end}")
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    page.write_text(f"{before}\n{block + chr(10) if block else ''}{after}", encoding="utf-8")


# ---- plots --------------------------------------------------------------------------------------------------


def plot(results: Results, folder: Path, prefix: str = "") -> list[Path]:
    """Time and memory against the length, one SVG for each op (and case) that was measured at two lengths or more.

    `prefix` begins the names of the files.
    """
    series: dict[str, list[Record]] = {}
    for record in results.entries:
        if record.length is not None and record.gain is None and _is_attention(record):
            series.setdefault(record.name, []).append(record)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _figure(name, records, folder / f"{prefix}{name.replace(' ', '-')}.svg")
        for name, records in series.items()
        if len({record.length for record in records}) > 1
    ]


def _is_attention(record: Record) -> bool:
    """Whole steps and extraction have lengths, too, but other batches at each of them."""
    return record.op not in ("step", "extract", "teacher")


def _figure(name: str, records: Sequence[Record], path: Path) -> Path:
    """Columns are dtypes; the upper row is time, the lower one memory."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(record.dtype for record in records))
    figure = Figure(figsize=(4.2 * len(dtypes) + 0.6, 6.4))
    FigureCanvasSVG(figure)  # a canvas of our own: pyplot's global state stays untouched
    axes = figure.subplots(2, len(dtypes), squeeze=False, sharex=True, sharey="row")
    for column, dtype in enumerate(dtypes):
        chosen = sorted((r for r in records if r.dtype == dtype), key=lambda r: r.length)
        _lines(axes[0][column], chosen, "ms", lambda key: key != "cpp float32")
        _lines(axes[1][column], chosen, "memory_mb", lambda key: key != "cpp float32" and "floor" not in key)
        axes[0][column].set_title(dtype, fontsize=10)
        axes[1][column].set_xlabel("length L")
    axes[0][0].set_ylabel("time, ms")
    axes[1][0].set_ylabel("peak extra memory, MB")
    axes[0][0].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{name}, forward and backward", fontsize=11)
    figure.tight_layout()
    # The same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _lines(axis: Axes, records: Sequence[Record], key: str, wanted: Callable[[str], bool]) -> None:
    names = dict.fromkeys(name for record in records for name in record.implementations if wanted(name))
    free = [name for name in names if name not in _COLOURS and not name.startswith("floor: ")]
    others = (f"C{3 + i}" for i in range(len(free)))
    for name in names:
        points = [
            (record.length, value)
            for record in records
            if (value := record.value(name, key)) is not None and value > 0
        ]
        if points:
            lengths, values = zip(*points, strict=True)
            ours, floor = name in _OURS, name.startswith("floor: ")
            style = ":" if floor else "-" if ours or name in ("plain", "compile") else "--"
            axis.plot(
                lengths,
                values,
                style,
                color=next(others) if name in free else _COLOURS.get(name, "grey"),
                linewidth=2.2 if ours else 1.3,
                marker="o",
                markersize=4 if ours else 3,
                label=_LABELS.get(name, name),
            )
    ticks = sorted({record.length for record in records})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(ticks, [str(length) for length in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
