"""The quality table: what a row claims, how a run goes on after a kill, and that each row runs on tiny models."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from benchmarks.quality import __main__ as command
from benchmarks.quality import report, row, rows, runner
from benchmarks.quality.place import Place
from benchmarks.quality.row import Claim, Row, Run

from .texts import make_texts

SEEDS = [
    {"student": {"accuracy": student}, "twin": {"accuracy": twin}}
    for student, twin in ((0.88, 0.86), (0.90, 0.85), (0.89, 0.87))
]


def test_mean_and_standard_error() -> None:
    mean, error = row.mean_and_error([0.02, 0.05, 0.02])
    assert (mean, error) == (pytest.approx(0.03), pytest.approx(0.01))
    assert math.isnan(row.mean_and_error([0.5])[1])
    assert row.with_error(0.03, 0.01, 3, sign=True) == "+0.030 ± 0.010"


@pytest.mark.parametrize(
    ("claim", "measured", "met"),
    [
        (Claim("it has", "student", "accuracy"), "0.8900 ± 0.0058", None),
        (Claim("it has", "student", "accuracy", least=0.891), "0.8900 ± 0.0058", False),
        (Claim("it has", "student", "accuracy", least=0.889, most=0.9), "0.8900 ± 0.0058", True),
        (Claim("it keeps", "twin", "accuracy", "student", "share", least=0.98), "0.9664 ± 0.0110", False),
        (
            Claim("it gains", "student", "accuracy", "twin", "gain", beyond_error=True),
            "+0.0300 ± 0.0100",
            True,
        ),
        (
            Claim("it gains", "twin", "accuracy", "student", "gain", beyond_error=True),
            "-0.0300 ± 0.0100",
            False,
        ),
    ],
)
def test_claims_are_of_the_same_seed_and_judged(claim: Claim, measured: str, met: bool | None) -> None:
    verdict = claim.verdict(SEEDS)
    assert (verdict.measured, verdict.met) == (measured, met)


# A row that counts its work: seed 2 is killed once.

calls: list[str] = []


def measure(run: Run) -> None:
    """Doubles its seed."""

    def work(variant: str) -> dict[str, float]:
        calls.append(f"{run.seed} {variant}")
        if calls.count("2 twin") == 1 and calls[-1] == "2 twin":
            raise KeyboardInterrupt
        return {"accuracy": 2.0 * run.seed}

    for variant in ("student", "twin"):
        run.measure(variant, lambda variant=variant: work(variant))


TOY = Row("toy", measure, (Claim("it has", "student", "accuracy", least=3.9),), 2.0, needs=())


def test_a_killed_run_measures_what_is_missing(tmp_path: Path) -> None:
    calls.clear()
    lines: list[str] = []
    place, committed = Place(tmp_path / "build"), tmp_path / "results"
    with pytest.raises(KeyboardInterrupt):
        runner.run_rows([TOY], place, committed, say=lines.append)
    assert not committed.exists()
    (result,) = runner.run_rows([TOY], place, committed, say=lines.append)
    assert calls == ["1 student", "1 twin", "2 student", "2 twin", "2 twin", "3 student", "3 twin"]
    assert [measured["student"]["accuracy"] for measured in result.measured] == [2.0, 4.0, 6.0]
    assert runner.Result.read(committed / "toy.json") == result
    assert result.machine["threads"] >= 1 and result.seconds > 0
    runner.run_rows([TOY], place, committed, say=lines.append)
    assert len(calls) == 7 and lines[-1] == "[1/1] toy: finished before"
    assert any("about 2 min; 2 min left in all" in line for line in lines)


def test_a_row_whose_text_changed_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    calls[:] = ["2 twin"]
    runner.run_rows([TOY], place, None, say=str)
    before = len(calls)
    monkeypatch.setattr(Row, "source", property(lambda self: "another"))
    runner.run_rows([TOY], place, None, say=str)
    assert len(calls) == 2 * before - 1


def test_what_is_left_follows_the_pace_of_what_is_done() -> None:
    slow = dataclasses.replace(TOY, name="slow", minutes=6.0)
    pace = runner.Pace()
    assert pace.left([TOY, slow]) == 8.0
    pace.took(TOY, 60.0)  # half of what was said
    assert pace.left([slow]) == 3.0


def test_the_page_says_what_is_not_measured(tmp_path: Path) -> None:
    result = runner.Result(
        "toy", "x", {"threads": 1, "processor": "a", "instruction_set": "b", "torch": "c"}, 90.0, [1], []
    )
    done = dataclasses.replace(result, measured=[{"student": {"accuracy": 4.0, "steps": 1200}}])
    for results, shown in (({}, "not measured | -"), ({"toy": done}, "4.0000 | yes")):
        assert f"| toy | it has | >= 3.9 | {shown} |" in report.page([TOY], results)
    other = dataclasses.replace(
        result, measured=[{"pupil": {"accuracy": 4.0}}]
    )  # of an earlier text of the row
    assert "| toy | it has | >= 3.9 | not measured | - |" in report.page([TOY], {"toy": other})
    text = report.page([TOY], {"toy": done})
    assert "| student | 4.0000 | 1,200 |" in text and "one seed, 1.5 min with one thread of a" in text


def test_the_page_is_what_the_committed_results_say() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert text == report.page(rows.ROWS, report.committed(rows.ROWS)), (
        "run python -m benchmarks.quality --write"
    )


def test_committed_results_are_of_known_rows() -> None:
    assert {path.stem for path in report.RESULTS.glob("*.json")} <= {row.name for row in rows.ROWS}


def test_unknown_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["half_deep"])
    assert "names: got 'half_deep', want some of half_depth" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wanted", rows.ROWS, ids=lambda wanted: wanted.name)
def test_rows_run_on_tiny_models(wanted: Row, tmp_path: Path) -> None:
    place = Place(tmp_path / "build", make_texts(tmp_path / "data"))
    one_seed = dataclasses.replace(wanted, seeds=(1,))
    (result,) = runner.run_rows([one_seed], place, None, say=str)
    for claim in wanted.claims:
        assert len(claim.numbers(result.measured)) == 1, claim
    if wanted.figure is not None:
        wanted.figure(result.measured, tmp_path / "figure.svg")
        assert "<svg" in (tmp_path / "figure.svg").read_text()
