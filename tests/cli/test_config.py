"""Recipe files: what they mean, that flags win, and that a mistake is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertxfer_fast.cli.config.schema import DistillConfig, check_stages, describe, load
from bertxfer_fast.cli.config.several import load_several
from bertxfer_fast.errors import InputError

RECIPE = """\
recipe: tinybert
teacher: models/teacher
student:
  num_hidden_layers: 3
data:
  train: train.tsv
  text: sentence
output_dir: out
training:
  learning_rate: 3e-5
stages:
  prediction:
    num_train_epochs: 2
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str = RECIPE, *flags: str) -> DistillConfig:
    return load(write(folder, text), flags)


def test_file_is_read_with_types_and_defaults(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.recipe, config.seed, config.task) == ("tinybert", 42, None)
    assert config.student.num_hidden_layers == 3 and config.student.init is None
    assert (config.data.text, config.data.label, config.data.max_length) == ("sentence", None, None)
    # YAML 1.1 takes 3e-5 (no dot) for text; a number is meant.
    assert config.training == {"learning_rate": 3e-5}
    assert config.training_for("intermediate") == {"learning_rate": 3e-5}
    assert config.training_for("prediction") == {"learning_rate": 3e-5, "num_train_epochs": 2.0}


def test_paths_count_from_the_file_or_for_flags_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = read(tmp_path, RECIPE, "--data.eval", "dev.tsv", "--data.test", str(tmp_path / "abs.tsv"))
    assert config.teacher == str(tmp_path / "models" / "teacher")
    assert config.data.train == str(tmp_path / "train.tsv")
    assert config.data.eval == str(tmp_path / "here" / "dev.tsv")
    assert config.data.test == str(tmp_path / "abs.tsv")
    assert config.output_dir == str(tmp_path / "out")


def test_flags_win(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        RECIPE,
        *("--seed", "7", "--student.init=random", "--student.layers", "0,2,4"),
        *("--training.learning-rate", "1e-4", "--training.bf16", "--stages.prediction.num_train_epochs", "5"),
        *(
            "--options.temperature",
            "2.0",
            "--training.tokens_per_batch",
            "4096",
            "--training.report_to",
            "none",
        ),
    )
    assert config.seed == 7
    assert (config.student.init, config.student.layers) == ("random", [0, 2, 4])
    assert config.training == {
        "learning_rate": 1e-4,
        "bf16": True,
        "tokens_per_batch": 4096,
        "report_to": ["none"],
    }
    assert config.stages == {"prediction": {"num_train_epochs": 5.0}}
    assert config.options == {"temperature": 2.0}


def test_flags_of_a_task_keep_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE + "tasks:\n  my-one: {weight: 2}\n  the_other: {weight: 3}\n")
    config = load_several(path, ["--tasks.my-one.weight", "0.5", "--tasks.the_other.data.max-length=9"])
    assert config is not None and config.weights == {"my-one": 0.5, "the_other": 3.0}
    assert [task.data.max_length for task in config.tasks.values()] == [None, 9]
    with pytest.raises(InputError, match=r"got the name 'my_one', want one of .*; did you mean 'my-one'"):
        load_several(path, ["--tasks.my_one.weight", "0.5"])


def test_flags_win_over_what_the_file_says_of_one_task(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE + "tasks:\n  a: {recipe: logits, data: {text: x}}\n  b: {recipe: pkd}\n")
    config = load_several(path, ["--recipe", "finetune", "--data.text", "y", "--tasks.b.data.text", "z"])
    assert config is not None
    found = [(task.recipe, task.data.text) for task in config.tasks.values()]
    assert found == [("finetune", "y"), ("finetune", "z")]


def test_the_store_has_two_spellings_and_flags_win_over_either(tmp_path: Path) -> None:
    for own in ("store: {path: a, dtype: float16}", "store: a"):
        for flag in ("--store", "--store.path"):
            config = read(tmp_path, RECIPE + own, flag, str(tmp_path / "b"))
            assert config.store.path == str(tmp_path / "b")
            assert config.store.dtype == ("float16" if "dtype" in own else None)
    several = RECIPE + "task: masked-lm\nstore: {path: all}\ntasks: {a: {store: own}, b: {weight: 2}}"
    config = load_several(write(tmp_path, several))
    assert [Path(str(task.store.path)).name for task in config.tasks.values()] == ["own", "all"]
    config = load_several(write(tmp_path, several), ["--tasks.a.store.path", str(tmp_path / "c")])
    assert [Path(str(task.store.path)).name for task in config.tasks.values()] == ["c", "all"]


def test_flags_whose_type_is_open_are_yaml_or_else_text(tmp_path: Path) -> None:
    flags = ["--options.layers", "[[0, 1]]", "--options.padding", "reference", "--options.note", "[torn"]
    assert read(tmp_path, RECIPE, *flags).options == {
        "layers": [[0, 1]],
        "padding": "reference",
        "note": "[torn",
    }


