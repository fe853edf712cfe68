"""The Triton kernels, run on CPU tensors in Triton's interpreter: no GPU is needed.

Accuracy is that of test_accuracy.py, on the same random cases: small, odd shapes, every layout, students next to their
teachers. ``BERTXFER_CASE=hidden_mse:7`` runs one of them. What the interpreter cannot tell, that kernels compile and
what they take, is test_triton_compiles.py's business, and what only a GPU can, tests/gpu's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import library as _library
from bertxfer_fast.ops._dispatch.registry import OPS

from .cases import DTYPES, Pack, RecordedCalls, attention_pair
from .float16_range import HUGE_SCORES, PROBLEMS, assert_results_are_as_the_fake_says, check
from .interpreter import mend_bfloat16, reason_to_skip
from .reference import relative_error
from .test_accuracy import CHECKS, ONE_CASE

#: Cases for each op.
FEW = 9


# NaN is part of the tests, and numpy tells.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Iterator[None]:
    """Every operator runs on the backend "triton", interpreted."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        mend_bfloat16(patch)
        with bertxfer_fast.use_backend("triton"):
            yield


def cases() -> Iterator[tuple[str, int]]:
    if ONE_CASE:
        name, _, number = ONE_CASE.partition(":")
        yield name, int(number)
        return
    for name in CHECKS:
        yield from ((name, number) for number in range(FEW))


