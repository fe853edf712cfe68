"""Every task from a recipe file, a data file and a tiny teacher to a student that is measured."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from bertxfer_fast import cli, data, recipes, tasks, teachers
from bertxfer_fast.distillation.objectives import HiddenStates
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.models.hf.loading import load_model

from ..folders import BYTE_VOCAB, WORDS, byte_tokenizer, change, contents, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert

PLAIN = [word for word in WORDS if word.isalpha()]
NAMES = ["O", "B-x", "I-x"]


def text(draw: random.Random, words: int = 6) -> list[str]:
    return [draw.choice(PLAIN) for _ in range(words)]


def pairs(draw: random.Random) -> dict[str, Any]:
    return {
        "a": " ".join(text(draw)),
        "b": " ".join(text(draw, 12)),
        "y": draw.choice(["neg", "neutral", "pos"]),
    }


def numbers(draw: random.Random) -> dict[str, Any]:
    return {"a": " ".join(text(draw)), "y": draw.random()}


def many(draw: random.Random) -> dict[str, Any]:
    return {"a": " ".join(text(draw)), "y": draw.sample(["neg", "neutral", "pos"], draw.randint(0, 3))}


def words(draw: random.Random) -> dict[str, Any]:
    some = text(draw)
    return {"a": [*some[:2], "slowly", *some[2:]], "y": [draw.choice(NAMES) for _ in range(7)]}


def answers(draw: random.Random) -> dict[str, Any]:
    context = " ".join(text(draw, 14))
    start = context.index(" ", draw.randrange(30)) + 1
    end = (context + " ").index(" ", start)
    answer = {"text": [context[start:end]], "answer_start": [start]}
    return {"a": " ".join(text(draw, 3)), "b": context, "y": answer}


def likeness(draw: random.Random) -> dict[str, Any]:
    return {"a": " ".join(text(draw)), "b": " ".join(text(draw)), "y": draw.random()}


CASES: dict[str, dict[str, Any]] = {
    "pairs": {"row": pairs, "pair": True, "measured": ["accuracy"]},
    "regression": {"row": numbers, "num_labels": 1, "measured": ["mse", "pearson"]},
    "multi-label-classification": {
        "row": many,
        "problem_type": "multi_label_classification",
        "measured": ["accuracy", "f1"],
    },
    "token-classification": {
        "row": words,
        "head": "ForTokenClassification",
        "names": NAMES,
        "measured": ["token_accuracy", "span_f1"],
    },
    "question-answering": {
        "row": answers,
        "head": "ForQuestionAnswering",
        "num_labels": 2,
        "pair": True,
        "stride": 3,
        "measured": ["exact_match", "overlap_f1"],
    },
    "masked-lm": {"row": numbers, "head": "ForMaskedLM", "label": None, "measured": []},
}


def place_of(folder: Path, row: Any, *, seed: int = 0, **case: Any) -> Path:
    """A folder as `make_place` makes it, with another teacher and files of other rows."""
    make_place(folder)
    shutil.rmtree(folder / "teacher")
    settings = {key: case[key] for key in ("num_labels", "problem_type") if key in case}
    teacher = tiny_bert(4, 16, 4, seed=1, **{"head": "ForSequenceClassification", **settings, **_head(case)})
    if "names" in case:
        teacher.config.id2label = dict(enumerate(case["names"]))
        teacher.config.label2id = {name: i for i, name in enumerate(case["names"])}
    teacher.save_pretrained(folder / "teacher")
    tiny_tokenizer(folder / "teacher")
    draw = random.Random(seed)
    for name, count in (("train", 12), ("dev", 6), ("test", 6)):
        lines = [json.dumps(row(draw)) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    change(
        folder,
        data={
            "train": "train.jsonl",
            "eval": "dev.jsonl",
            "test": "test.jsonl",
            "text": "a",
            **({"text_pair": "b"} if case.get("pair") else {}),
            **({"label": "y"} if case.get("label", "y") else {}),
            **({"stride": case["stride"]} if "stride" in case else {}),
            "max_length": 16,
        },
        training={"max_steps": 2, "per_device_train_batch_size": 4},
        stages={},
        report={"resamples": 20, "sentences": 0},
    )
    return folder


def _head(case: dict[str, Any]) -> dict[str, str]:
    return {"head": case["head"]} if "head" in case else {}


def student_row(folder: Path) -> dict[str, str]:
    """The student's line of the table of models."""
    lines = [x.split("|") for x in (folder / "summary.md").read_text().splitlines() if x.startswith("| ")]
    rows = {line[1].strip(): [cell.strip() for cell in line] for line in lines}
    return dict(zip(rows["model"], rows["student"], strict=True))


