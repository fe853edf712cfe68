"""The random cases of tests/ops/test_accuracy.py on a GPU, and larger problems against float64."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch.registry import OPS

from ..ops import test_accuracy, test_pool_features, test_varlen_attention
from ..ops.cases import DTYPES, RecordedCalls
from .calls import CALLS, outcome

#: Cases for each op: a Triton kernel is compiled anew for nearly each of them, one in C++ never.
CASES = {"triton": 4, "cuda": 120}


class ToGpu(torch.autograd.Function):
    """A CPU tensor on the GPU with the same strides: its whole storage moves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        return storage.cuda().as_strided(x.shape, x.stride(), x.storage_offset())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.cpu()


def to_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ToGpu.apply(value) if value.is_floating_point() else value.cuda()
    return [to_gpu(x) for x in value] if isinstance(value, list | tuple) else value


class OnGpu:
    """The public operators for CPU tensors, which they take to the GPU and whose results they bring back."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(ops, name)

        def run(*args: Any, **options: Any) -> Tensor:
            moved = {key: to_gpu(value) for key, value in options.items()}
            return function(*map(to_gpu, args), **moved).cpu()

        return run


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (test_accuracy, test_pool_features, test_varlen_attention):
        monkeypatch.setattr(module, "ops", OnGpu())


def operator_of(name: str) -> str:
    """The operator that a check runs."""
    if name.startswith("attention_map"):
        return "attention_map_loss"
    return "attention_score_mse" if name.startswith("attention_score_mse") else name


@pytest.fixture(params=list(test_accuracy.CHECKS))
def check(request: pytest.FixtureRequest, backend: str) -> str:
    """The name of a check whose operator the backend has: without one it would run eagerly, and pass."""
    operator = operator_of(request.param)
    if backend not in OPS[operator].backends:
        pytest.skip(f"{operator} has no {backend} implementation")
    return request.param


def test_is_as_accurate_as_plain_pytorch(on_gpu: None, backend: str, check: str) -> None:
    wrong = []
    for number in range(CASES[backend]):
        case = f"{check}:{number}"
        try:
            with RecordedCalls() as recorded:
                test_accuracy.CHECKS[check](Random(case), DTYPES[number % len(DTYPES)])
        except AssertionError as error:
            wrong.append(f"BERTXFER_CASE={case}: {str(error).splitlines()[0]}")
        assert {func._overloadname for func, *_ in recorded.calls} <= {backend}, f"{case} ran elsewhere"
    if wrong:
        pytest.fail("\n".join((f"{len(wrong)} of {CASES[backend]} cases:", *wrong[:20])), pytrace=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_blocks_against_float64(call: str, dtype: torch.dtype) -> None:
    """Through `eager`, in float64's place: its sums are float64, its products those of float32 inputs."""
    tensors = CALLS[call].inputs(dtype)
    reference = {
        name: x.detach().cpu().float().requires_grad_(x.requires_grad) for name, x in tensors.items()
    }
    with bertxfer_fast.use_backend("eager"):
        want = outcome(call, reference)
    # float16 has no room for the gradients of a mean over all pairs: a GradScaler would take them up to here.
    steepest = max(float(grad.abs().max()) for grad in want[1:])
    scale = 2.0 ** round(math.log2(1024 / steepest)) if dtype == torch.float16 else 1.0
    got = outcome(call, tensors, scale)
    # The products of hidden states and logits are rounded to the dtype before they are compared.
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    for ours, truth in zip(got, want, strict=True):
        error = (ours.cpu().double() - truth.double()).norm() / truth.double().norm().clamp_min(1e-30)
        assert error <= tolerance


def test_tf32_is_a_choice(backend: str) -> None:
    """Float32 products are exact to float32 by default; torch.set_float32_matmul_precision allows Triton's tf32."""
    name = "hidden_mse"
    errors = {}
    for precision in ("highest", "high"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            tensors = CALLS[name].inputs(torch.float32)
            loss = outcome(name, tensors)[0].item()
        finally:
            torch.set_float32_matmul_precision(before)
        wide = {key: x.detach().double() for key, x in tensors.items()}
        residual = wide["student"] @ wide["weight"].T + wide["bias"] - wide["teacher"]
        errors[precision] = abs(loss / residual.square().mean().item() - 1)
    assert errors["highest"] < 1e-6
    assert errors["high"] < 1e-3
