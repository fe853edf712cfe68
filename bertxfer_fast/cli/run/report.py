"""What a distillation leaves and tells: the student with its card, curves, a table, results.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...evaluation.attention import MapPair, compare_attention
from ...evaluation.card import how_to_load, short_name
from ...evaluation.curves import loss_curves
from ...evaluation.report import REPORT_FILE, html_report
from ...evaluation.results import RESULTS_FILE, dump
from ...evaluation.speed import student_facts
from ...evaluation.tables import table
from ..console import say
from .plan import Plan
from .results import measure_models, run_results
from .resume import write_whole

__all__ = ["report"]

PLOT_FILE, TABLE_FILE = "losses.png", "summary.md"


def report(
    plan: Plan, records: Mapping[str, Mapping[str, Any]], *, command: str = "", twin: Any = None
) -> None:
    """Measure teacher, student and twin, then leave in output_dir what is told about them.

    Args:
        plan: of the run.
        records: by stage, what `run_stages` returned; also the twin's.
        command: that was given.
        twin: the undistilled twin, where there is one.
    """
    split = next((name for name in ("test", "eval") if name in plan.data), None)
    stages = [record["summary"] for record in records.values()]
    roles = {**plan.models, **({} if twin is None else {"twin": twin})}
    assessed = measure_models(plan, roles, split)
    models = [found.row() for found in assessed]
    plan.student.eval().save_pretrained(plan.folder)
    plan.tokenizer.save_pretrained(plan.folder)
    own_tokenizer = (
        {"tokenizer": short_name(plan.config.student.tokenizer)} if plan.config.student.tokenizer else {}
    )
    card = replace(
        plan.card,
        student={**student_facts(plan.student), **own_tokenizer},
        stages=stages,
        metrics=models,
        command=command,
        **how_to_load(plan.student),
    )
    card.write(plan.folder)
    histories = {name: record["log_history"] for name, record in records.items()}
    curves = None
    if any("loss" in entry for history in histories.values() for entry in history):
        curves = loss_curves(histories, plan.folder / PLOT_FILE, title=plan.recipe.name).read_bytes()
    heading = {"test": "Measured on the test file", "eval": "Measured on the dev file"}.get(
        split or "", "Sizes"
    )
    tables = f"## Stages\n\n{table(stages)}\n\n## {heading}\n\n{table(models)}\n"
    write_whole(plan.folder / TABLE_FILE, tables)
    results = run_results(plan, assessed, stages, split, command)
    write_whole(plan.folder / RESULTS_FILE, dump(results))
    maps, why_none = _attention(plan, split)
    page = html_report(results, curves=curves, attention=maps, no_attention=why_none)
    write_whole(plan.folder / REPORT_FILE, page)
    for rows in (stages, models):
        say("\n" + table(rows, style="text"))
    plot = "" if curves is None else f"{PLOT_FILE}, "
    say(f"\nstudent, README.md, {plot}{TABLE_FILE}, {RESULTS_FILE} and {REPORT_FILE} are in {plan.folder}")


def _attention(plan: Plan, split: str | None) -> tuple[list[MapPair], str]:
    """Maps to draw, or why there are none."""
    count = plan.config.report.sentences
    teacher = plan.models.get("teacher")
    if teacher is None:
        several = len(plan.models) > 1
        why_none = "Several teachers ran; attention is drawn for one." if several else "No teacher ran here."
        return [], why_none if count else ""
    if plan.teacher_tokenizer is not None:
        return [], "Teacher and student read other tokens." if count else ""
    rows = plan.data["train" if split is None else split]
    maps = compare_attention(teacher, plan.student, rows, plan.tokenizer, count)
    if maps or not count:
        return maps, ""
    return [], "One of the models has no attention, or no text is short enough to be drawn."
