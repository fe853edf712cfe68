"""Runs rows one after the other; whatever is finished is kept, and a killed run goes on from there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import machine
from .place import Place
from .row import Row, Run, write_whole

#: Facts of the machine that a result names.
FACTS = ("processor", "cores", "threads", "instruction_set", "torch", "python", "system")
#: The most that a row may take, on two cores.
MOST_MINUTES = 25


@dataclass(frozen=True)
class Result:
    """What a finished row measured, as its JSON file has it.

    Attributes:
        row: its name.
        source: `Row.source` when it was measured.
        machine: facts of the machine, with the threads that worked.
        seconds: that all seeds took together, without teachers and fetching.
        seeds: their numbers.
        measured: by seed, variant and metric.
    """

    row: str
    source: str
    machine: dict[str, Any]
    seconds: float
    seeds: list[int]
    measured: list[dict[str, dict[str, Any]]]

    @property
    def minutes_on_two(self) -> float:
        """What it took, or would have taken on two cores where only one worked."""
        return self.seconds / 60 * min(self.machine["threads"], 2) / 2

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=1) + "\n"

    @staticmethod
    def read(path: Path) -> Result:
        return Result(**json.loads(path.read_text(encoding="utf-8")))


def run_rows(rows: Sequence[Row], place: Place, committed: Path | None, *, say: Any = print) -> list[Result]:
    """Measure the rows that are not finished in ``place``; returns the results of all of them.

    Args:
        rows: in the order of measuring.
        place: its folder keeps what is finished.
        committed: where finished results go as well, for the repository; None: nowhere.
        say: is told the progress, a line at a time.
    """
    results = []
    pace = Pace()
    for number, row in enumerate(rows, start=1):
        head = f"[{number}/{len(rows)}] {row.name}"
        finished = place.folder / f"{row.name}.json"
        if finished.is_file() and Result.read(finished).source == row.source:
            say(f"{head}: finished before")
        else:
            for need in row.needs:
                say(f"{head}: {need}")
                place.prepare(need, row.seeds)
            say(
                f"{head}: about {pace.minutes(row):.0f} min; {pace.left(rows[number - 1 :]):.0f} min left in all"
            )
            result = _run_row(row, place, say)
            pace.took(row, result.seconds)
            write_whole(finished, result.to_json())
            say(f"{head}: {result.seconds / 60:.1f} min")
            if result.minutes_on_two > MOST_MINUTES:
                say(f"{head}: took more than {MOST_MINUTES} min on two cores")
        results.append(Result.read(finished))
        if committed is not None:
            write_whole(committed / finished.name, finished.read_text(encoding="utf-8"))
    return results


def _run_row(row: Row, place: Place, say: Any) -> Result:
    measured, seconds = [], 0.0
    for seed in row.seeds:
        folder = place.folder / row.name / row.source / f"seed-{seed}"
        run = Run(place, seed, folder, say)
        clock = folder / "seconds.json"  # of the tries before this one
        before = json.loads(clock.read_text(encoding="utf-8")) if clock.is_file() else 0.0
        started = time.perf_counter()
        try:
            row.measure(run)
        finally:
            spent = before + time.perf_counter() - started
            write_whole(clock, json.dumps(spent))
        seconds += spent
        measured.append(run.measured)
    facts = machine.facts()
    return Result(
        row.name, row.source, {name: facts[name] for name in FACTS}, seconds, list(row.seeds), measured
    )


class Pace:
    """How long rows take here, by what they were said to take and by those that are done."""

    def __init__(self) -> None:
        self.expected = self.spent = 0.0

    def took(self, row: Row, seconds: float) -> None:
        self.expected += row.minutes
        self.spent += seconds / 60

    def minutes(self, row: Row) -> float:
        return row.minutes * (self.spent / self.expected if self.expected else 1.0)

    def left(self, rows: Sequence[Row]) -> float:
        return sum(map(self.minutes, rows))
