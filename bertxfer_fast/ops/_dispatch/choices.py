"""What was measured on GPUs: the faster backend by size, and the fastest configurations of Triton kernels.

The numbers stand in ``choices.json`` beside this file, which `make choices` writes from a GPU's results:

- ``faster_on_cuda``: operator -> rows ``[largest size, backend]``; the first row that holds the size of a call names
  the backend it takes. The size is the number of elements of its first tensor, or of all tensors of its first list.
  Without a row, or for a call that names no size, the order of ``backend.PREFERENCE`` decides.
- ``configurations``: launcher's module -> name of its table -> rows ``[bounds, meta]`` that replace the table's rows of
  the same bounds.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

PATH = Path(__file__).with_suffix(".json")

_measured: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))

FASTER_ON_CUDA: dict[str, list[tuple[int, str]]] = {
    op: [(largest, backend) for largest, backend in rows] for op, rows in _measured["faster_on_cuda"].items()
}
CONFIGURATIONS: dict[str, dict[str, list[Any]]] = _measured["configurations"]


def faster_on_cuda(op: str, size: int | None) -> str | None:
    """The backend measured to be the fastest for a call of this size, or None where nothing was measured."""
    if size is not None:
        for largest, backend in FASTER_ON_CUDA.get(op, ()):
            if size <= largest:
                return backend
    return None


@functools.cache
def launcher_module(name: str) -> ModuleType:
    """A launcher's module, its tables with the configurations that were measured to be the fastest."""
    module = importlib.import_module(name)
    for table, rows in CONFIGURATIONS.get(name, {}).items():
        for bounds, meta in rows:
            replace_row(getattr(module, table), tuple(bounds), meta)
    return module


def replace_row(table: list[Any], bounds: tuple[int, ...], meta: dict[str, int]) -> dict[str, int]:
    """Gives the row of a kernel's table that has these bounds another configuration; returns the one that it had.

    Raises:
        KeyError: the table has no such row.
    """
    for number, (known, former) in enumerate(table):
        if tuple(known) == bounds:
            table[number] = (known, dict(meta))
            return dict(former)
    raise KeyError(f"bounds: got {bounds}, want one of {[known for known, _ in table]}")
