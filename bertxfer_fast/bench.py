"""`bertxfer bench`: tests an op, times it against what it replaces, and keeps the numbers.

Runs in a source checkout, where `benchmarks/` and `tests/` stand beside the package. Tests and benchmarks run in
processes of their own, one op after the other, and no number is printed of an op whose tests fail.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import bench_gpu_report as gpu_report
from .bench_report import machine_line, markdown, plot, readme_markdown, replace_block, tables
from .errors import InputError, did_you_mean

__all__ = ["checkout", "markdown", "merge", "names", "run", "write_docs"]

#: How the names of a GPU's plots begin.
GPU_PLOTS = "gpu-"

#: Tests of what is no single op: paths below `tests/`. An op's own are `ops/test_<op>.py`.
_TESTS: dict[str, tuple[str, ...]] = {
    "step": ("test_distiller.py",),
    "extract": ("test_features.py",),
    "overhead": (
        "ops/test_hidden_mse.py",
        "ops/test_hidden_cosine.py",
        "ops/test_logits_kl.py",
        "ops/test_attention_score_mse.py",
        "ops/test_attention_map.py",
        "ops/test_relation_kl.py",
    ),
}


def checkout() -> Path:
    """The source checkout that this package stands in.

    Raises:
        InputError: there is none.
    """
    root = Path(__file__).resolve().parent.parent
    if not ((root / "benchmarks").is_dir() and (root / "tests" / "ops").is_dir()):
        raise InputError(
            "bench: run it from a source checkout, with benchmarks/ and tests/ beside the package"
        )
    return root


def names(root: Path) -> list[str]:
    """The benchmarks there are: `attention_map` for `benchmarks/bench_attention_map.py`."""
    return sorted(path.stem.removeprefix("bench_") for path in (root / "benchmarks").glob("bench_*.py"))


def run(
    wanted: Sequence[str] = (),
    *,
    quick: bool = False,
    threads: int | None = None,
    output: Path | None = None,
    plots: bool = True,
    skip_compile: bool = False,
    root: Path | None = None,
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
        InputError: an unknown name, a bad number of threads, no checkout, an `output` that cannot be read or written.
    """
    root = checkout() if root is None else root
    chosen = _chosen(wanted, names(root))
    threads = _available_cores() if threads is None else threads
    if threads < 1:
        raise InputError(f"--threads: wants 1 or more, got {threads}")
    if output is not None and not output.resolve().parent.is_dir():
        raise InputError(f"--output: no such directory: {output.parent}")
    if output is not None and output.exists():
        read(output)  # what cannot be merged is an error now, not after an hour
    environment = _environment(root, threads, quick=quick, skip_compile=skip_compile)
    failed = False
    entries: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    for name in chosen:
        try:
            _tell(f"{name}: testing")
            _test(name, root, environment)
            _tell(f"{name}: measuring")
            machine, found = _measure(name, root, environment)
        except _FailedError as error:
            failed = True
            print(f"bertxfer: {error}", file=sys.stderr, flush=True)
            continue
        entries += found
        print(f"\n{tables({'entries': found}, style='text')}\n", flush=True)
        results = {"machine": machine, "quick": quick, "entries": found}
        path = output or (None if quick else results_file(root, machine))
        if path is not None:
            results = save(path, results)  # after each op: an interrupted run keeps what it has
        if (
            plots and not quick and not machine["allocator"]
        ):  # figures show what PyTorch does unless told otherwise
            plot(results, root / "docs" / "plots")
    if entries:
        print(machine_line(machine))
        if not quick or output is not None:
            print(f"results in {output or results_file(root, machine).relative_to(root)}")
    return int(failed)


