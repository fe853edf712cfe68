"""Every Triton kernel compiles for every target without a GPU, and spills nothing: see resources.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="no Triton")

from bertxfer_fast.ops._dispatch.registry import OPS

from .resources import DOCUMENT, TARGETS, TOOL

ROOT = Path(__file__).parents[2]
TRITON = {name for name, info in OPS.items() if info.triton}
Facts = list[dict[str, Any]]


def resources(*options: str) -> Facts:
    """What `python -m tests.ops.resources` finds, in a process whose kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    shown = subprocess.run(
        [sys.executable, "-m", "tests.ops.resources", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


@pytest.fixture(scope="module", params=["sample", pytest.param("all", marks=pytest.mark.slow)])
def usages(request: pytest.FixtureRequest) -> Facts:
    if not TOOL.exists():
        pytest.skip("this Triton brings no cuobjdump")
    return resources("--json", *(["--sample"] if request.param == "sample" else []))


@pytest.fixture(scope="module")
def names() -> Facts:
    """Of every kernel that the table names; nothing is compiled."""
    return resources("--list")


def test_nothing_spills(usages: Facts) -> None:
    spilling = [
        f"{u['kernel']} {u['sizes']} {u['dtype']} sm_{u['target']}: {u['spilled']}"
        for u in usages
        if u["spilled"]
    ]
    assert not spilling, "\n".join(spilling)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["attention_score_mse", "varlen_attention_backward"])
def test_float16_that_is_kept_in_range_spills_nothing(operator: str) -> None:
    """Their kernels are not bfloat16's with another type: see _triton/ranges.py."""
    if not TOOL.exists():
        pytest.skip("this Triton brings no cuobjdump")
    test_nothing_spills(resources("--json", "--dtype", "float16", "--only", operator))


def test_every_operator_is_in_the_table_for_every_target(names: Facts) -> None:
    assert {u["operator"] for u in names} == TRITON
    for operator in TRITON:
        assert {u["target"] for u in names if u["operator"] == operator} == set(TARGETS)


def test_every_kernel_is_compiled(usages: Facts, names: Facts) -> None:
    assert {u["kernel"] for u in usages} == {u["kernel"] for u in names}


def test_shared_memory_fits_the_smallest_target(usages: Facts) -> None:
    """163 KB on sm_80, 227 on the others."""
    for u in usages:
        assert u["shared"] <= (163 if u["target"] == 80 else 227) * 1024, u


def test_the_document_names_every_kernel(names: Facts) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for u in names:
        assert f"| {u['operator']} | {u['kernel']} | {u['sizes']} | {u['dtype']} |" in text, (
            "write it again: see resources.py"
        )
