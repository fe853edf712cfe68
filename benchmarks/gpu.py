"""`make gpu`: builds for this GPU, tests on it, measures part by part, and prints what came out.

    python3 -m benchmarks.gpu                  all parts
    python3 -m benchmarks.gpu attention_map    one of them; its numbers replace those in the results file
    python3 -m benchmarks.gpu --dry-run        the same way with tiny tensors on the CPU; builds and tests nothing

Each part runs in a process of its own and its records are kept as soon as they exist: a part that fails, crashes or
runs out of time costs no other. The exit code is 0 only if all was built, tested and measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bertxfer_fast import bench
from bertxfer_fast import bench_gpu_report as report
from bertxfer_fast.errors import InputError, did_you_mean

from . import device

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "attention_map",
    "attention_score_mse",
    "relation_kl",
    "hidden_mse",
    "hidden_cosine",
    "linear_logits_kl",
    "logits_kl",
    "pool_features",
)
NO_GPU = "make gpu: torch sees no NVIDIA GPU here; there is nothing to measure"
MINUTES = 8.0
_TESTS_SHARE = 0.5  # of what is left of the time after the build
_SLOW_TESTS = ["--ignore=tests/gpu/test_sanitizer.py"]  # compute-sanitizer takes minutes: run it by itself
_WORKERS = 6
_LONGEST_PART = 180.0  # seconds: a kernel that hangs may not take the others' time
_LEAST = 15.0  # seconds: with less than this no part is begun
_DISAGREE = 0.05  # results of our backends farther apart than this share of their norm are wrong


def main(words: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(words)
    for part in args.parts:
        if part not in PARTS:
            print(f"make gpu: no part {part!r}{did_you_mean(part, PARTS)}", file=sys.stderr)
            return 2
    if not args.dry_run and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    if args.results is not None:
        args.results.mkdir(parents=True, exist_ok=True)
    return Run(args).all()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--results", type=Path, help="directory for results and plots, not the checkout's")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it (default: %(default)s)")
    parser.add_argument("--no-build", action="store_true", help="measure what is built already")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry-run", action="store_true", help="tiny tensors on the CPU; means nothing")
    return parser


class Run:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.parts = tuple(dict.fromkeys(args.parts)) or PARTS
        self.deadline = time.monotonic() + 60 * args.minutes
        self.failures: list[str] = []
        self.environment = {
            **os.environ,
            "BERTXFER_BENCH_DEVICE": "cuda",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
        }
        switches = {"BERTXFER_BENCH_SKIP_COMPILE": args.skip_compile or args.dry_run}
        switches |= {
            name: args.dry_run for name in ("BERTXFER_BENCH_DRY", "BERTXFER_BENCH_QUICK", "TRITON_INTERPRET")
        }
        self.environment.update({name: "1" for name, on in switches.items() if on})

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def all(self) -> int:
        if self.args.dry_run:
            verdicts = dict.fromkeys(self.parts, "not run: dry run")
        else:
            if not self.args.no_build:
                self.build()
            verdicts = self.test()
        machine = self.machine()
        results: dict[str, Any] = {"machine": machine, "quick": self.args.dry_run, "entries": []}
        kept = results
        for part in self.parts:
            found = self.measure(part)
            for entry in found:
                entry["tests"] = _verdict(entry, verdicts[part])
            results["entries"] += found
            kept = self.keep({**results, "entries": found}) if found else kept
        self.plot(kept)
        print(f"\n{report.gpu_line(machine)}\n\n{report.summary(results)}\n")
        for failure in self.failures:
            print(f"FAILED {failure}")
        if self.file(machine) is not None:
            print(f"results in {self.file(machine)}", flush=True)
        return int(bool(self.failures))

    # ---- steps ------------------------------------------------------------------------------------------

    def build(self) -> None:
        _tell(f"building for {architecture()}")
        environment = {**self.environment, "BERTXFER_CUDA_ARCHS": architecture()}
        command = [sys.executable, "build_kernels.py"]
        if _stream(command, environment, self.left()) != 0:
            self.failures.append("build: what was not built is not measured")

    def test(self) -> dict[str, str]:
        """What the tests say of each part: "passed", or what did not."""
        _tell("testing")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tests.xml"
            words = ["-m", "gpu", "tests/gpu", *_SLOW_TESTS, "-q", "-rfE", "--tb=short", f"--junitxml={path}"]
            if (
                importlib.util.find_spec("xdist") is not None
            ):  # most of their time goes into compiling kernels
                words += ["-n", str(min(_WORKERS, os.cpu_count() or 1))]
            if self.args.parts:
                words += ["-k", " or ".join(self.parts)]
            code = _stream(_pytest(words), self.environment, _TESTS_SHARE * self.left())
            if code in (0, 1) and path.exists():
                verdicts = verdicts_of(path.read_text(encoding="utf-8"), self.parts)
            else:
                reason = "out of time" if code is None else f"pytest ended with {code}"
                verdicts = dict.fromkeys(self.parts, f"the tests did not end: {reason}")
        for part, verdict in verdicts.items():
            if verdict != report.PASSED:
                self.failures.append(f"tests of {part}: {verdict}")
        return verdicts

    def measure(self, part: str) -> list[dict[str, Any]]:
        """The records of one part. After a crash a second try goes without the backend that was running."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        without: list[str] = []
        for _ in range(1 + len(device.BACKENDS_OF["cuda"])):
            if self.left() < _LEAST:
                self.failures.append(f"{part}: out of time")
                break
            _tell(f"{part}: measuring" + (f" without {' and '.join(without)}" if without else ""))
            code, records, running = self.records(part, without)
            for record in records:
                found.setdefault(bench.key(record), record)
            if code == 0:
                break
            what = "out of time" if code is None else f"the benchmark ended with {code}"
            self.failures.append(f"{part}: {what}" + (f" in {running}" if running else ""))
            culprit = running.split()[0] if running else None
            if code == 1 or culprit not in device.BACKENDS_OF["cuda"] or culprit in without:
                break
            without.append(culprit)
        return list(found.values())

    def records(self, part: str, without: Sequence[str]) -> tuple[int | None, list[dict[str, Any]], str]:
        """Exit code, the records, and what was running when the process ended, if it ended in the middle."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.jsonl"
            environment = {
                **self.environment,
                "BERTXFER_BENCH_RECORDS": str(path),
                "BERTXFER_BENCH_WITHOUT": " ".join(without),
            }
            words = [f"benchmarks/bench_{part}.py", "-q", "-s", "--tb=short", "--benchmark-quiet"]
            code = _stream(_pytest(words), environment, min(self.left(), _LONGEST_PART))
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        running = lines[-1].get("running", "") if lines else ""
        return code, [line for line in lines if "implementations" in line], running

    def machine(self) -> dict[str, Any]:
        """In a process of its own, which sees what was just built."""
        code = "import json; from benchmarks import machine; print(json.dumps(machine.facts()))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"make gpu: the GPU's facts cannot be read:\n{done.stderr}")
        return dict(json.loads(done.stdout.splitlines()[-1]))

    # ---- results ----------------------------------------------------------------------------------------

    def file(self, machine: Mapping[str, Any]) -> Path | None:
        usual = bench.results_file(ROOT, machine)
        if self.args.results is not None:
            return Path(self.args.results) / usual.name
        return None if self.args.dry_run else usual

    def keep(self, results: dict[str, Any]) -> dict[str, Any]:
        """Merges into the results file; returns all that it has."""
        path = self.file(results["machine"])
        if path is None:
            return results
        try:
            return bench.save(path, results)
        except InputError as error:  # a file that is no results is not written over
            self.failures.append(str(error))
            return results

    def plot(self, results: Mapping[str, Any]) -> None:
        folder = self.args.results / "plots" if self.args.results else ROOT / "docs" / "plots"
        if self.args.dry_run and not self.args.results:
            return
        try:
            bench.plot(results, folder, bench.GPU_PLOTS)
        except Exception as error:
            self.failures.append(f"plots: {type(error).__name__}: {error}")


def architecture() -> str:
    """The GPU's own, spelt as the build knows it: `90`, or `90a` if that is what is compiled for."""
    import build_kernels

    name = "".join(map(str, torch.cuda.get_device_capability()))
    known = build_kernels.ARCHITECTURES.split(";")
    return next((x for x in known if re.fullmatch(rf"{name}[a-z]?", x)), name)


