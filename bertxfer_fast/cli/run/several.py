"""Several tasks at once: a plan each, one training of the students that share an encoder, a report each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...distillation.multitask import MultiTask
from ...errors import InputError, user_input
from ...models.hf.loading import load_model
from ...students import share_encoder
from ...training.checkpoints import check_checkpoint, last_complete_checkpoint
from ...training.elapsed import Elapsed, elapsed_of
from ...training.multitask import MultiTaskTrainer
from ..config.several import SeveralConfig
from ..console import say
from .plan import Plan, make_plan, recipe_of
from .report import report
from .resume import check_folder, finished_stage, identity, record_identity, record_run, record_stage

__all__ = ["make_plans", "run_several"]


def run_several(config: SeveralConfig, *, command: str = "") -> None:
    """Plan every task, train them together stage by stage, and report each as if it had run alone.

    Into `output_dir` goes for each stage a folder with its checkpoints and a student a task, and for each task a folder
    with its student and what is told about it.

    Raises:
        InputError: something given cannot be used, or the tasks do not go together; nothing was written.
        NonFiniteLossError: see `DistillationTrainer.train`.
    """
    plans = make_plans(config)
    stages = [stage.name for stage in next(iter(plans.values())).recipe.stages]
    with user_input(config.where):
        share_encoder({name: plan.student for name, plan in plans.items()})
    own = {name: _without_place(identity(plan.config)) for name, plan in plans.items()}
    every = {"tasks": own, "weights": config.weights, "mixing": config.mixing}
    check_folder(Path(config.output_dir), config.where, stages, lambda: every)
    record_identity(Path(config.output_dir), config.where, every)
    for plan in plans.values():
        record_run(plan.config)
    sizes = ", ".join(f"{name} {len(plan.data['train']):,}" for name, plan in plans.items())
    say(f"{len(plans)} tasks: {' -> '.join(stages)}; sequences to train on: {sizes}")
    records = {stage: _run_stage(config, plans, number, stage) for number, stage in enumerate(stages)}
    for name, plan in plans.items():
        say(f"\n{name}")
        own = {stage: _of_task(record, name, list(plans)) for stage, record in records.items()}
        report(plan, own, command=command)


def make_plans(config: SeveralConfig) -> dict[str, Plan]:
    """A plan for each task, whose stages are called alike.

    Raises:
        InputError: see `make_plan`; or the tasks do not go together.
    """
    stages = _stages(config)
    plans = {name: make_plan(task, stages) for name, task in config.tasks.items()}
    for plan in plans.values():
        _check_arguments(plan)
    _check_stores(plans.values())
    return plans


def _stages(config: SeveralConfig) -> list[str]:
    """What the stages of all tasks are called: as in the first one's recipe."""
    found = {name: [stage.name for stage in recipe_of(task).stages] for name, task in config.tasks.items()}
    first, stages = next(iter(found.items()))
    for name, own in found.items():
        if len(own) != len(stages):
            raise InputError(
                f"{config.where}: tasks: got {len(own)} stages of {name!r} and {len(stages)} of {first!r}, want "
                "recipes of as many stages"
            )
        if name in stages:
            raise InputError(f"{config.where}: tasks: got the name {name!r}, want one that no stage has")
    return stages


def _check_stores(plans: Iterable[Plan]) -> None:
    """A store is of one teacher, so tasks share one only where they share the teacher."""
    owners: dict[Path, list[str]] = {}
    for config in (plan.config for plan in plans):
        if config.store.path is None:
            continue
        teachers = owners.setdefault(Path(config.store.path).resolve(), config.teachers)
        if teachers != config.teachers:
            raise InputError(
                f"{config.where('store')}: store: got {config.store.path} for teachers {', '.join(teachers)} and "
                f"{', '.join(config.teachers)}, want a store for each of them"
            )