def measured_anew(place: Path, task: str, **settings: Any) -> dict[str, float]:
    """What the saved student gives on the test file, loaded by transformers."""
    student = load_model(place / "out", tasks.get(task).auto_class)[0]
    features = data.encode(
        place / "test.jsonl",
        AutoTokenizer.from_pretrained(place / "out"),
        text="a",
        label="y",
        task=task,
        label2id=student.config.label2id,
        max_length=16,
        **settings,
    )
    if "text_pair" in settings and task != "embedding":
        assert all(set(types) == {0, 1} for types in features["token_type_ids"])
    return evaluate(student, features, task=task)


@pytest.mark.parametrize("name", CASES)
def test_a_task_from_file_to_student(tmp_path: Path, name: str) -> None:
    case = dict(CASES[name])
    row, measured = case.pop("row"), case.pop("measured")
    place = place_of(tmp_path, row, **case)
    task = "sequence-classification" if name == "pairs" else name
    change(place, task=task)
    assert distill(place) == 0
    stage = json.loads((place / "out" / "prediction" / "stage.json").read_text())["summary"]
    assert {f"dev {metric}" for metric in measured} <= stage.keys() and math.isfinite(stage["dev loss"])
    if not measured:
        return
    settings = {"text_pair": "b"} if case.get("pair") else {}
    found = measured_anew(place, task, **settings, **({"stride": 3} if "stride" in case else {}))
    shown = student_row(place / "out")
    for metric in measured:
        assert float(shown[metric]) == pytest.approx(found[metric], abs=2e-4)


def test_embeddings_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes.base._registry, "_entries", dict(recipes.base._registry._entries))

    @recipes.register
    def last_states() -> recipes.Recipe:
        return recipes.Recipe("last_states", [recipes.Stage("hidden", lambda: [HiddenStates(layers="last")])])

    place = place_of(tmp_path, likeness, head="Model", pair=True)
    change(place, recipe="last_states", task="embedding")
    assert distill(place) == 0
    stage = json.loads((place / "out" / "hidden" / "stage.json").read_text())["summary"]
    assert {"dev spearman", "dev pearson"} <= stage.keys()
    found, shown = measured_anew(place, "embedding", text_pair="b"), student_row(place / "out")
    assert {name: float(shown[name]) for name in found} == pytest.approx(found, abs=2e-4)
    # Without labels only the loss is measured.
    change(place, data__label=None, output_dir="other")
    assert distill(place) == 0
    assert "spearman" not in (place / "other" / "summary.md").read_text()


@pytest.mark.parametrize(
    ("row", "head", "words", "settings"),
    [
        (likeness, "Model", ["--task", "embedding", "--what", "hidden:-1:mean"], {"task": "embedding"}),
        (answers, "ForQuestionAnswering", ["--stride=3"], {"task": "question-answering", "stride": 3}),
    ],
)
def test_a_store_of_a_folder_has_what_a_run_of_the_task_reads(
    tmp_path: Path, row: Any, head: str, words: list[str], settings: dict[str, Any]
) -> None:
    place = place_of(tmp_path, row, head=head, num_labels=2)
    columns = ["--text", "a", "--text-pair", "b", "--max-length", "16"]
    files = ["--data", str(place / "train.jsonl"), "--output", str(place / "store")]
    assert cli.main(["store", str(place / "teacher"), *files, *columns, *words]) == 0
    store = teachers.Store.open(place / "store")
    tokenizer = AutoTokenizer.from_pretrained(place / "teacher")
    rows = data.encode(place / "train.jsonl", tokenizer, text="a", text_pair="b", max_length=16, **settings)
    assert len(rows) > 12  # two texts, or several windows, a row of the file
    assert not len(store.missing(rows, list(store.columns)))


def test_a_store_teaches_answers_as_their_teacher_does(tmp_path: Path) -> None:
    case = {**CASES["question-answering"]}
    place = place_of(tmp_path, case.pop("row"), **case)
    change(place, recipe="logits", task="question-answering", training__max_steps=12)
    assert distill(place) == 0
    assert distill(place, "--store", str(place / "store"), "--output_dir", str(place / "kept")) == 0
    live, kept = (load_model(place / out, "AutoModelForQuestionAnswering")[0] for out in ("out", "kept"))
    for name, value in live.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), name


