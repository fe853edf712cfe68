"""Every problem of `make gpu`, tiny and on CPU tensors: each implementation runs, and all find what is true.

    python -m tests.gpu_problems    a line for each problem; exits with 1 if one fails

A process of its own: benchmarks read from the environment how large they are.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator

os.environ |= dict.fromkeys(("BERTXFER_BENCH_QUICK", "BERTXFER_BENCH_SKIP_COMPILE"), "1")

from benchmarks.gpu import jobs
from benchmarks.gpu.problems import HALF, RAGGED, WHOLE, Spec

_TRUE = 1e-4  # error of float32 arithmetic over what is true


def wrong(spec: Spec) -> Iterator[str]:
    """What is wrong with a problem."""
    problem = jobs._problem({**spec.job(dry=True), "dtype": "float32"})
    if problem.check is not None:
        problem.check("cpp")
    for name, call in problem.implementations.items():
        if not callable(call):
            continue
        found = call()
        if problem.truth is not None and not name.startswith("floor"):
            errors = jobs._errors(jobs._tensors(found), jobs._truth(problem))
            if not max(errors) <= _TRUE:
                yield f"{name} is off by {jobs._digits(errors)}"


def import_all() -> None:
    """What builds the problems."""
    for spec in (*HALF, *RAGGED, *WHOLE):
        importlib.import_module(f"benchmarks.{spec.job()['module']}")


def main() -> int:
    failed = False
    for spec in (*HALF, *RAGGED, *WHOLE):
        try:
            lines = list(wrong(spec))
        except Exception as error:  # the other problems are tried, too
            lines = [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        print(f"{spec.name}: {'; '.join(lines) or 'fine'}", flush=True)
        failed |= bool(lines)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
