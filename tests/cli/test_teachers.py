"""Teachers of a recipe file that are not one running model: kept answers, rows, several; and `bertxfer store`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from bertxfer_fast import cli, data, teachers
from bertxfer_fast.cli.config import schema
from bertxfer_fast.cli.run import plan, stages
from bertxfer_fast.cli.run import teachers as of_run
from bertxfer_fast.models.stream import TeacherStream
from tests.distillation.teachers.rows import pack, streamed

from ..folders import change, distill, make_place, tiny_tokenizer
from ..tiny import tiny_bert


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the recipe `logits` and a student of its own, so that nothing but answers is needed of the teacher."""
    folder = make_place(tmp_path_factory.mktemp("fresh"))
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", seed=5, dropout=0.1)
    student.save_pretrained(folder / "small")
    change(folder, recipe="logits", student={"path": "small"}, stages={}, training__num_train_epochs=2)
    assert distill(folder) == 0
    return folder


@pytest.fixture(scope="module")
def stored(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a store beside it, and no run yet."""
    folder = tmp_path_factory.mktemp("stored") / "place"
    shutil.copytree(fresh, folder, ignore=shutil.ignore_patterns("out"))
    change(folder, store="store", training__max_steps=1)
    assert cli.main(["store", str(folder / "recipe.yaml")]) == 0
    return folder


@pytest.fixture
def place(fresh: Path, tmp_path: Path) -> Path:
    """`fresh` with its finished run in `live`."""
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out").rename(tmp_path / "live")
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(one: Path, other: Path) -> bool:
    """Equal within what rounding leaves of a training: these answers were given in other packs."""
    a, b = weights(one), weights(other)
    # A key's bias moves all scores of a query alike: its gradient is rounding alone, which Adam makes into steps.
    names = [name for name in a if not name.endswith("key.bias")]
    return a.keys() == b.keys() and all(
        torch.allclose(a[name], b[name], rtol=1e-5, atol=1e-6) for name in names
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sequences that teachers run from now on, a number a batch."""
    found: list[int] = []
    whole = TeacherStream.stream

    def stream(self: Any, batch: Any, sink: Any) -> None:
        found.append(len(batch["cu_seq_lens_q"]) - 1)
        whole(self, batch, sink)

    monkeypatch.setattr(TeacherStream, "stream", stream)
    return found


def test_a_run_with_a_store_is_the_run_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is made in the first epoch; a second run does not even load the teacher before its report."""
    ran = counted(monkeypatch)
    assert distill(place, "--output_dir", str(place / "kept"), "--store", str(place / "store")) == 0
    assert same(place / "live", place / "kept")
    different = len({tuple(row["input_ids"]) for row in features(place, "train", "dev", "test")})
    assert sum(ran) <= different
    ran.clear()
    loads: list[str] = []
    whole = of_run.load_model
    monkeypatch.setattr(of_run, "load_model", lambda path, *args: loads.append(path) or whole(path, *args))
    finished = stages.run_stages

    def run_stages(planned: plan.Plan) -> Any:
        records = finished(planned)
        assert not loads and not ran
        return records

    monkeypatch.setattr(cli.distill, "run_stages", run_stages, raising=False)
    monkeypatch.setattr(stages, "run_stages", run_stages)
    assert distill(place, "--output_dir", str(place / "read"), "--store.path", str(place / "store")) == 0
    assert same(place / "live", place / "read") and len(loads) == 1  # measured at the end


def features(place: Path, *names: str) -> list[Any]:
    tokenizer = tiny_tokenizer(place / "words")
    rows = [data.encode(place / f"{n}.tsv", tokenizer, text="sentence", max_length=16) for n in names]
    return [row for split in rows for row in split]


def test_a_run_that_was_killed_goes_on_with_its_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(place, store="store", output_dir="kept")
    whole = plan.Distiller.forward
    steps = [0]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += self.training
        if steps[0] == 5:  # in the second epoch of two
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(plan.Distiller, "forward", forward)
    assert distill(place) == 130
    assert list((place / "store").glob("logits-*.safetensors"))
    monkeypatch.setattr(plan.Distiller, "forward", whole)
    ran = counted(monkeypatch)
    assert distill(place) == 0
    assert same(place / "live", place / "kept")
    assert sum(ran) <= len(features(place, "test"))


def test_store_and_distill_elsewhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher's machine has the teacher, the student's has the store alone."""
    assert cli.main(["store", str(place / "recipe.yaml"), "--store", str(place / "store")]) == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    rows = {tuple(row["input_ids"]) for row in features(place, "train", "dev")}
    assert (
        "of 32 texts asked; " in shown and f"logits ({len(rows)} rows)" in shown and "bytes a token" in shown
    )
    assert cli.main(["store", str(place / "recipe.yaml"), "--store", str(place / "store")]) == 0
    assert "\n0 of 32 texts asked" in "\n" + capsys.readouterr().out
    shutil.rmtree(place / "teacher")
    change(place, teacher="store", output_dir="elsewhere")
    assert distill(place) == 0
    assert close(place / "live", place / "elsewhere")


def test_store_of_a_folder_keeps_what_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(place / "train.tsv"), str(place / "dev.tsv")]
    command = [
        "store",
        str(place / "teacher"),
        "--data",
        *files,
        "--output",
        str(place / "s"),
        "--text",
        "sentence",
    ]
    assert (
        cli.main(
            [
                *command,
                "--max-length",
                "16",
                "--what",
                "logits",
                "hidden:-1:mean",
                "hidden:2",
                "--dtype",
                "int8",
            ]
        )
        == 0
    )
    store = teachers.Store.open(place / "s")
    assert set(store.columns) == {"logits", "hidden.4.mean", "hidden.2"}
    rows = features(place, "train")[:5]
    model = AutoModelForSequenceClassification.from_pretrained(place / "teacher")
    got = streamed(teachers.StoredTeacher(store).select([(("hidden", 2), None)]), pack(rows))["hidden", 2]
    live = streamed(TeacherStream(model, hidden=[2]), pack(rows))["hidden", 2]
    assert ((got - live).abs() <= live.abs().amax(1, keepdim=True) * 0.501 / 127).all()
    assert f"{store.bytes_per_token:.1f} bytes a token" in capsys.readouterr().out


