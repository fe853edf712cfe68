"""docs/quality.md, written from the committed results alone: what is not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .row import Row, mean_and_error, with_error
from .runner import MOST_MINUTES, Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "quality.md"
RESULTS = Path(__file__).resolve().parent / "results"
NOT_MEASURED = "not measured"

HEAD = """# What distillation keeps

Real teacher, real text, fixed splits. Written by `make quality` from
the results in [benchmarks/quality](../benchmarks/quality): every number is the mean over the seeds with its standard
error, measured on the test split, which chooses nothing in a run; but a row that missed what was wanted may have got
other settings since and have been measured again. A seed changes the teacher, which is fine-tuned once and shared by
all rows, starting weights, order and dropout. A difference or a share is one of the same seed.

    make quality                        # all rows, at most 25 minutes each on two cores; goes on after a kill
    make quality NAMES='bilstm ner'     # some
"""


def page(rows: Sequence[Row], results: Mapping[str, Result]) -> str:
    """The whole text."""
    parts = [HEAD, "## What it has to show\n", _claims(rows, results)]
    for row in rows:
        parts += [f"## {row.title}\n", f"{row.text} (`{row.name}`)\n", _section(row, results.get(row.name))]
    return "\n".join(parts)


def write(rows: Sequence[Row], page_file: Path = PAGE, folder: Path = RESULTS) -> None:
    """Write the page and the figures beside it."""
    results = committed(rows, folder)
    for row in rows:
        if row.figure is not None and row.name in results:
            row.figure(results[row.name].measured, page_file.parent / _figure(row))
    page_file.write_text(page(rows, results), encoding="utf-8")


def committed(rows: Sequence[Row], folder: Path = RESULTS) -> dict[str, Result]:
    files = {row.name: folder / f"{row.name}.json" for row in rows}
    return {name: Result.read(file) for name, file in files.items() if file.is_file()}


def _claims(rows: Sequence[Row], results: Mapping[str, Result]) -> str:
    lines = ["| row | what | wanted | measured | met |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        for claim in row.claims:
            if row.name not in results or not claim.is_in(results[row.name].measured):
                shown = (claim.what, claim.wanted, NOT_MEASURED, "-")
            else:
                verdict = claim.verdict(results[row.name].measured)
                met = {True: "yes", False: "**no**", None: "-"}[verdict.met]
                shown = (verdict.what, verdict.wanted, verdict.measured, met)
            lines.append("| " + " | ".join((row.name, *shown)) + " |")
    return "\n".join(lines) + "\n"


def _section(row: Row, result: Result | None) -> str:
    if result is None:
        return f"{NOT_MEASURED}\n"
    metrics = list(
        dict.fromkeys(
            name
            for variants in result.measured
            for numbers in variants.values()
            for name, value in numbers.items()
            if not isinstance(value, list)
        )
    )
    lines = ["| | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    for variant in result.measured[0]:
        cells = [_cell([measured[variant].get(name) for measured in result.measured]) for name in metrics]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    machine = result.machine
    minutes = result.seconds / 60
    seeds = f"{len(result.seeds)} seeds" if len(result.seeds) > 1 else "one seed"
    threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    made = (
        f"{seeds}, {minutes:.1f} min with {threads} of {machine['processor']} ({machine['instruction_set']}), "
        f"torch {machine['torch']}."
    )
    if result.minutes_on_two > MOST_MINUTES:
        made += f" That is more than the {MOST_MINUTES} min a row should take on two cores."
    parts = ["\n".join(lines) + "\n", made + "\n"]
    if row.figure is not None:
        parts.insert(1, f"![{row.title}]({_figure(row)})\n")
    return "\n".join(parts)


def _figure(row: Row) -> str:
    return f"pictures/quality_{row.name}.svg"


def _cell(values: Sequence[Any]) -> str:
    if any(value is None for value in values):
        return "-"
    if all(isinstance(value, int) for value in values):
        return f"{values[0]:,}" if len(set(values)) == 1 else f"{sum(values) / len(values):,.0f}"
    if any(isinstance(value, str) for value in values):
        return ", ".join(dict.fromkeys(map(str, values)))
    mean, error = mean_and_error(values)
    digits = 4 if abs(mean) < 10 else 1
    if len(set(values)) == 1:
        return f"{mean:,.{digits}f}"
    return with_error(mean, error, digits)