@pytest.mark.parametrize(("name", "number"), list(cases()))
def test_is_as_accurate_as_plain_pytorch(name: str, number: int) -> None:
    with RecordedCalls() as recorded:
        CHECKS[name](Random(f"{name}:{number}"), DTYPES[number % len(DTYPES)])
    used = {call[0]._overloadname for call in recorded.calls}
    assert used == {"triton"}


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != HUGE_SCORES])
def test_a_float16_gradient_that_fits_comes_out(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", OPS)
def test_float16_results_are_as_the_fake_says(name: str) -> None:
    assert_results_are_as_the_fake_says(name, "triton")


def outcome(
    pack: Pack, function: str, dims: tuple[int, int], dtype: torch.dtype, **options: object
) -> list[Tensor]:
    tensors = attention_pair(dtype, pack, student=dims[0], teacher=dims[1])
    student = [tensors[name].requires_grad_() for name in ("q_student", "k_student")]
    loss = getattr(ops, function)(**tensors, **pack.packing, **options)
    loss.backward()
    return [loss.detach(), *(x.grad for x in student)]


def assert_matches_eager(
    pack: Pack, function: str, dims: tuple[int, int], dtype: torch.dtype, **options: object
) -> None:
    got = outcome(pack, function, dims, dtype, **options)
    with bertxfer_fast.use_backend("eager"):
        want = outcome(pack, function, dims, dtype, **options)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(got, want, strict=True):
        assert relative_error(ours, theirs.double()) <= tolerance


@pytest.mark.parametrize("dims", [(26, 64), (64, 64), (64, 16), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrices_of_long_sequences(dtype: torch.dtype, dims: tuple[int, int]) -> None:
    """Head dims whose Gram matrices stay in registers; several blocks of tokens, short neighbours, tokens unused."""
    pack = Pack([150, 0, 131, 40], [140, 0, 131, 1])
    assert_matches_eager(pack, "attention_score_mse", dims, dtype, method="auto")
    assert_matches_eager(pack, "attention_score_mse", dims, dtype, method="gram", reduction="sum")


def test_gram_matrices_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few heads of long sequences: parts of a sequence, added up in a second kernel."""
    from bertxfer_fast.ops.attention_score_mse import triton as triton_

    monkeypatch.setattr(triton_, "SPLIT", 96)
    monkeypatch.setattr(triton_, "multiprocessors", lambda device: 1000)
    assert_matches_eager(Pack([300, 97]), "attention_score_mse", (26, 64), torch.float32, method="gram")


@pytest.mark.parametrize("function", ["attention_score_mse", "attention_map_loss"])
@pytest.mark.parametrize("dims", [(200, 256), (256, 64)])
def test_widest_heads(function: str, dims: tuple[int, int]) -> None:
    assert_matches_eager(Pack([70, 3]), function, dims, torch.float32)


def test_more_sequences_than_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.language as tl

    from bertxfer_fast.ops._triton import packing, reductions

    for module in (packing, reductions):
        monkeypatch.setattr(module, "CHUNK", tl.constexpr(16))
    assert_matches_eager(Pack([1, 0, 2, 70] * 10), "attention_score_mse", (4, 4), torch.float32)


def test_same_inputs_same_bits() -> None:
    for function in ("attention_score_mse", "attention_map_loss"):
        first, again = (outcome(Pack([150, 20]), function, (26, 64), torch.bfloat16) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)


def test_what_does_not_count_is_never_read_and_its_gradient_is_zero() -> None:
    pack = Pack([140, 30, 9], [130, 0, 9])
    for function in ("attention_score_mse", "attention_map_loss"):
        tensors = attention_pair(torch.float32, pack)
        for tensor in tensors.values():
            tensor[pack.unused] = math.nan
        student = [tensors[name].requires_grad_() for name in ("q_student", "k_student")]
        loss = getattr(ops, function)(**tensors, **pack.packing)
        loss.backward()
        assert loss.isfinite()
        for x in student:
            assert x.grad.isfinite().all()
            assert not x.grad[pack.unused].any()


def test_wrong_numbers_on_the_device_stay_inside_the_tensors() -> None:
    """On CUDA nobody reads cu_seqlens back: kernels keep what they find there inside the tensors."""
    tensors = attention_pair(torch.float32, Pack([40]))
    args = list(tensors.values())
    wrong = torch.tensor([0, 30, 1000], dtype=torch.int32)
    operator = _library.overload("attention_map_loss", "triton")
    loss, *_ = operator(*args, wrong, None, 1000, 0.1, 0.1, "kl", "mean", True)
    assert loss.isfinite()


def test_every_operator_has_triton_kernels() -> None:
    assert {name for name, info in OPS.items() if "triton" not in info.backends} == set()


def test_the_route_of_a_pair_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that a later kernel rounds otherwise cannot send a pair down both routes, or down none."""
    import triton.language as tl

    from bertxfer_fast.ops.attention_score_mse import triton as launcher
    from bertxfer_fast.ops.attention_score_mse import triton_gram

    pack = Pack([150, 131])
    want = outcome(pack, "attention_score_mse", (26, 64), torch.float32, method="auto")
    # What a kernel after the one that makes the loss would have to see in it to leave a pair to the other.
    would_leave = {"gram_grad_kernel": 1e9, "tiled_kernel": -1.0}
    launch = launcher.launch

    def launch_with_another_guard(kernel: Any, *args: Any, **constants: Any) -> None:
        with monkeypatch.context() as patch:
            if kernel.fn.__name__ in would_leave:
                patch.setattr(triton_gram, "GUARD", tl.constexpr(would_leave[kernel.fn.__name__]))
            launch(kernel, *args, **constants)

    monkeypatch.setattr(launcher, "launch", launch_with_another_guard)
    got = outcome(pack, "attention_score_mse", (26, 64), torch.float32, method="auto")
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


def test_a_loss_takes_few_launches_and_no_idle_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normaliser, total and scales are inside the kernels; a pair that goes by Gram matrices has no program a tile."""
    from bertxfer_fast.ops.attention_map import triton as maps
    from bertxfer_fast.ops.attention_score_mse import triton as score

    launched: list[tuple[str, int]] = []
    for module in (maps, score):
        monkeypatch.setattr(
            module,
            "launch",
            lambda kernel, programs, *_, **__: launched.append((kernel.fn.__name__, programs)),
        )
    pack, heads = Pack([1024, 700]), 3
    tensors = attention_pair(torch.bfloat16, pack)
    args = [x.requires_grad_() for x in tensors.values()], (pack.cu_seqlens, None, 1024, 0.1, 0.1)
    score.attention_score_mse(*args[0], *args[1], "mean", "auto", True)
    assert [name for name, _ in launched] == ["gram_kernel", "tiled_kernel", "gram_grad_kernel"]
    assert dict(launched)["tiled_kernel"] <= 2 * heads * 4  # gradients of q and k, each in at most two shares
    launched.clear()
    maps.attention_map_loss(*args[0], *args[1], "kl", "mean", True)
    assert [name for name, _ in launched] == ["kl_rows_kernel", "cols_kernel"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_products_are_added_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, in_place: bool
) -> None:
    """With a PyTorch that adds half-precision products to a float32 sum, and with one that does not."""
    from bertxfer_fast.ops._triton import products

    addmm = torch.addmm

    def addmm_of_wide(
        total: Tensor, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, **options: Any
    ) -> Tensor:
        assert out_dtype == torch.float32
        return addmm(total, a.float(), b.float(), **options)  # what the CPU's cannot do, the GPU's can

    monkeypatch.setattr(products, "_adds_to_float32", lambda device, dtype: in_place)
    monkeypatch.setattr(torch, "addmm", addmm_of_wide)
    parts = [(torch.randn(7, 20).to(dtype), torch.randn(20, 9).to(dtype)) for _ in range(3)]
    total = torch.full((7, 9), math.nan)
    for i, (a, b) in enumerate(parts):
        products.add_product(total, a, b, first=i == 0)
    assert relative_error(total, sum(a.double() @ b.double() for a, b in parts)) <= 1e-6