def _check_arguments(plan: Plan) -> None:
    """What a run of one task can and several tasks at once cannot."""
    config = plan.config
    if config.report.twin:
        raise InputError(
            f"{config.where('report.twin')}: twin: got true for several tasks, want it left out: train a recipe "
            "'finetune' of them to compare with"
        )
    for stage, arguments in plan.arguments.items():
        if arguments.prunes:
            raise InputError(
                f"stage {stage}: prune_heads, prune_columns, prune_layers: got pruning of several tasks, want it left "
                "out: prune the student of one task"
            )
        best = arguments.metric_for_best_model
        if best is not None and best.removeprefix("eval_") != "loss":
            raise InputError(
                f"stage {stage}: metric_for_best_model: got {best!r} for several tasks, want 'loss', which sums theirs"
            )


def _run_stage(config: SeveralConfig, plans: Mapping[str, Plan], number: int, stage: str) -> dict[str, Any]:
    """Train a stage of all tasks, or continue it, or take what it left when it is finished."""
    folder = Path(config.output_dir) / stage
    record = finished_stage(folder)
    if record is not None:
        say(f"stage {stage}: finished before, skipped")
        with user_input(f"stage {stage}, finished before"):
            for name, plan in plans.items():
                saved = load_model(folder / name, plan.task.auto_class)[0]
                plan.student.load_state_dict(saved.state_dict())
        return record
    checkpoint = last_complete_checkpoint(folder)
    if checkpoint is not None:
        with user_input(f"stage {stage}"):
            check_checkpoint(checkpoint)
    say(f"stage {stage}: {f'goes on from {Path(checkpoint).name}' if checkpoint else 'starts'}")
    measured = {name: plan for name, plan in plans.items() if "eval" in plan.data}
    leading = next(iter(measured.values()), next(iter(plans.values())))
    arguments = leading.arguments[stage]
    arguments.output_dir = str(folder)
    set_seed(leading.config.seed)  # the projections' first weights depend on the seed alone
    own = {name: plan.recipe.stages[number] for name, plan in plans.items()}
    distillers = {name: plan.distiller(own[name]) for name, plan in plans.items()}
    trainer = MultiTaskTrainer(
        MultiTask(distillers, weights=config.weights),
        arguments,
        train_dataset={name: plan.data["train"] for name, plan in plans.items()},
        eval_dataset={name: plan.data["eval"] for name, plan in measured.items()} or None,
        processing_class=leading.tokenizer,
        collators={name: plan.collator(own[name], distillers[name]) for name, plan in plans.items()},
        tasks={name: plan.task for name, plan in plans.items()},
        temperature=config.mixing,
        model_cards={name: plan.card for name, plan in plans.items()},
        callbacks=[Elapsed()],
    )
    steps = trainer.train(resume_from_checkpoint=checkpoint).global_step
    row: dict[str, Any] = {"stage": stage, "steps": steps, "seconds": elapsed_of(trainer)}
    found = trainer.evaluate() if measured else {}
    trainer.save_model()
    record = {"stage": stage, "summary": row, "measured": found, "log_history": trainer.state.log_history}
    record_stage(folder, record)
    return record


def _of_task(record: Mapping[str, Any], name: str, names: Sequence[str]) -> dict[str, Any]:
    """What a stage's record says of one of the tasks, under the names that a run of this task alone would have."""
    row = dict(record["summary"])
    skipped = ("runtime", "_per_second", "loss/")
    for key, value in record["measured"].items():
        if _owner(key, names) == name and not any(part in key for part in skipped):
            row["dev " + key.removeprefix(f"eval_{name}_")] = value
    history = [
        {_renamed(key, name): value for key, value in entry.items() if _owner(key, names) in (name, None)}
        for entry in record["log_history"]
    ]
    return {**record, "summary": row, "log_history": history}


def _renamed(key: str, name: str) -> str:
    return key.replace(f"loss/{name}/", "loss/").replace(f"eval_{name}_", "eval_")


def _owner(key: str, names: Sequence[str]) -> str | None:
    """The task that a logged value is of; None where it is of all. One task's name may begin with another's."""
    if key == "eval_loss":
        return ""  # the sum over tasks: no single one's
    owners = [name for name in names if key.startswith((f"eval_{name}_", f"loss/{name}/"))]
    return max(owners, key=len, default=None)


def _without_place(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "output_dir"}
