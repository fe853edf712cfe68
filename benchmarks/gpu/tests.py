"""The tests of tests/gpu as a step: as many workers as cores, each verdict a fact when it is known."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .facts import Facts
from .problems import PARTS

ROOT = Path(__file__).resolve().parents[2]
_SLOW = ["--ignore=tests/gpu/test_sanitizer.py"]  # compute-sanitizer takes minutes: run it by itself
_VARIABLE = "BERTXFER_BENCH_VERDICTS"


def contract(backend: str, parts: list[str]) -> Iterator[dict[str, Any]]:
    """A job: all tests of one backend. Their verdicts are facts of their own; the last one counts them."""
    words = ["-m", "gpu", "tests/gpu", *_SLOW, "-q", "--tb=line", "-p", "no:cacheprovider", "-p", __name__]
    words += ["-k", " or ".join(parts)] if set(parts) < set(PARTS) else []  # some tests are of no part
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(os.cpu_count() or 1)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env={**os.environ, "BERTXFER_GPU_BACKENDS": backend},
        capture_output=True,
        text=True,
    )
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    yield {"kind": "tests", "backend": backend, "code": done.returncode, "summary": last}
    if done.returncode not in (0, 1):  # 1: some failed, which their verdicts say
        raise RuntimeError(f"pytest ended with {done.returncode}: {last}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """As a plug-in of pytest: writes a test's verdict down. With workers the one that collects reports does."""
    path = os.environ.get(_VARIABLE)
    if path is None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.outcome != "passed":
        fact = {
            "kind": "test",
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
        }
        if report.failed:
            fact["why"] = str(report.longrepr).strip().splitlines()[-1][:300]
        Facts(Path(path)).add(json.loads(json.dumps(fact)))
