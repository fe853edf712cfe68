"""Several tasks at once: one encoder, batches of one task each, gradients and metrics as of each task alone."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    TrainerCallback,
)

from bertxfer_fast import students
from bertxfer_fast.data.mixing import MixedBatchSampler, MixedRows, batches_of_tasks
from bertxfer_fast.data.samplers import TokenBudgetBatchSampler
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.multitask import MultiTask
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, Logits
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.training.multitask import MultiTaskTrainer

from ..tiny import packed_batch, tiny_bert
from .test_trainer import arguments, features

ROWS = {"text": features(20, labels="class"), "word": features(8, labels="token", seed=1)}


def models() -> dict[str, Any]:
    """A teacher and a student for each task; the students share the first one's encoder."""
    heads = {"text": "ForSequenceClassification", "word": "ForTokenClassification"}
    teachers = {name: tiny_bert(4, 16, 4, head=head, seed=i) for i, (name, head) in enumerate(heads.items())}
    pupils = {
        name: tiny_bert(2, 12, 4, head=head, seed=5 + i) for i, (name, head) in enumerate(heads.items())
    }
    students.share_encoder(pupils)
    return {name: (teachers[name], pupils[name]) for name in heads}


def multitask(**settings: Any) -> MultiTask:
    torch.manual_seed(5)
    pairs = models()
    return MultiTask(
        {
            "text": Distiller(*pairs["text"], [Logits(), HiddenStates()]),
            "word": Distiller(*pairs["word"], [Logits(), Labels()]),
        },
        **settings,
    )


def trainer_of(folder: Path, **changes: Any) -> MultiTaskTrainer:
    extra = {key: changes.pop(key) for key in ("temperature",) if key in changes}
    return MultiTaskTrainer(
        multitask(), arguments(folder, **changes), train_dataset=ROWS, eval_dataset=ROWS, **extra
    )


def test_students_share_their_encoder_and_nothing_else() -> None:
    pairs = models()
    text, word = pairs["text"][1], pairs["word"][1]
    assert text.bert.encoder is word.bert.encoder and text.bert.embeddings is word.bert.embeddings
    batch = {"input_ids": torch.arange(5, 12)[None]}
    before = word(**batch).logits
    with torch.no_grad():
        text.bert.encoder.layer[0].output.dense.weight.add_(0.1)
    assert not torch.equal(word(**batch).logits, before)
    assert text.classifier is not word.classifier


def test_weights_that_were_tied_are_tied_to_the_shared_ones(tmp_path: Path) -> None:
    text, masked = (
        tiny_bert(head=head, seed=i) for i, head in enumerate(("ForSequenceClassification", "ForMaskedLM"))
    )
    students.share_encoder({"text": text, "masked": masked})
    assert masked.get_output_embeddings().weight is text.get_input_embeddings().weight
    masked.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    batch = {"input_ids": torch.arange(5, 12)[None]}
    torch.testing.assert_close(again(**batch).logits, masked(**batch).logits)


@pytest.mark.parametrize("kind", ["bilstm", "textcnn", "mlp"])
def test_students_of_other_kinds_share_all_but_their_heads(kind: str) -> None:
    one, two = (
        students.build(kind, tiny_bert(head="ForSequenceClassification"), init="random").eval()
        for _ in range(2)
    )
    other = students.build(kind, tiny_bert(head="ForTokenClassification", num_labels=5), init="random").eval()
    students.share_encoder({"one": one, "two": two, "other": other})
    assert len({id(student.classifier) for student in (one, two, other)}) == 3
    assert len({id(student.get_input_embeddings()) for student in (one, two, other)}) == 1
    batch = {"input_ids": torch.arange(5, 12)[None]}
    before = other(**batch).logits
    with torch.no_grad():
        one.get_input_embeddings().weight.add_(0.1 * torch.randn_like(one.get_input_embeddings().weight))
    assert not torch.equal(other(**batch).logits, before)
    two.head = two.classifier
    del two.classifier
    with pytest.raises(ValueError, match=r"students\['two'\]: got \w+ without a part called classifier"):
        students.share_encoder({"one": one, "two": two})


