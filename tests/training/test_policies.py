"""What is frozen stays, what thaws trains from its step on, a run that gets no better ends; then all is as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, Logits
from bertxfer_fast.students.parts import frozen_by, parts_of
from bertxfer_fast.training.policies import GradualUnfreezing, check_policies

from ..folders import change, distill, make_place
from ..tiny import packed_batch, tiny_bert, tiny_pair
from .test_trainer import arguments, assert_same, features, losses, trainer_of, weights


def names_of(model: Any, parameters: list) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def start_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---- which parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "inside"),
    [
        ("Bert", "bert.encoder.layer."),
        ("Roberta", "roberta.encoder.layer."),
        ("DistilBert", "distilbert.transformer.layer."),
        ("Electra", "electra.encoder.layer."),
    ],
)
def test_a_policy_freezes_exactly_its_parts(family: str, inside: str) -> None:
    extra = {"embedding_size": 8} if family == "Electra" else {}
    model = tiny_bert(3, head="ForSequenceClassification", family=family, **extra)
    names = {name for name, _ in model.named_parameters()}
    layers = {name for name in names if name.startswith(inside)}
    head = {name for name in names if name.startswith(("classifier", "pre_classifier", "bert.pooler"))}
    embeddings = names - layers - head
    assert embeddings and all("embeddings" in name for name in embeddings)
    first = {name for name in layers if name[len(inside)] in "01"}
    assert names_of(model, frozen_by(model, "none")) == set()
    assert names_of(model, frozen_by(model, "embeddings")) == embeddings
    assert names_of(model, frozen_by(model, "first-2")) == embeddings | first
    assert names_of(model, frozen_by(model, "all-but-head")) == embeddings | layers
    assert list(parts_of(model)) == ["embeddings", "layer 0", "layer 1", "layer 2", "head"]


def test_a_tied_decoder_is_an_embedding() -> None:
    model = tiny_bert(2, head="ForMaskedLM")
    table = model.get_output_embeddings().weight
    assert any(p is table for p in frozen_by(model, "embeddings"))
    assert not any(p is table for p in parts_of(model)["head"])


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ("head", "freeze: got 'head', want 'none', 'embeddings', 'first-N'"),
        ("first-0", "freeze: got 'first-0'"),
        ("first-3", "freeze: got 'first-3', want at most the 2 layers of BertForSequenceClassification"),
    ],
)
def test_unknown_policies_are_named(policy: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        frozen_by(tiny_bert(2, head="ForSequenceClassification"), policy)


# ---- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "embeddings", "first-1", "all-but-head"])
def test_what_is_frozen_stays_and_may_train_again_afterwards(tmp_path: Path, policy: str) -> None:
    teacher, student = tiny_pair()
    own = student.bert.encoder.layer[1].output.LayerNorm.bias
    own.requires_grad_(False)  # the user's own choice
    before = start_of(student)
    kept = names_of(student, [*frozen_by(student, policy), own])
    trainer = trainer_of(
        tmp_path, [Logits()], (teacher, student), max_steps=2, weight_decay=0.1, freeze=policy
    )
    trainer.train()
    assert changed(before, student) == before.keys() - kept
    trainer.distiller.release()
    assert names_of(student, [p for p in student.parameters() if not p.requires_grad]) == names_of(
        student, [own]
    )
    # The next stage is free again.
    trainer_of(tmp_path, [Logits()], (teacher, student), max_steps=1).train()
    assert changed(before, student) == before.keys() - names_of(student, [own])


def test_a_freeze_and_a_hold_leave_nothing_behind_each_other(tmp_path: Path) -> None:
    """The head is held, because no objective reaches it, the embeddings are frozen; another hold ends meanwhile."""
    teacher, student = tiny_pair()
    head = names_of(student, parts_of(student)["head"])
    other = Distiller(teacher, student, [HiddenStates([(0, 0)])])
    trainer = trainer_of(tmp_path, [HiddenStates()], (teacher, student), max_steps=2, freeze="embeddings")
    other(**packed_batch())  # takes the student
    before = start_of(student)
    trainer.train()
    assert changed(before, student) == before.keys() - head - names_of(
        student, frozen_by(student, "embeddings")
    )
    trainer.distiller.release()
    assert all(p.requires_grad for p in student.parameters())


def test_an_error_in_the_middle_thaws_too(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    teacher, student = tiny_pair()
    settings = {"freeze": "embeddings", "gradual_unfreezing": 0.5, "extra": {"callbacks": [Stop()]}}
    trainer = trainer_of(tmp_path, [Logits()], (teacher, student), **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.distiller.release()
    assert all(p.requires_grad for p in student.parameters())


def test_nothing_left_to_train_is_said_at_once(tmp_path: Path) -> None:
    pair = tiny_bert(4, seed=1), tiny_bert(2, seed=2)
    objectives = [HiddenStates(projection="none")]
    with pytest.raises(ValueError, match="freeze: got 'all-but-head', want less of it: no objective reaches"):
        trainer_of(tmp_path, objectives, pair, freeze="all-but-head")
    distiller = Distiller(*pair, [HiddenStates(projection="none")])
    check_policies(distiller, arguments(tmp_path, freeze="first-1"))


# ---- thawing ------------------------------------------------------------------------------------------------


class Steps(TrainerCallback):
    """What each step changed."""

    def __init__(self, student: Any) -> None:
        self.student, self.before, self.seen = student, start_of(student), []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(changed(self.before, self.student))
        self.before = start_of(self.student)


def test_parts_thaw_from_the_top_each_after_its_share(tmp_path: Path) -> None:
    teacher = tiny_bert(4, head="ForSequenceClassification", seed=1)
    student = tiny_bert(2, head="ForSequenceClassification", seed=2)
    steps = Steps(student)
    trainer = trainer_of(
        tmp_path,
        [Logits()],
        (teacher, student),
        gradual_unfreezing=1 / 3,
        weight_decay=0.1,
        max_steps=6,
        extra={"callbacks": [steps]},
    )
    trainer.train()
    parts = {name: names_of(student, part) for name, part in parts_of(student).items()}
    top, middle = parts["head"], parts["head"] | parts["layer 1"]
    assert steps.seen == [top, top, middle, middle, middle | parts["layer 0"], middle | parts["layer 0"]]
    trainer.distiller.release()
    assert all(p.requires_grad for p in student.parameters())


def test_parts_that_no_objective_reaches_are_passed_over(tmp_path: Path) -> None:
    """Hidden states: the head is held, so the last layer is the top."""
    teacher = tiny_bert(4, head="ForSequenceClassification", seed=1)
    student = tiny_bert(2, head="ForSequenceClassification", seed=2)
    steps = Steps(student)
    settings = {
        "gradual_unfreezing": 0.5,
        "freeze": "embeddings",
        "max_steps": 2,
        "extra": {"callbacks": [steps]},
    }
    trainer_of(tmp_path, [HiddenStates()], (teacher, student), **settings).train()
    parts = {name: names_of(student, part) for name, part in parts_of(student).items()}
    assert steps.seen == [parts["layer 1"], parts["layer 1"] | parts["layer 0"]]


def test_thawing_resumes_exactly(tmp_path: Path) -> None:
    def pair(seed: int) -> tuple[Any, Any]:
        teacher, _ = tiny_pair()
        return teacher, tiny_bert(2, 12, 4, head="ForSequenceClassification", dropout=0.2, seed=seed)

    common = {"gradual_unfreezing": 0.3, "freeze": "embeddings", "save_strategy": "steps", "save_steps": 3}
    straight = trainer_of(tmp_path / "a", [Logits()], pair(2), **common)
    straight.train()
    resumed = trainer_of(tmp_path / "b", [Logits()], pair(2), **common)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert_same(weights(straight), weights(resumed))
    assert losses(resumed) == losses(straight)


def test_several_processes_cannot_thaw(tmp_path: Path) -> None:
    class Many:
        world_size = 2

    with pytest.raises(ValueError, match=r"gradual_unfreezing: got 0\.5 on 2 processes, want one process"):
        GradualUnfreezing(0.5).on_train_begin(Many(), None, None, model=tiny_bert(2))


# ---- an early end -------------------------------------------------------------------------------------------


class Worse(Labels):
    """Evaluations that are 3, 1, 2, 2.5, 0.5, ... whatever the student does."""

    values = (3.0, 1.0, 2.0, 2.5, 0.5, 4.0)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, student: Any, labels: Any) -> torch.Tensor:
        value = super().forward(student, labels)
        if self.training:
            return value
        self.calls += 1
        return value * 0 + self.values[self.calls - 1]


def stopping(folder: Path, start: int = 0, **changes: Any):
    objective = Worse()
    objective.calls = start
    settings = {
        "early_stopping_patience": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
    }
    settings |= {"eval_steps": 1, "eval_tokens_per_batch": 1000, **changes}
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", seed=2)
    return trainer_of(folder, [objective], (None, student), eval_dataset=features(6), **settings)


def test_a_run_ends_when_it_gets_no_better_and_keeps_its_best(tmp_path: Path) -> None:
    trainer = stopping(tmp_path)
    kept = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
            kept[state.global_step] = weights(trainer)

    trainer.add_callback(Keep())
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_metric == 1.0
    assert_same(weights(trainer), kept[2])


def test_patience_is_counted_across_a_resume(tmp_path: Path) -> None:
    stopping(tmp_path, max_steps=6).train()
    # The third evaluation was the first that was no better; one more is enough.
    again = stopping(tmp_path, start=3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 4


def test_a_threshold_is_how_much_better_counts(tmp_path: Path) -> None:
    trainer = stopping(tmp_path, early_stopping_patience=1, early_stopping_threshold=5.0)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"early_stopping_patience": 0, "eval_strategy": "steps"},
            "early_stopping_patience: got 0, want 1 or more",
        ),
        ({"early_stopping_patience": 2}, "early_stopping_patience: got 2 without evaluation"),
        (
            {"early_stopping_patience": 2, "eval_strategy": "epoch"},
            "early_stopping_patience: got 2 without checkpoints, want save_strategy 'epoch'",
        ),
        ({"gradual_unfreezing": 1.0}, "gradual_unfreezing: got 1.0, want more than 0 and less than 1"),
        ({"freeze": "all"}, "freeze: got 'all', want"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        arguments(tmp_path, **settings)


def test_of_squared_errors_less_is_better(tmp_path: Path) -> None:
    check_better(tmp_path, early_stopping_patience=1)


def test_of_squared_errors_less_is_better_when_the_best_is_kept(tmp_path: Path) -> None:
    check_better(tmp_path, load_best_model_at_end=True)


def check_better(tmp_path: Path, **how: Any) -> None:
    common = {"eval_strategy": "epoch", "save_strategy": "epoch", **how}
    better = {
        metric: arguments(tmp_path, metric_for_best_model=metric, **common).greater_is_better
        for metric in ("mse", "accuracy", "eval_loss", "loss/logits", "pearson")
    }
    assert better == {
        "mse": False,
        "accuracy": True,
        "eval_loss": False,
        "loss/logits": False,
        "pearson": True,
    }


# ---- a student's own start ----------------------------------------------------------------------------------


def test_the_start_is_the_teacher_and_stays_what_it_was() -> None:
    student = tiny_bert(2, head="ForSequenceClassification", seed=2)
    start = copy.deepcopy(student)
    batch = packed_batch(labels="class")
    distiller = Distiller("self", student, [Labels(weight=0.1), Logits(temperature=2.0)])
    assert float(distiller(**batch).parts["logits"]) == pytest.approx(0.0, abs=1e-6)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        distiller(**batch).loss.backward()
        optimizer.step()
    assert changed(start_of(start), distiller.teacher) == set()
    assert changed(start_of(start), student)
    by_hand = Distiller(start, student, [Labels(weight=0.1), Logits(temperature=2.0)])
    assert torch.equal(distiller(**batch).loss, by_hand(**batch).loss)
    with pytest.raises(TypeError, match="teacher: got str, want a transformers PreTrainedModel"):
        Distiller("begin", student, [Logits()])


def test_the_older_name_of_the_own_start_warns() -> None:
    student = tiny_bert(2, head="ForSequenceClassification", seed=2)
    with pytest.warns(DeprecationWarning, match="teacher='start' is now called teacher='self'") as said:
        distiller = Distiller("start", student, [Logits()])
    assert said[0].filename == __file__
    assert_same(distiller.teacher.state_dict(), student.state_dict())


def test_a_recipe_may_take_the_students_own_start(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    change(
        place,
        teacher="self",
        student="teacher",
        training__freeze="embeddings",
        training__max_steps=2,
        stages={},
    )
    recipe = (place / "recipe.yaml").read_text()
    (place / "recipe.yaml").write_text(
        recipe.replace("stages: {}", "stages: {intermediate: {gradual_unfreezing: 0.5}}")
    )
    assert distill(place) == 0
    before = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1)
    after = type(before).from_pretrained(place / "out")
    table = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(after.state_dict()[table], before.state_dict()[table])


def test_the_own_start_needs_a_students_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = make_place(tmp_path)
    change(place, teacher="self")
    assert distill(place) == 2
    assert "teacher: got 'self', want it beside a student's directory" in capsys.readouterr().err