def test_rows_teach_as_their_teacher_would(place: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(place / "teacher").eval()
    (place / "rows").mkdir()
    for split, name in (("train", "train"), ("eval", "dev")):
        logits = streamed(TeacherStream(model, logits=True), pack(features(place, name)))["logits", 0]
        np.save(place / "rows" / f"{split}.npy", logits.numpy())
    change(place, teacher="rows", tokenizer="teacher", output_dir="boxed")
    assert distill(place) == 0
    assert close(place / "live", place / "boxed")
    assert "teacher" not in (place / "boxed" / "summary.md").read_text()


def test_one_file_of_rows_is_the_training_files(place: Path) -> None:
    """Vectors, for a student without a head."""
    tiny_bert(2, 12, 4, seed=5).save_pretrained(place / "small")
    rng = np.random.default_rng(0)
    np.save(place / "vectors.npy", rng.normal(size=(24, 20)).astype("f4"))
    (place / "dev.tsv").unlink()
    change(
        place,
        recipe="embedding",
        teacher="vectors.npy",
        tokenizer="teacher",
        task="none",
        training__max_steps=3,
    )
    change(place, data={"train": "train.tsv", "text": "sentence", "max_length": 16})
    assert distill(place) == 0


def test_several_teachers(place: Path) -> None:
    """The weighted mean; of one teacher twice it is that teacher's run."""
    second = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=7)
    second.save_pretrained(place / "second")
    shutil.copytree(place / "teacher", place / "copy")
    change(place, teacher=["teacher", "copy"], output_dir="twice", ensemble={"mean_of": "logits"})
    assert distill(place, "--report.sentences", "1", "--report.resamples", "10") == 0
    page = (place / "twice" / "report.html").read_text()
    assert "Several teachers ran; attention is drawn for one." in page and "No teacher ran" not in page
    a, b = weights(place / "live"), weights(place / "twice")
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
    change(
        place, teacher=["teacher", "second"], output_dir="mean", ensemble={"weights": [2, 1]}, store="store"
    )
    assert distill(place) == 0
    loaded = schema.load(place / "recipe.yaml")
    assert loaded.teachers == [str(place / "teacher"), str(place / "second")] and loaded.ensemble.weights == [
        2,
        1,
    ]
    assert not all(torch.allclose(a[name], x, atol=1e-3) for name, x in weights(place / "mean").items())
    store = teachers.Store.open(place / "store")
    batch = pack(features(place, "train")[:6])
    got = streamed(teachers.StoredTeacher(store).select([(("logits", 0), None)]), batch)["logits", 0]
    models = [
        AutoModelForSequenceClassification.from_pretrained(place / name) for name in ("teacher", "second")
    ]
    p, q = (streamed(TeacherStream(m, logits=True), batch)["logits", 0].softmax(-1) for m in models)
    torch.testing.assert_close(got.softmax(-1), (2 * p + q) / 3, rtol=1e-4, atol=1e-5)


def test_where_attention_is_matched_only_the_last_stage_is_kept(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(place, recipe="tinybert", store="store", training__max_steps=2, output_dir="both")
    assert cli.main(["store", str(place / "recipe.yaml")]) == 0
    assert "stage intermediate: the teacher itself has to run there" in capsys.readouterr().out
    assert list(teachers.Store.open(place / "store").columns) == ["logits"]
    assert distill(place) == 0


def other_weights(place: Path) -> None:
    tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=9).save_pretrained(place / "teacher")


