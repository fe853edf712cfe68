"""`bertxfer bench`: tests an op, times it against what it replaces, and keeps the numbers.

Runs in a source checkout, where `benchmarks/` and `tests/` stand beside the package. Tests and benchmarks run in
processes of their own, one op after the other, and no number is printed of an op whose tests fail. Each case is shown
and saved when it is done: an interrupted run keeps what it has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertxfer_fast.errors import InputError, did_you_mean

from .report import machine_line, plot, tables
from .results import Record, Results, results_file, seconds_of

ROOT = Path(__file__).resolve().parent.parent

#: Tests of what is no single op: paths below `tests/`. An op's own are `ops/test_<op>.py`.
_TESTS: dict[str, tuple[str, ...]] = {
    "step": ("distillation/test_distiller.py",),
    "extract": ("features/test_features.py",),
    "teacher": ("models/test_stream.py",),
    "overhead": (
        "ops/test_hidden_mse.py",
        "ops/test_hidden_cosine.py",
        "ops/test_logits_kl.py",
        "ops/test_attention_score_mse.py",
        "ops/test_attention_map.py",
        "ops/test_relation_kl.py",
    ),
}
_LOOK = 0.2  # seconds between two looks at what a benchmark has handed in


def names(root: Path = ROOT) -> list[str]:
    """The benchmarks there are: `attention_map` for `benchmarks/bench_attention_map.py`."""
    return sorted(path.stem.removeprefix("bench_") for path in (root / "benchmarks").glob("bench_*.py"))


def tests_of(name: str) -> list[str]:
    """The files that must pass before the benchmark may print a number."""
    return [f"tests/{path}" for path in _TESTS.get(name, (f"ops/test_{name}.py",))]


def run(
    wanted: Sequence[str] = (),
    *,
    quick: bool = False,
    threads: int | None = None,
    output: Path | None = None,
    plots: bool = True,
    skip_compile: bool = False,
    root: Path = ROOT,
) -> int:
    """Measure the benchmarks `wanted` (all of them if there is none) and print the tables.

    Args:
        wanted: names as `names` gives them.
        quick: tiny shapes and few rounds, to see that all runs. Such numbers mean nothing: they are neither plotted
            nor, without `output`, written.
        threads: of torch and the kernels; by default as many as this process may use.
        output: the JSON file; by default `benchmarks/results/<processor>-<threads>threads.json`. Entries that it has
            and that were not measured now stay.
        plots: whether to draw `docs/plots/`; not with an allocator of the user's setting.
        skip_compile: leave out torch.compile.
        root: the checkout.

    Returns:
        The exit code: 1 if the tests or the benchmark of any op failed.

    Raises:
        InputError: an unknown name, a bad number of threads, an `output` that cannot be read or written.
    """
    chosen = _chosen(wanted, names(root))
    threads = _available_cores() if threads is None else threads
    if threads < 1:
        raise InputError(f"--threads: got {threads}, want 1 or more")
    if output is not None and not output.resolve().parent.is_dir():
        raise InputError(f"--output: no such directory: {output.parent}")
    if output is not None and output.exists():
        Results.read(output)  # what cannot be merged is an error now, not after an hour
    environment = _environment(root, threads, quick=quick, skip_compile=skip_compile)
    keep = _Keeper(root, output, quick)
    failed = False
    for number, name in enumerate(chosen):
        progress = _Progress(name, chosen[number + 1 :], keep.earlier)
        try:
            _tell(f"{name}: testing")
            _test(name, root, environment)
            _tell(f"{name}: measuring")
            found = []
            for record in _measure(name, root, environment, keep.start, progress):
                keep.add(record)
                found.append(record)
        except _FailedError as error:
            failed = True
            print(f"bertxfer: {error}", file=sys.stderr, flush=True)
            continue
        print(f"\n{tables(Results({}, quick, found), style='text')}\n", flush=True)
        if plots and not quick and keep.results and not keep.results.machine["allocator"]:
            plot(keep.results, root / "docs" / "plots")  # of what PyTorch does unless told otherwise
    if keep.results is not None and keep.results.entries:
        print(machine_line(keep.results.machine))
        if keep.path is not None:
            print(f"results in {keep.path}")
    return int(failed)


class _Keeper:
    """Saves each record as it comes."""

    def __init__(self, root: Path, output: Path | None, quick: bool) -> None:
        self.root, self.output, self.quick = root, output, quick
        self.path = output
        self.results: Results | None = None
        self.machine: dict[str, Any] = {}
        self.earlier: list[Record] = []

    def start(self, machine: dict[str, Any]) -> None:
        """Called when a benchmark's process has told what it runs on."""
        first, self.machine = not self.machine, machine
        if self.output is None and not self.quick:
            self.path = results_file(self.root, machine)
        if first and self.path is not None and self.path.exists():
            old = Results.read(self.path)
            self.earlier = old.entries
            if not old.same_conditions(Results(machine, self.quick)):
                _tell(f"{self.path.name}: its older numbers were made under other conditions and are dropped")

    def add(self, record: Record) -> None:
        new = Results(self.machine, self.quick, [record])
        self.results = new.save(self.path) if self.path is not None else new.merged_into(self.results)


