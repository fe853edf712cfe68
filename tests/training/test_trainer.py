"""The trainer: exact resume, the guard against non-finite losses, what is logged, measured, saved and loaded."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import (
    AttentionScores,
    Embeddings,
    HiddenStates,
    Labels,
    Logits,
    Objective,
)
from bertxfer_fast.errors import NonFiniteLossError
from bertxfer_fast.evaluation.card import ModelCard
from bertxfer_fast.packing import PackingCollator
from bertxfer_fast.training.arguments import DistillationArguments
from bertxfer_fast.training.checkpoints import PROJECTIONS, last_complete_checkpoint
from bertxfer_fast.training.trainer import DistillationTrainer

from ..tiny import VOCAB, tiny_bert, tiny_pair


def features(
    count: int = 24, *, shortest: int = 3, longest: int = 14, seed: int = 0, labels: str = "class"
) -> list:
    """Random sequences with learnable labels of the given kind: "class", "float", "token" or "none"."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(5, VOCAB) for _ in range(draw.randint(shortest, longest))]
        row: dict[str, Any] = {"input_ids": ids, "token_type_ids": [0] * len(ids)}
        if labels == "class":
            row["labels"] = ids[0] % 3
        elif labels == "float":
            row["labels"] = ids[0] / VOCAB
        elif labels == "token":
            row["labels"] = [-100 if i % 4 == 3 else token % 3 for i, token in enumerate(ids)]
        rows.append(row)
    return rows


def arguments(folder: Path, **changes: Any) -> DistillationArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "disable_tqdm": True,
    }
    return DistillationArguments(output_dir=str(folder), **{**settings, **changes})


def intermediate() -> list[Objective]:
    return [AttentionScores(), HiddenStates(weight=0.5)]