def other_words(place: Path) -> None:
    from ..folders import WORDS

    tiny_tokenizer(place / "teacher", words=[*WORDS[1:], WORDS[0]])


def other_text(place: Path) -> None:
    change(place, teacher="store", store=None, output_dir="out2")
    (place / "train.tsv").write_text((place / "train.tsv").read_text() + "good good bad\tpos\n")


def damaged(place: Path) -> None:
    [path] = (place / "store").glob("logits-*")
    content = path.read_bytes()
    path.write_bytes(content[:-400] + bytes([content[-400] ^ 1]) + content[-399:])


def other_dtype(place: Path) -> None:
    change(place, store={"path": "store", "dtype": "float16"})


def too_few_rows(place: Path) -> None:
    np.save(place / "v.npy", np.zeros((23, 3), "f4"))
    change(place, teacher="v.npy", tokenizer="teacher", store=None, data__eval=None)


def no_rows_for_dev(place: Path) -> None:
    np.save(place / "v.npy", np.zeros((24, 3), "f4"))
    change(place, teacher="v.npy", tokenizer="teacher", store=None)


def without_tokenizer(place: Path) -> None:
    too_few_rows(place)
    change(place, tokenizer=None, task="sequence-classification", student={"kind": "bilstm"})


def rows_of_another_width(place: Path) -> None:
    np.save(place / "v.npy", np.zeros((24, 2), "f4"))
    change(place, teacher="v.npy", tokenizer="teacher", store=None, data__eval=None, data__label=None)


@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        (other_weights, r"store: got .*store made with weights or configuration .{8}, want weights or"),
        (other_words, r"store: got .*store made with tokenizer .{8}, want tokenizer"),
        (other_text, r"teacher: got 1 of 25 rows of train that are not in .*store \(row 25 first\), want all"),
        (damaged, r"logits-\w+\.safetensors: got a damaged shard \(its \w+ are not what was written\)"),
        (other_dtype, "dtype: got float16, want float32 as .*store has it"),
        (too_few_rows, r"v\.npy: got 23 rows, want 24, one for every row of train"),
        (no_rows_for_dev, r"teacher: got no rows for eval, want a folder with train\.npy and eval\.npy"),
        (without_tokenizer, r"line 1: required key 'tokenizer' is missing: the teacher brings none"),
        (rows_of_another_width, "got a student sequence head with 3 labels and a teacher sequence head with 2"),
        (lambda p: change(p, teacher="store"), "store: got one beside store, want it left out: there is nobody to ask"),
        (lambda p: change(p, teacher=["teacher", "v.npy"]), r"teacher: no such file: .*v\.npy"),
        (lambda p: change(p, ensemble={"weights": [1, 2]}), "ensemble: got weights for one teacher, want a list"),
        (lambda p: change(p, store={"dtype": "int8"}), r"store: got dtype without a path, want store\.path"),
        (lambda p: change(p, teacher=["teacher", "teacher"]), "want one path or several different ones"),
        (lambda p: change(p, store="teacher"), "store: got .*teacher, want an empty folder or a store: something"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_nothing_is_written(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change_it: Any, message: str
) -> None:
    place = tmp_path / "place"
    shutil.copytree(stored, place)
    change_it(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert distill(place) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "logit"], r"--what: got 'logit', want logits, hidden:LAYER or hidden:LAYER:POOLING"),
        (["--what", "hidden:7"], r"hidden: got \[7\], want indices 0\.\.4"),
        (["--what", "hidden:1:median"], "want one of mean, cls, max, mean_sqrt behind the layer"),
        (["--dtype", "float8"], "dtype: got 'float8', want one of 'float32', 'float16', 'int8'"),
        (["--text", "text"], "no column 'text'"),
    ],
)
def test_a_store_of_a_folder_that_cannot_be_made(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    command = [
        "store",
        str(place / "teacher"),
        "--data",
        str(place / "train.tsv"),
        "--output",
        str(place / "s"),
    ]
    assert cli.main([*command, "--text", "sentence", *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "s").exists()
    assert cli.main(["store", str(place / "recipe.yaml")]) == 2
    assert "line 1: required key 'store' is missing: the folder to keep what" in capsys.readouterr().err


def test_a_store_of_a_folder_with_empty_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "x.txt").write_text("good film\n\nbad plot\n")
    files = ["--data", str(place / "x.txt"), "--output", str(place / "s")]
    command = ["store", str(place / "teacher"), *files]
    assert cli.main(command) == 2
    assert "no 'text' in row 2, want complete rows, or one of skip, keep\n" in capsys.readouterr().err
    for choice, count in (("skip", 2), ("keep", 3)):
        assert cli.main([*command, "--empty-rows", choice]) == 0
        assert f"logits ({count} rows)" in capsys.readouterr().out
