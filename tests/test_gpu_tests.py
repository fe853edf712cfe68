"""The tests of tests/gpu where there is no GPU: that they run what they name, and would see what they are for."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import bertxfer_fast
from bertxfer_fast.ops._dispatch.registry import OPS

from .gpu import conftest, test_accuracy, test_contract, test_sanitizer
from .gpu.calls import CALLS
from .ops.interpreter import mend_bfloat16, reason_to_skip

ROOT = Path(__file__).parents[1]


def checks_of(backend: str) -> list[str]:
    """The checks of test_accuracy that the fixture hands out for a backend."""
    found = []
    for name in test_accuracy.test_accuracy.CHECKS:
        try:
            found.append(test_accuracy.check.__wrapped__(SimpleNamespace(param=name), backend))
        except pytest.skip.Exception:
            assert backend not in OPS[test_accuracy.operator_of(name)].backends
    return found


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_only_what_a_backend_has_is_tested_on_it(backend: str) -> None:
    """Forcing a backend on an operator without it runs eager code, which passes."""
    found = checks_of(backend)
    assert found and all(backend in OPS[test_accuracy.operator_of(x)].backends for x in found)
    assert "hidden_mse" in found and set(conftest.BACKENDS) == {"triton", "cuda"}


def test_they_and_the_benchmarks_of_a_gpu_need_no_data_sets() -> None:
    """A machine with a GPU may have torch, Triton, transformers and pytest, and not what reads data."""
    script = (
        "import sys; sys.modules['datasets'] = None; import pytest, tests.gpu_problems as problems; "
        "problems.import_all(); sys.exit(pytest.main(sys.argv[1:]))"
    )
    arguments = ["-m", "gpu", "tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "test_steps" in done.stdout, done.stdout[-2000:] + done.stderr


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests would move to a GPU stays here."""
    monkeypatch.setattr(test_accuracy, "to_gpu", lambda value: value)
    monkeypatch.setattr(test_accuracy.test_accuracy, "ops", test_accuracy.OnGpu())
    monkeypatch.setattr(test_accuracy, "CASES", {"triton": 2})


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_checks_run_on_the_backend_that_they_name(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason_to_skip():
        pytest.skip(str(reason_to_skip()))
    mend_bfloat16(monkeypatch)
    with bertxfer_fast.use_backend("triton"):
        test_accuracy.test_is_as_accurate_as_plain_pytorch(None, "triton", "hidden_mse")
    with bertxfer_fast.use_backend("eager"), pytest.raises(AssertionError, match="ran elsewhere"):
        test_accuracy.test_is_as_accurate_as_plain_pytorch(None, "triton", "hidden_mse")


def made_up(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Tensor]) -> None:
    """A call "made up" among those of the contract, on the CPU."""

    def inputs(dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
        return {"x": torch.linspace(1, 2, 5, dtype=dtype).requires_grad_()}

    monkeypatch.setitem(CALLS, "made up", SimpleNamespace(student={"x": (5,)}, inputs=inputs, run=run))  # type: ignore[arg-type]


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (1e-7, True), (1e-3, False)])
def test_another_compilation_may_round_otherwise(
    off: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(x: Tensor) -> Tensor:
        return x.square().sum() * (1 + (0 if torch.is_grad_enabled() else off))

    made_up(monkeypatch, run)
    if passes:
        test_contract.test_without_gradients_the_loss_is_the_same("made up")
    else:
        with pytest.raises(AssertionError, match="off by"):
            test_contract.test_without_gradients_the_loss_is_the_same("made up")


@pytest.mark.parametrize(
    "test", ["test_same_inputs_same_bits", "test_without_gradients_the_loss_is_the_same"]
)
def test_the_same_compilation_may_not(test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def run(x: Tensor) -> Tensor:
        calls.append(0)
        return x.square().sum() * (1 + 2e-7 * (len(calls) % 2))

    made_up(monkeypatch, run)
    arguments: tuple[Any, ...] = (
        ("made up", torch.float32) if test == "test_same_inputs_same_bits" else ("made up",)
    )
    with pytest.raises(AssertionError):
        getattr(test_contract, test)(*arguments)


def test_what_the_sanitizer_runs_can_be_imported() -> None:
    for node in ast.walk(ast.parse(test_sanitizer.RUN)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
