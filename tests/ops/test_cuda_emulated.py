"""The CUDA kernels, run on CPU tensors in an emulator (tests/cuda_emulator): no GPU is needed, only nvcc's headers.

Accuracy is that of test_accuracy.py, ``BERTXFER_CASE=hidden_mse:7`` runs one of its cases. Every other launch the
emulator runs threads in the opposite order: results that differ between two calls are a missing barrier.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import backend as _backend
from bertxfer_fast.ops._dispatch import choices as _choices
from bertxfer_fast.ops._dispatch import library as _library
from bertxfer_fast.ops._dispatch.registry import OPS
from tests.cuda_emulator import build as emulator

from . import reference
from .cases import DTYPES, RecordedCalls
from .float16_range import HUGE_SCORES, PROBLEMS, assert_results_are_as_the_fake_says, check
from .reference import assert_as_accurate_as_pytorch, relative_error
from .test_accuracy import CASES, CHECKS, CHUNK, ONE_CASE
from .test_pool_features import MODES

#: Cases for each op in the default suite.
FEW = 20


def op_of(check: str) -> str:
    """The operator that a check of test_accuracy.py is about."""
    return next(op for op in sorted(OPS, reverse=True) if op.startswith(check[:11]))


CUDA_CHECKS = [name for name in CHECKS if "cuda" in OPS[op_of(name)].backends]


@pytest.fixture(scope="module")
def emulated() -> Iterator[None]:
    """From here on the backend "cuda" is the emulator."""
    reason = emulator.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTXFER_CUDA_EMULATOR", str(emulator.build()))
        with bertxfer_fast.use_backend("cuda"):
            yield
    bertxfer_fast.use_backend("auto")


def chunks() -> Iterator[Any]:
    if ONE_CASE:
        name, _, number = ONE_CASE.partition(":")
        yield pytest.param(name, range(int(number), int(number) + 1), id=ONE_CASE)
        return
    for name in CUDA_CHECKS:
        yield pytest.param(name, range(FEW), id=name)
        for start in range(0, CASES, CHUNK):
            numbers = range(start, min(start + CHUNK, CASES))
            yield pytest.param(name, numbers, id=f"{name}:{start}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "numbers"), list(chunks()))
def test_is_as_accurate_as_plain_pytorch(emulated: None, name: str, numbers: range) -> None:
    for number in numbers:
        with RecordedCalls() as recorded:
            try:
                CHECKS[name](Random(f"{name}:{number}"), DTYPES[number % len(DTYPES)])
            except AssertionError as error:
                raise AssertionError(f"BERTXFER_CASE={name}:{number}: {error}") from error
        used = {str(call[0]) for call in recorded.calls}
        assert f"bertxfer_fast.{op_of(name)}.cuda" in used


def both(run: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What `run` returns on the emulator, twice, its bits the same; and what it returns in eager PyTorch."""
    first, second = run(), run()
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)), (
            "threads in another order, other bits"
        )
    with bertxfer_fast.use_backend("eager"):
        return first, run()


