"""Steps, and the loop that runs them until the time is up.

Nothing here knows of GPUs: what runs a step, what compiles beside it and the clock are handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .facts import Facts

Job = dict[str, Any]
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Step:
    """One thing to find out."""

    name: str
    seconds: float  # what it is expected to take
    job: Job
    part: str = ""
    needs: tuple[str, ...] = ()  # steps that must have succeeded: the check of what is timed
    waits: tuple[str, ...] = ()  # background jobs that must have ended, well or not

    @property
    def timeout(self) -> float:
        """A step that takes so long hangs."""
        return 20.0 + 5.0 * self.seconds


class StepFailedError(Exception):
    """What a step was to find out stays unknown, or is not as it has to be; the message is one line."""


class Clock(Protocol):
    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class Runner(Protocol):
    def run(self, job: Job, timeout: float, tell: Tell) -> None:
        """Does the job, telling each fact when it is known.

        Raises:
            StepFailedError: it failed, crashed or hung; the next job can run.
        """


class Background(Protocol):
    def poll(self, tell: Tell) -> None:
        """Notes what has ended since, and hands out what is next."""

    def ended(self, name: str) -> bool: ...
    def running(self) -> int: ...


class RealClock:
    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


_LOOK = 0.1  # seconds between two looks at what compiles in the background


class Schedule:
    """Runs steps in order, but none before what it waits for, and none that does not fit into what is left.

    Args:
        steps: in order of value; a step's needs come before it.
        limit: seconds for all of them, counted from now.
        facts: where what is found goes.
        runner: does the steps' jobs.
        background: what compiles meanwhile.
        clock: the time.
        show: prints a line.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        limit: float,
        *,
        facts: Facts,
        runner: Runner,
        background: Background,
        clock: Clock | None = None,
        show: Callable[[str], None] = print,
    ) -> None:
        self.pending = list(steps)
        self.facts, self.runner, self.background, self.show = facts, runner, background, show
        self.clock: Clock = clock or RealClock()
        self.begin = self.clock.now()
        self.deadline = self.begin + limit
        self.succeeded: dict[str, bool] = {}
        names = [step.name for step in self.pending]
        if len(set(names)) != len(names):
            raise ValueError(
                f"steps: got {sorted(x for x in names if names.count(x) > 1)} twice, want each once"
            )

    def run(self) -> None:
        while self.pending:
            if self.succeeded:  # the first step, which has to load everything, is let alone
                self.background.poll(self._tell)
            step = self._next()
            if step is not None:
                self.pending.remove(step)
                self._do(step)
            elif self.pending:
                self.clock.sleep(_LOOK)

    @property
    def failures(self) -> list[str]:
        return [name for name, succeeded in self.succeeded.items() if not succeeded]

    def _left(self) -> float:
        return self.deadline - self.clock.now()

    def _next(self) -> Step | None:
        """The first step that can run now; those that never can are dropped, with the reason as a fact."""
        for step in list(self.pending):
            failed = [name for name in step.needs if not self.succeeded.get(name, True)]
            if failed:
                self._drop(step, f"{failed[0]} failed", failed=True)
            elif step.seconds > self._left():
                self._drop(step, "no time left", failed=False)
            elif all(name in self.succeeded for name in step.needs) and all(
                map(self.background.ended, step.waits)
            ):
                return step
        return None

    def _drop(self, step: Step, why: str, *, failed: bool) -> None:
        self.pending.remove(step)
        self.succeeded[step.name] = False
        self._tell({"kind": "skipped", "step": step.name, "why": why, "failed": failed})

    def _do(self, step: Step) -> None:
        begin = self.clock.now()
        self.show(f"{begin - self.begin:6.1f} s  {step.name}")
        why = None
        try:
            self.runner.run(step.job, min(step.timeout, max(self._left(), 1.0)), self._tell)
        except StepFailedError as error:
            why = str(error)
            self.show(f"          FAILED: {why}")
        self.succeeded[step.name] = why is None
        taken = round(self.clock.now() - begin, 2)
        self._tell({"kind": "step", "step": step.name, "seconds": taken, "failed": why})

    def _tell(self, fact: Mapping[str, Any]) -> None:
        at = round(self.clock.now() - self.begin, 2)
        self.facts.add({**fact, "at": at, "beside": self.background.running()})


def expected(steps: Sequence[Step]) -> float:
    return sum(step.seconds for step in steps)


def show_plan(steps: Sequence[Step], targets: Mapping[str, float]) -> str:
    """The steps with when each is expected to begin, and what was set as a goal for it."""
    lines, at = [], 0.0
    for step in steps:
        target = targets.get(step.name)
        goal = f"  (target <= {target:g} us)" if target is not None else ""
        lines.append(f"{at:6.1f} s  {step.seconds:5.1f} s  {step.name}{goal}")
        at += step.seconds
    lines.append(f"{at:6.1f} s  in all, {at / 60:.1f} minutes")
    return "\n".join(lines)
