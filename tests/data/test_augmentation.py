"""Copies of texts: what may change in them is what each method's paper says, and seed and text alone decide."""

from __future__ import annotations

import collections
import datetime
import decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from bertxfer_fast import cli, data
from bertxfer_fast.cli.augment import METHODS
from bertxfer_fast.data import augmentation, writing
from bertxfer_fast.data.augmentation.texts import texts_of
from bertxfer_fast.models.words import WordModel

from ..folders import WORDS, byte_tokenizer, sentences, tiny_tokenizer, write_tsv
from ..tiny import tiny_bert

LETTERS = [word for word in WORDS if word.isalpha()]
ROWS = [
    {"text": "The film, it was GOODLY and slow.", "id": 1},
    {"text": "awful 3 plot", "id": 2},
    {"text": "not very good", "id": 3},
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return tiny_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def lm(tokenizer: Any) -> WordModel:
    return WordModel(tiny_bert(2, 16, 4, head="ForMaskedLM"), tokenizer)


def copies_of(rows: Any, tokenizer: Any, *methods: augmentation.Method, **settings: Any) -> list[Any]:
    """Texts of the copies, a list for every row."""
    settings = {"copies": 30, "originals": False, **settings}
    found: dict[int, list[Any]] = collections.defaultdict(list)
    for row in augmentation.Augmentation(rows, tokenizer, methods, **settings):
        found[row["id"]].append(row[settings.get("text", "text")])
    return [found[row["id"]] for row in rows]


def by_definition(tokenizer: Any, model: Any, text: str, word: str, count: int) -> set[str]:
    """The candidates of a word: of the masked LM if it is one piece, else of the embedding table."""
    words = torch.tensor(sorted(tokenizer.convert_tokens_to_ids(LETTERS)))
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(pieces) == 1:
        encoded = tokenizer(text.replace(word, "[MASK]"), return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        scores = logits[int((encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero())][words]
    else:
        table = model.get_input_embeddings().weight.detach().double()
        scores = torch.cosine_similarity(table[words], table[pieces].mean(0)[None], dim=-1)
    return set(tokenizer.convert_ids_to_tokens(words[scores.topk(count).indices].tolist()))


def test_tinybert_draws_from_the_papers_candidates(tokenizer: Any, lm: WordModel) -> None:
    text = ROWS[0]["text"]
    words = ["The", "film", "it", "was", "GOODLY", "and", "slow"]
    wanted = [by_definition(tokenizer, lm.model, text, word, 4) for word in words]
    seen: list[set[str]] = [set() for _ in words]
    [copies] = copies_of(
        ROWS[:1],
        tokenizer,
        augmentation.get("tinybert", p=1.0, candidates=4),
        proposals=lm,
        copies=60,
    )
    for copy in copies:
        # Every word is replaced; what stands between them stays.
        first, rest = copy.split(", ")
        assert rest.endswith(".") and len(first.split()) == 2
        for place, word in zip(seen, [*first.split(), *rest[:-1].split()], strict=True):
            place.add(word)
    assert seen == wanted  # 60 draws of 4 leave one out once in 7 million


def test_tinybert_replaces_four_words_in_ten(tokenizer: Any, lm: WordModel) -> None:
    rows = [{"text": text, "id": i} for i, (text, _) in enumerate(sentences(40, 0))]
    method = augmentation.get("tinybert", source="embeddings")  # a word is none of its own neighbours
    changed = total = 0
    for row, copies in zip(rows, copies_of(rows, tokenizer, method, proposals=lm), strict=True):
        for copy in copies:
            pairs = list(zip(row["text"].split(), copy.split(), strict=True))
            changed, total = changed + sum(a != b for a, b in pairs), total + len(pairs)
    # Copies that repeat another one are left out, which are the shorter ones.
    assert total > 5000 and 0.39 < changed / total < 0.44


def test_seed_and_text_alone_decide(tokenizer: Any, lm: WordModel) -> None:
    def drawn(rows: list[Any], **settings: Any) -> list[Any]:
        return copies_of(rows, tokenizer, augmentation.get("tinybert"), proposals=lm, **settings)

    first = drawn(ROWS)
    assert drawn(ROWS) == drawn(ROWS, tokens_per_batch=1) == drawn(ROWS[::-1])[::-1] == first
    assert drawn(ROWS[1:2]) == first[1:2]
    assert drawn(ROWS, copies=7) == [
        [text for text in copies if text in some]
        for copies, some in zip(first, drawn(ROWS, copies=7), strict=True)
    ]
    assert drawn(ROWS, seed=43) != first
    assert all(len(set(copies)) == len(copies) for copies in first)
    assert all(row["text"] not in copies for row, copies in zip(ROWS, first, strict=True))


@pytest.mark.parametrize("source", ["embeddings", "masked-lm"])
def test_a_method_that_serves_two_models_asks_each_its_own(
    tokenizer: Any, lm: WordModel, source: str
) -> None:
    """Both data sets are made before either is read, and read in the other order."""
    other = WordModel(tiny_bert(2, 16, 4, head="ForMaskedLM", seed=7), tokenizer)
    method = augmentation.get("tinybert", p=1.0, candidates=2, source=source)
    rows = [
        augmentation.Augmentation(ROWS, tokenizer, [method], proposals=model, copies=9)
        for model in (lm, other)
    ]
    found = [list(each) for each in rows[::-1]][::-1]
    for copies, model in zip(found, (lm, other), strict=True):
        fresh = augmentation.get("tinybert", p=1.0, candidates=2, source=source)
        assert copies == list(augmentation.Augmentation(ROWS, tokenizer, [fresh], proposals=model, copies=9))
    assert found[0] != found[1]


def test_a_word_behind_the_longest_sequence_has_its_nearest(tokenizer: Any, lm: WordModel) -> None:
    """[CLS] not very | good: with room for three tokens the masked LM reads no further than `not`."""
    method = augmentation.get("tinybert", p=1.0, candidates=3)
    rows = augmentation.Augmentation(ROWS, tokenizer, [method], proposals=lm, max_length=3)
    text = augmentation.rows.texts_of(["not very good"], tokenizer)[0]
    [found] = rows.methods[0].prepare([text])
    nearest = lm.nearest([text.pieces[2]], 3)[0].tolist()
    assert set(found[2]) == set(tokenizer.convert_ids_to_tokens(nearest))
    assert set(found[0]) == {
        *tokenizer.convert_ids_to_tokens(
            lm.masked(
                data.collators.PackingCollator()([{"input_ids": [2, tokenizer.mask_token_id, 3]}]),
                torch.tensor([1]),
                3,
            )[0].tolist()
        )
    }


def test_without_a_masked_lm_it_says_so(tokenizer: Any) -> None:
    bare = WordModel(tiny_bert(2, 16, 4), tokenizer)
    rows = augmentation.Augmentation(ROWS, tokenizer, [augmentation.get("tinybert")], proposals=bare)
    assert rows.told == ["tinybert: candidates are the nearest embeddings: the model has no masked-LM head"]
    assert len(list(rows)) > 40
    with pytest.raises(ValueError, match="source: got 'masked-lm', want 'embeddings'"):
        augmentation.Augmentation(
            ROWS, tokenizer, [augmentation.get("tinybert", source="masked-lm")], proposals=bare
        )


def test_contractions_and_kept_words_stay(tokenizer: Any, tmp_path: Path) -> None:
    bare = WordModel(tiny_bert(2, 16, 4), tokenizer)
    (tmp_path / "keep.txt").write_text("Film\nbad\n")
    text = "The Film isn't good, it's bad; red’s 'slow'"
    for keep in (tmp_path / "keep.txt", ["film", "BAD"]):
        method = augmentation.get("tinybert", p=1.0, keep=keep)
        [copies] = copies_of([{"text": text, "id": 0}], tokenizer, method, proposals=bare)
        for copy in copies:
            first, second, third, *rest = copy.replace(",", "").split()
            assert (second, third) == ("Film", "isn't") and first not in ("The", "the")
            good, its, bad, red, slow = rest
            assert (its, bad, red) == ("it's", "bad;", "red’s") and good != "good"
            assert slow[0] == slow[-1] == "'" and slow != "'slow'"
    with pytest.raises(FileNotFoundError, match="keep: no such file"):
        augmentation.get("tinybert", keep="no.txt")


def test_contractions_that_keep_their_apostrophe_stay(tmp_path: Path) -> None:
    """Byte-level tokenizers split ``isn't`` into ``isn`` and ``'t``."""
    source = "it isn't Good, she’ll say 'tis it's"
    [text] = texts_of([source], byte_tokenizer(tmp_path))
    assert {"isn", "'t", "'s"} <= set(text.words)
    assert [word for i, word in enumerate(text.words) if text.is_word(i)] == ["it", "Good", "say", "tis"]


def test_listed_alternatives_come_before_the_table(tokenizer: Any) -> None:
    bare = WordModel(tiny_bert(2, 16, 4), tokenizer)
    method = augmentation.get("tinybert", p=1.0, words={"goodly": ["fine"], "film": ["movie", "story"]})
    [copies] = copies_of(ROWS[:1], tokenizer, method, proposals=bare)
    assert all(" fine " in copy for copy in copies)
    assert {copy.split(",")[0].split()[1] for copy in copies} == {"movie", "story"}


def test_masks_ngrams_and_lists(tokenizer: Any, tmp_path: Path) -> None:
    words = "abcdefgh" * 5
    rows = [{"text": " ".join(words), "id": 0}]
    [masked] = copies_of(rows, tokenizer, augmentation.get("masking", p=0.25), copies=100)
    assert 0.22 < sum(copy.count("[MASK]") for copy in masked) / (100 * len(words)) < 0.28
    assert all(a in (b, "[MASK]") for copy in masked for a, b in zip(copy.split(), words, strict=True))
    rows = [{"text": "a b c d e f g h", "id": 0}]
    [cut] = copies_of(rows, tokenizer, augmentation.get("ngrams", p=1.0, longest=3), copies=300)
    # Each of the 8 + 7 + 6 runs of up to three words, once.
    assert sorted(cut) == sorted(
        "a b c d e f g h"[2 * i : 2 * (i + n) - 1] for n in (1, 2, 3) for i in range(9 - n)
    )
    (tmp_path / "list.tsv").write_text("a\tx\ty\nc\tz\n")
    [listed] = copies_of(rows, tokenizer, augmentation.get("words", words=tmp_path / "list.tsv", p=0.5))
    assert set(listed) == {f"{a} b {c} d e f g h" for a in "axy" for c in "cz"} - {"a b c d e f g h"}


def test_methods_follow_one_another(tokenizer: Any) -> None:
    rows = [{"text": "a b c d", "id": 0}]
    methods = [
        augmentation.get("masking", p=0.5),
        augmentation.get("words", words={x: ["w"] for x in "abcd"}, p=1.0),
        augmentation.get("ngrams", p=1.0, longest=2),
    ]
    [copies] = copies_of(rows, tokenizer, *methods, copies=200)
    pairs = {f"{a} {b}" for a in ("w", "[MASK]") for b in ("w", "[MASK]")}
    assert set(copies) == {"w", "[MASK]"} | pairs  # a masked word is not looked up
    lists = [augmentation.get("words", words={a: [b]}, p=1.0) for a, b in ("ab", "bc")]
    assert copies_of([{"text": "a", "id": 0}], tokenizer, *lists) == [["b"]]  # nor what a list has put there


def test_labels_of_words_stay_with_them(tokenizer: Any, lm: WordModel) -> None:
    words = ["goodly", "film", "3", "plot", "was", "slow"]
    rows = [{"text": words, "tags": list(words), "id": 0}]
    settings = {"text": "text", "word_labels": "tags", "proposals": lm, "copies": 50}
    made = list(
        augmentation.Augmentation(
            rows, tokenizer, [augmentation.get("tinybert"), augmentation.get("ngrams", p=0.5)], **settings
        )
    )
    assert made[0] == rows[0]
    for row in made[1:]:
        assert len(row["text"]) == len(row["tags"])
        start = words.index(row["tags"][0])
        assert row["tags"] == words[start : start + len(row["tags"])]
        # A number is never replaced, so its label shows where it stands.
        assert [word == "3" for word in row["text"]] == [tag == "3" for tag in row["tags"]]
    assert {len(row["tags"]) for row in made} >= {1, 2, 3, 4, 5, 6}


def test_both_texts_of_a_pair_change(tokenizer: Any, lm: WordModel) -> None:
    rows = [{"a": "good film", "b": "bad plot", "label": "x"}]
    made = list(
        augmentation.Augmentation(
            rows, tokenizer, [augmentation.get("tinybert")], text="a", text_pair="b", proposals=lm, copies=40
        )
    )
    assert {row["a"] for row in made[1:]} > {"good film"} and {row["b"] for row in made[1:]} > {"bad plot"}
    assert {row["label"] for row in made} == {"x"}


@pytest.mark.parametrize("suffix", writing.SUFFIXES)
def test_files_hold_what_was_written(tmp_path: Path, suffix: str) -> None:
    rows = data.load([{"a": 'one "two", three', "b": None}, {"a": "four", "b": "five"}])
    path = tmp_path / f"rows{suffix}"
    with writing.open_rows(path, rows.features) as write:
        for row in rows:
            write(row)
    assert data.load(path).to_list() == rows.to_list()
    with pytest.raises(RuntimeError), writing.open_rows(path, rows.features) as write:
        write({"a": "six", "b": None})
        raise RuntimeError
    assert data.load(path).to_list() == rows.to_list() and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", writing.SUFFIXES)
def test_a_row_of_nothing_keeps_its_place(tmp_path: Path, suffix: str) -> None:
    for rows in (
        data.load([{"a": "one"}, {"a": None}, {"a": "two"}, {"a": None}]),
        data.load([{"a": "one", "b": 1.5}, {"a": None, "b": None}, {"a": '"', "b": 2.0}]),
    ):
        path = tmp_path / f"rows{suffix}"
        with writing.open_rows(path, rows.features) as write:
            for row in rows:
                write(row)
        found = data.load(path).to_list()
        texts = suffix in (".csv", ".tsv")  # where a number is read as text
        assert found == [
            {name: str(value) if texts and isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ]


# The command


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_bert(2, 16, 4, head="ForMaskedLM").save_pretrained(tmp_path / "lm")
    tiny_tokenizer(tmp_path / "lm")
    write_tsv(tmp_path / "train.tsv", sentences(12, 0))
    return tmp_path


def augment(place: Path, *words: str, method: str = "tinybert", output: str = "out.tsv") -> int:
    given = ["--model", str(place / "lm"), "--method", method, "--text", "sentence"]
    return cli.main(["augment", str(place / "train.tsv"), *given, "--output", str(place / output), *words])


def test_the_command_writes_rows_and_copies(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(METHODS) == set(augmentation.names())
    assert augment(place, "--copies", "3", "--option", "p=0.5") == 0
    said = capsys.readouterr().out
    before, after = data.load(place / "train.tsv").to_list(), data.load(place / "out.tsv").to_list()
    assert f"12 rows -> {len(after)} rows in" in said and "candidates of the masked LM" in said
    originals = [row for row in after if row in before]
    assert originals == before and 40 < len(after) <= 48
    at = [after.index(row) for row in before]
    for row, start, end in zip(before, at, [*at[1:], len(after)], strict=True):
        assert {copy["label"] for copy in after[start:end]} == {row["label"]}
    # From Python, the same.
    tokenizer = tiny_tokenizer(place / "lm")
    model = WordModel.load(place / "lm", tokenizer)
    again = augmentation.Augmentation(
        place / "train.tsv",
        tokenizer,
        [augmentation.get("tinybert", p=0.5)],
        text="sentence",
        proposals=model,
        copies=3,
        max_length=64,
    )
    assert list(again) == after


@pytest.mark.parametrize(
    ("words", "method", "output", "said"),
    [
        ((), "tinybrt", "out.tsv", "method: got 'tinybrt', want a known one; did you mean 'tinybert'?"),
        (("--option", "q=1"), "masking", "out.tsv", "method masking: got option 'q', want a known one"),
        (("--option", "p=2"), "masking", "out.tsv", "p: got 2, want a number from 0 to 1"),
        (("--option", "p"), "masking", "out.tsv", "--option: got 'p', want NAME=VALUE"),
        (("--copies", "0"), "masking", "out.tsv", "copies: got 0, want a whole number from 1"),
        ((), "words", "out.tsv", "words: got none, want a file of words and their alternatives"),
        (("--option", "words=no.tsv"), "words", "out.tsv", "words: no such file: no.tsv"),
        ((), "masking", "out.xls", "output: got 'out.xls', want a name ending in .csv"),
        ((), "masking", "no/out.tsv", "no such directory"),
        (("--word-labels", "label"), "masking", "out.tsv", "word_labels: got 'label' beside"),
        (("--text-pair", "other"), "masking", "out.tsv", "no column 'other'"),
        (("--method", "masking"), "masking", "out.tsv", "--method: got masking masking, want each once"),
    ],
)
def test_the_command_refuses_before_it_writes(
    place: Path, words: tuple[str, ...], method: str, output: str, said: str, capsys: Any
) -> None:
    before = sorted(place.rglob("*"))
    assert augment(place, *words, method=method, output=output) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("output", ["out.tsv", "train.tsv"])
def test_the_command_writes_over_no_file(place: Path, output: str, capsys: Any) -> None:
    (place / "out.tsv").write_text("mine")
    before = {file: file.read_bytes() for file in place.glob("*.tsv")}
    assert augment(place, method="masking", output=output) == 2
    assert f"{output}', want a new file: there is something" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in place.glob("*.tsv")} == before


def test_rows_that_a_table_cannot_hold(place: Path, tmp_path: Path) -> None:
    lists = data.load([{"a": ["x"]}])
    with pytest.raises(ValueError, match=r"want \.jsonl or .parquet: a table has no place for lists"):
        writing.check_writable(tmp_path / "out.csv", lists)
    with pytest.raises(ValueError, match="column 'a', row 2, which has a tab or a line break"):
        writing.check_writable(tmp_path / "out.tsv", data.load([{"a": "x"}, {"a": "x\ty"}]))
    with pytest.raises(ValueError, match=r"for a column named 'a\\tb', with a tab or a line break"):
        writing.check_writable(tmp_path / "out.tsv", data.load([{"a\tb": "x"}]))
    day = datetime.date(2020, 1, 1)
    for value in (day, [day], {"when": day}, b"x", decimal.Decimal("1.5")):
        rows = data.load([{"a": value}])
        with pytest.raises(
            ValueError, match=r"for column 'a' of .*, want \.parquet: JSON has no such values"
        ):
            writing.check_writable(tmp_path / "out.jsonl", rows)
        writing.check_writable(tmp_path / "out.parquet", rows)
    writing.check_writable(tmp_path / "out.jsonl", lists)


def test_the_command_keeps_blank_lines(place: Path) -> None:
    (place / "x.txt").write_text("good film\n\nbad plot\n")
    words = ["--model", str(place / "lm"), "--method", "masking", "--copies", "1", "--empty-rows", "keep"]
    assert cli.main(["augment", str(place / "x.txt"), *words, "--output", str(place / "y.tsv")]) == 0
    before, after = data.load(place / "x.txt")["text"], data.load(place / "y.tsv")["text"]
    assert [text for text in after if text in (before[0], None, before[2])] == [before[0], None, before[2]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("good\n", "got 'good' on line 1 of .*, want a word, a tab and its alternatives"),
        ("good\tfine\ngood\tgreat\n", "on line 2 of .*, want each word once"),
        ("\n", "got nothing in"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.tsv").write_text(text)
    with pytest.raises(ValueError, match=said):
        augmentation.get("words", words=tmp_path / "list.tsv")