def test_convolutions_over_other_windows_are_not_shared() -> None:
    """Five and three tokens have as many weights as four and four, but a saved student names its own windows."""
    teacher = tiny_bert(head="ForSequenceClassification")
    one, two = (
        students.build("textcnn", teacher, filters=4, kernel_sizes=sizes) for sizes in ([3, 5], [4, 4])
    )
    with pytest.raises(ValueError, match=r"differs from 'one''s in convolution\.windows"):
        students.share_encoder({"one": one, "two": two})


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({"b": {"hidden": 16}}, r"students\['b'\]: got an encoder that differs from 'a''s in embeddings"),
        ({"b": {"layers": 3}}, r"differs from 'a''s in encoder\.layer\.2"),
        (
            {"b": {"heads": 2}},
            r"differs from 'a''s in encoder\.layer\.0\.attention\.self\.attention_head_size",
        ),
        (
            {"b": {"hidden_act": "relu"}},
            r"in encoder\.layer\.0\.intermediate\.intermediate_act_fn, want the same",
        ),
        ({"b": {"dropout": 0.5}, "c": {"layer_norm_eps": 0.1}}, r"students\['c'\].*\.LayerNorm\.eps, want"),
        ({}, "students: got \\['a'\\], want at least two"),
    ],
)
def test_encoders_that_cannot_be_shared(others: dict[str, Any], said: str) -> None:
    first = tiny_bert(2, 12, 4)
    with pytest.raises(ValueError, match=said):
        students.share_encoder(
            {
                "a": first,
                **{name: tiny_bert(**{"layers": 2, "hidden": 12, **sizes}) for name, sizes in others.items()},
            }
        )
    with pytest.raises(ValueError, match="got one model under two names"):
        students.share_encoder({"a": first, "b": first})


def test_a_batch_runs_the_distiller_of_its_task() -> None:
    both = multitask(weights={"word": 0.5})
    batch, labels = packed_batch(), packed_batch(labels="token")
    alone = {name: both.of(name)(**labels) for name in ("text", "word")}
    for name, weight in (("text", 1.0), ("word", 0.5)):
        found = both(task=name, **labels)
        torch.testing.assert_close(found.loss, weight * alone[name].loss)
        assert {part: value.item() for part, value in found.parts.items()} == {
            f"{name}/{part}": value.item() for part, value in alone[name].parts.items()
        }
    with pytest.raises(ValueError, match="task: got 'txt', want one of text, word"):
        both(task="txt", **batch)
    with pytest.raises(ValueError, match="task: got None"):
        both(**batch)


def test_what_one_task_reaches_trains_and_what_none_reaches_does_not() -> None:
    pairs = models()
    deep = Distiller(*pairs["word"], [Labels()])
    shallow = Distiller(*pairs["text"], [HiddenStates([(1, 2)])])
    both = MultiTask({"text": shallow, "word": deep})
    trained = {name for name, p in both.named_parameters() if p.requires_grad}
    student = "distillers.text.student"
    assert f"{student}.bert.encoder.layer.1.output.dense.weight" in trained  # of `word`
    assert (
        f"{student}.bert.pooler.dense.weight" not in trained and f"{student}.classifier.weight" not in trained
    )
    for name, rows in (("text", packed_batch()), ("word", packed_batch(labels="token"))):
        both(task=name, **rows).loss.backward()
    assert {name for name, p in both.named_parameters() if p.grad is not None} == trained
    both.release()
    assert all(p.requires_grad for p in both.parameters())


@pytest.mark.parametrize(
    ("packs", "temperature", "wanted"),
    [
        ([6, 2, 2], 1.0, [6, 2, 2]),
        ([90, 10], 1e9, [50, 50]),
        ([90, 10], 2.0, [75, 25]),  # sqrt: 9.49 to 3.16
        ([100, 1], 1.0, [100, 1]),
        ([1000, 1], 0.5, [1000, 1]),  # none goes without
    ],
)
def test_batches_are_shared_out(packs: list[int], temperature: float, wanted: list[int]) -> None:
    assert batches_of_tasks(packs, temperature) == wanted


