"""A student with another tokenizer than its teacher learns what a text has one row of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bertxfer_fast import Distiller, objectives, students
from bertxfer_fast.data import encode_both
from bertxfer_fast.distillation.teachers import OtherTokens
from bertxfer_fast.packing import PackingCollator

from ...folders import WORDS, tiny_tokenizer
from ...tiny import VOCAB, tiny_bert
from ...training.test_trainer import assert_same, losses, trainer_of, weights

ROWS = [
    {"text": text, "label": label}
    for text, label in [
        ("a good film", 2),
        ("slowly moving films and poor acting", 0),
        ("great", 2),
        ("the plot is fine but it was bad", 1),
    ]
]


@pytest.fixture
def both(tmp_path: Path) -> Any:
    """Features of two tokenizers: other ids, and the student's knows fewer words, so lengths differ, too."""
    theirs = tiny_tokenizer(tmp_path / "teacher")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrs")]
    mine = tiny_tokenizer(tmp_path / "student", words=letters[: len(WORDS)])
    return encode_both(ROWS, mine, theirs, label="label", label2id={"0": 0, "1": 1, "2": 2})


def teacher_of(head: str = "ForSequenceClassification") -> Any:
    return tiny_bert(4, 16, 4, head=head, seed=1)


def student_of(seed: int = 2, head: str = "ForSequenceClassification", **options: Any) -> Any:
    torch.manual_seed(seed)
    return students.build("bilstm", teacher_of(head), vocab_size=VOCAB + 9, hidden_size=8, **options)


def test_the_collator_packs_both(both: Any) -> None:
    rows = [both[i] for i in range(len(both))]
    batch = PackingCollator()(rows)
    assert batch["input_ids"][0].tolist() == [i for row in rows for i in row["input_ids"]]
    assert batch["teacher_input_ids"][0].tolist() == [i for row in rows for i in row["teacher_input_ids"]]
    assert batch["cu_seq_lens_q"].diff().tolist() == [len(row["input_ids"]) for row in rows]
    assert batch["teacher_cu_seq_lens_q"].diff().tolist() == [len(row["teacher_input_ids"]) for row in rows]
    assert batch["cu_seq_lens_q"].tolist() != batch["teacher_cu_seq_lens_q"].tolist()
    assert "teacher_labels" not in batch and batch["labels"].tolist() == [2, 0, 2, 1]


def test_each_reads_its_own_tokens(both: Any) -> None:
    rows = [both[i] for i in range(len(both))]
    teacher, student = teacher_of(), student_of(dropout=0.0)
    matched = [
        objectives.Logits(kind="mse"),
        objectives.Embeddings(normalize=False, projection="learned", pooling="mean"),
    ]
    distiller = Distiller(OtherTokens(teacher), student, matched)
    parts = distiller(**PackingCollator()(rows)).parts
    with torch.no_grad():
        ids = [torch.tensor([row["teacher_input_ids"]]) for row in rows]
        types = [torch.tensor([row["teacher_token_type_ids"]]) for row in rows]
        outputs = [
            teacher(i, token_type_ids=t, output_hidden_states=True) for i, t in zip(ids, types, strict=True)
        ]
        theirs = torch.cat([output.logits for output in outputs])
        vectors = torch.stack([output.hidden_states[-1][0].mean(0) for output in outputs])
        mine = torch.cat([student(torch.tensor([row["input_ids"]])).logits for row in rows])
        packs = [PackingCollator()([{"input_ids": row["input_ids"]}]) for row in rows]
        own = torch.stack([student.run(pack).last_hidden_state.mean(0) for pack in packs])
        linear = matched[1].linear
        assert linear is not None
        own = linear(own)
    torch.testing.assert_close(parts["logits"], F.mse_loss(mine, theirs))
    torch.testing.assert_close(parts["embeddings"], F.mse_loss(own, vectors))


def test_a_trainer_takes_both_and_resumes(both: Any, tmp_path: Path) -> None:
    def run(folder: Path, seed: int, **resume: Any) -> Any:
        pair = OtherTokens(teacher_of()), student_of(seed)
        trainer = trainer_of(
            folder,
            [objectives.Logits(2.0), objectives.Labels()],
            pair,
            train=both,
            eval_dataset=both,
            max_steps=4,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
        )
        trainer.train(**resume)
        assert {"eval_accuracy", "eval_loss/logits"} <= trainer.evaluate().keys()
        return trainer

    straight = run(tmp_path / "a", 2)
    resumed = run(tmp_path / "b", 5, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert_same(weights(straight), weights(resumed))
    assert losses(straight) == losses(resumed)


@pytest.mark.parametrize(
    ("head", "objective", "place"),
    [
        ("ForTokenClassification", objectives.Logits(), "logits 0"),
        ("ForSequenceClassification", objectives.HiddenStates([(1, 4)]), "hidden 4"),
    ],
)
def test_single_tokens_are_not_matched(head: str, objective: Any, place: str) -> None:
    with pytest.raises(
        ValueError, match=f"teacher: got {place}, a row a token, to match with a student that"
    ):
        Distiller(OtherTokens(teacher_of(head)), student_of(head=head), [objective])


def test_batches_without_the_teachers_tokens_are_refused(both: Any) -> None:
    distiller = Distiller(OtherTokens(teacher_of()), student_of(), [objectives.Logits()])
    rows = [{name: both[i][name] for name in ("input_ids", "labels")} for i in range(2)]
    with pytest.raises(
        ValueError, match="want the teacher's tokens beside the student's, packed: teacher_input"
    ):
        distiller(**PackingCollator()(rows))
    batch = PackingCollator()([both[0], both[1]])
    fewer = PackingCollator()([both[0]])
    batch.update({name: value for name, value in fewer.items() if name.startswith("teacher_")})
    with pytest.raises(ValueError, match="got 1 texts of the teacher's tokens and 2 of the student's"):
        distiller(**batch)


def test_windows_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="stride: got 4, want None: two tokenizers"):
        encode_both(ROWS, tokenizer, tokenizer, stride=4)
