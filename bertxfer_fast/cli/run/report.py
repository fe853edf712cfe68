"""What a distillation leaves and tells: the student with its card, loss curves, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...evaluation.curves import loss_curves
from ...evaluation.evaluate import summary
from ...evaluation.speed import student_facts
from ...evaluation.tables import table
from ...tasks import auto_class
from ..console import say
from .plan import Plan
from .resume import write_whole

__all__ = ["report"]

PLOT_FILE, TABLE_FILE = "losses.png", "summary.md"


def report(plan: Plan, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Measure teacher and student, then leave the student, its card, the curves and the table in output_dir.

    Args:
        plan: of the run.
        records: what `run_stages` returned.
    """
    split = next((name for name in ("test", "eval") if name in plan.data), None)
    stages = [record["summary"] for record in records.values()]
    models = _measured_models(plan, split)
    plan.student.eval().save_pretrained(plan.folder)
    plan.tokenizer.save_pretrained(plan.folder)
    card = replace(
        plan.card,
        student=student_facts(plan.student),
        stages=stages,
        metrics=models,
        auto_class=auto_class(type(plan.student).__name__),
    )
    card.write(plan.folder)
    histories = {name: record["log_history"] for name, record in records.items()}
    if any("loss" in entry for history in histories.values() for entry in history):
        loss_curves(histories, plan.folder / PLOT_FILE, title=plan.recipe.name)
    heading = {"test": "Measured on the test file", "eval": "Measured on the dev file"}.get(
        split or "", "Sizes"
    )
    tables = f"## Stages\n\n{table(stages)}\n\n## {heading}\n\n{table(models)}\n"
    write_whole(plan.folder / TABLE_FILE, tables)
    for rows in (stages, models):
        say("\n" + table(rows, style="text"))
    say(f"\nstudent, README.md, {PLOT_FILE} and {TABLE_FILE} are in {plan.folder}")


def _measured_models(plan: Plan, split: str | None) -> Sequence[Mapping[str, Any]]:
    """One row for the teacher and one for the student."""
    rows = plan.data[split] if split is not None else None
    models = {"teacher": plan.teacher, "student": plan.student}
    return [
        {"model": name, **summary(model, rows, task=plan.task, repeats=3)} for name, model in models.items()
    ]
