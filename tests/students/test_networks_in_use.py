"""Students that are no transformers where students are used: trainer, command, features, a kind of one's own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bertxfer_fast import FeatureExtractor, objectives, recipes, students
from bertxfer_fast.cli.config.schema import StudentConfig, load
from bertxfer_fast.errors import InputError
from bertxfer_fast.evaluation.speed import parameter_count, student_facts
from bertxfer_fast.students import network

from ..folders import change, contents, distill, make_place
from ..tiny import tiny_bert
from ..training.test_trainer import assert_same, features, losses, trainer_of, weights

BAG = '''
import torch
from torch import nn
from bertxfer_fast import students
from bertxfer_fast.models import PackedOutput
from bertxfer_fast.students import Network, NetworkConfig


class BagConfig(NetworkConfig):
    scale: float = 1.0


@students.register
class Bag(Network):
    """The sum of a text's embeddings."""

    config_class = BagConfig
    kind = "bag"

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.embedding_size)
        self.classifier = self.make_head(config.embedding_size)
        self.post_init()

    @classmethod
    def embedding_size(cls, config, teacher):
        return teacher

    def get_input_embeddings(self):
        return self.table

    def run(self, batch, tap=None):
        listener, ids = self.listen(batch, tap)
        rows = nn.functional.embedding_bag(ids, self.table.weight, listener.cu_seqlens[:-1].long(), mode="sum")
        logits = self.classifier(self.config.scale * rows)
        if listener.wants("logits"):
            listener.hand("logits", 0, logits=logits)
        return PackedOutput(logits=logits)
