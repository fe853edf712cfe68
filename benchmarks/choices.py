"""Rows for `ops/_choices.py` from a GPU's results: which of our backends is faster for which operator and size.

    python3 -m benchmarks.choices benchmarks/results/<gpu>.json            prints the table
    python3 -m benchmarks.choices benchmarks/results/<gpu>.json --write    puts it into the module

Where records of one size differ (kinds, ragged batches), the geometric mean of their times decides; between two sizes
that were measured and have different winners the border is their geometric mean. float32 does not decide where
bfloat16 was measured too: training on a GPU runs in half precision. What did not pass its tests does not count.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertxfer_fast import bench
from bertxfer_fast import bench_gpu_report as report
from bertxfer_fast.errors import InputError

MODULE = Path(__file__).resolve().parent.parent / "bertxfer_fast" / "ops" / "_choices.py"
BACKENDS = ("triton", "cuda")
UNBOUNDED = 1 << 62
_TABLE = re.compile(r"^FASTER_ON_CUDA: (?P<type>.*?) = \{.*?\}$", re.MULTILINE | re.DOTALL)

Rows = list[tuple[int, str]]


def choose(records: Iterable[Mapping[str, Any]]) -> dict[str, Rows]:
    """Operator -> (largest size, backend), of operators that both backends were measured with."""
    usable = [
        record
        for record in records
        if record.get("operator") and record.get("size") and report.passed(record)
        if all(name in record["implementations"] for name in BACKENDS)
    ]
    table = {}
    for operator in sorted({record["operator"] for record in usable}):
        mine = [record for record in usable if record["operator"] == operator]
        half = [record for record in mine if record["dtype"] != "float32"]
        table[operator] = _rows(half or mine)
    return table


def _rows(records: Sequence[Mapping[str, Any]]) -> Rows:
    gains: dict[int, list[float]] = {}
    for record in records:
        triton, cuda = (record["implementations"][name]["ms"] for name in BACKENDS)
        gains.setdefault(record["size"], []).append(math.log(cuda / triton))
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


def source(table: Mapping[str, Rows], typed: str = "dict[str, list[tuple[int, str]]]") -> str:
    """The statement that stands in the module."""
    if not table:
        return f"FASTER_ON_CUDA: {typed} = {{}}"
    lines = []
    for operator, rows in table.items():
        shown = ", ".join(
            f'({"1 << 62" if largest == UNBOUNDED else largest}, "{backend}")' for largest, backend in rows
        )
        lines.append(f'    "{operator}": [{shown}],')
    return "\n".join([f"FASTER_ON_CUDA: {typed} = {{", *lines, "}"])


def write(table: Mapping[str, Rows], module: Path = MODULE) -> None:
    """Replaces the statement in the module.

    Raises:
        InputError: it is not there exactly once.
    """
    text = module.read_text(encoding="utf-8")
    found = list(_TABLE.finditer(text))
    if len(found) != 1:
        raise InputError(f"{module.name}: wants one statement FASTER_ON_CUDA: ... = {{...}}")
    statement = source(table, found[0].group("type"))
    module.write_text(text[: found[0].start()] + statement + text[found[0].end() :], encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.choices", allow_abbrev=False)
    parser.add_argument("results", type=Path, help="a GPU's results file")
    parser.add_argument("--write", action="store_true", help=f"put the table into {MODULE.name}")
    args = parser.parse_args(words)
    try:
        results = bench.read(args.results)
        if not report.is_gpu(results) or results["quick"]:
            raise InputError(f"{args.results.name}: wants results of a GPU, not of a dry run")
        table = choose(results["entries"])
        if not table:
            raise InputError(f"{args.results.name}: no operator was measured with both backends and passed")
        print(source(table))
        if args.write:
            write(table)
    except InputError as error:
        print(f"choices: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