def trainer_of(
    folder: Path,
    objectives: list[Objective] | None = None,
    pair: tuple[Any, Any] | None = None,
    *,
    train: Any = None,
    eval_dataset: Any = None,
    extra: dict[str, Any] | None = None,
    **changes: Any,
) -> DistillationTrainer:
    teacher, student = pair if pair is not None else tiny_pair()
    torch.manual_seed(5)
    distiller = Distiller(teacher, student, objectives if objectives is not None else intermediate())
    return DistillationTrainer(
        distiller,
        arguments(folder, **changes),
        train_dataset=features() if train is None else train,
        eval_dataset=eval_dataset,
        **(extra or {}),
    )


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.distiller.state_dict().items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def losses(trainer: DistillationTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def padded_logits(model: Any, rows: list) -> torch.Tensor:
    """What transformers computes from an ordinary padded batch."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    mask = torch.tensor([[i < len(row["input_ids"]) for i in range(width)] for row in rows]).long()
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=mask).logits


# ---- resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        # 8 packs an epoch, stopped in the middle of the first, with micro-batches
        (24, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}),
        (12, {}),  # 3 batches an epoch, stopped at its end
        (40, {"tokens_per_batch": 60, "dataloader_num_workers": 1}),
    ],
)
def test_resume_is_bit_exact(tmp_path: Path, rows: int, changes: dict[str, Any]) -> None:
    def pair(seed: int) -> tuple[Any, Any]:
        teacher, _ = tiny_pair()
        return teacher, tiny_bert(2, 12, 4, head="ForSequenceClassification", dropout=0.2, seed=seed)

    common = {"train": features(rows), "save_strategy": "steps", "save_steps": 3, **changes}
    straight = trainer_of(tmp_path / "straight", pair=pair(2), **common)
    straight.train()
    # Another student, other projections, another random state: all of it has to come from the checkpoint.
    resumed = trainer_of(tmp_path / "resumed", pair=pair(9), **common)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))

    assert_same(weights(straight), weights(resumed))
    assert losses(resumed) == losses(straight)
    assert len(losses(straight)) == 6
    for a, b in zip(
        straight.optimizer.state_dict()["state"].values(),
        resumed.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert straight.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict()


def test_dropout_and_projections_take_part(tmp_path: Path) -> None:
    """What the resume test relies on: dropout changes the run, and projections are trained and saved."""
    teacher, _ = tiny_pair()

    def run(dropout: float) -> DistillationTrainer:
        student = tiny_bert(2, 12, 4, head="ForSequenceClassification", dropout=dropout, seed=2)
        trainer = trainer_of(tmp_path / str(dropout), pair=(teacher, student), max_steps=2)
        before = weights(trainer)
        trainer.train()
        name = "objectives.1.projections.0.weight"
        assert not torch.equal(before[name], weights(trainer)[name])
        return trainer

    assert losses(run(0.0)) != losses(run(0.3))


def test_resume_true_takes_the_last_complete_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    trainer.train()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")  # killed while writing
    (tmp_path / "checkpoint-9").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    again = trainer_of(tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    again.train(resume_from_checkpoint=True)
    assert_same(weights(trainer), weights(again))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    with pytest.raises(ValueError, match="want a complete checkpoint"):
        trainer_of(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_steps_are_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_a_checkpoint_that_is_written_over_is_not_complete_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    trainer_of(tmp_path, **settings).train()
    seen: list[str | None] = []
    original = DistillationTrainer._save

    def save(self: Any, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        seen.append(last_complete_checkpoint(tmp_path))
        if str(output_dir).endswith("checkpoint-4"):
            raise KeyboardInterrupt
        original(self, output_dir, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, seed=7, **settings).train()
    # While step 2 is written, the older run's step 4 is whole; while step 4 is, only the new step 2.
    assert seen == [str(tmp_path / "checkpoint-4"), str(tmp_path / "checkpoint-2")]
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_resume_refuses_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    trainer_of(tmp_path / "a", save_strategy="steps", save_steps=2, max_steps=2).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-2")
    deeper = tiny_bert(4, 12, 4, head="ForSequenceClassification", seed=2)
    with pytest.raises(ValueError, match="another shape"):
        trainer_of(tmp_path / "b", pair=(tiny_pair()[0], deeper)).train(resume_from_checkpoint=checkpoint)
    (Path(checkpoint) / PROJECTIONS).unlink()
    with pytest.raises(ValueError, match=PROJECTIONS):
        trainer_of(tmp_path / "c").train(resume_from_checkpoint=checkpoint)
    (Path(checkpoint) / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2 without optimizer\.pt"):
        trainer_of(tmp_path / "d").train(resume_from_checkpoint=checkpoint)


def test_resume_with_tied_weights(tmp_path: Path) -> None:
    """A masked-LM student's decoder is its embedding: saved once, restored as one."""
    teacher = tiny_bert(4, 16, 4, head="ForMaskedLM", seed=1)

    def run(folder: Path, seed: int, **resume: Any) -> DistillationTrainer:
        student = tiny_bert(2, 12, 4, head="ForMaskedLM", seed=seed)
        trainer = trainer_of(
            folder,
            [Logits()],
            (teacher, student),
            train=features(labels="none"),
            max_steps=4,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(**resume)
        return trainer

    straight = run(tmp_path / "a", 2)
    resumed = run(tmp_path / "b", 3, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same(weights(straight), weights(resumed))
    model = resumed.student
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# ---- the guard ----------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, cls: type[Objective], from_call: int, value: float) -> None:
    original = cls.forward
    calls = {"n": 0}

    def forward(self: Any, *args: Any) -> torch.Tensor:
        calls["n"] += 1
        loss = original(self, *args)
        return loss * value if calls["n"] >= from_call else loss

    monkeypatch.setattr(cls, "forward", forward)


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_names_the_objective_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    snapshots: list[dict[str, str]] = []
    original = DistillationTrainer._save_checkpoint

    def save(self: Any, *args: Any) -> None:
        original(self, *args)
        snapshots.append(digest(tmp_path))

    monkeypatch.setattr(DistillationTrainer, "_save_checkpoint", save)
    poison(monkeypatch, HiddenStates, 3 * 3 + 1, value)  # three pairs a step: from the fourth step on
    with pytest.raises(
        NonFiniteLossError, match=r"hidden_states is (nan|inf) after 3 optimizer steps"
    ) as caught:
        trainer.train()
    assert caught.value.names == ("hidden_states",)
    assert caught.value.step == 3
    assert caught.value.checkpoint == str(tmp_path / "checkpoint-2")
    # Raised before the optimizer step: the weights are those of three good steps.
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert trainer.state.global_step == 3
    # Nothing on disk has changed since the last save, and what is there loads and goes on.
    assert len(snapshots) == 1 and digest(tmp_path) == snapshots[0]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    monkeypatch.undo()
    healthy = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    healthy.train(resume_from_checkpoint=True)
    assert healthy.state.global_step == 6


def test_non_finite_gradient_stops_before_the_step(tmp_path: Path) -> None:
    class Root(HiddenStates):
        """A finite value with an infinite slope."""

        def forward(self, student: Any, teacher: Any) -> torch.Tensor:
            return (student.hidden * 0).square().sum().sqrt()

    trainer = trainer_of(
        tmp_path,
        [Root("last", projection="none")],
        pair=(tiny_bert(4, 12, 4, seed=1), tiny_bert(2, 12, 4, seed=2)),
    )
    before = weights(trainer)
    with pytest.raises(
        NonFiniteLossError, match=r"gradient is nan after 0 optimizer steps; .* no checkpoint"
    ):
        trainer.train()
    assert_same(before, weights(trainer))


def test_non_finite_weights_are_never_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.save_model()
    before = digest(tmp_path)
    with torch.no_grad():
        trainer.student.bert.pooler.dense.bias[0] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"student\.bert\.pooler\.dense\.bias"):
        trainer.save_model()
    assert digest(tmp_path) == before


# ---- what is logged -----------------------------------------------------------------------------------------


def test_every_objective_is_logged_as_the_mean_of_the_interval(tmp_path: Path) -> None:
    rows = features(16)
    trainer = trainer_of(
        tmp_path,
        train=rows,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=2,
        logging_steps=2,
        learning_rate=0.0,
        weight_decay=0.0,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    collate = PackingCollator()
    parts = [trainer.distiller(**collate(rows[i : i + 4])).parts for i in range(0, 16, 4)]
    for name in ("attention_scores", "hidden_states"):
        expected = sum(float(part[name]) for part in parts) / 4
        assert entry[f"loss/{name}"] == pytest.approx(expected, rel=1e-5)
    assert entry["loss"] == pytest.approx(
        entry["loss/attention_scores"] + 0.5 * entry["loss/hidden_states"], rel=1e-5
    )


def test_a_short_last_step_is_logged_as_its_own_mean(tmp_path: Path) -> None:
    """Three micro-batches an epoch, two a step: the second step has but one, which counts as much as the two."""
    rows = features(12)
    trainer = trainer_of(
        tmp_path,
        train=rows,
        gradient_accumulation_steps=2,
        max_steps=2,
        logging_steps=2,
        learning_rate=0.0,
        weight_decay=0.0,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    collate = PackingCollator()
    parts = [trainer.distiller(**collate(rows[i : i + 4])).parts for i in range(0, 12, 4)]
    for name in ("attention_scores", "hidden_states"):
        first, second, third = (float(part[name]) for part in parts)
        [logged] = [entry[f"loss/{name}"] for entry in trainer.state.log_history if "loss" in entry]
        assert logged == pytest.approx(((first + second) / 2 + third) / 2, rel=1e-5)


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    """Equal lengths: the mean of two micro-batches is the mean of the batch, with labels and without."""
    rows = features(8, shortest=7, longest=7)
    stepped = []
    for size, steps in ((8, 1), (4, 2)):
        trainer = trainer_of(
            tmp_path / str(size),
            [*intermediate(), Logits(2.0), Labels()],
            train=rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        before = weights(trainer)
        trainer.train()
        stepped.append({name: value - before[name] for name, value in weights(trainer).items()})
    assert max(float(change.abs().max()) for change in stepped[0].values()) > 1e-3
    for name in stepped[0]:
        torch.testing.assert_close(stepped[0][name], stepped[1][name], rtol=1e-3, atol=1e-6)


def test_schedules_see_the_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Objective, "weight_at", lambda self, progress: seen.append(progress) or 1.0)
    trainer_of(tmp_path, [Logits()], max_steps=4).train()
    assert seen == [0.0, 0.25, 0.5, 0.75]


# ---- evaluation ---------------------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_the_packs(tmp_path: Path) -> None:
    rows = features(23)
    results = []
    for tokens in (40, 1000):
        trainer = trainer_of(tmp_path, [Logits()], eval_dataset=rows, eval_tokens_per_batch=tokens)
        results.append(trainer.evaluate())
        prediction = trainer.predict(rows)
        reference = padded_logits(trainer.student, rows)
        torch.testing.assert_close(torch.tensor(prediction.predictions), reference, rtol=1e-4, atol=1e-5)
        right = reference.argmax(-1) == torch.tensor([row["labels"] for row in rows])
        assert results[-1]["eval_accuracy"] == pytest.approx(float(right.float().mean()))
    for name in ("eval_loss", "eval_loss/logits"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5)


@pytest.mark.parametrize(
    ("head", "labels", "metrics"),
    [
        ("ForSequenceClassification", "class", {"accuracy"}),
        ("ForSequenceClassification", "float", {"mse", "pearson"}),
        ("ForTokenClassification", "token", {"token_accuracy"}),
        ("Model", "none", set()),
    ],
)
def test_metrics_fit_the_head(tmp_path: Path, head: str, labels: str, metrics: set[str]) -> None:
    count = 1 if labels == "float" else 3
    teacher = tiny_bert(4, 16, 4, head=head, num_labels=count, seed=1)
    student = tiny_bert(2, 12, 4, head=head, num_labels=count, seed=2)
    objectives = [*intermediate(), *([Labels()] if metrics else [])]
    rows = features(labels=labels)
    trainer = trainer_of(
        tmp_path,
        objectives,
        (teacher, student),
        train=rows,
        eval_dataset=rows[:9],
        max_steps=1,
        tokens_per_batch=50,
    )
    trainer.train()
    found = trainer.evaluate()
    named = {"accuracy", "mse", "pearson", "token_accuracy"}
    assert {key.removeprefix("eval_") for key in found} & named == metrics
    assert "eval_loss/hidden_states" in found
    if labels == "token":
        logits = [padded_logits(student, [row])[0].argmax(-1) for row in rows[:9]]
        pairs = [
            (int(p), w)
            for ids, row in zip(logits, rows, strict=False)
            for p, w in zip(ids, row["labels"], strict=True)
        ]
        counted = [p == w for p, w in pairs if w != -100]
        assert found["eval_token_accuracy"] == pytest.approx(sum(counted) / len(counted))


def test_own_compute_metrics_gets_all_rows_in_order(tmp_path: Path) -> None:
    rows = features(11)

    def compute(prediction: Any) -> dict[str, float]:
        assert prediction.label_ids.tolist() == [row["labels"] for row in rows]
        return {"rows": float(len(prediction.predictions))}

    trainer = trainer_of(
        tmp_path, [Logits()], eval_dataset=rows, eval_tokens_per_batch=30, extra={"compute_metrics": compute}
    )
    assert trainer.evaluate()["eval_rows"] == 11


def test_the_best_checkpoint_under_a_schedule_is_the_one_that_learned_most(tmp_path: Path) -> None:
    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    growing = [Logits(weight="linear_growth")]
    trainer = trainer_of(
        tmp_path, growing, eval_dataset=features(8), max_steps=4, load_best_model_at_end=True, **each
    )
    trainer.train()
    found = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    assert found[4] < found[1] and trainer.state.best_metric == min(found.values())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(found.values()))


@pytest.mark.parametrize("objectives", [[HiddenStates()], [Labels()], [HiddenStates(), Labels()]])
def test_predictions_need_no_labels(tmp_path: Path, objectives: list[Objective]) -> None:
    rows = features(6, labels="none")
    trainer = trainer_of(tmp_path, objectives)
    found = trainer.predict(rows)
    assert found.label_ids is None
    np.testing.assert_allclose(found.predictions, padded_logits(trainer.student, rows), atol=1e-5)
    wants_labels = any(objective.needs_labels for objective in objectives)
    assert ("test_loss" in found.metrics) is not wants_labels
    if wants_labels:
        with pytest.raises(ValueError, match="want labels for objective 'labels'"):
            trainer.evaluate(rows)


@pytest.mark.parametrize(
    ("head", "objective", "shape"),
    [
        ("Model", HiddenStates, (6, 12)),
        ("ForTokenClassification", Labels, (None,)),
        ("ForQuestionAnswering", Logits, (6, 2)),
        ("ForMaskedLM", Labels, (None,)),
    ],
)
def test_predictions_without_labels_are_what_the_task_measures(
    tmp_path: Path, head: str, objective: type[Objective], shape: tuple[int | None, ...]
) -> None:
    rows = features(6, labels="none")
    labels = {} if head != "ForQuestionAnswering" else {"num_labels": 2}
    pair = tiny_bert(4, 16, 4, head=head, **labels), tiny_bert(2, 12, 4, head=head, seed=2, **labels)
    extra: dict[str, Any] = {"data_collator": PackingCollator()} | (
        {"task": "embedding"} if head == "Model" else {}
    )
    trainer = trainer_of(tmp_path, [objective()], pair, extra=extra)
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert trainer.predict(rows).predictions.shape == tuple(size or tokens for size in shape)


def test_best_model_comes_back_into_the_student(tmp_path: Path) -> None:
    rows = features()
    trainer = trainer_of(
        tmp_path,
        intermediate(),
        train=rows,
        eval_dataset=rows,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        greater_is_better=True,  # the worst loss counts as best: the first steps'
        metric_for_best_model="loss",
    )
    before = trainer.student
    trainer.train()
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best != tmp_path / "checkpoint-4"
    assert trainer.student is before
    saved = AutoModelForSequenceClassification.from_pretrained(best).state_dict()
    assert_same(saved, trainer.student.state_dict())
    projections = load_file(best / PROJECTIONS)
    assert_same(projections, trainer.distiller.objectives.state_dict())


# ---- saving -------------------------------------------------------------------------------------------------


def test_saved_student_is_an_ordinary_model(tmp_path: Path) -> None:
    rows = features(7)
    card = ModelCard(
        recipe="tinybert", teacher="/somewhere/private/big-teacher", metrics=[{"accuracy": 0.875}]
    )
    trainer = trainer_of(
        tmp_path, max_steps=2, save_strategy="steps", save_steps=2, extra={"model_card": card}
    )
    trainer.train()
    trainer.save_model()
    predicted = torch.tensor(trainer.predict(rows).predictions)
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config._attn_implementation == "sdpa"
        torch.testing.assert_close(padded_logits(model, rows), predicted, rtol=1e-4, atol=1e-5)
        assert set(load_file(folder / PROJECTIONS)) == {"1.projections.0.weight", "1.projections.0.bias"}
        assert "bertxfer" not in (folder / "config.json").read_text()
    text = (tmp_path / "README.md").read_text()
    for expected in ("tinybert", "big-teacher", "train: 24 sequences", "0.875", "layers: 2"):
        assert expected in text
    assert "private" not in text
    assert not (tmp_path / "checkpoint-2" / "README.md").exists()
    assert json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["global_step"] == 2


# ---- settings -----------------------------------------------------------------------------------------------


def test_token_budget_fills_the_batches(tmp_path: Path) -> None:
    rows = features(60)
    trainer = trainer_of(tmp_path, train=rows, tokens_per_batch=64)
    loader = trainer.get_train_dataloader()
    sizes = [batch["input_ids"].shape[1] for batch in loader]
    assert len(sizes) == len(loader)
    assert max(sizes) <= 64 and sum(sizes) == sum(len(row["input_ids"]) for row in rows)
    counts = [
        len(batch["cu_seq_lens_q"]) - 1 for batch in trainer_of(tmp_path, train=rows).get_train_dataloader()
    ]
    assert counts == [4] * 15


def test_bf16_autocast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = set()
    original = Logits.forward

    def forward(self: Any, student: Any, teacher: Any) -> torch.Tensor:
        dtypes.add(student.logits.dtype)
        return original(self, student, teacher)

    monkeypatch.setattr(Logits, "forward", forward)
    trainer = trainer_of(tmp_path, [Logits()], bf16=True, max_steps=2, eval_dataset=features(5))
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert {value.dtype for value in trainer.student.parameters()} == {torch.float32}
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_preview_sees_what_the_steps_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store keeps what the teacher says in it: it has to be said under the steps' autocast."""
    seen = []
    original = Embeddings.preview

    def preview(self: Any, teacher: Any) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        original(self, teacher)

    monkeypatch.setattr(Embeddings, "preview", preview)
    for bf16 in (False, True):
        trainer_of(tmp_path, [Embeddings(projection="pca")], bf16=bf16, max_steps=1).train()
    assert seen == [False, True]


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path: Path) -> None:
    # Up to 5.17 transformers called it gradient checkpointing.
    known = hasattr(DistillationArguments, "activation_checkpointing")
    checkpointing = "activation" if known else "gradient"
    plain = trainer_of(tmp_path, max_steps=2)
    plain.train()
    saving = trainer_of(
        tmp_path,
        max_steps=2,
        **{f"{checkpointing}_checkpointing": True},
        **{f"{checkpointing}_checkpointing_kwargs": {"use_reentrant": False}},
    )
    saving.train()
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.student.modules())
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(saving)[name], rtol=1e-4, atol=1e-6)


