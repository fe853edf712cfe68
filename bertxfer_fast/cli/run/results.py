"""What a run was asked to do and measured, as results.json has it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...evaluation.assessment import Assessment, Resampling, assess
from ...evaluation.card import short_name
from ...evaluation.environment import environment
from ...evaluation.results import measured
from ...models.spec import EncoderSpec
from ...training.arguments import DistillationArguments
from ..config.schema import DistillConfig, defaults
from .plan import Plan
from .resume import flat
from .texts import named_splits

__all__ = ["changed_settings", "measure_models", "run_results"]

_PATHLESS = {"output_dir"}


def measure_models(plan: Plan, models: Mapping[str, Any], split: str | None) -> list[Assessment]:
    """Each model on the split, all with the same resamples and on the device that was trained on."""
    names = EncoderSpec.of(plan.student).labels  # the teacher may have none of its own
    return [
        assess(
            name,
            model.to(plan.device),
            plan.rows_of(name, split),
            task=plan.task,
            names=names,
            resampling=resampling_of(plan.config),
        )
        for name, model in models.items()
    ]


def resampling_of(config: DistillConfig) -> Resampling:
    """How the run's intervals are made."""
    return Resampling(config.report.resamples, config.seed)


def run_results(
    plan: Plan,
    models: Sequence[Assessment],
    stages: Sequence[Mapping[str, Any]],
    split: str | None,
    command: str,
) -> dict[str, Any]:
    """The content of a run's results.json."""
    config = plan.config
    files = {split: Path(path).name for split, path in named_splits(config).items()}
    found = environment(__version__)
    return measured(
        models,
        resampling_of(config),
        on=None if split is None else files.get(split, split),
        command=command,
        recipe=plan.recipe.name,
        teacher=", ".join(map(short_name, config.teachers)) or None,
        task=plan.task.name,
        seed=config.seed,
        data={
            name: {"file": files.get(name, name), "sequences": len(rows)} for name, rows in plan.data.items()
        },
        stages=list(stages),
        settings=changed_settings(config),
        environment={**found["versions"], **found["devices"]},
    )


def changed_settings(config: DistillConfig) -> list[dict[str, Any]]:
    """The settings that are not their defaults: ``key``, ``value``, ``default``. Of paths the last part."""
    known = defaults()
    training = {
        item.name: item.default
        for item in dataclasses.fields(DistillationArguments)
        if item.default is not dataclasses.MISSING
    }
    rows = []
    for key, value in flat(config.to_dict()).items():
        section, _, name = key.rpartition(".")
        of_training = section == "training" or section.startswith("stages.")
        default = training.get(name) if of_training else known.get(key)
        if key not in _PATHLESS and value != default and value != {}:
            rows.append({"key": key, "value": _shown(value), "default": _shown(default)})
    return rows


def _shown(value: Any) -> Any:
    if isinstance(value, str) and os.sep in value:
        return os.path.basename(value)
    return value if isinstance(value, int | float | None) and not isinstance(value, bool) else str(value)
