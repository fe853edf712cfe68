"""`make gpu`: what a few minutes on this machine's NVIDIA GPU can tell, the most valuable first.

    python3 -m benchmarks.gpu                    all parts
    python3 -m benchmarks.gpu attention_map      one of them; its numbers replace those in the results file
    python3 -m benchmarks.gpu --plan             what would be done when; needs no GPU
    python3 -m benchmarks.gpu sweep              configurations of the hot kernels (`make gpu-sweep`)
    python3 -m benchmarks.gpu profile            what ncu says of four kernels
    python3 -m benchmarks.gpu --collect FILE     results of a run that was cut off
    python3 -m benchmarks.gpu --dry-run          the same way with tiny tensors on the CPU; means nothing

Every fact is on the disk when the next is looked for: a run that is cut off anywhere keeps all it had. The exit code is
0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bertxfer_fast.errors import InputError, did_you_mean

from ..docs import GPU_PLOTS
from ..gpu_report import gpu_line, summary
from ..report import plot
from ..results import Results, results_file
from .collect import failed_tests, results_of
from .facts import Facts, read_facts
from .plan import Plan, whole_plan
from .problems import PARTS
from .schedule import Schedule, show_plan
from .worker import CompilePool, WorkerRunner

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = "make gpu: torch sees no NVIDIA GPU here; there is nothing to measure"
MINUTES = 7.0
_LAST = 5.0  # seconds kept for writing results down
_SPECIAL = ("sweep", "profile")


def main(words: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(words)
    try:
        if args.collect is not None:
            return _finish(args.collect, args)
        plan = _plan(args)
        if args.plan:
            print(show_plan(plan.steps, plan.targets()))
            return 0
        return _run(plan, args)
    except InputError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu", allow_abbrev=False)
    shown = f"of {', '.join(PARTS)}, or one of {', '.join(_SPECIAL)}; by default all but these"
    parser.add_argument("parts", nargs="*", metavar="PART", help=shown)
    parser.add_argument("--plan", action="store_true", help="print the steps and run none")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, help="directory for facts, results and plots, not the checkout's"
    )
    parser.add_argument("--no-build", action="store_true", help="measure what is built already")
    parser.add_argument("--no-tests", action="store_true", help="leave tests/gpu out; checks stay")
    parser.add_argument("--peers", type=Path, help="directory with other people's packages, put on sys.path")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="make results of a run's facts")
    parser.add_argument("--dry-run", action="store_true", help="tiny tensors on the CPU; means nothing")
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    for part in args.parts:
        if part not in (*PARTS, *_SPECIAL):
            raise InputError(f"no part {part!r}{did_you_mean(part, (*PARTS, *_SPECIAL))}")
    special = [part for part in args.parts if part in _SPECIAL]
    if special and len(args.parts) > 1:
        raise InputError(f"{special[0]}: wants to be the only part")
    if special == ["profile"]:
        from .profile import profile_plan

        return profile_plan()
    if special == ["sweep"]:
        from .sweep import sweep_plan
        from .variants import built

        return sweep_plan(built())
    return whole_plan(args.parts or PARTS, tests=not args.no_tests, dry=args.dry_run)


def _run(plan: Plan, args: argparse.Namespace) -> int:
    begin = time.monotonic()
    if not args.dry_run and not _gpu_there():
        print(NO_GPU, file=sys.stderr)
        return 2
    folder = args.results or ROOT / "build" / "gpu"
    path = folder / f"facts-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    facts = Facts(path)
    print(f"facts in {path}", flush=True)
    environment = _environment(args, path)
    if not (args.no_build or args.dry_run):
        facts.add({"kind": "build", "failed": _build(environment, 60 * args.minutes)})
    runner = WorkerRunner(environment)
    pool = CompilePool(plan.background, max((os.cpu_count() or 2) - 2, 1), _compiling(environment))
    limit = 60 * args.minutes - (time.monotonic() - begin) - _LAST
    schedule = Schedule(
        plan.steps,
        limit,
        facts=facts,
        runner=runner,
        background=pool,
        show=lambda line: print(line, flush=True),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a run that is ended says what it found
    ended = True
    try:
        schedule.run()
    except KeyboardInterrupt:
        ended = False
        print("interrupted; what was found is kept", flush=True)
    finally:
        runner.close()
        pool.close()
    code = _finish(path, args)
    return code if ended else 130


def _finish(path: Path, args: argparse.Namespace) -> int:
    """Results and plots of a file of facts, and what a terminal shows last."""
    facts = read_facts(path)
    results = results_of(facts, quick=args.dry_run)
    if results is None:
        raise InputError(f"{path.name}: says nothing of a device")
    print(f"\n{gpu_line(results.machine)}")
    for fact in facts:
        if fact["kind"] == "ceiling":
            print(", ".join(f"{k} {v:,.0f}" if isinstance(v, float) else str(v) for k, v in _shown(fact)))
    for fact in facts:
        if fact["kind"] == "sweep":
            what = f"{fact['module']}.{fact['table']} {fact['bounds']} {fact['meta']}"
            print(f"{fact['ms'] * 1e3:8.1f} us  {what}{'  (stands in the table)' * fact['standing']}")
    print(f"\n{summary(results)}\n")
    failures = [f"build: {x['failed']}" for x in facts if x["kind"] == "build" and x["failed"]]
    failures += [f"{x['step']}: {x['failed']}" for x in facts if x["kind"] == "step" and x["failed"]]
    failures += [f"test {name}" for name in failed_tests(facts)]
    for failure in failures:
        print(f"FAILED {failure}")
    late = [x["step"] for x in facts if x["kind"] == "skipped" and not x["failed"]]
    if late:
        print(f"no time for {len(late)} steps: {', '.join(late)}")
    if results.entries:
        _keep(results, args)
    return int(bool(failures))


def _shown(fact: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(key, value) for key, value in fact.items() if key in ("name", "gb_per_s", "tflops")]


def _keep(results: Results, args: argparse.Namespace) -> None:
    usual = results_file(ROOT, results.machine)
    path = args.results / usual.name if args.results is not None else None if args.dry_run else usual
    if path is None:
        return
    kept = results.save(path)
    print(f"results in {path}", flush=True)
    plot(kept, args.results / "plots" if args.results is not None else ROOT / "docs" / "plots", GPU_PLOTS)


def _gpu_there() -> bool:
    import torch

    return torch.cuda.is_available()


def _environment(args: argparse.Namespace, facts: Path) -> dict[str, str]:
    caches = ROOT / "build" / "gpu"
    chosen = {
        "BERTXFER_BENCH_DEVICE": "cuda",
        "BERTXFER_BENCH_VERDICTS": str(facts.resolve()),
        "BERTXFER_BENCH_LOG": str(facts.resolve().with_suffix(".log")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # What the background compiles, the worker and the tests find.
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # of each process: there are as many as cores
    }
    if args.peers is not None:
        chosen["BERTXFER_BENCH_PEERS"] = str(args.peers.resolve())
    if args.dry_run:
        chosen |= dict.fromkeys(
            ("BERTXFER_BENCH_DRY", "BERTXFER_BENCH_QUICK", "BERTXFER_BENCH_SKIP_COMPILE", "TRITON_INTERPRET"),
            "1",
        )
    return {**os.environ, **chosen}


def _compiling(environment: Mapping[str, str]) -> dict[str, str]:
    """One thread each: there are as many processes as cores."""
    return {**environment, "OMP_NUM_THREADS": "1"}


def _build(environment: Mapping[str, str], seconds: float) -> str | None:
    """Both extensions, for this GPU; why that failed, or None. Ninja uses every core."""
    names = {**environment, "BERTXFER_CUDA_ARCHS": architecture()}
    try:
        done = subprocess.run([sys.executable, "build_kernels.py"], cwd=ROOT, env=names, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "out of time"
    return f"build_kernels.py ended with {done.returncode}" if done.returncode else None


def architecture() -> str:
    """The GPU's own, spelt as the build knows it: `90`, or `90a` if that is what is compiled for."""
    import torch

    import build_kernels

    name = "".join(map(str, torch.cuda.get_device_capability()))
    known = build_kernels.ARCHITECTURES.split(";")
    return next((x for x in known if re.fullmatch(rf"{name}[a-z]?", x)), name)


if __name__ == "__main__":
    sys.exit(main())
