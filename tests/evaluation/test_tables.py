"""Tables, curves and the model card say what they were given, and nothing else."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest
import yaml

from bertxfer_fast.evaluation.card import ModelCard, short_name
from bertxfer_fast.evaluation.curves import loss_curves
from bertxfer_fast.evaluation.tables import table


def history(names: tuple[str, ...], start: float = 4.0) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for step in range(1, 11):
        values = {f"loss/{name}": start / step for name in names}
        rows.append({"step": step, "loss": sum(values.values()), **values, "learning_rate": 1e-4})
    rows.append({"step": 10, "eval_loss": 1.0, **{f"eval_loss/{name}": 0.5 for name in names}})
    rows.append({"step": 10, "train_loss": 1.0})
    return rows


def test_table_in_both_styles() -> None:
    rows = [
        {"model": "teacher", "accuracy": 0.90125, "parameters": 22_713_216},
        {"model": "a|b", "accuracy": None},
    ]
    markdown = table(rows).splitlines()
    assert markdown[0].split("|")[1:-1] == [" model   ", " accuracy ", " parameters "]
    assert set(markdown[1]) <= set("|-: ") and len({len(line) for line in markdown}) == 1
    assert "0.9012" in markdown[2] and "22,713,216" in markdown[2]
    assert markdown[3].count("|") == 4 and "a/b" in markdown[3] and " - " in markdown[3]
    text = table(rows, ["model", "accuracy"], style="text")
    assert "|" not in text and "parameters" not in text and "0.9012" in text
    with pytest.raises(ValueError, match="style"):
        table(rows, style="html")


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([3, 22_713_216], ["3", "22,713,216"]),
        ([0.25, 0.0, 1.0], ["0.2500", "0.0000", "1.0000"]),
        ([3.14159, 0.5], ["3.142", "0.500"]),
        ([5918.5, 10_263.2], ["5,918", "10,263"]),
        ([1.5e-5, 2e-4], ["1.50e-05", "2.00e-04"]),
        ([True, float("nan")], ["True", "nan"]),
    ],
)
def test_numbers_of_a_column_look_alike(values: list[float], shown: list[str]) -> None:
    assert [line.strip("| ") for line in table([{"x": v} for v in values]).splitlines()[2:]] == shown


def test_curves_have_one_panel_per_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        drawn.append(self)
        original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    stages = {
        "intermediate": history(("attention_scores", "hidden_states")),
        "prediction": history(("logits",), 1e3),
    }
    path = loss_curves(stages, tmp_path / "losses.png", title="tinybert")
    assert matplotlib.image.imread(path).std() > 0.01
    panels = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == [
        "intermediate: total",
        "intermediate: attention_scores",
        "intermediate: hidden_states",
        "prediction: logits",
    ]
    for axis in panels:
        assert axis.get_xlabel() and axis.get_ylabel()
        assert [line.get_label() for line in axis.get_lines()] == ["train", "dev"]
        assert len(axis.get_lines()[0].get_xdata()) == 10
    with pytest.raises(ValueError, match="no logged loss"):
        loss_curves({"a": [{"step": 1, "train_loss": 1.0}]}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_model_card_holds_what_it_was_given(tmp_path: Path) -> None:
    card = ModelCard(
        recipe="tinybert",
        teacher="/data/private/big",
        student={"layers": 3, "parameters": 17_000_000},
        data={"train": 8000, "test": 1000},
        metrics=[{"model": "teacher", "accuracy": 0.9}, {"model": "student", "accuracy": 0.88}],
        auto_class="AutoModelForSequenceClassification",
    )
    folder = tmp_path / "my-student"
    folder.mkdir()
    text = card.write(folder).read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers"
    for expected in ("# my-student", "`big`", "17,000,000", "test: 1,000 sequences", "0.88"):
        assert expected in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert "private" not in text and "## Training" not in text
    empty = ModelCard().render()
    assert "Measured" not in empty and "## Data" not in empty


def test_short_name() -> None:
    assert short_name("/a/b/model") == "model"
    assert short_name("./model/") == "model"
    assert short_name("org/model") == "org/model"
