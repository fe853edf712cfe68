"""Text in, packed batches out: reading tables, encoding, labels, packing, samplers, collators.

What reads and encodes text is imported on first use, so that packing needs torch and numpy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["encode", "label_map", "load", "load_label_map", "save_label_map", "sequence_lengths"]

if TYPE_CHECKING:
    from .encoding import encode, label_map, load_label_map, save_label_map, sequence_lengths
    from .tables import load


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bertxfer_fast.data' has no attribute {name!r}")
    from . import encoding, tables

    return getattr(tables if name == "load" else encoding, name)
