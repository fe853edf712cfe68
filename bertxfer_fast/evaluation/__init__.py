"""How good, how large and how fast a model is, and how that is told.

`evaluate` gives a model's metrics, `assess` all that is told about it; `measured` puts several into the content of a
results.json, `html_report` draws a page.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

#: Public name -> module of this package that holds it.
_LAZY = {
    "Assessment": "assessment",
    "Estimate": "intervals",
    "ModelCard": "card",
    "Predictions": "predictions",
    "Resampling": "assessment",
    "answers": "answering",
    "assess": "assessment",
    "class_table": "classes",
    "compared": "results",
    "confusion_matrix": "classes",
    "difference": "assessment",
    "evaluate": "measuring",
    "html_report": "report",
    "measured": "results",
    "predict": "predictions",
    "read_results": "results",
    "squad_scores": "answering",
    "summary": "measuring",
    "table": "tables",
    "throughput": "speed",
}

__all__ = [
    "Assessment",
    "Estimate",
    "ModelCard",
    "Predictions",
    "Resampling",
    "answers",
    "assess",
    "class_table",
    "compared",
    "confusion_matrix",
    "difference",
    "evaluate",
    "html_report",
    "measured",
    "predict",
    "read_results",
    "squad_scores",
    "summary",
    "table",
    "throughput",
]

if TYPE_CHECKING:
    from .answering import answers, squad_scores
    from .assessment import Assessment, Resampling, assess, difference
    from .card import ModelCard
    from .classes import class_table, confusion_matrix
    from .intervals import Estimate
    from .measuring import evaluate, summary
    from .predictions import Predictions, predict
    from .report import html_report
    from .results import compared, measured, read_results
    from .speed import throughput
    from .tables import table


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bertxfer_fast.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