class _Progress:
    """One line for each case that is done, with what is left."""

    def __init__(self, name: str, following: Sequence[str], earlier: list[Record]) -> None:
        self.name, self.following, self.earlier = name, following, earlier
        self.begin, self.cases, self.done = time.monotonic(), 0, 0

    def collected(self, cases: int) -> None:
        self.begin, self.cases = time.monotonic(), cases
        _tell(f"{self.name}: {cases} cases")

    def ended(self, record: Record) -> None:
        self.done += 1
        facts = " ".join(filter(None, (record.name, record.shape, record.dtype)))
        shown = ", ".join(
            f"{name} {x.ms:.3g} ms ({x.ratio:.2f} x)" for name, x in record.implementations.items()
        )
        reasons = {why: name for name, why in reversed(record.left_out.items())}  # each once
        left_out = "".join(f"; {name} {why}" for why, name in reversed(reasons.items()))
        _tell(f"[{self.done}/{self.cases}] {facts}: {shown}{left_out}")
        _tell(f"    {record.seconds or 0:.0f} s; {self.left()}")

    def left(self) -> str:
        taken = time.monotonic() - self.begin
        rest = taken / max(self.done, 1) * (self.cases - self.done)
        known = [seconds_of(self.earlier, name) for name in self.following]
        if all(x is not None for x in known):
            return f"about {_minutes(rest + sum(x or 0.0 for x in known))} left"
        return f"about {_minutes(rest)} left of {self.name}; then {', '.join(self.following)}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


# ---- running ------------------------------------------------------------------------------------------------


class _FailedError(Exception):
    """Tests or a benchmark of one op failed; the message is one line."""


def _test(name: str, root: Path, environment: Mapping[str, str]) -> None:
    words = [*tests_of(name), "-q", "-x", "-rfE", "-m", "not slow and not gpu"]
    done = subprocess.run(
        _pytest(words), cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise _FailedError(f"{name}: no numbers, its tests fail: {_reason(done.stdout)}")


def _measure(
    name: str,
    root: Path,
    environment: Mapping[str, str],
    started: Callable[[dict[str, Any]], None],
    progress: _Progress,
) -> Iterator[Record]:
    """The records of one benchmark, each as soon as it is there."""
    with tempfile.TemporaryDirectory() as folder:
        events, log = Path(folder) / "events", Path(folder) / "log"
        events.touch()
        words = [f"benchmarks/bench_{name}.py", "-q", "-rfE", "--benchmark-quiet"]
        with log.open("w") as output:
            process = subprocess.Popen(
                _pytest(words),
                cwd=root,
                env={**environment, "BERTXFER_BENCH_EVENTS": str(events)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            for event in _events(events, process):
                if "machine" in event:
                    started(event["machine"])
                    progress.collected(event["cases"])
                elif "record" in event:
                    record = Record.from_json(event["record"])
                    progress.ended(record)
                    yield record
        finally:
            if process.poll() is None:  # interrupted
                process.terminate()
            process.wait()
        if process.returncode:
            raise _FailedError(f"{name}: its benchmark fails: {_reason(log.read_text())}")


def _events(path: Path, process: subprocess.Popen[Any]) -> Iterator[dict[str, Any]]:
    """Lines of the file as the process writes them, until it ends."""
    with path.open(encoding="utf-8") as file:
        partial = ""
        while True:
            ended = process.poll() is not None  # before reading: what was written last is read, too
            while piece := file.readline():
                partial += piece
                if partial.endswith("\n"):
                    yield json.loads(partial)
                    partial = ""
            if ended:
                return
            time.sleep(_LOOK)


def _pytest(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]


def _reason(output: str) -> str:
    """The line of pytest's output that says what failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next(
        (line for line in lines if line.startswith(("FAILED", "ERROR"))), (lines or ["no output"])[-1]
    )


def _environment(root: Path, threads: int, *, quick: bool, skip_compile: bool) -> dict[str, str]:
    switches = {"BERTXFER_BENCH_QUICK": quick, "BERTXFER_BENCH_SKIP_COMPILE": skip_compile}
    return {
        **{name: value for name, value in os.environ.items() if name not in switches},
        **{name: "1" for name, on in switches.items() if on},
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "BERTXFER_REQUIRE_COMPILED": "1",  # tests of kernels that are not there must fail, not be skipped
    }


def _chosen(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in known:
            raise InputError(f"bench: no benchmark {name!r}{did_you_mean(name, known)}")
    return list(dict.fromkeys(wanted)) or list(known)


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
