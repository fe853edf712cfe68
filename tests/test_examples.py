"""The example's scripts without their downloads and trainings."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .texts import make_texts

FOLDER = Path(__file__).parent.parent / "examples" / "sentiment"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("demo")


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER.parent)
    yield importlib.import_module("fetch")


def test_the_short_demo_learns_from_the_first_rows(demo: ModuleType, tmp_path: Path) -> None:
    rows = [f"film {i}\tpositive" for i in range(demo.SHORT.rows + 9)]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    assert demo.FULL.train_file(tmp_path) == path
    chosen = demo.SHORT.train_file(tmp_path)
    assert chosen.read_text().splitlines() == ["text\tlabel", *rows[: demo.SHORT.rows]]
    # What the recipe file says is what `make demo` does.
    assert demo.SETTINGS["data"]["train"].endswith(f"/{chosen.name}")
    assert demo.FULL.stages.keys() == demo.SHORT.stages.keys()
    assert (demo.SHORT.alone_epochs, demo.FULL.alone_epochs) == (4, 5)


@pytest.mark.parametrize("faster", [True, False])
def test_the_demo_uses_bf16_where_it_is_faster(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(demo, "bf16_is_faster", lambda: faster)
    monkeypatch.setattr(demo.torch.cuda, "is_available", lambda: False)
    assert demo.training() == {**demo.SETTINGS["training"], "bf16": faster}
    monkeypatch.setattr(demo.torch.cuda, "is_available", lambda: True)
    assert demo.training() == demo.SETTINGS["training"]


def test_fetch_parses_ratings(fetch):
    raw = "1\t2.5\tLovely &amp; amazing\xa0 film \r\n2\t-0.5\tEh.\r\n3\t0.4\tQuite\r\n\r\n"
    rows = fetch.parse(raw)
    assert rows == [(2.5, "Lovely & amazing film"), (-0.5, "Eh."), (0.4, "Quite")]
    assert fetch.label(rows) == [("Lovely & amazing film", "positive"), ("Eh.", "negative")]
    with pytest.raises(fetch.FetchError, match="line 1 has 2 fields"):
        fetch.parse("1\ttext")


def test_fetch_splits_by_text_alone_and_by_label(fetch):
    examples = [(f"text {i}", fetch.LABELS[i % 5 == 0]) for i in range(1000)]
    parts = fetch.split(examples)
    assert {part: len(chosen) for part, chosen in parts.items()} == {"train": 800, "dev": 100, "test": 100}
    assert sorted(example for chosen in parts.values() for example in chosen) == sorted(examples)
    for chosen in parts.values():
        assert sum(name == "positive" for _, name in chosen) == len(chosen) / 5
        turns = sum(a[1] != b[1] for a, b in itertools.pairwise(chosen))
        assert turns > len(chosen) / 10, "labels are in blocks"
    assert fetch.split(examples[::-1]) == parts
    assert fetch.split(examples)["test"] != sorted(parts["test"])


def test_fetch_keeps_held_out_text_from_the_unlabelled(fetch):
    raw = ["1\t0\tone\n2\t0\ttwo\n", "1\t0\ttwo\n2\t0\tthree\n"]
    assert fetch.unlabelled(raw, ["three"]) == ["one", "two"]


def test_fetch_writes_only_what_it_should_be_and_sees_what_is_there(fetch, tmp_path):
    digest = fetch.sha256(b"right")
    with pytest.raises(fetch.FetchError, match="expected " + digest):
        fetch.write(tmp_path / "a" / "file", b"wrong", digest)
    assert not fetch.in_place(tmp_path / "a", {"file": digest})
    fetch.write(tmp_path / "a" / "file", b"right", digest)
    assert fetch.in_place(tmp_path / "a", {"file": digest})
    (tmp_path / "a" / "file").write_text("wrong")
    assert not fetch.in_place(tmp_path / "a", {"file": digest})


def test_fetch_says_what_to_do_when_pip_cannot(fetch, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(fetch.FetchError, match=r"pip could not fetch no-such==1(.|\n)*-m pip download"):
        fetch.download("no-such==1", tmp_path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples: they share a teacher."""
    return tmp_path_factory.mktemp("output")


