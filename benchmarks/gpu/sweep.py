"""`make gpu-sweep`: a short list of configurations for each hot kernel, each checked before it is timed.

The lists are what docs/kernel_resources.md leaves open: at the registers and the shared memory that a kernel takes on
sm_90, those that may raise the number of warps at work, or the bytes under way, without spilling. The configuration
that stands in the table comes first, measured again so that both numbers are of one run.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .plan import JOBS, Plan
from .problems import HALF, Spec
from .schedule import Step

Meta = dict[str, int]


@dataclass(frozen=True)
class Sweep:
    """Configurations of one row of one kernel's table; ``changes`` are to the row that stands."""

    problem: str  # a spec's label
    module: str  # below bertxfer_fast.ops
    table: str
    sizes: tuple[int, ...]  # as the launcher asks its table on an H100
    changes: tuple[Meta, ...] = field(default=())


SWEEPS: tuple[Sweep, ...] = (
    Sweep(
        "score 64x512x12x32x64",
        "attention_score_mse.triton",
        "GRAM_TABLE",
        (90, 2, 64),
        ({"num_warps": 4}, {"BLOCK_L": 128}, {"BLOCK_L": 32, "num_stages": 3}, {"num_stages": 3}),
    ),
    Sweep(
        "score 64x512x12x32x64",
        "attention_score_mse.triton",
        "GRAD_TABLE",
        (90, 2, 64),
        (
            {"BLOCK_L": 64, "num_warps": 4},
            {"BLOCK_L": 128, "num_warps": 4},
            {"BLOCK_L": 128, "num_warps": 8},
            {"BLOCK_L": 64, "num_warps": 4, "num_stages": 2},
        ),
    ),
    Sweep(
        "map kl 64x512x12x32x64",
        "attention_map.triton",
        "TABLE",
        (90, 2, 64),
        (
            {"num_stages": 3},
            {"BLOCK_N": 32},
            {"BLOCK_N": 32, "num_stages": 3},
            {"BLOCK_M": 128, "num_warps": 8},
            {"maxnreg": 168},
        ),
    ),
    Sweep(
        "hidden_mse 32768x312->768",
        "hidden_mse.triton",
        "TABLE",
        (2, 1536),
        (
            {"maxnreg": 128},
            {"maxnreg": 168},
            {"num_stages": 4},
            {"BLOCK_N": 256},
            {"BLOCK_M": 64, "num_warps": 4},
        ),
    ),
    Sweep(
        "varlen_attention 64x512x12x32x64",
        "varlen_attention.triton",
        "FORWARD",
        (90, 2, 64, 0),
        ({"num_warps": 4}, {"num_stages": 2}, {"BLOCK_N": 128}, {"BLOCK_M": 64, "num_warps": 4}),
    ),
    Sweep(
        "varlen_attention 64x512x12x32x64",
        "varlen_attention.triton",
        "BACKWARD",
        (90, 2, 64, 0),
        ({"num_warps": 8}, {"num_stages": 3}, {"BLOCK_M": 128, "num_warps": 8}, {"BLOCK_N": 32}),
    ),
)

#: Builds of the kernels in C++ that differ in a flag of nvcc; `python -m benchmarks.gpu.variants` makes them.
VARIANTS: dict[str, str] = {"registers-128": "-maxrregcount=128", "registers-168": "-maxrregcount=168"}
_VARIED = ("score 64x512x12x32x64", "map kl 64x512x12x32x64", "hidden_mse 32768x312->768")


def standing_row(sweep: Sweep) -> tuple[tuple[int, ...], Meta]:
    """The row of the table that the launcher would take."""
    table = getattr(importlib.import_module(f"bertxfer_fast.ops.{sweep.module}"), sweep.table)
    for bounds, meta in table:
        if all(size <= bound for size, bound in zip(sweep.sizes, bounds, strict=True)):
            return bounds, meta
    raise KeyError(f"sizes: got {sweep.sizes}, want some that {sweep.module}.{sweep.table} holds")


def sweep_plan(variants: dict[str, str]) -> Plan:
    """All configurations, then the builds in ``variants``: name -> path of the library."""
    plan = Plan([Step("device", 12.0, {"do": f"{JOBS}:device_facts"})])
    for number, sweep in enumerate(SWEEPS):
        for step, row in _steps(sweep, number):
            plan.background.append(
                (
                    f"compile {step.name}",
                    {"do": f"{JOBS}:compile_triton", "spec": step.job["spec"], "row": row},
                )
            )
            plan.steps.append(step)
    for name, path in variants.items():
        for spec in HALF:
            if spec.label in _VARIED:
                plan.steps += _variant(spec, name, path)
    return plan


def _steps(sweep: Sweep, number: int) -> Iterator[tuple[Step, dict[str, Any]]]:
    spec = next(spec for spec in HALF if spec.label == sweep.problem)
    bounds, standing = standing_row(sweep)
    changed = ({**standing, **change} for change in sweep.changes)
    for meta in (standing, *(meta for meta in changed if meta != standing)):
        row = {
            "module": f"bertxfer_fast.ops.{sweep.module}",
            "table": sweep.table,
            "bounds": list(bounds),
            "meta": dict(meta),
        }
        shown = " ".join(f"{key}={value}" for key, value in meta.items())
        name = f"sweep {number} {sweep.module} {sweep.table} {shown}"
        job = {"do": f"{JOBS}:sweep", "spec": spec.job(), "row": row, "standing": meta == standing}
        yield Step(name, spec.seconds + 1.4, job, spec.part, waits=(f"compile {name}",)), row


def _variant(spec: Spec, name: str, path: str) -> Iterator[Step]:
    environment = {"BERTXFER_BENCH_CUDA": path}
    check = f"check {name} {spec.name}"
    about = {"spec": spec.job(), "environment": environment}
    yield Step(check, spec.seconds + 4.0, {"do": f"{JOBS}:check", "backend": "cuda", **about}, spec.part)
    job = {"do": f"{JOBS}:measure", "names": ["cuda"], **about}
    yield Step(f"time {name} {spec.name}", 1.0, job, spec.part, needs=(check,))
