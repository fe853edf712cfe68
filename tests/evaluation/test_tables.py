"""Tables of numbers that look alike down a column."""

from __future__ import annotations

import pytest

from bertxfer_fast.evaluation.tables import table


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
