"""The op tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

A read one element too far, a misaligned pointer or a signed overflow ends the run with a stack trace. Everything is
built under build/sanitize, so that the extension in use stays as it is. Python itself frees little at exit, hence no
leak detection. Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined"
#: Every kernel at random shapes and strides, at empty ones, and on many threads; not what only traces Python.
TESTS = " or ".join(
    (
        "cpp and (as_accurate or digits or empty or no_token or no_valid or nothing or written or threads)",
        "head_groups",
    )
)


def library(name: str) -> str:
    """The compiler's copy of a runtime library; the sanitizers' have to be in the process from its start."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = found.stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"{compiler} has no {name}: install its sanitizer libraries")
    return path


def build() -> None:
    command = [sys.executable, "setup.py", "-q", "build", "--build-temp", str(BUILD / "objects")]
    environment = {
        **os.environ,
        "BERTXFER_CXXFLAGS": FLAGS,
        "BERTXFER_REQUIRE_EXT": "1",
        "BERTXFER_CUDA": "0",
    }
    print("building", flush=True)
    done = subprocess.run(
        [*command, "--build-lib", str(BUILD / "package")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"the build failed:\n{done.stdout}")


def environment() -> dict[str, str]:
    # libstdc++ too: AddressSanitizer looks for its exceptions when the process starts, and Python has none.
    preloaded = [library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(BUILD / "package"),
        "HYPOTHESIS_PROFILE": "brief",
        "BERTXFER_CASES": "0",
        "BERTXFER_REQUIRE_COMPILED": "1",
    }


def info(asked: str = "") -> tuple[list[str], str]:
    """The instruction sets compiled in, and the one that is used when `asked` is the highest allowed."""
    code = (
        "import bertxfer_fast; i = bertxfer_fast.build_info(); print(bertxfer_fast.__file__); "
        "print(i.get('instruction_sets'), i.get('instruction_set'), i['reason'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "BERTXFER_ISA": asked},
        cwd=BUILD,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    file, answer = shown.splitlines()
    if BUILD not in Path(file).parents or not answer.endswith("None"):
        raise SystemExit(f"not the sanitized build: {shown}")
    compiled, used, _ = answer.split()
    return compiled.split(","), used


def run(isa: str, arguments: list[str]) -> None:
    # Imported as a plugin the sanitized package comes before the one beside the tests.
    command = [
        sysconfig.get_path("scripts") + "/pytest",
        *["-q", "-p", "bertxfer_fast", "-p", "no:cacheprovider"],
    ]
    command.append("--capture=sys")  # what a sanitizer writes before it ends the process is to be seen
    selection = arguments or ["-k", TESTS, "tests/ops"]
    print(f"{isa}: {' '.join(selection)}", flush=True)
    subprocess.run([*command, *selection], cwd=ROOT, env={**environment(), "BERTXFER_ISA": isa}, check=True)


def main() -> None:
    build()
    compiled, _ = info()
    for isa in compiled:
        if info(isa)[1] == isa:
            run(isa, sys.argv[1:])
        else:
            print(f"{isa}: this processor does not run it")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"failed: {error} {error.stderr or ''}") from None