def test_an_epoch_in_proportion_sees_every_row_once() -> None:
    rows = MixedRows(ROWS)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError, match=rf"rows: got \[{index}\], want 0\.\.27"):
            rows[index]

    def sampler(temperature: float, seed: int = 3) -> MixedBatchSampler:
        parts = {n: TokenBudgetBatchSampler(rows.lengths_of(n), 30, bucket=1) for n in ROWS}
        return MixedBatchSampler(parts, rows.starts, temperature=temperature, seed=seed)

    found = list(sampler(1.0))
    assert len(found) == len(sampler(1.0)) and sorted(i for batch in found for i in batch) == list(range(28))
    assert all(len({i < 20 for i in batch}) == 1 for batch in found)
    assert list(sampler(1.0)) == found and list(sampler(1.0, 4)) != found
    later = sampler(1.0)
    later.set_epoch(1)
    assert list(later) != found and len(list(later)) == len(found)
    for part in (
        lambda batches: [batch[0] < 20 for batch in batches],
        sorted,
    ):  # both the turns and the packs
        assert part(list(later)) != part(found)
    even = collections.Counter(batch[0] < 20 for batch in sampler(1e9))
    assert abs(even[True] - even[False]) <= 1
    # The smaller task comes more than once, each pass whole.
    times = collections.Counter(i for batch in sampler(1e9) for i in batch if i >= 20)
    assert max(times.values()) - min(times.values()) <= 1 and max(times.values()) > 1


def test_it_trains_measures_and_saves_every_task(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4)
    before = {name: p.clone() for name, p in trainer.distiller.named_parameters()}
    trainer.train()
    assert all(
        not torch.equal(p, before[name])
        for name, p in trainer.distiller.named_parameters()
        if p.requires_grad
    )
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"loss/text/logits", "loss/text/hidden_states", "loss/word/labels"} <= logged
    found = trainer.evaluate()
    kinds = {"text": AutoModelForSequenceClassification, "word": AutoModelForTokenClassification}
    trainer.save_model()
    for name, kind in kinds.items():
        saved, notes = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not notes["missing_keys"] and not notes["unexpected_keys"]
        metric = {"text": "accuracy", "word": "token_accuracy"}[name]
        assert evaluate(saved, ROWS[name])[metric] == pytest.approx(found[f"eval_{name}_{metric}"])
        assert f"train: {len(ROWS[name])} sequences" in (tmp_path / name / "README.md").read_text()
    encoders = [
        kind.from_pretrained(tmp_path / name).bert.encoder.state_dict() for name, kind in kinds.items()
    ]
    assert all(torch.equal(value, encoders[1][key]) for key, value in encoders[0].items())
    assert found["eval_text_loss"] == pytest.approx(
        found["eval_text_loss/text/logits"] + found["eval_text_loss/text/hidden_states"]
    )
    assert trainer.evaluate("word").keys() <= {"epoch", *(key.replace("_word", "") for key in found)}


def test_the_loss_of_a_task_is_weighted_in_the_sum_alone(tmp_path: Path) -> None:
    trainer = MultiTaskTrainer(
        multitask(weights={"word": 0.5}), arguments(tmp_path), train_dataset=ROWS, eval_dataset=ROWS
    )
    found = trainer.evaluate()
    word = found["eval_word_loss/word/logits"] + found["eval_word_loss/word/labels"]
    assert found["eval_word_loss"] == pytest.approx(word)
    assert found["eval_loss"] == pytest.approx(found["eval_text_loss"] + 0.5 * word)


