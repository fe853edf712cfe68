"""The stages of a planned distillation: trained one after the other, or what is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import set_seed

from ...distillation.recipes import Stage
from ...errors import user_input
from ...models.hf.loading import load_model
from ...training.checkpoints import check_checkpoint, last_complete_checkpoint
from ...training.elapsed import Elapsed, elapsed_of
from ...training.trainer import DistillationTrainer
from ..console import say
from .plan import Plan
from .resume import finished_stage, record_run, record_stage

__all__ = ["run_stage", "run_stages"]


def run_stages(plan: Plan) -> dict[str, dict[str, Any]]:
    """Train every stage that is not finished; the student is left as the last one leaves it.

    Into `output_dir` goes for each stage a folder with its checkpoints and its own student.

    Returns:
        By stage its `summary` (a line of the table) and `log_history`.

    Raises:
        NonFiniteLossError: see `DistillationTrainer.train`.
    """
    record_run(plan.config)
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in plan.data.items())
    say(f"{plan.recipe.name}: {' -> '.join(stage.name for stage in plan.recipe.stages)}; {sizes} sequences")
    return {stage.name: run_stage(plan, stage) for stage in plan.recipe.stages}


def run_stage(plan: Plan, stage: Stage) -> dict[str, Any]:
    """Train a stage, or continue it, or take what it left when it is finished. The student is left trained."""
    folder = plan.folder / stage.name
    record = finished_stage(folder)
    if record is not None:
        say(f"stage {stage.name}: finished before, skipped")
        with user_input(f"stage {stage.name}, finished before"):
            _restore(plan, load_model(folder, plan.task.auto_class)[0])
        return record
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is not None:
        with user_input(f"stage {stage.name}"):
            check_checkpoint(checkpoint)
    say(f"stage {stage.name}: {f'goes on from {Path(checkpoint).name}' if checkpoint else 'starts'}")
    set_seed(plan.config.seed)  # the projections' first weights depend on the seed alone
    distiller = plan.distiller(stage)
    trainer = DistillationTrainer(
        distiller,
        plan.arguments[stage.name],
        plan.collator(stage, distiller),
        train_dataset=plan.data["train"],
        eval_dataset=plan.data.get("eval"),
        processing_class=plan.tokenizer,
        task=plan.task,
        model_card=plan.card,
        callbacks=[Elapsed()],
    )
    steps = trainer.train(resume_from_checkpoint=checkpoint).global_step
    row = {"stage": stage.name, "steps": steps, "seconds": elapsed_of(trainer)}
    row |= _measured_losses(trainer)
    trainer.save_model()
    plan.student = trainer.student  # another one, where it was pruned
    record = {"stage": stage.name, "summary": row, "log_history": trainer.state.log_history}
    record_stage(folder, record)
    return record


def _restore(plan: Plan, saved: Any) -> None:
    """The student as a finished stage left it: the same one, unless it was pruned there."""
    state, mine = saved.state_dict(), plan.student.state_dict()
    if {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in mine.items()}:
        plan.student.load_state_dict(state)
    else:
        plan.student = saved


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
        names = ["loss", *trainer.task.metrics, *trainer.task.name_metrics]
        row.update({f"dev {name}": measured[f"eval_{name}"] for name in names if f"eval_{name}" in measured})
    return row