def assert_close(run: Any, tolerance: float) -> None:
    for got, want in zip(*both(run), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.numel():
            largest = want.double().abs().max().clamp_min(1e-30)
            assert ((got.double() - want.double()).abs().max() / largest).item() <= tolerance


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pooling_over_several_tiles(emulated: None, dtype: torch.dtype, mode: str) -> None:
    """Sequences of several tiles, empty ones, tokens that do not count; columns of several blocks, and layers."""
    lengths, width = [150, 0, 64, 65, 1, 200], 264
    generator = torch.Generator().manual_seed(0)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    used = torch.tensor([140, 0, 64, 1, 0, 199], dtype=torch.int32)
    layers = [torch.randn(sum(lengths), width, generator=generator).to(dtype) for _ in range(3)]
    weights = torch.tensor([0.2, -0.5, 1.0])
    grad = torch.randn(len(lengths), width, generator=generator).to(dtype)

    def run() -> list[Tensor]:
        inputs = [layer.clone().requires_grad_() for layer in layers]
        w = weights.clone().requires_grad_()
        pooled = ops.pool_features(inputs, cu, seqused=used, layer_weights=w, mode=mode, normalize=True)
        pooled.backward(grad)
        return [pooled.detach(), *(x.grad for x in inputs), w.grad]

    assert_close(run, 2e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("mode", MODES)
def test_pooling_carries_nan_and_the_first_of_equal_maxima(emulated: None, mode: str) -> None:
    x = torch.zeros(140, 3)
    x[130:132, 0] = 5.0
    x[66, 1] = x[133, 1] = math.nan

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        pooled = ops.pool_features(leaf, torch.tensor([0, 140], dtype=torch.int32), mode=mode)
        pooled.sum().backward()
        return [pooled.detach(), leaf.grad]

    for got, want in zip(*both(run), strict=True):
        torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "depth", "width"), [(0, 5, 7), (17000, 8, 12), (260, 72, 200), (130, 26, 130)]
)
def test_hidden_states_over_several_tiles(
    emulated: None, dtype: torch.dtype, tokens: int, depth: int, width: int
) -> None:
    """Also of more than one chunk of tokens, of none, and of rows that no wide copy fits."""
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, depth), (tokens, width), (width, depth), (width,)
    student, teacher, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)

    def run() -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in (student, weight, bias)]
        loss = ops.hidden_mse(inputs[0], teacher.float(), *inputs[1:])
        loss.backward()
        return [loss.detach(), *(x.grad for x in inputs)]

    assert_close(run, 1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("depth", [312, 1024])
def test_float32_products_do_not_lose_digits_in_the_tensor_core(emulated: None, depth: int) -> None:
    """Tensor cores cut sums off instead of rounding them: over many steps of one sign that adds up to 30 roundings."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"student": (130, depth), "teacher": (130, 60), "weight": (60, depth)}
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    assert_as_accurate_as_pytorch(ops.hidden_mse, reference.hidden_mse, tensors, ("student", "weight"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_half_precision_sums_keep_their_digits(emulated: None, dtype: torch.dtype) -> None:
    """A loss of 2 % of the scores' squares, which Gram matrices of 1500 tokens give: cut-offs of all steps add up."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in "qk":
        teacher = torch.rand(1500, 1, 64, generator=generator)
        noise = 0.1 * torch.randn(teacher.shape, generator=generator)
        tensors[f"{name}_student"] = (teacher * (0.93 + noise)).to(dtype)
        tensors[f"{name}_teacher"] = teacher.to(dtype)
    cu = torch.tensor([0, 1500], dtype=torch.int32)
    exact = reference.attention_score_mse(**{n: t.double() for n, t in tensors.items()}, cu_seqlens=cu)
    got = ops.attention_score_mse(**tensors, cu_seqlens=cu, method="gram")
    assert relative_error(got, exact) <= 2e-5


@pytest.fixture
def machine(emulated: None) -> Iterator[ctypes.CDLL]:
    """The emulator's own functions, with nothing launched yet."""
    library = ctypes.CDLL(os.environ["BERTXFER_CUDA_EMULATOR"])
    library.emulator_launches.restype = ctypes.c_char_p
    library.emulator_set_shared_limit.argtypes = [ctypes.c_int64]
    library.emulator_launches()
    yield library
    library.emulator_set_shared_limit(0)


def attention_inputs(
    lengths: list[int], heads: int, ds: int, dt: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = {"q_student": ds, "k_student": ds, "q_teacher": dt, "k_teacher": dt}
    tensors = {
        name: torch.randn(sum(lengths), heads, dim, generator=generator).to(dtype)
        for name, dim in names.items()
    }
    return {**tensors, "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).int()}


def test_too_little_shared_memory_is_said_in_one_sentence(machine: ctypes.CDLL) -> None:
    """An sm_86 or sm_89 has 99 KB for a block; float32 heads of 256 want more."""
    inputs = attention_inputs([70], 1, 256, 256, torch.float32)
    ops.attention_map_loss(**inputs)
    machine.emulator_set_shared_limit(101376)
    words = r"map_rows_kernel.*: got a device with 101376 bytes of shared memory for a block, want 132096"
    with pytest.raises(RuntimeError, match=words):
        ops.attention_map_loss(**inputs)
    with pytest.raises(RuntimeError, match=r"tiled_kernel.*: got a device with 101376 bytes"):
        ops.attention_score_mse(**inputs)
    ops.attention_map_loss(**attention_inputs([70], 1, 128, 128, torch.bfloat16))


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    """What a kernel forgets to write is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_pairs_at_the_guard_take_one_route(emulated: None, nan_in_new_memory: None) -> None:
    """Losses within some roundings of 1 % of the scores' squares: every gradient row is written, every loss counted.

    A student whose scores are c times its teacher's has a loss of (1 - c)^2 / (1 + c^2) of the squares, 1 % at this c.
    """
    sequences, length = 96, 5
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(sequences * length, 1, 16, generator=generator) for _ in "qk")
    c = (1 - math.sqrt(1 - 0.99**2)) / 0.99
    steps = (torch.arange(sequences) % 16 - 8).double().repeat_interleave(length)
    q_student = (q.double() * (c * (1 + 2e-8 * steps))[:, None, None]).float()
    cu = length * torch.arange(sequences + 1, dtype=torch.int32)

    def run() -> list[Tensor]:
        leaves = [q_student.clone().requires_grad_(), k.clone().requires_grad_()]
        scales = {"scale_student": 0.3, "scale_teacher": 0.3}
        loss = ops.attention_score_mse(*leaves, q, k, cu, method="gram", max_seqlen=length, **scales)
        loss.backward()
        return [loss.detach(), *(x.grad for x in leaves)]

    assert_close(run, 1e-4)


SCORE_METHODS = [("attention_score_mse", {"method": method}) for method in ("auto", "gram", "tiled")]
MAP_KINDS = [("attention_map_loss", {"kind": kind}) for kind in ("kl", "mse")]


def check_ragged(loss: str, options: dict[str, str], lengths: list[int], used: list[int], width: int) -> None:
    """Three heads, of which the second's scores are almost the teacher's; of the tokens some do not count."""
    inputs = attention_inputs(lengths, 3, width, 16, torch.float32)
    for name in "qk":
        inputs[f"{name}_student"][:, 1, 16:] = 0.0
        inputs[f"{name}_teacher"][:, 1, : min(width, 16)] = inputs[f"{name}_student"][:, 1, :16] * 1.01
        inputs[f"{name}_teacher"][:, 1, width:] = 0.0

    def run() -> list[Tensor]:
        leaves = {n: inputs[n].clone().requires_grad_() for n in ("q_student", "k_student")}
        seqused = torch.tensor(used, dtype=torch.int32)
        scales = {"scale_student": -0.2, "scale_teacher": -0.2}
        result = getattr(ops, loss)(**{**inputs, **leaves}, seqused=seqused, **scales, **options)
        result.backward()
        return [result.detach(), *(x.grad for x in leaves.values())]

    assert_close(run, 1e-4)


@pytest.mark.parametrize(("loss", "options"), [*SCORE_METHODS, *MAP_KINDS])
def test_every_head_and_every_token_is_served(
    emulated: None, nan_in_new_memory: None, loss: str, options: dict[str, str]
) -> None:
    """Heads with tiles beside heads with Gram matrices, several rounds for each block, negative scales, odd widths."""
    check_ragged(loss, options, [130, 0, 65, 190, 1], [130, 0, 3, 129, 0], 26)
    check_ragged(loss, options, [9, 20], [9, 3], 7)
    check_ragged(loss, options, [0, 0], [0, 0], 26)


@pytest.mark.parametrize(("loss", "options"), SCORE_METHODS)
def test_more_sequences_than_threads_share_tiles(
    emulated: None, nan_in_new_memory: None, loss: str, options: dict[str, str]
) -> None:
    check_ragged(loss, options, [n % 3 for n in range(140)], [min(n % 3, n % 5) for n in range(140)], 7)


def launches(machine: ctypes.CDLL) -> list[tuple[str, int]]:
    """Kernels since the last call, and their blocks."""
    lines = machine.emulator_launches().decode().splitlines()
    return [(line.split(" ", 1)[1].strip("(").split("<")[0], int(line.split()[0])) for line in lines]


@pytest.mark.parametrize(
    ("length", "near", "names"),
    [
        (150, False, ["gram_kernel", "tiled_kernel"]),
        (150, True, ["gram_kernel", "tiled_kernel"]),
        (100, False, ["memset", "tiled_kernel"]),
    ],
)
def test_score_loss_launches_no_idle_tiles(
    machine: ctypes.CDLL, length: int, near: bool, names: list[str]
) -> None:
    """At most as many blocks as two multiprocessors run, of 27 tiles and their transposes, and no third kernel."""
    inputs = attention_inputs(3 * [length], 3, 16, 16, torch.bfloat16)
    if near:
        inputs |= {name: inputs[name.replace("student", "teacher")] for name in ("q_student", "k_student")}
    inputs["q_student"].requires_grad_()
    ops.attention_score_mse(**inputs)
    found = launches(machine)
    assert [name for name, _ in found] == names
    assert found[-1] == ("tiled_kernel", 6)


def test_score_loss_takes_tiles_where_gram_matrices_do_not_fit(machine: ctypes.CDLL) -> None:
    inputs = attention_inputs([150], 1, 64, 64, torch.bfloat16)
    ops.attention_score_mse(**inputs)
    assert launches(machine)[0][0] == "gram_kernel"
    machine.emulator_set_shared_limit(101376)
    ops.attention_score_mse(**inputs)
    assert [name for name, _ in launches(machine)] == ["memset", "tiled_kernel"]


@pytest.mark.parametrize("need_grad", [True, False])
def test_map_losses_take_two_launches(machine: ctypes.CDLL, need_grad: bool) -> None:
    inputs = attention_inputs([40], 2, 16, 16, torch.float32)
    inputs["q_student"].requires_grad_(need_grad)
    ops.attention_map_loss(**inputs)
    last = "map_columns_kernel" if need_grad else "loss_kernel"
    assert [name for name, _ in launches(machine)] == ["map_rows_kernel", last]


@pytest.mark.parametrize(("bias", "blocks"), [(False, 1), (True, 4)])
def test_hidden_mse_takes_one_launch_beside_each_product(
    machine: ctypes.CDLL, bias: bool, blocks: int
) -> None:
    student, teacher, weight = (torch.randn(shape) for shape in ((20, 12), (20, 70), (70, 12)))
    student.requires_grad_()
    ops.hidden_mse(student, teacher, weight, torch.randn(70) if bias else None).backward()
    found = launches(machine)
    assert [name for name, _ in found] == ["project_kernel", "finish_kernel"]
    assert found[1][1] == blocks


@pytest.mark.parametrize(("weights", "names"), [(False, []), (True, ["total_kernel"])])
def test_pooling_takes_two_launches_each_way(machine: ctypes.CDLL, weights: bool, names: list[str]) -> None:
    layers = [torch.randn(70, 8, requires_grad=True) for _ in range(2)]
    layer_weights = torch.tensor([0.3, 0.7], requires_grad=weights)
    cu = torch.tensor([0, 70], dtype=torch.int32)
    pooled = ops.pool_features(layers, cu, layer_weights=layer_weights)
    assert [name for name, _ in launches(machine)] == ["kernel", "finish_kernel"]
    pooled.sum().backward()
    assert [name for name, _ in launches(machine)] == ["gradient_kernel", "kernel", *names]


def test_gradients_of_one_dtype_are_scaled_by_one_launch(machine: ctypes.CDLL) -> None:
    """Ten of them, in groups of eight at most; of two dtypes; of several blocks, empty and unaligned ones."""
    sizes = [5000, 0, 3, 9000, 17, 1, 8, 4097, 2, 11]
    grads = [torch.randn(size + 1)[i % 2 :][:size] for i, size in enumerate(sizes)]
    want = [grad * 3.0 for grad in grads]
    halves = [torch.randn(70).half() for _ in range(2)]
    want += [(half.float() * 3.0).half() for half in halves]
    torch.ops.bertxfer_fast.scale_grad_.cuda([*grads, *halves], torch.tensor(2.0), torch.tensor(1.5))
    assert all(torch.equal(a, b) for a, b in zip([*grads, *halves], want, strict=True))
    assert len(launches(machine)) == 3


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 5001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_of_gradients(emulated: None, dtype: torch.dtype, size: int) -> None:
    numbers = torch.randn(size + 1).to(dtype)
    overloads = torch.ops.bertxfer_fast
    for view in (numbers[:size], numbers[1:]):  # aligned to 16 bytes, and not
        for to in DTYPES:
            got = overloads.scale_grad.cuda(view, torch.tensor(0.3), to)
            assert torch.equal(got, overloads.scale_grad.eager(view, torch.tensor(0.3), to))
        for upstream in (1.0, 3.0):
            one, other = view.clone(), view.clone()
            for grad, name in ((one, "cuda"), (other, "eager")):
                getattr(overloads.scale_grad_, name)([grad], torch.tensor(1.0), torch.tensor(upstream))
            assert torch.equal(one, other)


@pytest.fixture(scope="module")
def planted() -> ctypes.CDLL:
    reason = emulator.reason_to_skip()
    if reason:
        pytest.skip(reason)
    source = Path(emulator.__file__).parent / "planted.cu"
    return ctypes.CDLL(str(emulator.compile_library(emulator.BUILD / "planted", [source])))


def call(library: ctypes.CDLL, name: str) -> tuple[str, Tensor]:
    """The error of a kernel of planted.cu, and the 64 numbers that it was given and wrote."""
    out = torch.full((64,), 7.0)
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    return function(ctypes.c_void_p(out.data_ptr())).decode(), out


def test_emulator_runs_a_right_kernel(planted: ctypes.CDLL) -> None:
    for _ in range(2):  # both orders of threads
        error, out = call(planted, "right")
        assert error == "" and torch.equal(out, torch.arange(63.0, -1, -1))
    error, out = call(planted, "waited")
    assert error == "" and torch.equal(out, torch.full((64,), 7.0))


@pytest.mark.parametrize("name", ["missing_barrier", "not_waited"])
def test_emulator_answers_nan_where_a_gpu_would_answer_at_random(planted: ctypes.CDLL, name: str) -> None:
    results = [call(planted, name) for _ in range(2)]
    assert all(error == "" for error, _ in results)
    assert any(out.isnan().any() for _, out in results)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("half_a_barrier_", "not all threads come"),
        ("two_barriers_", "comes to the barrier at planted.cu"),
        ("lanes_apart_", "other lanes of its warp"),
        ("beyond_shared_memory_", "beyond its dynamic shared memory"),
        ("unaligned_matrix_", "aligned to 16 bytes"),
    ],
)
def test_emulator_reports(planted: ctypes.CDLL, name: str, words: str) -> None:
    error, _ = call(planted, name)
    assert words in error, error
    assert call(planted, "right")[0] == ""  # and goes on


def test_backend_is_refused_without_gpu_and_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BERTXFER_CUDA_EMULATOR", raising=False)
    monkeypatch.setattr(_library, "cuda_extension", None)
    monkeypatch.setattr(_library, "cuda_extension_error", "no such luck")
    with bertxfer_fast.use_backend("auto"):
        with pytest.raises(RuntimeError, match="'cuda' was asked for, but no such luck"):
            bertxfer_fast.use_backend("cuda")
        table = bertxfer_fast.explain()["hidden_mse"]
    assert table["cuda"]["reasons"]["cuda"] == "no such luck"
    assert "CUDA tensors" in table["cpu"]["reasons"]["cuda"]


def test_measured_choices_come_before_the_order_of_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"hidden_mse": [(1000, "cuda"), (2000, "triton")]}
    monkeypatch.setattr(_backend, "FASTER_ON_CUDA", rows)
    monkeypatch.setattr(_choices, "FASTER_ON_CUDA", rows)
    usable = {"triton", "cuda", "eager"}
    monkeypatch.setattr(_backend, "unavailable", lambda op, name, device: None if name in usable else "no")
    with bertxfer_fast.use_backend("auto"):
        picked = [_backend.pick("hidden_mse", "cuda", size) for size in (10, 1000, 1001, 5000, None)]
        assert picked == ["cuda", "cuda", "triton", "triton", "triton"]
        usable.remove("cuda")
    with bertxfer_fast.use_backend("auto"):  # which forgets what was picked
        assert _backend.pick("hidden_mse", "cuda", 10) == "triton"


@pytest.mark.parametrize("name", [name for name, info in OPS.items() if "cuda" in info.compiled])
def test_operators_name_what_is_wrong(emulated: None, name: str) -> None:
    """Callers of torch.ops have no checks but these, in the grammar of all errors and the words of the schema."""
    info = OPS[name]
    example = info.example(**({"mode": "max", "normalize": True} if name == "pool_features_backward" else {}))
    for argument, kind in info.arguments.items():
        if "Tensor" not in kind or example[argument] is None:
            continue
        wrong = torch.utils._pytree.tree_map(lambda t: t.to(torch.complex64), example[argument])
        with pytest.raises(RuntimeError) as caught:
            _library.overload(name, "cuda")(*{**example, argument: wrong}.values())
        assert re.search(r", \w+: got .+, want .+", str(caught.value)), argument


@pytest.mark.parametrize("name", [name for name, info in OPS.items() if "cuda" in info.compiled])
def test_float16_results_are_as_the_fake_says(emulated: None, name: str) -> None:
    assert_results_are_as_the_fake_says(name, "cuda")


CUDA_PROBLEMS = [
    name for name, problem in PROBLEMS.items() if "cuda" in OPS[problem.op].backends and name != HUGE_SCORES
]


@pytest.mark.parametrize("name", CUDA_PROBLEMS)
def test_a_float16_gradient_that_fits_comes_out(emulated: None, name: str) -> None:
    check(name)
