"""`make gpu` as a plan under a fake clock and a fake GPU: what comes first, and what a run that is cut off keeps."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.collect import results_of
from benchmarks.gpu.facts import Facts, read_facts
from benchmarks.gpu.plan import TESTS, Plan, whole_plan
from benchmarks.gpu.problems import HALF, PARTS
from benchmarks.gpu.schedule import Job, Schedule, Step, StepFailedError, Tell, expected
from benchmarks.gpu.worker import CompilePool, WorkerRunner
from bertxfer_fast.ops._dispatch.registry import OPS

ROOT = Path(__file__).resolve().parent.parent
JOBS = "tests.worker_jobs"
MACHINE = {"gpu": "Some GPU", "torch": "2.11"}


class FakeClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class FakeGpu:
    """Does jobs in no time but the clock's: `wrong` names checks that fail, `slow` is a factor on what is expected.

    `cut` raises KeyboardInterrupt at that time, in the middle of whatever runs.
    """

    def __init__(
        self,
        clock: FakeClock,
        steps: list[Step],
        wrong: tuple[str, ...] = (),
        slow: float = 1.0,
        cut: float = 1e9,
    ) -> None:
        self.clock, self.wrong, self.slow, self.cut = clock, wrong, slow, cut
        self.steps = {json.dumps(step.job): step for step in steps}
        self.ran: list[str] = []

    def run(self, job: Job, timeout: float, tell: Tell) -> None:
        step = self.steps[json.dumps(job)]
        self.ran.append(step.name)
        facts = self.facts(step)
        for fact in facts:
            self.clock.time += step.seconds * self.slow / len(facts)
            if self.clock.time > self.cut:
                raise KeyboardInterrupt
            tell(fact)
        if step.name in self.wrong:
            raise StepFailedError("errors are 1e9")

    def facts(self, step: Step) -> list[dict[str, Any]]:
        job = step.job
        kind = job["do"].partition(":")[2]
        if kind == "device_facts":
            return [{"kind": "device", "machine": MACHINE}]
        if kind == "ceilings":
            return [{"kind": "ceiling", "name": name, "gb_per_s": 1.0} for name in ("copy", "product")]
        if kind == "contract":
            return [{"kind": "test", "test": "test_opcheck[cuda-hidden_mse]", "outcome": "passed"}]
        problem = [job["spec"]["module"], step.name.split(" ", 2)[2], "shape", job["spec"]["dtype"]]
        if kind == "check":
            return [
                {
                    "kind": "check",
                    "problem": problem,
                    "backend": job["backend"],
                    "ok": step.name not in self.wrong,
                }
            ]
        return [timed(problem, name) for name in job["names"] if not name.endswith(":")]


def timed(problem: list[str], name: str, ms: float = 1.0, **more: Any) -> dict[str, Any]:
    fact = {
        "kind": "time",
        "problem": problem,
        "implementation": name,
        "ms": ms,
        "quartiles": [ms, ms],
        "rounds": 9,
    }
    fact |= {
        "host_ms": 0.1,
        "memory_mb": 2.0,
        "length": 512,
        "valid": 1.0,
        "operator": problem[0],
        "size": 10,
    }
    return {**fact, "gradient_bytes": 10**6, "ideal_gain": None, "target_us": None, "build": None, **more}


class FakePool:
    """What compiles in the background is done at the times given."""

    def __init__(self, clock: FakeClock, ready: Mapping[str, float] | None = None) -> None:
        self.clock, self.ready = clock, dict(ready or {})

    def poll(self, tell: Tell) -> None:
        pass

    def ended(self, name: str) -> bool:
        return self.clock.time >= self.ready.get(name, 0.0)

    def running(self) -> int:
        return sum(at > self.clock.time for at in self.ready.values())


def run(
    path: Path,
    plan: Plan,
    *,
    limit: float = 420.0,
    ready: Mapping[str, float] | None = None,
    **gpu_options: Any,
) -> tuple[FakeGpu, list[dict[str, Any]]]:
    clock = FakeClock()
    device = FakeGpu(clock, plan.steps, **gpu_options)
    schedule = Schedule(
        plan.steps,
        limit,
        facts=Facts(path),
        runner=device,
        background=FakePool(clock, ready),
        clock=clock,
        show=lambda line: None,
    )
    with suppress(KeyboardInterrupt):  # stands for a process that is killed: nothing is done any more
        schedule.run()
    assert clock.time <= limit + max(step.seconds for step in plan.steps) * device.slow
    return device, read_facts(path)


# ---- the plan -----------------------------------------------------------------------------------------------


def test_the_plan_takes_at_most_seven_minutes() -> None:
    assert expected(whole_plan(PARTS).steps) <= 60 * gpu.MINUTES == 420


def test_the_plan_is_shown_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--plan", "hidden_mse"]) == 0
    shown = capsys.readouterr().out
    assert "time cuda hidden_mse 32768x312->768 bfloat16  (target <= 150 us)" in shown
    assert "attention" not in shown and shown.rstrip().endswith("minutes")
    code = "import sys, benchmarks.gpu.__main__ as m; m.main(['--plan']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_most_valuable_comes_first() -> None:
    names = [step.name for step in whole_plan(PARTS).steps]

    def first(start: str) -> int:
        return next(i for i, name in enumerate(names) if name.startswith(start))

    order = [
        "device",
        "ceilings",
        "check cuda score",
        "check cuda map kl",
        "check cuda hidden",
        "check cuda pool",
    ]
    order += ["check cuda map mse", "check triton score", "check triton map kl"]
    order += [
        "check triton varlen",
        "check triton step",
        "check triton teacher",
        "time torch.compile",
        "tests cuda",
    ]
    order += ["tests triton", "time peers"]
    assert [first(start) for start in order] == sorted(first(start) for start in order)
    assert first("tests triton") < names.index("check cuda score 64x512x12x32x64 float32")


def test_backends_that_the_plan_asks_for_are_written() -> None:
    for spec in HALF:
        operator = {
            "attention_map": "attention_map_loss",
            "step": "hidden_mse",
            "teacher": "varlen_attention",
        }
        assert set(spec.backends) <= set(OPS[operator.get(spec.part, spec.part)].backends)


def test_kernels_compile_in_the_order_in_which_they_are_wanted() -> None:
    plan = whole_plan(PARTS)
    compiled = [name for name, _ in plan.background]
    wanted = [name for step in plan.steps for name in step.waits]
    assert [x for x in compiled if x in wanted] == list(dict.fromkeys(wanted)) and set(compiled) == set(
        wanted
    )


def test_every_timing_of_ours_needs_the_check_of_the_same_backend_and_problem() -> None:
    steps = {step.name: step for step in whole_plan(PARTS).steps}
    for step in steps.values():
        if step.job["do"].endswith(":measure") and step.job["names"][0] in ("cuda", "triton"):
            (need,) = step.needs
            check = steps[need].job
            assert (check["backend"], check["spec"]) == (step.job["names"][0], step.job["spec"])


def test_parts_and_tests_can_be_left_out() -> None:
    steps = whole_plan(["logits_kl"], tests=False).steps
    assert {step.part for step in steps} == {"", "logits_kl"} and not any(
        "tests" in step.name for step in steps
    )
    assert gpu.main(["attention_mpa"]) == gpu.main(["sweep", "logits_kl"]) == 2


# ---- the run ------------------------------------------------------------------------------------------------


def test_the_whole_schedule_gives_a_record_for_every_problem(tmp_path: Path) -> None:
    plan = whole_plan(PARTS)
    device, facts = run(tmp_path / "facts", plan)
    assert device.ran == [step.name for step in plan.steps]
    assert not [fact for fact in facts if fact["kind"] == "skipped"]
    found = results_of(facts)
    assert found is not None and {record.op for record in found.entries} >= {
        f"bench_{part}" for part in PARTS
    }


@pytest.mark.parametrize("cut", [5.03, 13.03, 30.03, 75.03, 140.03, 260.03, 390.03])
def test_a_run_that_is_cut_off_keeps_every_finished_fact(tmp_path: Path, cut: float) -> None:
    plan = whole_plan(PARTS)
    _, whole = run(tmp_path / "whole", plan)
    _, found = run(tmp_path / "cut", plan, cut=cut)
    assert found == [fact for fact in whole if fact["at"] <= cut]
    results_of(found)  # whatever there is can be made results of


def test_half_a_line_at_the_end_costs_no_other(tmp_path: Path) -> None:
    facts = Facts(tmp_path / "facts")
    facts.add({"kind": "device", "machine": MACHINE})
    with facts.path.open("a") as file:
        file.write('{"kind": "ti')
    assert read_facts(facts.path) == [{"kind": "device", "machine": MACHINE}]


def test_a_fact_is_on_the_disk_before_the_next_step(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looking(FakeGpu):
        def run(self, job: Job, timeout: float, tell: Tell) -> None:
            seen.append(len(read_facts(tmp_path / "facts")))
            super().run(job, timeout, tell)

    clock, steps = FakeClock(), whole_plan(["hidden_mse"]).steps[:5]
    device = Looking(clock, steps)
    Schedule(
        steps,
        400,
        facts=Facts(tmp_path / "facts"),
        runner=device,
        background=FakePool(clock),
        clock=clock,
        show=str,
    ).run()
    assert seen[0] == 0 and all(b > a for a, b in itertools.pairwise(seen))


def test_nothing_is_timed_whose_check_failed(tmp_path: Path) -> None:
    plan = whole_plan(PARTS)
    wrong = tuple(f"check {backend} {spec.name}" for spec in HALF[:3] for backend in spec.backends)
    device, facts = run(tmp_path / "facts", plan, wrong=wrong)
    forbidden = {step.name for step in plan.steps if set(step.needs) & set(wrong)}
    assert len(forbidden) > len(wrong) and not forbidden & set(device.ran)  # with those that time once more
    skipped = {fact["step"]: fact["why"] for fact in facts if fact["kind"] == "skipped"}
    assert set(skipped) == forbidden and all(why.startswith("check ") for why in skipped.values())
    for fact in facts:
        assert fact["kind"] != "time" or f"check {fact['implementation']} {fact['problem'][1]}" not in wrong


def test_what_does_not_fit_is_left_out_and_shorter_steps_are_not(tmp_path: Path) -> None:
    plan = whole_plan(PARTS)
    names = [step.name for step in plan.steps]
    before = plan.steps[: names.index("tests triton")]
    device, facts = run(tmp_path / "facts", plan, limit=expected(before) + 0.9 * TESTS["triton"])
    late = [fact["step"] for fact in facts if fact["kind"] == "skipped" and fact["why"] == "no time left"]
    assert "tests triton" in late and "check cuda score 64x512x12x32x64 float32" in device.ran
    assert set(late) | set(device.ran) == set(names)


def test_a_slow_device_loses_the_last_steps_alone(tmp_path: Path) -> None:
    plan = whole_plan(PARTS)
    device, _ = run(tmp_path / "facts", plan, slow=2.0)
    assert device.ran[:60] == [step.name for step in plan.steps[:60]]


def test_who_waits_for_a_compilation_is_overtaken(tmp_path: Path) -> None:
    plan = whole_plan(PARTS)
    (late,) = [name for name, _ in plan.background if name == "compile triton score 64x512x12x32x64 bfloat16"]
    device, facts = run(tmp_path / "facts", plan, ready={late: 90.0})
    check = "check triton score 64x512x12x32x64 bfloat16"
    assert device.ran.index(check) > device.ran.index("check triton map kl 64x512x12x32x64 bfloat16")
    (step,) = [fact for fact in facts if fact.get("step") == check]
    assert step["at"] >= 90 and step["beside"] == 0
    early = [fact for fact in facts if fact["at"] < 90]
    assert {fact["beside"] for fact in early} == {1}  # a timing says that something was compiling beside it


def test_it_waits_where_there_is_nothing_else_to_do(tmp_path: Path) -> None:
    steps = [Step("a", 1.0, {"do": "x:ceilings"}, waits=("kernel",))]
    device, _ = run(tmp_path / "facts", Plan(steps), ready={"kernel": 50.0})
    assert device.ran == ["a"] and device.clock.time >= 50
    device, facts = run(tmp_path / "late", Plan(steps), ready={"kernel": 900.0})
    assert device.ran == [] and facts[-1]["why"] == "no time left"


def test_steps_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="twice"):
        run(Path("unused"), Plan([Step("a", 1.0, {}), Step("a", 1.0, {})]))


# ---- workers ------------------------------------------------------------------------------------------------


@pytest.fixture
def runner() -> Any:
    made = WorkerRunner({**os.environ, "PYTHONPATH": str(ROOT)})
    yield made
    made.close()


def do(runner: WorkerRunner, name: str, timeout: float = 60.0, **arguments: Any) -> list[Any]:
    """The facts of a job, and the reason with which it failed."""
    facts: list[Any] = []
    try:
        runner.run({"do": f"{JOBS}:{name}", **arguments}, timeout, facts.append)
    except StepFailedError as error:
        facts.append(str(error))
    return facts


def test_a_worker_that_goes_wrong_costs_its_step_and_no_other(runner: WorkerRunner) -> None:
    (total, first) = do(runner, "add", a=1, b=2)
    assert total == {"sum": 3} and do(runner, "add", a=0, b=0)[1] == first  # one process for many jobs
    assert do(runner, "fail", after=1) == [{"number": 0}, "ValueError: no such thing"]
    assert do(runner, "add", a=0, b=0)[1] == first
    assert do(runner, "crash") == [{"number": 0}, "the worker ended with -11"]
    assert do(runner, "hang", timeout=8.0) == [{"number": 0}, "nothing came of it in 8 seconds"]
    lost, why = do(runner, "lose_the_gpu")
    assert "illegal memory access" in why
    assert do(runner, "add", a=0, b=0)[1] not in (lost, first)  # a new process, which has a GPU
    assert do(runner, "variable", key="X", environment={"X": "1"}) == [{"X": "1"}]
    assert do(runner, "variable", key="X") == [{"X": None}]


def test_the_pool_does_all_jobs_whatever_becomes_of_them() -> None:
    jobs = [
        (name, {"do": f"{JOBS}:{name}", **more}) for name, more in (("crash", {}), ("fail", {"after": 0}))
    ]
    jobs += [("good", {"do": f"{JOBS}:add", "a": 1, "b": 1})]
    pool = CompilePool(jobs, 2, {**os.environ, "PYTHONPATH": str(ROOT)})
    told: list[Mapping[str, Any]] = []
    end = time.monotonic() + 120
    try:
        while not all(pool.ended(name) for name, _ in jobs):
            assert time.monotonic() < end
            pool.poll(told.append)
            time.sleep(0.05)
    finally:
        pool.close()
    assert {fact["name"]: fact["failed"] for fact in told} == {
        "crash": "the worker died",
        "fail": "ValueError: no such thing",
        "good": None,
    }
    assert pool.running() == 0 and pool.ended("what nobody compiles")
