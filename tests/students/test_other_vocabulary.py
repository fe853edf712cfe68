"""Students with a tokenizer of their own: the table, special tokens, and what they start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bertxfer_fast import students

from ..folders import BYTE_VOCAB, WORDS, byte_tokenizer, tiny_tokenizer
from ..tiny import VOCAB, tiny_bert


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("tokenizers")
    # It has "film", "slow" and "##ly" at other ids, not "good", but "g", "##oo" and "##d".
    words = ["slow", "film", "##ly", "g", "##oo", "##d", "é", *(f"x{i}" for i in range(len(WORDS) - 7))]
    return {
        "words": tiny_tokenizer(folder / "words"),
        "others": tiny_tokenizer(folder / "others", words=words),
        "bytes": byte_tokenizer(folder / "bytes"),
    }


def ids(tokenizer: Any, *tokens: str) -> list[int]:
    return [tokenizer.get_vocab()[token] for token in tokens]


def rows(tokenizers: dict[str, Any], mine: str, theirs: str, size: int | None = None) -> Any:
    """The table, and the teacher's."""
    torch.manual_seed(0)
    teacher = tiny_bert(2, 16, 4, seed=1, vocab=BYTE_VOCAB if theirs == "bytes" else VOCAB)
    made = students.inherited_table(teacher, tokenizers[mine], tokenizers[theirs], size)
    return made, students.teacher_table(teacher, size)


@pytest.mark.parametrize("size", [None, 6])
def test_tokens_of_both_keep_their_rows(tokenizers: Any, size: int | None) -> None:
    made, table = rows(tokenizers, "words", "others", size)
    for token in ("film", "slow", "##ly", "[CLS]", "[SEP]", "[UNK]", "[PAD]"):
        assert torch.equal(made[ids(tokenizers["words"], token)], table[ids(tokenizers["others"], token)])


def test_other_tokens_are_means_of_their_parts(tokenizers: Any) -> None:
    made, table = rows(tokenizers, "words", "others")
    [good] = made[ids(tokenizers["words"], "good")]
    torch.testing.assert_close(good, table[ids(tokenizers["others"], "g", "##oo", "##d")].mean(0))
    # Nothing is known of "plot" but the unknown token, which says nothing: its row is random.
    [plot] = made[ids(tokenizers["words"], "plot")]
    assert not (plot == table).all(1).any() and torch.isfinite(made).all()


def test_the_start_of_a_word_is_known_across_kinds(tokenizers: Any) -> None:
    """WordPiece marks what goes on with a word, byte-level BPE the space before one; a special token has its role."""
    made, table = rows(tokenizers, "words", "bytes")
    mine, theirs = tokenizers["words"], tokenizers["bytes"]
    for own, others in (("film", ["Ġfilm"]), ("[CLS]", ["<s>"]), ("[SEP]", ["</s>"]), ("[PAD]", ["<pad>"])):
        torch.testing.assert_close(made[ids(mine, own)][0], table[ids(theirs, *others)].mean(0))
    made, table = rows(tokenizers, "bytes", "words")
    for own, others in (("Ġfilm", "film"), ("<s>", "[CLS]"), ("</s>", "[SEP]"), ("<mask>", "[MASK]")):
        assert torch.equal(made[ids(theirs, own)], table[ids(mine, others)])


@pytest.mark.parametrize("kind", ["bilstm", "static"])
def test_a_kind_has_the_rows_of_its_tokenizer(tokenizers: Any, kind: str) -> None:
    teacher = tiny_bert(2, 16, 4, seed=1, head="ForSequenceClassification")
    chosen = {
        "tokenizer": tokenizers["bytes"],
        "teacher_tokenizer": tokenizers["words"],
        "embedding_size": 16,
    }
    student = students.build(kind, teacher, **chosen)
    assert student.config.vocab_size == len(student.get_input_embeddings().weight) == BYTE_VOCAB
    assert student.config.special_ids == [0, 1, 2, 4]
    own, table = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
    film = ids(tokenizers["bytes"], "Ġfilm"), ids(tokenizers["words"], "film")
    assert torch.equal(own[film[0]], table[film[1]])
    random = students.build(kind, teacher, init="random", **chosen).get_input_embeddings().weight
    assert len(random) == BYTE_VOCAB and not torch.equal(random[film[0]], table[film[1]])


@pytest.mark.parametrize("init", ["teacher", "random"])
def test_a_smaller_transformer_has_another_vocabulary(tokenizers: Any, init: Any, tmp_path: Path) -> None:
    teacher = tiny_bert(4, 16, 4, seed=1, head="ForSequenceClassification")
    both = {"tokenizer": tokenizers["bytes"], "teacher_tokenizer": tokenizers["words"]}
    student = students.smaller(teacher, num_hidden_layers=2, init=init, **both)
    config = student.config
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id) == (BYTE_VOCAB, 1, 0)
    assert student.get_input_embeddings().padding_idx == 1
    own, given = student.state_dict(), teacher.state_dict()
    layer = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(own[layer.format(1)], given[layer.format(3)]) == (init == "teacher")
    table = own["bert.embeddings.word_embeddings.weight"]
    film = ids(tokenizers["bytes"], "Ġfilm"), ids(tokenizers["words"], "film")
    same = torch.equal(table[film[0]], given["bert.embeddings.word_embeddings.weight"][film[1]])
    assert same == (init == "teacher")
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in own.items())


def test_what_cannot_start_from_the_teacher_is_refused(tokenizers: Any) -> None:
    both = {"tokenizer": tokenizers["bytes"], "teacher_tokenizer": tokenizers["words"]}
    with pytest.raises(ValueError, match="init: got 'distilled', want 'teacher' or 'random'"):
        students.build("static", tiny_bert(2, 16, 4), init="distilled", **both)
    with pytest.raises(ValueError, match="want it beside the student's tokenizer and no vocab_size"):
        students.build("mlp", tiny_bert(2, 16, 4), vocab_size=9, **both)
    masked = tiny_bert(2, 16, 4, head="ForMaskedLM")
    for make in (
        lambda: students.build("mlp", masked, **both),
        lambda: students.smaller(masked, size="1x16", **both),
    ):
        with pytest.raises(ValueError, match="teacher: got a masked-LM head, want none: the student's vocab"):
            make()
    with pytest.raises(ValueError, match="tokenizer: got one of two, want the student's and the teacher's"):
        students.smaller(tiny_bert(2, 16, 4), size="1x16", tokenizer=tokenizers["bytes"])
    roberta = tiny_bert(2, 16, 4, family="Roberta", pad_token_id=0)
    with pytest.raises(
        ValueError, match="tokenizer: got the padding id 1, want 0, the teacher's, from which"
    ):
        students.smaller(roberta, num_hidden_layers=1, **both)
    assert students.smaller(roberta, num_hidden_layers=1, init="random", **both).config.pad_token_id == 1
