"""Every Triton kernel compiles for every target without a GPU, and spills nothing: see resources.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton")

from .resources import DOCUMENT, TARGETS, TOOL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["quick", pytest.param("all", marks=pytest.mark.slow)])
def usages(request: pytest.FixtureRequest) -> list[dict[str, object]]:
    """What `python -m tests.ops.resources --json` finds, in a process whose kernels are compiled, not interpreted."""
    if not TOOL.exists():
        pytest.skip("this Triton brings no cuobjdump")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.ops.resources",
            "--json",
            *(["--quick"] if request.param == "quick" else []),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


def test_nothing_spills(usages: list[dict[str, object]]) -> None:
    spilling = [
        f"{u['kernel']} {u['sizes']} {u['dtype']} sm_{u['target']}: {u['spilled']}"
        for u in usages
        if u["spilled"]
    ]
    assert not spilling, "\n".join(spilling)


def test_every_kernel_is_compiled_for_every_target(usages: list[dict[str, object]]) -> None:
    from bertxfer_fast.ops._dispatch import library as _library

    assert {u["operator"] for u in usages} == set(_library.TRITON)
    for operator in _library.TRITON:
        assert {u["target"] for u in usages if u["operator"] == operator} == set(TARGETS)


def test_shared_memory_fits_the_smallest_target(usages: list[dict[str, object]]) -> None:
    """163 KB on sm_80, 227 on the others."""
    for u in usages:
        assert u["shared"] <= (163 if u["target"] == 80 else 227) * 1024, u


def test_the_document_names_every_kernel(usages: list[dict[str, object]]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for u in usages:
        assert f"| {u['operator']} | {u['kernel']} | {u['sizes']} | {u['dtype']} |" in text, (
            "write it again: see resources.py"
        )
