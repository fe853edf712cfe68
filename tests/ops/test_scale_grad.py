"""scale_grad: the shared backward pass, and when it works in the memory of the gradient it scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import library
from bertxfer_fast.ops.scale_grad import scale_grad


def loss_of(student: Tensor) -> Tensor:
    return ops.hidden_mse(student, torch.zeros_like(student))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that run."""
    names: list[str] = []
    overload = library.overload

    def spy(name: str, backend: str) -> object:
        names.append(name)
        return overload(name, backend)

    monkeypatch.setattr(library, "overload", spy)
    return names


@pytest.fixture
def student() -> Tensor:
    return torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("backend", ["eager", "cpp"], indirect=True)
class TestBackward:
    def test_a_graph_that_is_freed_gives_its_memory(
        self, backend: str, student: Tensor, called: list[str]
    ) -> None:
        (got,) = torch.autograd.grad(3 * loss_of(student), student)
        assert called == ["hidden_mse", "scale_grad_"]
        torch.testing.assert_close(got, 6 * student.detach() / student.numel())

    def test_a_plain_backward_pass_has_nothing_to_scale(
        self, backend: str, student: Tensor, called: list[str]
    ) -> None:
        (got,) = torch.autograd.grad(loss_of(student), student)
        stored_whole = backend == "cpp"  # the reference leaves the mean to grad_scale
        assert called == ["hidden_mse", *([] if stored_whole else ["scale_grad_"])]
        torch.testing.assert_close(got, 2 * student.detach() / student.numel())

    def test_a_graph_that_is_kept_keeps_its_gradient(
        self, backend: str, student: Tensor, called: list[str]
    ) -> None:
        loss = 3 * loss_of(student)
        first, again, last = (
            torch.autograd.grad(loss, student, retain_graph=keep)[0] for keep in (True, True, False)
        )
        assert called == ["hidden_mse", "scale_grad", "scale_grad", "scale_grad_"]
        assert torch.equal(first, again)
        assert torch.equal(first, last)

    def test_an_output_that_somebody_holds_is_left_alone(self, backend: str, student: Tensor) -> None:
        operator = getattr(torch.ops.bertxfer_fast.hidden_mse, backend)
        loss, gradient, *_ = operator(student, torch.zeros_like(student), None, None, "mean", True)
        before = gradient.detach().clone()
        (3 * loss).backward()
        assert torch.equal(gradient, before)
        torch.testing.assert_close(student.grad, 6 * student.detach() / student.numel())

    def test_gradients_of_two_losses_add_up(self, backend: str, student: Tensor) -> None:
        (loss_of(student) + 2 * loss_of(student)).backward()
        torch.testing.assert_close(student.grad, 6 * student.detach() / student.numel())


@pytest.mark.parametrize("backend", ["eager", "cpp"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_place_is_the_same(backend: str, dtype: torch.dtype) -> None:
    grad = torch.randn(5, 77).to(dtype)
    scale = torch.tensor(0.37)
    expected = scale_grad(grad, scale)
    assert torch.equal(expected, (grad.float() * scale).to(dtype))
    library.overload("scale_grad_", backend)([grad], scale, torch.tensor(1.0))
    assert torch.equal(grad, expected)