def test_student_is_a_directory_or_sizes(tmp_path: Path) -> None:
    text = RECIPE.replace("student:\n  num_hidden_layers: 3", "student: models/small")
    config = read(tmp_path, text)
    assert config.student.path == str(tmp_path / "models" / "small")
    # A flag of either form replaces the other form in the file.
    assert read(tmp_path, text, "--student.num_hidden_layers", "2").student.path is None
    assert read(tmp_path, RECIPE, "--student", str(tmp_path)).student.num_hidden_layers is None
    with pytest.raises(InputError, match="num_hidden_layers cannot be set beside it"):
        read(tmp_path, RECIPE, "--student", "x", "--student.num_hidden_layers", "2")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("teacher:", "techer:", r"r\.yaml, line 2: unknown key 'techer'; did you mean 'teacher'\?"),
        ("  text:", "  txt:", r"line 7 \(section data\): unknown key 'txt'; did you mean 'text'\?"),
        ("  text: sentence", "  num_hidden_layers: 3", r"did you mean 'student.num_hidden_layers'\?"),
        ("learning_rate", "lerning_rate", r"line 10 \(section training\).*did you mean 'learning_rate'\?"),
        ("num_train_epochs", "epochs", r"line 13 \(section stages.prediction\): unknown key 'epochs'"),
        ("output_dir: out", "output_dir: out\nlearning_rate: 1.0", "did you mean 'training.learning_rate'"),
        (
            "learning_rate: 3e-5",
            "learning_rate: fast",
            r"line 10.*learning_rate: got text: 'fast', want a number",
        ),
        (
            "num_hidden_layers: 3",
            "num_hidden_layers: 3.5",
            "num_hidden_layers: got a number: 3.5, want a whole number",
        ),
        ("num_hidden_layers: 3", "num_hidden_layers: true", "got true/false: True, want a whole number"),
        ("text: sentence", "text: 3", "text: got a whole number: 3, want text"),
        (
            "num_train_epochs: 2",
            "eval_strategy: epochs",
            "got 'epochs', want one of .*; did you mean 'epoch'",
        ),
        ("num_train_epochs: 2", "bf16: 'yes'", "bf16: got text: 'yes', want true or false"),
        ("num_train_epochs: 2", "seed: 3", "seed cannot be set here; set seed at the top level"),
        (
            "output_dir: out",
            "output_dir: out\ntask: classification",
            "task: got 'classification', want one of sequence-classification, ",
        ),
        ("output_dir: out\n", "", r"r\.yaml: required key 'output_dir' is missing"),
        ("  train: train.tsv\n", "", r"required key 'data.train' is missing"),
        ("  num_hidden_layers: 3", "  init: random", "'student' is missing"),
        ("output_dir: out", "output_dir: out\nteacher: again", "'teacher' is written twice, first on line 2"),
        ("data:\n", "data: file.tsv\n#", r"data: got 'file.tsv', want a section of keys"),
        ("recipe: tinybert", "recipe: [tinybert", r"r\.yaml, line \d+: not valid YAML"),
        ("text: sentence", "max_length: 0", "max_length: got 0, want 1 or more"),
        (
            "  prediction:\n    num_train_epochs: 2",
            "  prediction: 2",
            "stages.prediction: got 2, want a section of keys",
        ),
        ("text: sentence", "init: random", "unknown key 'init'; did you mean 'student.init'"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RECIPE
    text = RECIPE.replace(old, new, 1)
    if new.endswith("#"):
        text = text.replace("#  train: train.tsv\n  text: sentence\n", "")
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.trian", "x"], r"flag --data\.trian: unknown key 'data\.trian'; did you mean 'train'"),
        (["--seed", "many"], r"flag --seed: seed: got text: 'many', want a whole number"),
        (["--training.bf16", "maybe"], "bf16: got .* want true or false"),
        (["--student.init", "techer"], "did you mean 'teacher'"),
        (["--seed", "1", "--seed", "2"], r"flag --seed is given twice"),
        (["seed", "1"], "flags: got 'seed', want a flag such as --data.train FILE"),
    ],
)
def test_mistakes_in_flags(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, RECIPE, *flags)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="want a mapping of keys"):
        read(tmp_path, "- a\n- b\n")
    with pytest.raises(InputError, match="required key 'recipe'"):
        read(tmp_path, "")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load(tmp_path / "r.yaml")


def test_stages_are_those_of_the_recipe(tmp_path: Path) -> None:
    config = read(tmp_path)
    check_stages(config, ["intermediate", "prediction"])
    with pytest.raises(InputError, match=r"line 12 .*no stage 'prediction'; did you mean 'predictions'"):
        check_stages(config, ["predictions"])


def test_help_lists_every_key() -> None:
    text = describe()
    for key in ("--recipe", "--data.train", "--student.num_hidden_layers", "--output_dir", "--seed"):
        assert key in text
