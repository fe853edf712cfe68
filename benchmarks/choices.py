"""Rows for `ops/_dispatch/choices.json` from a GPU's results: which backend is faster, and which configurations are.

    python3 -m benchmarks.choices benchmarks/results/<gpu>.json            prints the table
    python3 -m benchmarks.choices benchmarks/results/<gpu>.json --write    puts it into the package
    python3 -m benchmarks.choices <gpu>-sweep.jsonl [--write]              the same of `make gpu-sweep`

Where records of one size differ (kinds, ragged batches), the geometric mean of their times decides; between two sizes
that were measured and have different winners the border is their geometric mean. float32 does not decide where
bfloat16 was measured too: training on a GPU runs in half precision. What did not pass its checks does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertxfer_fast.errors import InputError

from .results import Record, Results

TABLE = Path(__file__).resolve().parent.parent / "bertxfer_fast" / "ops" / "_dispatch" / "choices.json"
BACKENDS = ("triton", "cuda")
UNBOUNDED = 1 << 62
#: A configuration replaces the one that is there if it takes at most this share of its time: less is noise.
GAIN = 0.97

Rows = list[tuple[int, str]]


def choose(records: Iterable[Record]) -> dict[str, Rows]:
    """Operator -> (largest size, backend), of operators that both backends were measured with."""
    usable = [
        record
        for record in records
        if record.operator and record.size and record.passed
        if all(name in record.implementations for name in BACKENDS)
    ]
    table = {}
    for operator in sorted({record.operator for record in usable if record.operator}):
        mine = [record for record in usable if record.operator == operator]
        half = [record for record in mine if record.dtype != "float32"]
        table[operator] = _rows(half or mine)
    return table


def _rows(records: Sequence[Record]) -> Rows:
    gains: dict[int, list[float]] = {}
    for record in records:
        triton, cuda = (record.implementations[name].ms for name in BACKENDS)
        gains.setdefault(record.size or 0, []).append(math.log(cuda / triton))
    rows: Rows = []
    for size in sorted(gains):
        faster = BACKENDS[0] if sum(gains[size]) >= 0 else BACKENDS[1]
        if rows and rows[-1][1] != faster:
            rows[-1] = math.isqrt(rows[-1][0] * size), rows[-1][1]
            rows.append((size, faster))
        elif rows:
            rows[-1] = size, faster
        else:
            rows = [(size, faster)]
    rows[-1] = UNBOUNDED, rows[-1][1]
    return rows


def best_configurations(facts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Module -> table -> rows, from a sweep's facts: those that are clearly faster than what stands in the table."""
    timed: dict[tuple[str, str, tuple[int, ...]], list[Mapping[str, Any]]] = {}
    for fact in facts:
        if fact.get("kind") == "sweep":
            timed.setdefault((fact["module"], fact["table"], tuple(fact["bounds"])), []).append(fact)
    chosen: dict[str, dict[str, list[Any]]] = {}
    for (module, table, bounds), tried in timed.items():
        standing = [fact["ms"] for fact in tried if fact["standing"]]
        best = min(tried, key=lambda fact: fact["ms"])
        if standing and best["ms"] <= GAIN * min(standing):
            chosen.setdefault(module, {}).setdefault(table, []).append([list(bounds), best["meta"]])
    return chosen


def update(path: Path = TABLE, **parts: Mapping[str, Any]) -> None:
    """Puts the given parts into the table: operators, or rows of kernels' tables, that it does not name stay."""
    known = json.loads(path.read_text(encoding="utf-8"))
    known["faster_on_cuda"].update(parts.get("faster_on_cuda", {}))
    for module, tables in parts.get("configurations", {}).items():
        for table, rows in tables.items():
            old = known["configurations"].setdefault(module, {}).get(table, [])
            merged = {tuple(bounds): meta for bounds, meta in (*old, *rows)}
            known["configurations"][module][table] = [[list(bounds), meta] for bounds, meta in merged.items()]
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _from_file(path: Path) -> dict[str, Any]:
    """The part of the table that a file of results, or of a sweep's facts, speaks of."""
    if path.suffix == ".jsonl":
        from .gpu.facts import read_facts

        found = best_configurations(read_facts(path))
        if not found:
            raise InputError(f"{path.name}: no configuration was clearly faster than the one that stands")
        return {"configurations": found}
    results = Results.read(path)
    if not results.of_gpu or results.quick:
        raise InputError(f"{path.name}: wants results of a GPU, not of a dry run")
    table = choose(results.entries)
    if not table:
        raise InputError(f"{path.name}: no operator was measured with both backends and passed")
    return {"faster_on_cuda": table}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.choices", allow_abbrev=False)
    parser.add_argument("results", type=Path, help="a GPU's results, .json, or a sweep's facts, .jsonl")
    parser.add_argument("--write", action="store_true", help=f"put the table into {TABLE.name}")
    args = parser.parse_args(words)
    try:
        part = _from_file(args.results)
    except InputError as error:
        print(f"choices: {error}", file=sys.stderr)
        return 2
    print(json.dumps(part, indent=1))
    if args.write:
        update(**part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
