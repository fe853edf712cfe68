"""Results of a GPU as tables. Nothing here measures anything.

Every record says under ``tests`` whether what was timed had passed its checks on that GPU. What did not pass them is
neither shown in the documentation nor counted, and what was not measured has no row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertxfer_fast.evaluation.tables import table

from .report import ragged_rows
from .results import Record, Results

#: Around the GPU's part of the README and of the page on performance.
MARKS = "<!-- bench:gpu:begin -->", "<!-- bench:gpu:end -->"


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row for each record that is not of a ragged batch. Ratios are the other one's time (or bytes) over ours."""
    return [
        {
            "op": record.name,
            "shape": record.shape,
            "dtype": record.dtype,
            "ms": record.value(record.ours, "ms"),
            "target ms": None if record.target_us is None else record.target_us / 1e3,
            "Triton ms": record.value("triton", "ms"),
            "CUDA ms": record.value("cuda", "ms"),
            "vs compile": record.value("compile", "ratio"),
            "vs plain": record.value("plain", "ratio"),
            "vs floor": record.value(record.floor, "ratio"),
            "vs peer": record.value(record.peer, "ratio"),
            "host ms": record.value(record.ours, "host_ms"),
            "MB": record.value(record.ours, "memory_mb"),
            "MB vs compile": record.value("compile", "memory_ratio"),
            "MB vs plain": record.value("plain", "memory_ratio"),
        }
        for record in records
        if record.gain is None
    ]


def summary(results: Results) -> str:
    """What a terminal shows last: all that was measured."""
    wanted = (
        "op",
        "shape",
        "dtype",
        "ms",
        "target ms",
        "by",
        "vs compile",
        "vs plain",
        "vs floor",
        "vs peer",
        "tests",
    )
    records = [record for record in results.entries if record.gain is None]
    shown = [
        {**row, "by": record.ours, "tests": re.split("[:,]", record.tests or "not run")[0]}
        for row, record in zip(rows(records), records, strict=True)
    ]
    return table(shown, wanted, style="text") if shown else "Nothing was measured."


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The GPU's part of the page on performance."""
    records = [record for record in results.entries if record.passed]
    parts = [gpu_line(results.machine)]
    for heading, found in (("Time and memory", rows(records)), ("Ragged batches", ragged_rows(records))):
        if found:
            columns = [name for name in found[0] if any(row[name] is not None for row in found)]
            parts.append(f"**{heading}**\n\n{table(found, columns)}")
    parts.append("\n".join(_left_out(records)))
    parts.append("\n".join(f"![{Path(link).stem}]({link})" for link in plots))
    return "\n\n".join(part for part in parts if part)


def readme_markdown(results: Results) -> str:
    """The README's rows: bfloat16, one for each op and shape, how many times as long and as large the others are."""
    records = [record for record in results.entries if record.passed and record.dtype == "bfloat16"]
    wanted = ("op", "shape", "ms", "vs compile", "vs plain", "vs peer", "MB vs compile")
    found = [{name: row[name] for name in wanted} for row in rows(records)]
    columns = [name for name in wanted if any(row.get(name) is not None for row in found)]
    lines = (
        "`make gpu` does the same on an NVIDIA GPU. Times and memory over ours, bfloat16, forward and backward, on",
        gpu_line(results.machine),
    )
    return "\n".join(lines) + ":\n\n" + table(found, columns) if found else ""


def gpu_line(machine: Mapping[str, Any]) -> str:
    """What the numbers were made on, in one line."""
    facts = [f"{machine['multiprocessors']} multiprocessors"] if "multiprocessors" in machine else []
    facts += [f"{machine['memory_gb']} GB"] if "memory_gb" in machine else []
    tools = [
        f"{name} {machine[key]}"
        for name, key in (("torch", "torch"), ("Triton", "triton"), ("nvcc", "nvcc"))
        if machine.get(key)
    ]
    return f"{machine['gpu']}{' (' + ', '.join(facts) + ')' if facts else ''}, {', '.join(tools)}"


def _left_out(records: Iterable[Record]) -> list[str]:
    """Each reason once, with all that it concerns: most concern every shape of an op."""
    whose: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, why in record.left_out.items():
            if name.split()[0] == name or name.startswith("peer: "):
                whose.setdefault((name, why), []).append(record.name)
    return [f"- {', '.join(dict.fromkeys(ops))}: {name} {why}" for (name, why), ops in whose.items()]