#: Every example, with what it prints on tiny models: a pattern for each line.
NUMBER = r"[01]\.\d{3}"
EXAMPLES = {
    "blended_weights": [
        *3 * [rf"beta [01]\.\d: \d+ tensors blended, dev {NUMBER}"],
        rf"best: beta [01]\.\d: train {NUMBER}, dev {NUMBER}, test {NUMBER}",
    ],
    "distilbert": [
        r"before: logits [\d.]+, labels [\d.]+, hidden_cosine [\d.]+",
        r"after: logits [\d.]+, labels [\d.]+, hidden_cosine [\d.]+",
        f"teacher {NUMBER}",
        f"student {NUMBER}",
    ],
    "features_into_mlp": [
        *4 * [rf"layer -\d (cls|mean) dev {NUMBER}"],
        rf"best: layer -\d \w+ test {NUMBER}",
    ],
    "into_a_cnn": [rf"teacher: {NUMBER}, [\d,]+ sentences/s", rf"CNN: {NUMBER}, [\d,]+ sentences/s"],
    "into_a_table": [rf"teacher: {NUMBER}, [\d,]+ sentences/s", rf"table: {NUMBER}, [\d,]+ sentences/s"],
    "into_an_lstm": [
        rf"{name}: {NUMBER}, [\d,]+ parameters" for name in ("teacher", "LSTM", "LSTM without teacher")
    ],
    "more_texts": [
        r"tinybert: candidates are the nearest embeddings.+",
        r"48 rows -> \d+ rows in .+",
        r"a text: .+",
        r"a copy: .+",
        rf"learnt from 48 texts: {NUMBER}",
        rf"learnt from \d+ texts and copies: {NUMBER}",
    ],
    "names_in_tweets": [f"teacher: span F1 {NUMBER}", f"student: span F1 {NUMBER}"],
    "own_student": [f"teacher: {NUMBER}", f"student: {NUMBER}"],
    "own_trainer": [rf"pass 1: loss [\d.]+, {NUMBER}"],
    "patient": [
        f"teacher {NUMBER}",
        f"student, states constant {NUMBER}",
        f"student, states falling {NUMBER}",
    ],
    "pruned": [rf"{name}: {NUMBER}, [\d,]+ parameters" for name in ("teacher", "student")],
    "relations": [
        f"teacher {NUMBER}",
        f"student after relations {NUMBER}",
        f"student after prediction {NUMBER}",
    ],
    "sentence_vectors": [rf"24 of 24 numbers: -?{NUMBER}", rf"8 of 24 numbers: -?{NUMBER}"],
    "several_tasks": [
        f"reviews: {NUMBER}",
        f"names: span F1 {NUMBER}",
        r"[\d,]+ parameters together, [\d,]+ apart",
    ],
    "several_teachers": [
        f"{name}: {NUMBER}" for name in ("first teacher", "second teacher", "student of both")
    ],
    "stored_teacher": [
        r"asked about 48 texts in \d+\.\d s",
        rf"live: {NUMBER} in \d+\.\d s",
        rf"stored: {NUMBER} in \d+\.\d s",
    ],
    "tinybert": [
        f"teacher {NUMBER}",
        rf"student after intermediate \(attention_scores and hidden_states\) {NUMBER}",
        rf"student after prediction \(logits\) {NUMBER}",
        f"student without teacher {NUMBER}",
    ],
}


def test_every_example_is_here() -> None:
    scripts = {path.stem for path in FOLDER.parent.glob("*.py")} - {"common", "fetch"}
    assert scripts == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_and_print_what_they_say(
    name: str,
    texts: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(FOLDER.parent)
    importlib.import_module(name).main(["--data", str(texts), "--output", str(output), "--epochs", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(EXAMPLES[name]), lines
    for line, pattern in zip(lines, EXAMPLES[name], strict=True):
        assert re.fullmatch(pattern, line), line
