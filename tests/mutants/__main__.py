"""`make mutants`: plants each fault of `catalogue` in a copy of the checkout and runs the tests that it names.

    python -m tests.mutants                 all
    python -m tests.mutants best_loss ...   some, by name
    python -m tests.mutants --list          what there is

The exit code is 0 only if every fault was noticed. A fault in C++ is compiled into the copy first.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .catalogue import EQUIVALENT, MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("bertxfer_fast", "benchmarks", "csrc", "docs", "examples", "tests", "build_kernels.py", "setup.py")
COPIED += ("pyproject.toml", "README.md", "CONTRIBUTING.md", "MANIFEST.in", "Makefile", "LICENSE")
_LONGEST = 600  # seconds: a fault that hangs its test has been noticed, too
_PASSED, _FAILED = 0, 1  # exit codes of pytest; all others say that it could not run the tests


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="Faults that tests must notice."
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args(words)
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in args.names if name not in known]
    if unknown:
        parser.error(f"NAME: got {', '.join(unknown)}, want some of {', '.join(known)}")
    chosen = [known[name] for name in args.names] or list(MUTANTS)
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name:<40} {mutant.file}")
        return 0
    return report(*run(chosen, args.jobs), len(chosen))


def run(mutants: Sequence[Mutant], jobs: int) -> tuple[list[str], int]:
    """One line for every fault that was not noticed, and how many were."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    missed: list[str] = []
    noticed: list[str] = []

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            copy = copy_of_checkout(Path(folder))
            while True:
                try:
                    mutant = waiting.get_nowait()
                except queue.Empty:
                    return
                start = time.monotonic()
                verdict = verdict_on(mutant, copy)
                print(
                    f"{verdict or 'noticed':<12} {mutant.name} [{time.monotonic() - start:.0f} s]", flush=True
                )
                if verdict:
                    missed.append(f"{mutant.name}: {verdict} by {' '.join(mutant.tests)}")
                else:
                    noticed.append(mutant.name)

    threads = [threading.Thread(target=work) for _ in range(max(1, jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return missed, len(noticed)


def copy_of_checkout(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "results", "plots")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)
    return folder


def verdict_on(mutant: Mutant, copy: Path) -> str:
    """What went wrong, or nothing if the tests noticed the fault."""
    file = copy / mutant.file
    sound = file.read_text(encoding="utf-8")
    compiled = file.suffix in (".cpp", ".h")
    try:
        faulty = mutant.planted(sound)
    except ValueError as error:
        return f"NOT PLANTED ({error})"
    try:
        file.write_text(faulty, encoding="utf-8")
        if compiled and (trouble := build(copy)):
            return trouble
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_LONGEST
            )
        except subprocess.TimeoutExpired:
            return ""
        if done.returncode == _FAILED:
            return ""
        return "NOT NOTICED" if done.returncode == _PASSED else f"pytest ended with {done.returncode}"
    finally:
        file.write_text(sound, encoding="utf-8")
        if compiled:
            build(copy)


def build(copy: Path) -> str:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "BERTXFER_CUDA": "0", "BERTXFER_REQUIRE_EXT": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    return "it does not compile" if done.returncode else ""


def report(missed: Sequence[str], noticed: int, planted: int) -> int:
    print(f"\n{noticed} of {planted} faults noticed")
    for line in missed:
        print(line)
    if EQUIVALENT:
        print(f"{len(EQUIVALENT)} more change nothing that a user could see, with reasons in catalogue.py")
    return int(noticed != planted)  # also where a worker ended before its time


if __name__ == "__main__":
    sys.exit(main())
