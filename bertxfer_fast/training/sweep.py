"""Which share of a teacher's weights a student should start with: each is tried, and the dev metric picks."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, set_seed

from .. import tasks
from ..distillation.distiller import Distiller
from ..distillation.objectives import Labels
from ..evaluation.measuring import evaluate
from ..evaluation.metrics import task_of_model
from ..students.transfer import Transfer, transfer_weights
from .arguments import DistillationArguments, greater_is_better
from .trainer import DistillationTrainer

__all__ = ["Sweep", "sweep_weights"]

# Of a sweep, unless the caller says otherwise: it writes nothing on its way.
_QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "learning_rate": 5e-5}


@dataclass(frozen=True)
class Sweep:
    """What `sweep_weights` found.

    Attributes:
        metric: the dev metric that picked.
        rows: for each beta its value at the start (``"<metric> at start"``) and, where there was training, after it
            (``"<metric> trained"``); NaN where it is undefined, such as a correlation of equal predictions.
        best: the row that was picked; of equal ones the first.
        model: the student of that row, as it was measured last.
        transfer: what was blended into it.
    """

    metric: str
    rows: tuple[dict[str, float], ...]
    best: dict[str, float]
    model: Any
    transfer: Transfer


def sweep_weights(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    betas: Sequence[float],
    dev: Any,
    *,
    train: Any = None,
    steps: int = 0,
    arguments: dict[str, Any] | None = None,
    task: str | tasks.Task | None = None,
    metric: str | None = None,
    seed: int = 42,
    **transfer: Any,
) -> Sweep:
    """Blend, measure, and fine-tune for a few steps, once for every beta; the best one by the dev metric is kept.

    Args:
        teacher, student: see `transfer_weights`; both are left as they are.
        betas: shares of the teacher.
        dev: labelled features that are measured.
        train: labelled features of the fine-tuning.
        steps: optimizer steps of fine-tuning on the labels (`Labels`); 0: blended models are measured as they are.
        arguments: `DistillationArguments` of the fine-tuning by name.
        task: whose metrics; by default that of the student's head.
        metric: the one that picks; by default the task's first. Of ``mse`` and losses less is better.
        seed: of the fine-tuning's order and dropout, the same for every beta.
        transfer: ``layer_map``, ``width_rule``, ``embeddings``, ``head``.

    Raises:
        ValueError: no betas or one twice, an unknown metric, steps without training data, a student without a head, or
            whatever `transfer_weights` raises; the latter for the first beta, before any training.
    """
    betas = list(betas)
    if not betas or len(set(betas)) != len(betas):
        raise ValueError(f"betas: got {betas}, want at least one and none twice")
    for beta in betas:
        if not (math.isfinite(beta) and 0 <= beta <= 1):
            raise ValueError(f"betas: got {beta}, want 0 to 1")
    if steps < 0 or (steps and train is None):
        raise ValueError(f"steps: got {steps} without training data, want train, or 0 steps")
    task = task_of_model(student) if task is None else tasks.get(task)
    sign = 0.0
    rows: list[dict[str, float]] = []
    best: tuple[float, dict[str, float], Any, Transfer] | None = None
    for beta in betas:
        model = copy.deepcopy(student)
        record = transfer_weights(teacher, model, beta, **transfer)
        found = evaluate(model, dev, task=task)
        metric = next(iter(found)) if metric is None else metric
        known = [*dict.fromkeys([*task.metrics, *task.name_metrics, *found])]
        if metric not in known:
            raise ValueError(f"metric: got {metric!r}, want one that is measured here: {', '.join(known)}")
        sign = 1.0 if greater_is_better(metric) else -1.0
        row = {"beta": float(beta), f"{metric} at start": found.get(metric, math.nan)}
        if steps:
            _fine_tune(model, train, steps, task, seed, arguments or {})
            row[f"{metric} trained"] = evaluate(model, dev, task=task).get(metric, math.nan)
        rows.append(row)
        value = list(row.values())[-1]
        score = -math.inf if math.isnan(value) else sign * value  # undefined: the worst
        if best is None or score > best[0]:
            best = (score, row, model, record)
    assert best is not None and metric is not None
    return Sweep(metric, tuple(rows), best[1], best[2], best[3])


def _fine_tune(
    model: PreTrainedModel, train: Any, steps: int, task: tasks.Task, seed: int, arguments: dict[str, Any]
) -> None:
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            **_QUIET,
            **arguments,
            "max_steps": steps,
            "seed": seed,
            "output_dir": folder,
        }
        distiller = Distiller(None, model, [Labels()])
        DistillationTrainer(
            distiller, DistillationArguments(**settings), train_dataset=train, task=task
        ).train()
        distiller.release()
    model.eval()
