"""Text in, packed batches out: reading tables, encoding, labels, packing, samplers, collators, loaders.

What reads and encodes text is imported on first use, so that packing needs torch and numpy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

#: Public name -> module of this package that holds it.
_LAZY = {
    "NO_LIMIT": "encoding",
    "encode": "encoding",
    "encode_both": "both",
    "label_map": "labels",
    "load": "tables",
    "load_label_map": "labels",
    "save_label_map": "labels",
    "sequence_lengths": "loaders",
    "side_by_side": "both",
}

__all__ = [
    "NO_LIMIT",
    "encode",
    "encode_both",
    "label_map",
    "load",
    "load_label_map",
    "save_label_map",
    "sequence_lengths",
    "side_by_side",
]

if TYPE_CHECKING:
    from .both import encode_both, side_by_side
    from .encoding import NO_LIMIT, encode
    from .labels import label_map, load_label_map, save_label_map
    from .loaders import sequence_lengths
    from .tables import load


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bertxfer_fast.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
