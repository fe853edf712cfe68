"""Heads for spans, entities and embeddings, beside transformers' own losses and one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import HiddenStates, Labels, Logits
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.evaluation.metrics import best_spans
from bertxfer_fast.tasks.entities import span_f1

from ..tiny import LENGTHS, pack_padded, padded_batch, tiny_bert, tiny_pair
from ..training.test_trainer import trainer_of


def span_pair(family: str = "Bert") -> Any:
    settings: dict[str, Any] = {"head": "ForQuestionAnswering", "num_labels": 2, "family": family}
    return tiny_bert(4, 16, 4, seed=1, **settings), tiny_bert(2, 12, 4, seed=2, **settings)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_spans_have_transformers_loss(family: str) -> None:
    teacher, student = span_pair(family)
    batch = padded_batch(token_types=family == "Bert")
    labels = torch.tensor([[2, 6], [0, 0], [0, 0], [10, 10]])
    distiller = Distiller(teacher, student, [Labels(name="l"), Logits(temperature=2.0, name="t")])
    found = distiller(**pack_padded(batch), labels=labels)
    alone, kl = [], []  # one at a time: transformers' softmax runs over padding, too
    with torch.no_grad():
        for i, length in enumerate(LENGTHS):
            row = {name: value[i : i + 1, :length] for name, value in batch.items()}
            start, end = labels[i : i + 1].T
            out = student(**row, start_positions=start, end_positions=end)
            alone.append(out.loss)
            other = teacher(**row)
            for name in ("start_logits", "end_logits"):
                s, t = (F.log_softmax(o[name].double() / 2, -1) for o in (out, other))
                kl.append((t.exp() * (t - s)).sum() * 4)
    torch.testing.assert_close(found.parts["l"], torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.parts["t"].double(), torch.stack(kl).mean(), rtol=1e-4, atol=1e-6)
    found.loss.backward()
    # Negative ones do not count; one behind its sequence's end is none.
    some = distiller(**pack_padded(batch), labels=torch.tensor([[2, 6], [-100, -100], [0, 0], [10, 10]]))
    torch.testing.assert_close(some.parts["l"], torch.stack([alone[i] for i in (0, 2, 3)]).mean())
    with pytest.raises(ValueError, match="labels: got 3, want a token of its sequence"):
        distiller(**pack_padded(batch), labels=torch.tensor([[2, 6], [0, 3], [0, 0], [10, 10]]))


def test_the_best_span_is_that_of_trying_all() -> None:
    torch.manual_seed(0)
    cu_seqlens = torch.tensor([0, 7, 8, 20], dtype=torch.int32)
    for longest in (1, 3, 30):
        logits = torch.randn(20, 2)
        found = best_spans(logits, cu_seqlens, longest)
        for (a, b), span in zip(((0, 7), (7, 8), (8, 20)), found.tolist(), strict=True):
            tried = {
                (s, e): float(logits[a + s, 0] + logits[a + e, 1])
                for s in range(b - a)
                for e in range(s, min(b - a, s + longest))
            }
            assert tuple(span) == max(tried, key=lambda pair: tried[pair])


def test_spans_train_and_are_measured_alike_by_trainer_and_evaluate(tmp_path: Path) -> None:
    rows = [{"input_ids": [2, *range(5, 9 + i), 3], "labels": [1 + i, 2 + i]} for i in range(6)]
    teacher, student = span_pair()
    trainer = trainer_of(
        tmp_path,
        [Logits(), Labels()],
        (teacher, student),
        train=rows,
        eval_dataset=rows,
        max_steps=3,
        per_device_eval_batch_size=4,
    )
    trainer.train()
    found, other = trainer.evaluate(), evaluate(student, rows, tokens_per_batch=16)
    assert set(other) == {"exact_match", "overlap_f1"}
    assert {name: found[f"eval_{name}"] for name in other} == pytest.approx(other)
    with torch.no_grad():
        out = student(torch.tensor([rows[2]["input_ids"]]))
    assert (
        trainer.predict(rows).predictions[2].tolist()
        == best_spans(
            torch.stack([out.start_logits[0], out.end_logits[0]], -1), torch.tensor([0, 8], dtype=torch.int32)
        ).tolist()[0]
    )


@pytest.mark.parametrize("batch", [2, 5])
def test_entities_are_measured_a_sequence_at_a_time(tmp_path: Path, batch: int) -> None:
    names = ["O", "B-x", "I-x"]
    rows = [
        {"input_ids": [2, *range(5 + i, 11 + i), 3], "labels": [-100, *np.arange(i, 6 + i) % 3, -100]}
        for i in range(5)
    ]
    rows = [{**row, "labels": [int(x) for x in row["labels"]]} for row in rows]
    pair = tiny_pair("ForTokenClassification")
    for model in pair:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    trainer = trainer_of(
        tmp_path,
        [Labels()],
        pair,
        train=rows,
        eval_dataset=rows,
        max_steps=1,
        per_device_eval_batch_size=batch,
    )
    trainer.train()
    guessed, right = [], []
    with torch.no_grad():
        for row in rows:
            ids = pair[1](torch.tensor([row["input_ids"]])).logits[0].argmax(-1).tolist()
            kept = [i for i, label in enumerate(row["labels"]) if label >= 0]
            guessed.append([names[ids[i]] for i in kept])
            right.append([names[row["labels"][i]] for i in kept])
    wanted = span_f1(guessed, right)
    joined = [[[name for names in side for name in names]] for side in (guessed, right)]
    assert wanted != span_f1(*joined)  # it matters where sequences end
    assert trainer.evaluate()["eval_span_f1"] == pytest.approx(wanted)
    assert evaluate(pair[1], rows, tokens_per_batch=20)["span_f1"] == pytest.approx(wanted)


def test_embeddings_are_measured_by_the_cosines_of_pairs(tmp_path: Path) -> None:
    rows = [{"input_ids": [2, *range(5, 7 + i % 4), 3], "labels": float(i // 2)} for i in range(10)]
    pair = tiny_bert(4, 16, 4, seed=1), tiny_bert(2, 12, 4, seed=2)
    trainer = trainer_of(
        tmp_path,
        [HiddenStates(layers="last")],
        pair,
        train=rows,
        eval_dataset=rows,
        max_steps=2,
        per_device_eval_batch_size=3,
        extra={"task": "embedding"},
    )
    trainer.train()
    with torch.no_grad():
        vectors = torch.stack(
            [pair[1](torch.tensor([row["input_ids"]])).last_hidden_state[0].mean(0) for row in rows]
        )
    cosines = torch.cosine_similarity(vectors[::2], vectors[1::2]).numpy()
    wanted = np.corrcoef(cosines, np.arange(5))[0, 1]
    assert evaluate(pair[1], rows, task="embedding", tokens_per_batch=10)["pearson"] == pytest.approx(
        wanted, abs=1e-4
    )
    assert trainer.evaluate()["eval_pearson"] == pytest.approx(wanted, abs=1e-4)