'''


def student_of(seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1)
    return teacher, students.build("bilstm", teacher, hidden_size=8, dropout=0.2, init="random", **options)


def both() -> list[Any]:
    return [objectives.Logits(2.0), objectives.HiddenStates([(1, 4)])]


# ---- the trainer --------------------------------------------------------------------------------------------


def test_resume_is_bit_exact(tmp_path: Path) -> None:
    common = {"train": features(24), "save_strategy": "steps", "save_steps": 3}
    straight = trainer_of(tmp_path / "straight", both(), student_of(2), **common)
    straight.train()
    resumed = trainer_of(tmp_path / "resumed", both(), student_of(9), **common)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-3"))
    assert_same(weights(straight), weights(resumed))
    assert losses(resumed) == losses(straight) and len(losses(straight)) == 6


def test_the_best_model_comes_back_and_is_saved_with_a_card(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        both(),
        student_of(2),
        eval_dataset=features(8, seed=1),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        learning_rate=0.3,
    )
    trainer.train()
    best = students.load(trainer.state.best_model_checkpoint)
    assert_same(dict(best.named_parameters()), dict(trainer.student.named_parameters()))
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "import bertxfer_fast.students.bilstm" in card and "kind: BiLSTM" in card
    assert "bertxfer_fast is not needed" not in card
    code = f"model = AutoModel.from_pretrained({str(tmp_path)!r})"
    lines = [line for line in card.splitlines() if line.startswith(("import ", "from "))]
    shown = subprocess.run(
        [sys.executable, "-c", "\n".join([*lines, code, "print(type(model).__name__)"])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["BiLSTM"]


def test_sizes_are_told_with_and_without_embeddings() -> None:
    _, student = student_of(0)
    facts = student_facts(student)
    table = student.get_input_embeddings().weight.numel()
    assert facts["parameters"] - facts["parameters_without_embeddings"] == table
    assert (facts["layers"], facts["hidden_size"]) == (1, 8) and "attention_heads" not in facts
    bert = tiny_bert(2, 16, 4)
    tables = sum(m.weight.numel() for m in bert.embeddings.children() if isinstance(m, torch.nn.Embedding))
    assert parameter_count(bert) - parameter_count(bert, embeddings=False) == tables
    assert student_facts(bert)["attention_heads"] == 4


# ---- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that a recipe needs, of stages that every student can run; a kind in `own_kind`."""
    for registry in (recipes.base._registry, network._registry):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @recipes.register
    def vectors_then_logits() -> Any:
        return recipes.Recipe(
            "vectors_then_logits",
            [
                recipes.Stage("vectors", lambda: [objectives.HiddenStates([(0, 0)])]),
                recipes.Stage("logits", lambda: [objectives.Logits(2.0), objectives.Labels()]),
            ],
        )

    (tmp_path / "own_kind.py").write_text(BAG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_kind", raising=False)
    make_place(tmp_path)
    change(tmp_path, recipe="vectors_then_logits", stages={}, training__num_train_epochs=1)
    return tmp_path


def test_distill_into_an_lstm_and_features_of_it(place: Path) -> None:
    change(place, student={"kind": "bilstm", "hidden_size": 8, "num_hidden_layers": 2})
    assert distill(place) == 0
    out = place / "out"
    student = students.load(out)
    assert student.kind == "bilstm" and student.spec.num_layers == 2
    assert "| student" in (out / "summary.md").read_text()
    vectors = FeatureExtractor(out).transform(["a good film", "bad"])
    assert vectors.shape == (2, 8)
    # The same command goes on, with what is there: a stage that is finished is opened again.
    before = contents(out)["model.safetensors"]
    (out / "logits" / "stage.json").unlink()
    for checkpoint in (out / "logits").glob("checkpoint-*"):
        for file in checkpoint.iterdir():
            file.unlink()
    assert distill(place) == 0
    assert contents(out)["model.safetensors"] == before


def test_a_folder_of_a_student_is_a_student_to_start_from(place: Path) -> None:
    change(place, student={"kind": "static"})
    assert distill(place) == 0
    change(place, student=str(place / "out"), output_dir="again")
    assert distill(place) == 0
    assert students.load(place / "again").kind == "static"


def test_a_size_by_name(place: Path) -> None:
    change(place, student={"size": "2x8"})
    assert distill(place) == 0
    config = students.load(place / "out").config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 8, 32)


def test_a_kind_of_ones_own_takes_part_without_a_change(place: Path) -> None:
    change(place, recipe="vectors_then_logits", student={"kind": "own_kind:Bag", "scale": 0.5})
    change(place, recipe="tinybert")  # of which it runs no stage: it has no attention
    assert distill(place) == 2
    own = importlib.import_module("own_kind")

    @recipes.register
    def plain_logits() -> Any:
        return recipes.Recipe("plain_logits", [recipes.Stage("logits", lambda: [objectives.Logits()])])

    change(place, recipe="plain_logits")
    assert distill(place) == 0
    student = students.load(place / "out")
    assert isinstance(student, own.Bag) and student.config.scale == 0.5
    assert "bag" in students.kinds() and students.options("bag")["scale"] == 1.0


# ---- recipe files -------------------------------------------------------------------------------------------


def settings(place: Path, student: dict[str, Any], *flags: str) -> StudentConfig:
    change(place, student=student)
    return load(place / "recipe.yaml", flags).student


def test_options_of_a_kind_are_keys_of_the_student_and_flags(place: Path) -> None:
    read = settings(
        place, {"kind": "textcnn", "filters": 50, "init": "random"}, "--student.kernel_sizes", "2,3"
    )
    assert read == StudentConfig(
        kind="textcnn", init="random", options={"filters": 50, "kernel_sizes": [2, 3]}
    )
    # Another kind, or a directory, by a flag: what the file says of its own kind is not for it.
    read = settings(
        place, {"kind": "textcnn", "filters": 50}, "--student.kind", "gru", "--student.hidden_size", "6"
    )
    assert read == StudentConfig(kind="gru", options={"hidden_size": 6})
    read = settings(place, {"kind": "gru", "hidden_size": 6}, "--student.kind", "gru")
    assert read == StudentConfig(kind="gru", options={"hidden_size": 6})
    read = settings(place, {"num_hidden_layers": 2}, "--student.kind", "static")
    assert read == StudentConfig(kind="static")


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"kind": "bilstmm"}, r"line \d+ .*student: got 'bilstmm', want a known one; did you mean 'bilstm'"),
        ({"kind": "bilstm", "num_attention_heads": 4}, "unknown key 'num_attention_heads' beside this kind"),
        (
            {"kind": "bilstm", "hiden_size": 4},
            "unknown key 'hiden_size' beside .* did you mean 'hidden_size'",
        ),
        ({"kind": "bilstm", "hidden_size": "wide"}, "hidden_size: got text: 'wide', want a whole number"),
        ({"kind": "textcnn", "kernel_sizes": 3}, "kernel_sizes: got a whole number: 3, want a list"),
        ({"init": "random"}, "'student' is missing: give a directory, or a section with a size"),
        ({"kind": "bilstm", "path": "x"}, "student is a directory; kind cannot be set beside it"),
    ],
)
def test_recipe_files_say_where_a_student_is_wrong(
    place: Path, student: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        settings(place, student)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"size": "tiny"}, "size: got 'tiny', want one of"),
        ({"kind": "bilstm", "hidden_size": 5}, "hidden_size: got 5, want an even number"),
        (
            {"kind": "bilstm", "embedding_size": 300},
            "embedding_size: got 300, want 1 to the teacher's 16, or init='random'",
        ),
    ],
)
def test_what_a_teacher_does_not_allow_ends_before_anything_is_written(
    place: Path, student: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(place, student=student)
    assert distill(place) == 2
    assert message in capsys.readouterr().err and not (place / "out").exists()


def test_the_help_names_every_kind_and_the_yaml_is_plain(place: Path) -> None:
    from bertxfer_fast.cli.config.schema import describe

    [line] = [line for line in describe().splitlines() if "--student.kind" in line]
    assert all(kind in line for kind in students.kinds())
    assert yaml.safe_load((place / "recipe.yaml").read_text())["student"]
