"""What a row of the quality table is: what it measures for a seed, and what it claims of all seeds together."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from bertxfer_fast.distillation.teachers import StoredTeacher

from .place import Place, Problem

SEEDS = (1, 2, 3)

#: Variant -> metric -> number, of one seed. A curve is a list of numbers; it is drawn, never averaged.
Measured = Mapping[str, Mapping[str, Any]]


@dataclass
class Run:
    """A row at one seed: what it has measured is kept, so that a killed run measures only what is missing.

    Attributes:
        place: of text and teachers.
        seed: of starting weights, order and dropout.
        folder: of this row and seed, for whatever the row writes.
        measured: by variant, in the order of measuring.
    """

    place: Place
    seed: int
    folder: Path
    say: Callable[[str], None] = print
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def sentiment(self) -> Problem:
        """Movie reviews, with the teacher of this seed."""
        return self.place.problem("sentiment", self.seed)

    @property
    def entities(self) -> Problem:
        """Names in tweets, with the teacher of this seed."""
        return self.place.problem("entities", self.seed)

    def stored(self, problem: Problem) -> StoredTeacher:
        """The teacher of a problem, asked once about each text, by whichever row comes first."""
        return self.place.stored(f"{problem.name}-{problem.seed}", problem.teacher(), problem.tokenizer)

    def measure(self, variant: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The numbers of a variant: those of an earlier call where it was finished, else what ``work`` returns."""
        kept = self.folder / f"{variant.replace(' ', '-').replace('/', '-')}.json"
        if kept.is_file():
            numbers = json.loads(kept.read_text(encoding="utf-8"))
        else:
            numbers = dict(work())
            write_whole(kept, json.dumps(numbers, indent=1))
        self.measured[variant] = numbers
        shown = ", ".join(f"{k} {v:.4g}" for k, v in numbers.items() if isinstance(v, int | float))
        self.say(f"    seed {self.seed}, {variant}: {shown}")
        return numbers


@dataclass(frozen=True)
class Verdict:
    """A claim beside its numbers, as the table shows it. ``met`` is None where nothing was asked for."""

    what: str
    wanted: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Claim:
    """One number that a row is about, and what is asked of it.

    Attributes:
        what: in words.
        of: variant that is measured.
        metric: which of its numbers.
        over: variant that it is compared with, None for none.
        by: ``"value"`` (of it alone), ``"share"`` (of / over), ``"gain"`` (of - over).
        least: the number that the mean over seeds has to reach; None: none.
        most: the number that the mean over seeds must not exceed; None: none.
        beyond_error: a gain has to be larger than its standard error.
        digits: decimals shown.
    """

    what: str
    of: str
    metric: str
    over: str | None = None
    by: str = "value"
    least: float | None = None
    most: float | None = None
    beyond_error: bool = False
    digits: int = 4

    def is_in(self, seeds: Sequence[Measured]) -> bool:
        """Whether the numbers are there: results of an earlier text of the row may lack them."""
        variants = [self.of] if self.over is None else [self.of, self.over]
        return all(self.metric in measured.get(name, ()) for measured in seeds for name in variants)

    def numbers(self, seeds: Sequence[Measured]) -> list[float]:
        """One a seed."""
        values = [float(measured[self.of][self.metric]) for measured in seeds]
        if self.over is None:
            return values
        others = [float(measured[self.over][self.metric]) for measured in seeds]
        pairs = zip(values, others, strict=True)
        return (
            [a / b if b else math.nan for a, b in pairs] if self.by == "share" else [a - b for a, b in pairs]
        )

    @property
    def wanted(self) -> str:
        """What is asked, in signs."""
        asked = [] if self.least is None else [f">= {self.least:g}"]
        asked += [] if self.most is None else [f"<= {self.most:g}"]
        asked += ["> its standard error"] if self.beyond_error else []
        return ", ".join(asked) or "-"

    def verdict(self, seeds: Sequence[Measured]) -> Verdict:
        mean, error = mean_and_error(self.numbers(seeds))
        asked = []
        if self.least is not None:
            asked.append(mean >= self.least)
        if self.most is not None:
            asked.append(mean <= self.most)
        if self.beyond_error:
            asked.append(mean > error)
        shown = with_error(mean, error, self.digits, sign=self.by == "gain")
        return Verdict(self.what, self.wanted, shown, all(asked) if asked else None)


@dataclass(frozen=True)
class Row:
    """A row of the table. Its title and what is told of it are the docstring of the file that defines it.

    Attributes:
        name: on the command line, and of its files.
        measure: does one seed with `Run.measure`.
        claims: what it has to show.
        minutes: about what all seeds take on two cores.
        needs: names of what `Place` has ready before the clock starts: teachers, text.
        seeds: as a rule `SEEDS`; one where nothing depends on it.
        figure: draws the committed numbers into a file, as svg; None: no figure.
    """

    name: str
    measure: Callable[[Run], None]
    claims: tuple[Claim, ...]
    minutes: float
    needs: tuple[str, ...] = ("sentiment",)
    seeds: tuple[int, ...] = SEEDS
    figure: Callable[[Sequence[Measured], Path], None] | None = None

    @property
    def title(self) -> str:
        """The heading of its section."""
        return self._doc[0].removesuffix(".")

    @property
    def text(self) -> str:
        """What is compared, in a paragraph."""
        return self._doc[2].strip().replace("\n", " ")

    @property
    def source(self) -> str:
        """Digest of the file that defines the row: numbers of another text are measured anew."""
        return hashlib.sha256(inspect.getsource(self._module).encode()).hexdigest()[:12]

    @property
    def _module(self) -> ModuleType:
        return sys.modules[self.measure.__module__]

    @property
    def _doc(self) -> tuple[str, str, str]:
        return (inspect.getdoc(self._module) or "").partition("\n")


def mean_and_error(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the mean; the error of one number is NaN."""
    mean = statistics.fmean(numbers)
    if len(numbers) < 2:
        return mean, math.nan
    return mean, statistics.stdev(numbers) / math.sqrt(len(numbers))


def with_error(mean: float, error: float, digits: int, *, sign: bool = False) -> str:
    shown = f"{mean:{'+' if sign else ''},.{digits}f}"
    return shown if math.isnan(error) else f"{shown} ± {error:.{digits}f}"


def write_whole(path: Path, text: str) -> None:
    """Write a file that, whenever the run is killed, is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