def verdicts_of(junit: str, parts: Iterable[str]) -> dict[str, str]:
    """What a report of pytest says of each part. A test belongs to the parts that its file or name names, one that
    names none to all of them; a part of which no test ran has not passed."""
    ran: dict[str, int] = dict.fromkeys(parts, 0)
    failed: dict[str, list[str]] = {part: [] for part in ran}
    for case in ET.fromstring(junit).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        named = _parts_in(name)
        for part in ran:
            if "skipped" not in kinds and part in named:
                ran[part] += 1
            if kinds & {"failure", "error"} and (part in named or not named):
                failed[part].append(name)
    return {
        part: f"{len(failed[part])} failed, first {failed[part][0]}"
        if failed[part]
        else report.PASSED
        if ran[part]
        else "no test of it ran"
        for part in ran
    }


def _parts_in(name: str) -> set[str]:
    found = set()
    for part in sorted(PARTS, key=len, reverse=True):  # linear_logits_kl has logits_kl in it
        if part in name:
            found.add(part)
            name = name.replace(part, "")
    return found


def _verdict(entry: Mapping[str, Any], verdict: str) -> str:
    difference = entry.get("difference")
    if verdict == report.PASSED and difference is not None and not difference <= _DISAGREE:
        return f"our backends' results lie {difference:.2g} of their norm apart"
    return verdict


def _pytest(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]


def _stream(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> int | None:
    """Runs a command with its output on ours; its exit code, or None if it had to be stopped."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile for it

    timer = threading.Timer(max(seconds, 1.0), stop)
    timer.start()
    try:
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # interrupted
            os.killpg(process.pid, signal.SIGKILL)
    return None if stopped.is_set() else code


def _tell(line: str) -> None:
    print(f"\n== {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
