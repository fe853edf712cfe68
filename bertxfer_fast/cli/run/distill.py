"""One distillation from its configuration to a finished student: `bertxfer distill`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...distillation.recipes import Stage
from ...evaluation import report
from ...evaluation.evaluate import METRICS, student_facts, summary
from ...models.hf.loading import auto_class, load_model
from ...training.checkpoints import last_complete_checkpoint
from ...training.trainer import DistillationTrainer
from ..config.schema import DistillConfig
from .prepare import Run, prepare
from .resume import finished_stage, record_run, record_stage, write_whole

PLOT_FILE, TABLE_FILE = "losses.png", "summary.md"


def distill(config: DistillConfig) -> None:
    """Run the stages of a recipe, or what is left of them, and write the student with all that is told about it.

    Into `output_dir` go the student with its tokenizer and model card, loss curves and a table, and for each stage
    a folder with its checkpoints and its own student.

    Raises:
        InputError: something given cannot be used; nothing was written.
        NonFiniteLossError: see `DistillationTrainer.train`.
    """
    run = prepare(config)
    record_run(config)
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in run.data.items())
    _say(f"{run.recipe.name}: {' -> '.join(stage.name for stage in run.recipe.stages)}; {sizes} sequences")
    records = {stage.name: _run_stage(run, stage) for stage in run.recipe.stages}
    _finish(run, records)


def _say(text: str) -> None:
    print(text, flush=True)


# ---- stages -------------------------------------------------------------------------------------------------


def _run_stage(run: Run, stage: Stage) -> dict[str, Any]:
    """Train a stage, or continue it, or take what it left when it is finished. The student is left trained."""
    folder = run.folder / stage.name
    record = finished_stage(folder)
    if record is not None:
        _say(f"stage {stage.name}: finished before, skipped")
        run.student.load_state_dict(load_model(folder, run.task)[0].state_dict())
        return record
    checkpoint = last_complete_checkpoint(folder)
    _say(f"stage {stage.name}: {f'goes on from {Path(checkpoint).name}' if checkpoint else 'starts'}")
    set_seed(run.config.seed)  # the projections' first weights depend on the seed alone
    trainer = DistillationTrainer(
        run.distiller(stage),
        run.arguments[stage.name],
        train_dataset=run.data["train"],
        eval_dataset=run.data.get("eval"),
        processing_class=run.tokenizer,
        model_card=_card(run),
    )
    started = time.perf_counter()
    steps = trainer.train(resume_from_checkpoint=checkpoint).global_step
    row = {"stage": stage.name, "steps": steps, "seconds": time.perf_counter() - started}
    row |= _measured_losses(trainer)
    trainer.save_model()
    record = {"stage": stage.name, "summary": row, "log_history": trainer.state.log_history}
    record_stage(folder, record)
    return record


def _measured_losses(trainer: DistillationTrainer) -> dict[str, float]:
    """What the stage's line in the table says of its losses and, where there is a dev set, of that."""
    history = trainer.state.log_history
    row: dict[str, float] = {}
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if losses:
        row.update({"first loss": losses[0], "last loss": losses[-1]})
    if trainer.eval_dataset is not None:
        # The last entry sums the training up; the one before is an evaluation where the last step had one.
        last = history[-2] if len(history) > 1 else {}
        fresh = "eval_loss" in last and not trainer.args.load_best_model_at_end
        measured = last if fresh else trainer.evaluate()
        names = ["loss", *dict.fromkeys(name for names in METRICS.values() for name in names)]
        row.update({f"dev {name}": measured[f"eval_{name}"] for name in names if f"eval_{name}" in measured})
    return row


# ---- what a run leaves --------------------------------------------------------------------------------------


def _finish(run: Run, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Measure teacher and student, then leave the student, its card, the curves and the table in output_dir."""
    split = next((name for name in ("test", "eval") if name in run.data), None)
    stages = [record["summary"] for record in records.values()]
    models = _measured_models(run, split)
    run.student.eval().save_pretrained(run.folder)
    run.tokenizer.save_pretrained(run.folder)
    _card(
        run,
        student=student_facts(run.student),
        stages=stages,
        metrics=models,
        auto_class=auto_class(run.student),
    ).write(run.folder)
    histories = {name: record["log_history"] for name, record in records.items()}
    if any("loss" in entry for history in histories.values() for entry in history):
        report.loss_curves(histories, run.folder / PLOT_FILE, title=run.recipe.name)
    heading = {"test": "Measured on the test file", "eval": "Measured on the dev file"}.get(
        split or "", "Sizes"
    )
    tables = f"## Stages\n\n{report.table(stages)}\n\n## {heading}\n\n{report.table(models)}\n"
    write_whole(run.folder / TABLE_FILE, tables)
    for rows in (stages, models):
        _say("\n" + report.table(rows, style="text"))
    _say(f"\nstudent, README.md, {PLOT_FILE} and {TABLE_FILE} are in {run.folder}")


def _measured_models(run: Run, split: str | None) -> Sequence[Mapping[str, Any]]:
    """One row for the teacher and one for the student."""
    rows = run.data[split] if split is not None else None
    models = {"teacher": run.teacher, "student": run.student}
    return [{"model": name, **summary(model, rows, repeats=3)} for name, model in models.items()]


def _card(run: Run, **measured: Any) -> report.ModelCard:
    return report.ModelCard(
        recipe=run.recipe.name,
        teacher=run.config.teacher,
        data={split: len(rows) for split, rows in run.data.items()},
        task="" if run.task == "none" else run.task,
        **measured,
    )
