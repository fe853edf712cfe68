"""What was measured to be faster on GPUs, where more than one backend has an operator."""

from __future__ import annotations

#: Operator -> rows (largest size, backend): the first row that holds the size of a call names the backend it takes.
#: The size is the number of elements of its first tensor, or of all tensors of its first list. `benchmarks.choices`
#: writes this table from a GPU's results.
#: Empty: nothing has been measured yet. Without a row, or for a call that names no size, the order of
#: ``_backend.PREFERENCE`` decides, in which Triton comes first.
FASTER_ON_CUDA: dict[str, list[tuple[int, str]]] = {}


def faster_on_cuda(op: str, size: int | None) -> str | None:
    """The backend measured to be the fastest for a call of this size, or None where nothing was measured."""
    if size is not None:
        for largest, backend in FASTER_ON_CUDA.get(op, ()):
            if size <= largest:
                return backend
    return None
