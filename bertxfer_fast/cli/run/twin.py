"""The undistilled twin: the same student from the same start, trained as long on labels alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...distillation.objectives import Labels
from ...distillation.reach import release_held
from ...distillation.recipes import Stage
from ...errors import InputError
from .plan import Plan, stage_arguments
from .stages import run_stage

__all__ = ["TWIN", "start_twin", "train_twin"]

TWIN = "twin"  # its stage, and its folder in output_dir


def start_twin(plan: Plan) -> Any:
    """A copy of the student as it is before training, or None where none is asked for.

    Raises:
        InputError: there are no labels to learn from, or a stage of the recipe has its name.
    """
    config = plan.config
    if not config.report.twin:
        return None
    where = config.where("report.twin")
    if config.data.label is None:
        raise InputError(
            f"{where}: twin: got true without data.label, want labels: the twin learns from them"
        )
    if any(stage.name == TWIN for stage in plan.recipe.stages):
        raise InputError(f"{where}: twin: got true, want it left out: the recipe has a stage of that name")
    release_held(plan.student)  # what no objective reaches is the twin's to train
    return copy.deepcopy(plan.student)


def train_twin(plan: Plan, twin: Any, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Train the twin for as many steps as all stages took, with the settings of the last one; returns its record.

    Like a stage it is left in a folder of its own, goes on where it was interrupted, and is not trained again when it
    is finished.
    """
    last = plan.recipe.stages[-1]
    steps = sum(record["summary"]["steps"] for record in records.values())
    chosen = {**plan.config.stages.get(last.name, {}), "max_steps": steps}
    metric = str(plan.config.training_for(last.name).get("metric_for_best_model") or "")
    if metric.removeprefix("eval_").startswith("loss/"):  # of an objective that the twin does not have
        chosen |= {"load_best_model_at_end": False, "metric_for_best_model": None}
    config = replace(plan.config, stages={**plan.config.stages, TWIN: chosen})
    stage = Stage(TWIN, lambda: [Labels()], last.training)
    own = replace(
        plan, config=config, student=twin, arguments={**plan.arguments, TWIN: stage_arguments(config, stage)}
    )
    return run_stage(own, stage)
