"""The rows, in the order of the page; each is the `ROW` of its file."""

from __future__ import annotations

import importlib

from ..row import Row

#: A new row is one more name and its file.
NAMES = (
    "half_depth",
    "three_teachers",
    "small",
    "bilstm",
    "textcnn",
    "static",
    "terms",
    "recipes",
    "augmentation",
    "features",
    "embedding",
    "ner",
    "blending",
    "store",
    "black_box",
    "resume",
)
ROWS: tuple[Row, ...] = tuple(importlib.import_module(f"{__name__}.{name}").ROW for name in NAMES)
