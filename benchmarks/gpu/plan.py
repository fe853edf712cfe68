"""Which steps there are, in which order, and what compiles beside them. Imports nothing heavy: a plan needs no GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .problems import HALF, RAGGED, WHOLE, Spec
from .schedule import Job, Step

JOBS = "benchmarks.gpu.jobs"
_CHECK, _TIME, _WITH_BASELINES, _COMPILED, _PEERS = 0.6, 0.8, 2.4, 2.2, 2.0  # seconds, beside the spec's own
_START = 12.0  # of a worker, with torch and a CUDA context
TESTS = {"cuda": 40.0, "triton": 75.0}


@dataclass
class Plan:
    steps: list[Step] = field(default_factory=list)
    background: list[tuple[str, Job]] = field(default_factory=list)  # in order

    def targets(self) -> dict[str, float]:
        """Microseconds set as a goal, by the step that measures them."""
        return {
            step.name: step.job["spec"]["target_us"]
            for step in self.steps
            if step.name.startswith("time ") and step.job.get("spec", {}).get("target_us")
            if step.job["names"][0] in ("cuda", "triton")
        }


def whole_plan(parts: Iterable[str], *, tests: bool = True, dry: bool = False) -> Plan:
    """The steps of `make gpu`.

    Args:
        parts: of `problems.PARTS`.
        tests: whether the contract tests run.
        dry: tiny problems, and nothing that needs a GPU.
    """
    parts = tuple(parts)
    half, ragged, whole = ([spec for spec in specs if spec.part in parts] for specs in (HALF, RAGGED, WHOLE))
    plan = Plan([Step("device", _START, {"do": f"{JOBS}:device_facts"})])
    plan.steps.append(Step("ceilings", 2.0, {"do": f"{JOBS}:ceilings"}))
    for spec in half:
        _check_and_time(plan, spec, "cuda", dry=dry)
    for spec in half:
        _check_and_time(plan, spec, "triton", dry=dry)
    if not dry:
        for spec in half:
            _baseline(plan, spec)
    if tests and not dry:
        plan.steps += [_tests(backend, parts) for backend in TESTS]
    for spec in (*ragged, *whole):
        for backend in spec.backends:
            _check_and_time(plan, spec, backend, dry=dry)
    for spec in half:
        if spec.peers:
            plan.steps.append(_time("peers", spec, ["peer:"], spec.seconds + _PEERS, dry=dry))
    plan.steps += [] if dry else _again(half)
    return plan


def _check_and_time(plan: Plan, spec: Spec, backend: str, *, dry: bool) -> None:
    """The first of a problem's backends is timed together with what it is compared with."""
    if backend not in spec.backends:
        return
    check, compiling = f"check {backend} {spec.name}", f"compile triton {spec.name}"
    waits = (compiling,) if backend == "triton" and not dry else ()
    job = {"do": f"{JOBS}:check", "spec": spec.job(dry), "backend": backend}
    plan.steps.append(Step(check, spec.seconds + _CHECK, job, spec.part, waits=waits))
    first = backend == spec.backends[0]
    names = [backend, f"{backend} full length", *(["plain", "floor:"] if first else [])]
    plan.steps.append(
        _time(backend, spec, names, _WITH_BASELINES if first else _TIME, needs=(check,), dry=dry)
    )
    if waits:
        plan.background.append((compiling, {"do": f"{JOBS}:compile_triton", "spec": spec.job()}))


def _baseline(plan: Plan, spec: Spec) -> None:
    name = f"compile baseline {spec.name}"
    plan.background.append((name, {"do": f"{JOBS}:compile_baseline", "spec": spec.job()}))
    plan.steps.append(_time("torch.compile", spec, ["compile"], spec.seconds + _COMPILED, waits=(name,)))


def _time(
    what: str,
    spec: Spec,
    names: list[str],
    seconds: float,
    *,
    needs: tuple[str, ...] = (),
    waits: tuple[str, ...] = (),
    dry: bool = False,
) -> Step:
    job = {"do": f"{JOBS}:measure", "spec": spec.job(dry), "names": names}
    return Step(f"time {what} {spec.name}", seconds, job, spec.part, needs=needs, waits=waits)


def _tests(backend: str, parts: Sequence[str]) -> Step:
    job = {"do": "benchmarks.gpu.tests:contract", "backend": backend, "parts": list(parts)}
    return Step(f"tests {backend}", TESTS[backend], job, needs=("device",))


def _again(half: Sequence[Spec]) -> list[Step]:
    """What has a target, once more when nothing compiles any more: how far two runs lie apart."""
    steps = []
    for spec in half:
        for backend in spec.backends if spec.target_us else ():
            step = _time(
                backend, spec, [backend], spec.seconds + _TIME, needs=(f"check {backend} {spec.name}",)
            )
            steps.append(dataclasses.replace(step, name=f"again {backend} {spec.name}"))
    return steps
