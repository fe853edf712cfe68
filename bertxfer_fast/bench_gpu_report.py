"""Results of a GPU as tables: of what `make gpu` measured, or saying that nothing was. Nothing here measures anything.

The results are as in `bench_report`; their machine has a ``gpu``, and every record says under ``tests`` whether the
operator's tests passed on it. What did not pass them is neither shown in the documentation nor counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bench_report import Record, Results, floor_of, named, ragged_rows, value_of
from .evaluation.tables import table

#: Around the GPU's part of the README and of the page on performance.
MARKS = "<!-- bench:gpu:begin -->", "<!-- bench:gpu:end -->"

NOT_MEASURED = "not yet measured"
PASSED = "passed"

#: What a GPU run measures: op with its case -> tensors of the first shape.
MEASURED: dict[str, str] = {
    "attention_score_mse": "64x512x12x32x64",
    "attention_map kl": "64x512x12x32x64",
    "attention_map mse": "64x512x12x32x64",
    "relation_kl": "64x512x384/768, 48 heads",
    "hidden_mse": "32768x312->768",
    "hidden_cosine": "32768x312->768",
    "linear_logits_kl": "4096x312/768->30522",
    "logits_kl": "4096x30522",
    "pool_features mean": "64x512x768, 4 layers",
    "pool_features max": "64x512x768, 4 layers",
}


def is_gpu(results: Results) -> bool:
    return "gpu" in results["machine"]


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row for each record that is not of a ragged batch. Ratios are the other one's time (or bytes) over ours."""
    return [
        {
            "op": named(record),
            "shape": record["shape"],
            "dtype": record["dtype"],
            "ms": value_of(record, record["ours"], "ms"),
            "Triton ms": value_of(record, "triton", "ms"),
            "CUDA ms": value_of(record, "cuda", "ms"),
            "vs compile": value_of(record, "compile", "ratio"),
            "vs plain": value_of(record, "plain", "ratio"),
            "vs floor": value_of(record, floor_of(record), "ratio"),
            "vs peer": value_of(record, _peer(record), "ratio"),
            "host ms": value_of(record, record["ours"], "host_ms"),
            "MB": value_of(record, record["ours"], "memory_mb"),
            "MB vs compile": value_of(record, "compile", "memory_ratio"),
            "MB vs plain": value_of(record, "plain", "memory_ratio"),
        }
        for record in records
        if "gain" not in record
    ]


def summary(results: Results) -> str:
    """What a terminal shows last: all that was measured, passed or not."""
    wanted = "op", "shape", "dtype", "ms", "by", "vs compile", "vs plain", "vs floor", "vs peer", "tests"
    records = [record for record in results["entries"] if "gain" not in record]
    shown = [
        {**row, "by": record["ours"], "tests": re.split("[:,]", record["tests"])[0]}
        for row, record in zip(rows(records), records, strict=True)
    ]
    return table(shown, wanted, style="text") if shown else "Nothing was measured."


def markdown(results: Results | None, plots: Sequence[str] = ()) -> str:
    """The GPU's part of the page on performance; without results the rows say so."""
    if results is None:
        return f"On a GPU: {NOT_MEASURED}.\n\n" + table(
            [
                {"op": op, "shape": shape, "dtype": "bfloat16", "ms": NOT_MEASURED}
                for op, shape in MEASURED.items()
            ]
        )
    records = [record for record in results["entries"] if passed(record)]
    parts = [gpu_line(results["machine"])]
    for heading, found in (("Time and memory", rows(records)), ("Ragged batches", ragged_rows(records))):
        if found:
            columns = [name for name in found[0] if any(row[name] is not None for row in found)]
            parts.append(f"**{heading}**\n\n{table(found, columns)}")
    missing = [op for op in MEASURED if op not in {named(record) for record in records}]
    refused = sorted({named(record) for record in results["entries"] if not passed(record)})
    if missing:
        parts.append(f"{NOT_MEASURED.capitalize()}: {', '.join(missing)}.")
    if refused:
        parts.append(f"No numbers, because the tests did not pass: {', '.join(refused)}.")
    parts.append("\n".join(_left_out(records)))
    parts.append("\n".join(f"![{Path(link).stem}]({link})" for link in plots))
    return "\n\n".join(part for part in parts if part)


def readme_markdown(results: Results | None) -> str:
    """The README's rows: bfloat16, one for each op and shape, how many times as long and as large the others are."""
    if results is None:
        return f"On a GPU: {NOT_MEASURED}.\n\n" + table(
            [{"op": op, "vs compile": NOT_MEASURED, "vs plain": NOT_MEASURED} for op in MEASURED]
        )
    records = [record for record in results["entries"] if passed(record) and record["dtype"] == "bfloat16"]
    wanted = ("op", "shape", "ms", "vs compile", "vs plain", "vs peer", "MB vs compile")
    found = [{name: row[name] for name in wanted} for row in rows(records)]
    found += [{"op": op, "ms": NOT_MEASURED} for op in MEASURED if op not in {row["op"] for row in found}]
    columns = [name for name in wanted if any(row.get(name) is not None for row in found)]
    lines = (
        "Times and peak memory over ours, bfloat16, forward and backward, on",
        gpu_line(results["machine"]),
    )
    return "\n".join(lines) + ":\n\n" + table(found, columns)


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


def passed(record: Record) -> bool:
    return record.get("tests") == PASSED


def _peer(record: Record) -> str | None:
    return next((name for name in record["implementations"] if name.startswith("peer: ")), None)


def _left_out(records: Iterable[Record]) -> list[str]:
    """Each reason once, with all that it concerns: most concern every shape of an op."""
    whose: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, why in (record.get("left_out") or {}).items():
            if name.split()[0] == name or name.startswith("peer: "):
                whose.setdefault((name, why), []).append(named(record))
    return [f"- {', '.join(dict.fromkeys(ops))}: {name} {why}" for (name, why), ops in whose.items()]