def test_a_run_stops_by_the_sum_of_the_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a threshold that nothing reaches it ends where a run of one task does: at the second evaluation."""
    saves = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, early_stopping_patience=1, early_stopping_threshold=1e6, **saves)
    trainer.train()
    assert trainer.state.global_step == 2 and "early stopping" not in caplog.text
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert all(entry.keys() >= {"eval_text_accuracy", "eval_word_token_accuracy"} for entry in logged)


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", max_steps=9, save_strategy="steps", save_steps=4)
    whole.train()
    again = trainer_of(tmp_path / "again", max_steps=9, save_strategy="steps", save_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for (name, p), (_, other) in zip(
        whole.distiller.named_parameters(), again.distiller.named_parameters(), strict=True
    ):
        assert torch.equal(p, other), name


@pytest.mark.parametrize("shared", [True, False])
def test_every_tasks_student_is_frozen(tmp_path: Path, shared: bool) -> None:
    heads = {"text": "ForSequenceClassification", "word": "ForTokenClassification"}
    pupils = {name: tiny_bert(2, 12, 4, head=head) for name, head in heads.items()}
    if shared:
        students.share_encoder(pupils)
    both = MultiTask({name: Distiller(None, pupil, [Labels()]) for name, pupil in pupils.items()})
    before = {name: p.clone() for name, p in both.named_parameters()}
    MultiTaskTrainer(both, arguments(tmp_path, max_steps=8, freeze="embeddings"), train_dataset=ROWS).train()
    moved = {name for name, p in both.named_parameters() if not torch.equal(p, before[name])}
    assert not any(".embeddings." in name for name in moved)
    assert {name.split(".")[1] for name in moved} == {"text", "word"}


@pytest.mark.parametrize("shared", [True, False])
def test_every_tasks_student_thaws_from_its_head_down(tmp_path: Path, shared: bool) -> None:
    """Of students of two layers and of one: what has no third part waits for nobody."""
    depths = {"text": 2, "word": 2 if shared else 1}
    heads = {"text": "ForSequenceClassification", "word": "ForTokenClassification"}
    pupils = {name: tiny_bert(depths[name], 12, 4, head=head) for name, head in heads.items()}
    if shared:
        students.share_encoder(pupils)
    both = MultiTask({name: Distiller(None, pupil, [Labels()]) for name, pupil in pupils.items()})
    before = {name: p.clone() for name, p in both.named_parameters()}
    seen: list[set[str]] = []

    class Moved(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append({name for name, p in both.named_parameters() if not torch.equal(p, before[name])})

    settings = {"max_steps": 12, "gradual_unfreezing": 1 / 3, "learning_rate": 1e-2}
    trainer = MultiTaskTrainer(both, arguments(tmp_path, **settings), train_dataset=ROWS)
    trainer.add_callback(Moved())
    trainer.train()
    layers = [
        {part for name in moved for part in re.findall(r"(layer\.\d|embeddings)", name)} for moved in seen
    ]
    assert not layers[3] and {name.split(".")[1] for name in seen[3]} == {"text", "word"}
    assert layers[7] == ({"layer.1"} if shared else {"layer.1", "layer.0"})
    alone = [name for name in seen[7] if "layer.0" in name]
    assert not any(".text." in name for name in alone)
    assert layers[11] >= {"layer.0", "layer.1"}
    trainer.distiller.release()
    assert all(p.requires_grad for p in both.parameters())


def test_tasks_that_are_not_the_models(tmp_path: Path) -> None:
    both = multitask()
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="train_dataset: got text, want text, word"):
        MultiTaskTrainer(both, args, train_dataset={"text": ROWS["text"]})
    with pytest.raises(ValueError, match="eval_dataset: got words, want text, word"):
        MultiTaskTrainer(both, args, train_dataset=ROWS, eval_dataset={"words": ROWS["word"]})
    with pytest.raises(TypeError, match="train_dataset: got list, want a mapping by task"):
        MultiTaskTrainer(both, args, train_dataset=ROWS["text"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature: got 0"):
        MultiTaskTrainer(both, args, train_dataset=ROWS, temperature=0).get_train_dataloader()
    few = {"text": ROWS["text"], "word": ROWS["word"][:3]}
    drops = arguments(tmp_path, dataloader_drop_last=True, tokens_per_batch=60)
    with pytest.raises(ValueError, match="samplers: got no batch of task 'word', want at least one"):
        MultiTaskTrainer(both, drops, train_dataset=few).get_train_dataloader()
    with pytest.raises(ValueError, match="weights: got -1 for 'text'"):
        multitask(weights={"text": -1})
    with pytest.raises(ValueError, match=r"got the name 'a\.b', want letters"):
        MultiTask({"a.b": both.of("text")})
    assert np.isfinite(both(task="text", **packed_batch()).loss.item())