def test_best_metrics_that_are_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of classes that mark no entities there is no span F1."""
    case = {**CASES["token-classification"], "names": ["A", "B", "C"]}
    row = case.pop("row")

    def letters(draw: random.Random) -> dict[str, Any]:
        made = row(draw)
        return {**made, "y": [draw.choice("ABC") for _ in made["y"]]}

    place = place_of(tmp_path, letters, **case)
    best = {"metric_for_best_model": "span_f1", "load_best_model_at_end": True, "save_strategy": "epoch"}
    change(place, training={"max_steps": 2, **best})
    assert distill(place) == 2
    assert "metric_for_best_model: got 'span_f1', want one that is measured here" in capsys.readouterr().err


# Several at once


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Reviews with a class, and words with entities, each with a teacher and files of its own, under one recipe."""
    reviews, entities = tmp_path / "reviews", tmp_path / "entities"
    for folder in (reviews, entities):
        folder.mkdir()
    place_of(reviews, pairs)
    case = {**CASES["token-classification"]}
    place_of(entities, case.pop("row"), **case)
    files = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}

    def of(folder: Path, **more: Any) -> dict[str, Any]:
        data = {
            "train": f"{folder.name}/{files['train']}",
            "eval": f"{folder.name}/{files['dev']}",
            "test": f"{folder.name}/{files['test']}",
            "text": "a",
            "label": "y",
            "max_length": 16,
            **more,
        }
        return {"teacher": f"{folder.name}/teacher", "data": data}

    recipe = {
        "recipe": "tinybert",
        "student": {"num_hidden_layers": 2, "hidden_size": 12, "init": "random"},
        "output_dir": "out",
        "mixing": 2.0,
        "training": {"max_steps": 4, "per_device_train_batch_size": 4},
        "report": {"resamples": 20, "sentences": 0},
        "tasks": {
            "reviews": of(reviews, text_pair="b"),
            "entities": {**of(entities), "task": "token-classification", "weight": 0.5},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def test_several_tasks_from_one_file(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(several) == 0
    out = several / "out"
    kinds = {"reviews": "AutoModelForSequenceClassification", "entities": "AutoModelForTokenClassification"}
    found = {name: load_model(out / name, kind) for name, kind in kinds.items()}
    assert not any(missing for _, missing in found.values())
    layers = [model.bert.encoder.state_dict() for model, _ in found.values()]
    assert all(torch.equal(value, layers[1][name]) for name, value in layers[0].items())
    entities = found["entities"][0]
    assert entities.config.id2label == dict(enumerate(NAMES))
    features = data.encode(
        several / "entities" / "test.jsonl",
        AutoTokenizer.from_pretrained(out / "entities"),
        text="a",
        label="y",
        task="token-classification",
        label2id=entities.config.label2id,
        max_length=16,
    )
    results = json.loads((out / "entities" / "results.json").read_text())
    assert evaluate(entities, features)["token_accuracy"] == pytest.approx(
        float(student_row(out / "entities")["token_accuracy"]), abs=2e-4
    )
    assert "dev span_f1" in results["stages"][-1] and "dev accuracy" not in results["stages"][-1]
    # Again: nothing is trained. With another weight: another run.
    before = contents(out / "prediction")
    assert distill(several) == 0
    assert "stage prediction: finished before, skipped" in capsys.readouterr().out
    assert contents(out / "prediction") == before
    assert distill(several, "--tasks.entities.weight", "2") == 2
    assert "holds a run that differs (weights.entities)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tasks.reviews.seed", "1"), "seed: got it for task 'reviews', want it once, for all tasks"),
        (("--tasks.reviews.weight", "-1"), "weight: got -1.0, want a number from 0"),
        (("--mixing", "0"), "mixing: got 0.0, want a number above 0"),
        (("--tasks.reviews.data.trian", "x"), "unknown key"),
        (
            ("--tasks.review.weight", "2"),
            "tasks: got the name 'review', want one of recipe.yaml; did you mean 'reviews'?",
        ),
        (("--tasks.reviews.student", "x"), "student: got it for task 'reviews'"),
        (("--report.twin", "true"), "twin: got true for several tasks, want it left out"),
        (("--store", "common"), "want a store for each of them"),
        (
            ("--training.prune_heads", "0.5"),
            "stage intermediate: prune_heads, prune_columns, prune_layers: got",
        ),
        (
            ("--stages.prediction.metric_for_best_model", "loss/logits"),
            "stage prediction: metric_for_best_model: got 'loss/logits' for several tasks, want 'loss'",
        ),
    ],
)
def test_several_tasks_that_do_not_go_together(
    several: Path, flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill(several, *flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (several / "out").exists()


def test_several_tasks_stop_early_by_the_sum_of_their_losses(several: Path) -> None:
    flags = ("--training.early_stopping_patience", "2", "--training.max_steps", "9")
    assert distill(several, *flags, "--training.save_total_limit", "9") == 0
    state = json.loads(
        next((several / "out" / "prediction").glob("checkpoint-*/trainer_state.json")).read_text()
    )
    assert state["best_metric"] > 0 and any("eval_loss" in entry for entry in state["log_history"])
    last = json.loads((several / "out" / "prediction" / "stage.json").read_text())["measured"]
    losses = last["eval_reviews_loss"], last["eval_entities_loss"]
    assert last["eval_loss"] == pytest.approx(losses[0] + 0.5 * losses[1])


def test_several_tasks_of_different_recipes_share_the_names_of_stages(
    several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((several / "recipe.yaml").read_text())
    for name, chosen in (("reviews", "logits"), ("entities", "finetune")):
        recipe["tasks"][name]["recipe"] = chosen
    (several / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert distill(several, "--stages.finetuning.max_steps", "2") == 2
    assert "recipe 'logits' has no stage 'finetuning'" in capsys.readouterr().err
    assert distill(several, "--stages.prediction.max_steps", "2") == 0
    for name in ("reviews", "entities"):
        [stage] = json.loads((several / "out" / name / "results.json").read_text())["stages"]
        assert (stage["stage"], stage["steps"]) == ("prediction", 2)


def test_a_store_for_each_of_several_tasks(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(several, recipe="logits")
    assert cli.main(["store", str(several / "recipe.yaml")]) == 2
    assert "required key 'store' is missing" in capsys.readouterr().err
    change(several, tasks__reviews__store="reviews/store", tasks__entities__store="entities/store")
    assert cli.main(["store", str(several / "recipe.yaml")]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" of 18 texts asked; ") == 2 and "0 of 18 texts asked; " not in shown
    assert cli.main(["store", str(several / "recipe.yaml")]) == 0
    assert capsys.readouterr().out.count("0 of 18 texts asked; ") == 2


def test_several_tasks_whose_names_begin_alike(several: Path) -> None:
    """`eval_x_y_loss` is the task `x_y`'s and not the task `x`'s `y_loss`."""
    recipe = yaml.safe_load((several / "recipe.yaml").read_text())
    recipe["tasks"] = {"x": recipe["tasks"]["reviews"], "x_y": recipe["tasks"]["entities"]}
    (several / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert distill(several) == 0
    for name, metric in (("x", "accuracy"), ("x_y", "token_accuracy")):
        [*_, stage] = json.loads((several / "out" / name / "results.json").read_text())["stages"]
        found = {key for key in stage if key.startswith("dev ")}
        assert found == {
            "dev loss",
            *(
                f"dev {key}"
                for key in (
                    [metric]
                    if name == "x"
                    else ["token_accuracy", "span_precision", "span_recall", "span_f1"]
                )
            ),
        }


def test_several_tasks_with_masked_text_among_them(several: Path) -> None:
    """A batch of the masked LM has masked tokens and their labels, as when it is trained alone."""
    folder = several / "plain"
    folder.mkdir()
    tiny_bert(4, 16, 4, head="ForMaskedLM", seed=3).save_pretrained(folder / "teacher")
    tiny_tokenizer(folder / "teacher")
    lines = (" ".join(text(random.Random(i), 9)) for i in range(12))
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n")
    data = {"train": "plain/corpus.txt", "eval": "plain/corpus.txt", "max_length": 16}
    recipe = yaml.safe_load((several / "recipe.yaml").read_text())
    recipe["tasks"] = {
        "reviews": {**recipe["tasks"]["reviews"], "recipe": "logits"},
        "plain": {"teacher": "plain/teacher", "data": data, "recipe": "distilbert"},
    }
    (several / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert distill(several) == 0
    [stage] = json.loads((several / "out" / "plain" / "results.json").read_text())["stages"]
    assert 0 <= stage["dev token_accuracy"] <= 1


def test_several_tasks_of_a_student_with_its_own_tokens(several: Path) -> None:
    byte_tokenizer(several / "bytes")
    change(
        several,
        recipe="logits",
        student={"num_hidden_layers": 2, "hidden_size": 12, "init": "random", "tokenizer": "bytes"},
    )
    assert distill(several) == 0
    out = several / "out"
    students = {
        "reviews": load_model(out / "reviews", "AutoModelForSequenceClassification")[0],
        "entities": load_model(out / "entities", "AutoModelForTokenClassification")[0],
    }
    for name, columns in (("reviews", {"text_pair": "b"}), ("entities", {"task": "token-classification"})):
        student = students[name]
        own = AutoTokenizer.from_pretrained(out / name)
        assert len(own) == student.config.vocab_size == BYTE_VOCAB
        rows = data.encode(
            several / name / "test.jsonl",
            own,
            text="a",
            label="y",
            label2id=student.config.label2id,
            max_length=16,
            **columns,
        )
        [metric, measured] = next(iter(evaluate(student, rows, task=columns.get("task")).items()))
        assert float(student_row(out / name)[metric]) == pytest.approx(measured, abs=2e-4)
