"""One panel for each objective, with what was logged."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from bertxfer_fast.evaluation.curves import loss_curves


def history(names: tuple[str, ...], start: float = 4.0) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for step in range(1, 11):
        values = {f"loss/{name}": start / step for name in names}
        rows.append({"step": step, "loss": sum(values.values()), **values, "learning_rate": 1e-4})
    rows.append({"step": 10, "eval_loss": 1.0, **{f"eval_loss/{name}": 0.5 for name in names}})
    rows.append({"step": 10, "train_loss": 1.0})
    return rows


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
