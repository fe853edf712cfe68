"""Jobs that a worker of `make gpu` can be given in a test: good ones, and each way in which one can go wrong."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any


def add(a: int, b: int) -> Iterator[dict[str, Any]]:
    yield {"sum": a + b}
    yield {"process": os.getpid()}


def fail(after: int) -> Iterator[dict[str, Any]]:
    for number in range(after):
        yield {"number": number}
    raise ValueError("no such thing\nmore")


def crash() -> Iterator[dict[str, Any]]:
    yield {"number": 0}
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> Iterator[dict[str, Any]]:
    yield {"number": 0}
    time.sleep(600)


def lose_the_gpu() -> Iterator[dict[str, Any]]:
    sys.modules["benchmarks.device"] = SimpleNamespace(usable=lambda: False)  # type: ignore[assignment]
    yield {"process": os.getpid()}
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def variable(key: str) -> Iterator[dict[str, Any]]:
    yield {key: os.environ.get(key)}