def test_a_compiled_training_is_the_same(tmp_path: Path) -> None:
    """Dynamo finds its way through a Distiller, with breaks, on every torch that is supported."""
    pair = [tiny_bert(1, 12, 4, seed=seed) for seed in (1, 2)]
    found = []
    for compiled in (False, True):
        settings = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
        trainer = trainer_of(
            tmp_path, [HiddenStates()], pair=copy.deepcopy(pair), max_steps=1, save_strategy="no", **settings
        )
        trainer.train()
        found.append(weights(trainer))
    torch.compiler.reset()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-4, atol=1e-6)


def test_bad_settings_are_said_before_work_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compute_loss_func: got .*, want it left out: the loss is the obj"):
        trainer_of(tmp_path, extra={"compute_loss_func": lambda outputs, labels: outputs.loss})
    with pytest.raises(ValueError, match="train_dataset: got no rows"):
        trainer_of(tmp_path / "a", train=[])
    with pytest.raises(ValueError, match=r"eval_dataset: got features with .*, want input_ids"):
        trainer_of(tmp_path / "a", eval_dataset=[{"text": "x"}])
    with pytest.raises(TypeError, match="train_dataset"):
        trainer_of(tmp_path / "a", train=iter([]))
    with pytest.raises(ValueError, match="tokens_per_batch: got 5, want at least the longest"):
        trainer_of(tmp_path / "b", tokens_per_batch=5).train()
    with pytest.raises(ValueError, match="tokens_per_batch: got 0, want 1 or more"):
        arguments(tmp_path, tokens_per_batch=0)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        arguments(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="train_sampling_strategy"):
        arguments(tmp_path, train_sampling_strategy="batch_rebalance")
    assert not (tmp_path / "a").exists()
