"""`results.json`: what a run measured, for programs; and many of them as one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .assessment import Assessment, Resampling, difference

__all__ = ["RESULTS_FILE", "compared", "dump", "measured", "read_results"]

RESULTS_FILE = "results.json"
FORMAT = 1


def measured(
    models: Sequence[Assessment], resampling: Resampling, *, on: str | None, **facts: Any
) -> dict[str, Any]:
    """The content of a results.json.

    Args:
        models: what was measured; the one called ``"student"`` is compared with each of the others.
        resampling: of the intervals.
        on: what the data is called that they were measured on; None: nothing was.
        **facts: further plain values, for example ``recipe``, ``command``, ``stages``.
    """
    by_name = {model.model: model for model in models}
    student = by_name.get("student")
    differences = [
        {
            "of": "student",
            "minus": name,
            "metrics": {
                metric: estimate.to_dict()
                for metric, estimate in difference(student, other, resampling.confidence).items()
            },
        }
        for name, other in by_name.items()
        if student is not None and other is not student and other.metrics
    ]
    found = {
        "format": FORMAT,
        **facts,
        "measured on": on,
        "confidence": resampling.confidence,
        "resamples": resampling.resamples,
        "models": [model.to_dict() for model in models],
        "differences": differences,
    }
    return json.loads(dump(found))


def dump(results: Mapping[str, Any]) -> str:
    """As JSON; a number that is none (NaN, infinite) is null there."""
    return json.dumps(_finite(results), indent=1, ensure_ascii=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_results(path: str | Path) -> dict[str, Any]:
    """The results of a run's folder, or of a results file.

    Raises:
        ValueError: there are none, or the file holds something else.
    """
    path = Path(path)
    file = path / RESULTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"runs: got {path}, want a folder with a {RESULTS_FILE}, or such a file")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"runs: {file} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not found.get("models"):
        raise ValueError(f"runs: got {file} with something else in it, want results of format {FORMAT}")
    return found


def compared(runs: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One line a run, of the model that came out of it, with what it keeps of its teacher and gains over its twin.

    Args:
        runs: what each is called, and its results.
    """
    rows = []
    for name, results in runs:
        models = {model["model"]: model for model in results["models"]}
        model = models.get("student", results["models"][-1])
        row: dict[str, Any] = {
            "run": name,
            "recipe": results.get("recipe"),
            "measured on": results["measured on"],
        }
        for metric, estimate in model["metrics"].items():
            row[metric] = estimate["value"]
            row[f"{metric}, interval"] = _interval(estimate)
            of_teacher = models.get("teacher", {}).get("metrics", {}).get(metric)
            if model["model"] == "student" and of_teacher and of_teacher["value"]:
                row[f"{metric}, of the teacher's"] = estimate["value"] / of_teacher["value"]
        for against in results["differences"]:
            if against["minus"] == "twin":
                for metric, estimate in against["metrics"].items():
                    row[f"{metric}, over the twin"] = estimate["value"]
        row |= {key: model[key] for key in ("parameters", "MB", "sentences/s")}
        stages = [stage for stage in results.get("stages") or [] if stage.get("stage") != "twin"]
        rows.append({**row, "training s": sum(s.get("seconds", 0) for s in stages) if stages else None})
    return [
        {key: value for key, value in row.items() if any(r.get(key) is not None for r in rows)}
        for row in rows
    ]


def _interval(estimate: Mapping[str, Any]) -> str | None:
    low, high = estimate["low"], estimate["high"]
    return None if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