def merge(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` results with the entries of `new` in place of those of the same op, case, shape and dtype.

    Numbers made on another machine, by other versions or with tiny shapes do not stand beside new ones: `old` goes.
    """
    kept = old["entries"] if old is not None and _same_conditions(old, new) else ()
    entries = {key(entry): entry for entry in kept}
    entries.update((key(entry), entry) for entry in new["entries"])
    return {**new, "entries": [entries[name] for name in sorted(entries, key=str)]}


def write_docs(output: Path | None = None, *, root: Path | None = None) -> None:
    """Rewrite the marked blocks of `docs/performance.md` and `README.md` from results on disk; measures nothing.

    Args:
        output: the results file, of a CPU or of a GPU, whose blocks alone are rewritten; by default all in
            `benchmarks/results/`, of which the README shows the CPU with the most threads and the GPU with the most
            records. A GPU's blocks say that nothing was measured where there are no results of any.
        root: the checkout.

    Raises:
        InputError: no results, results of a quick run, or a page without its markers.
    """
    root = checkout() if root is None else root
    files = [output] if output is not None else sorted((root / "benchmarks" / "results").glob("*.json"))
    if not files:
        raise InputError("bench: no results in benchmarks/results/; measure first")
    loaded = [read(path) for path in files]
    for path, results in zip(files, loaded, strict=True):
        if results["quick"]:
            raise InputError(f"{path.name}: numbers of a quick run mean nothing; measure without --quick")
    page, readme = root / "docs" / "performance.md", root / "README.md"
    links = sorted(f"plots/{path.name}" for path in (root / "docs" / "plots").glob("*.svg"))
    of_gpu = [link for link in links if link.startswith(f"plots/{GPU_PLOTS}")]
    links = [link for link in links if link not in of_gpu]
    gpus = [results for results in loaded if gpu_report.is_gpu(results)]
    cpus = sorted(
        (results for results in loaded if not gpu_report.is_gpu(results)), key=_prominence, reverse=True
    )
    # Plots are drawn of one run; they stand under the first section.
    if cpus:
        sections = [markdown(results, links if not i else ()) for i, results in enumerate(cpus)]
        replace_block(page, "\n\n".join(sections))
        replace_block(readme, readme_markdown(cpus[0]))
    if gpus or output is None:
        found: list[Any] = sorted(gpus, key=lambda results: -len(results["entries"])) or [None]
        sections = [
            gpu_report.markdown(results, of_gpu if results and not i else ())
            for i, results in enumerate(found)
        ]
        replace_block(page, "\n\n".join(sections), gpu_report.MARKS)
        replace_block(readme, gpu_report.readme_markdown(found[0]), gpu_report.MARKS)


def _prominence(results: Mapping[str, Any]) -> tuple[int, bool]:
    return results["machine"]["threads"], not results["machine"]["allocator"]


# ---- running ------------------------------------------------------------------------------------------------


class _FailedError(Exception):
    """Tests or a benchmark of one op failed; the message is one line."""


def _test(name: str, root: Path, environment: Mapping[str, str]) -> None:
    paths = [f"tests/{path}" for path in _TESTS.get(name, (f"ops/test_{name}.py",))]
    done = _pytest([*paths, "-q", "-x", "-rfE", "-m", "not slow and not gpu"], root, environment)
    if done.returncode:
        raise _FailedError(f"{name}: no numbers, its tests fail: {_reason(done.stdout)}")


def _measure(
    name: str, root: Path, environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The machine's facts and the records of one benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        words = [
            f"benchmarks/bench_{name}.py",
            "-q",
            "-rfE",
            "--benchmark-quiet",
            "--benchmark-json",
            str(path),
        ]
        done = _pytest(words, root, environment)
        if done.returncode:
            raise _FailedError(f"{name}: no numbers, its benchmark fails: {_reason(done.stdout)}")
        written = json.loads(path.read_text(encoding="utf-8"))
    return written["machine_info"], [benchmark["extra_info"] for benchmark in written["benchmarks"]]


def _pytest(
    words: Sequence[str], root: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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


# ---- results ------------------------------------------------------------------------------------------------


def results_file(root: Path, machine: Mapping[str, Any]) -> Path:
    """Where results of this machine are kept: named after the GPU, or the processor and its threads."""
    words = re.sub(r"\(r\)|\(tm\)|@.*", " ", str(machine.get("gpu") or machine["processor"]).lower())
    slug = "-".join(re.findall(r"[a-z0-9]+", words)) or "cpu"
    if "gpu" in machine:
        return root / "benchmarks" / "results" / f"{slug}.json"
    allocator = "-malloc" if machine["allocator"] else ""  # other numbers, beside those of the default
    return root / "benchmarks" / "results" / f"{slug}-{machine['threads']}threads{allocator}.json"


def save(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """Merge into the file; returns all that it has now."""
    old = read(path) if path.exists() else None
    results = merge(old, new)
    if old is not None and not _same_conditions(old, new):
        _tell(f"{path.name}: its older numbers were made under other conditions and are dropped")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def read(path: Path) -> dict[str, Any]:
    """A file of results.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name}: cannot be read as results: {error}") from None
    if not isinstance(results, dict) or not {"machine", "quick", "entries"} <= results.keys():
        raise InputError(f"{path.name}: is no file of results")
    return results


def _same_conditions(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return all(old[key] == new[key] for key in ("machine", "quick"))


def key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two records ones of the same thing."""
    return entry["op"], entry["case"], entry["shape"], entry["dtype"]
