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

from ...folders import BYTE_VOCAB, WORDS, byte_tokenizer, tiny_tokenizer
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
        ("ForSequenceClassification", objectives.AttentionScores([(0, 3)]), "attention 3"),
        ("ForSequenceClassification", objectives.Relations(), "attention 3"),
        ("ForMaskedLM", objectives.LinearLogits(), "output_layer 0"),
        ("ForMaskedLM", objectives.Logits(), "logits 0"),
        ("ForQuestionAnswering", objectives.Logits(), "logits 0"),
    ],
)
def test_what_has_no_counterpart_is_not_matched(head: str, objective: Any, place: str) -> None:
    student = tiny_bert(1, 16, 4, head=head, seed=2)
    with pytest.raises(ValueError, match=f"teacher: got {place} to match with a student that has other tok"):
        Distiller(OtherTokens(teacher_of(head)), student, [objective])


def token_objectives(head: str) -> list[Any]:
    """What each token has a row of, and at one of these places what a text has."""
    return [
        *([objectives.Logits(2.0)] if head == "ForTokenClassification" else []),
        objectives.HiddenStates([(0, 0), (1, 4)]),
        objectives.HiddenStates([(1, 2)], padding="reference", name="padded"),
        objectives.HiddenCosine(),
        objectives.Embeddings(),
    ]


@pytest.mark.parametrize("head", ["ForTokenClassification", "Model"])
def test_with_one_tokenizer_alignment_changes_nothing(tmp_path: Path, head: str) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    rows = encode_both(ROWS, tokenizer, tokenizer, align=True)
    assert all(row["teacher_spans"] == [[i, i + 1] for i in range(len(row["input_ids"]))] for row in rows)
    batch = PackingCollator()([rows[i] for i in range(len(rows))])
    plain = {name: value for name, value in batch.items() if not name.startswith(("teacher_", "alignment_"))}
    found = []
    for wrap, given in ((OtherTokens, batch), (lambda teacher: teacher, plain)):
        torch.manual_seed(0)
        student = tiny_bert(1, 12, 4, head=head, seed=2)
        distiller = Distiller(wrap(teacher_of(head)), student, token_objectives(head))
        output = distiller(**given)
        output.loss.backward()
        gradients = {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}
        found.append((output.parts, gradients))
    (parts, gradients), (plain_parts, plain_gradients) = found
    assert parts == plain_parts and gradients.keys() == plain_gradients.keys()
    assert all(torch.equal(gradients[name], plain_gradients[name]) for name in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_learns_the_mean_of_its_characters_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    """Against a loop over tokens; those that the teacher, cut after six, has none of have no part in loss and gradient.

    `Embeddings`, at a place that single tokens look at, too, means all tokens of each.
    """
    head = "ForTokenClassification"
    theirs, mine = byte_tokenizer(tmp_path / "theirs"), tiny_tokenizer(tmp_path / "mine")
    rows = encode_both(ROWS, mine, theirs, align=True, teacher_max_length=6)
    rows = [rows[i] for i in range(len(rows))]
    assert any(first == last for row in rows for first, last in row["teacher_spans"])
    teacher = tiny_bert(4, 16, 4, head=head, seed=1, vocab=BYTE_VOCAB).to(dtype)
    student = tiny_bert(1, 16, 4, head=head, seed=2)
    matched = [
        objectives.Logits(kind="mse"),
        objectives.HiddenStates([(0, 0), (1, 4)], projection="none"),
        objectives.HiddenCosine(),
        objectives.Embeddings(normalize=False),
    ]
    distiller = Distiller(OtherTokens(teacher), student, matched)
    output = distiller(**PackingCollator()(rows))
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    own: dict[Any, list[Any]] = {0: [], 1: [], "logits": [], "vectors": []}
    wanted: dict[Any, list[Any]] = {name: [] for name in own}
    for row in rows:
        with torch.no_grad():
            ids = torch.tensor([row["teacher_input_ids"]])
            told = teacher(ids, output_hidden_states=True)
        said = student(torch.tensor([row["input_ids"]]), output_hidden_states=True)
        own["vectors"].append(said.hidden_states[1][0].mean(0))
        wanted["vectors"].append(told.hidden_states[4][0].float().mean(0))
        for i, (first, last) in enumerate(row["teacher_spans"]):
            for name, layer in ((0, 0), (1, 4), ("logits", None)) if first < last else ():
                values, targets = (
                    x.logits if name == "logits" else x.hidden_states[y]
                    for x, y in ((said, name), (told, layer))
                )
                own[name].append(values[0, i])
                wanted[name].append(targets[0, first:last].float().mean(0).to(dtype).float())
    s, t = ({name: torch.stack(each) for name, each in side.items()} for side in (own, wanted))
    values = {
        "logits": F.mse_loss(s["logits"], t["logits"]),
        "hidden_states": F.mse_loss(s[0], t[0]) + F.mse_loss(s[1], t[1]),
        "hidden_cosine": (1 - F.cosine_similarity(s[1], t[1], dim=-1)).mean(),
        "embeddings": F.mse_loss(s["vectors"], t["vectors"]),
    }
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    for name, value in values.items():
        torch.testing.assert_close(output.parts[name], value.detach(), **tolerance)
    sum(values.values()).backward()
    assert gradients.keys() == {name for name, p in student.named_parameters() if p.grad is not None}
    for name, parameter in student.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad, **tolerance)


def test_batches_that_are_not_aligned_are_refused(both: Any, tmp_path: Path) -> None:
    distiller = Distiller(OtherTokens(teacher_of()), student_of(), [objectives.HiddenStates([(1, 4)])])
    with pytest.raises(
        ValueError, match=r"want it to say which of the teacher's tokens stand for .*\(align=True\)"
    ):
        distiller(**PackingCollator()([both[0], both[1]]))
    tokenizer = tiny_tokenizer(tmp_path)
    [row] = encode_both(ROWS[:1], tokenizer, tokenizer, align=True)
    row["teacher_spans"] = [[0, 0] for _ in row["input_ids"]]
    with pytest.raises(
        ValueError, match=r"hidden_states: got a batch in which no token of the student has one"
    ):
        distiller(**PackingCollator()([row]))


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
