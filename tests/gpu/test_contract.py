"""What every operator promises on a GPU: DESIGN's contract, beyond numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ..ops.cases import RecordedCalls
from .calls import CALLS, outcome


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [x.contiguous().flatten().view(torch.uint8) for x in tensors]


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(bits(first), bits(second), strict=True):
        assert torch.equal(a, b)


def assert_close(first: list[Tensor], second: list[Tensor]) -> None:
    """Equal but for roundings: code compiled for another purpose may add in another order."""
    for a, b in zip(first, second, strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)
        assert error <= 1e-5, f"off by {error:.2g}"


def test_runs_on_the_backend_under_test(backend: str, call: str) -> None:
    with RecordedCalls() as recorded:
        outcome(call, CALLS[call].inputs(torch.bfloat16))
    used = {func._overloadname for func, *_ in recorded.calls if CALLS[call].operator in str(func)}
    assert used == {backend}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_inputs_same_bits(call: str, dtype: torch.dtype) -> None:
    tensors = CALLS[call].inputs(dtype)
    first = outcome(call, tensors)
    for _ in range(3):
        assert_same_bits(first, outcome(call, tensors))


def test_every_element_is_written(poisoned: None, call: str) -> None:
    for result in outcome(call, CALLS[call].inputs(torch.bfloat16)):
        assert result.isfinite().all()


def test_without_gradients_the_loss_is_the_same(call: str) -> None:
    """The same but for roundings: without gradients it is another compilation. With itself it agrees to the bit."""
    tensors = CALLS[call].inputs(torch.float32)
    loss = outcome(call, tensors)[0]
    with torch.no_grad():
        alone, again = (CALLS[call].run(**tensors) for _ in range(2))
    assert_close([alone], [loss])
    assert_same_bits([alone], [again])


def test_opcheck(backend: str, call: str) -> None:
    with RecordedCalls() as recorded:
        outcome(call, CALLS[call].inputs(torch.float32))
    func, args, _ = next(c for c in recorded.calls if CALLS[call].operator in str(c[0]))
    fresh = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in args)
    opcheck(func, fresh, test_utils=("test_schema", "test_faketensor"))


def test_a_cuda_graph_replays_it_on_new_numbers(call: str) -> None:
    tensors = CALLS[call].inputs(torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels compile and memory is taken before the capture
        for _ in range(3):
            outcome(call, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outcome(call, tensors)
    for seed in (1, 2):
        fresh = CALLS[call].inputs(torch.bfloat16, seed)
        with torch.no_grad():
            for name, x in tensors.items():
                x.copy_(fresh[name])
        graph.replay()
        assert_same_bits(captured, outcome(call, fresh))


def test_it_runs_on_the_current_stream(call: str) -> None:
    """Inputs that a side stream still has to write, results that it reads: nothing may run beside it."""
    tensors = CALLS[call].inputs(torch.bfloat16)
    wanted = outcome(call, tensors)
    late = {name: torch.full_like(x, float("nan")) for name, x in tensors.items()}
    for name, x in late.items():
        x.requires_grad_(tensors[name].requires_grad)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # some ten milliseconds
        with torch.no_grad():
            for name, x in late.items():
                x.copy_(tensors[name])
        got = outcome(call, late)
    stream.synchronize()
    assert_same_bits(wanted, got)


def test_compiles_without_a_break(call: str) -> None:
    torch.compiler.reset()  # every call compiles the same lambda, which dynamo does eight times at most
    tensors = CALLS[call].inputs(torch.float32)
    wanted = outcome(call, tensors)
    compiled = torch.compile(lambda x: CALLS[call].run(**x), fullgraph=True, backend="aot_eager")

    def run() -> list[Tensor]:
        loss = compiled(tensors)
        grads = torch.autograd.grad(loss, [tensors[name] for name in CALLS[call].student])
        return [loss.detach(), *grads]

    found = run()
    assert_close(found, wanted)
    assert_same_bits(found, run())


def test_nothing_is_read_back_from_the_device(call: str) -> None:
    tensors = CALLS[call].inputs(torch.bfloat16)
    outcome(call, tensors)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome(call, tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
