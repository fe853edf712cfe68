"""float16: finite and right wherever the true gradient is, on the CPU's backends. See float16_range.py."""

from __future__ import annotations

import pytest
import torch

from .float16_range import PROBLEMS, check, exact


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_gradient_that_fits_comes_out(backend: str, name: str) -> None:
    check(name)


def test_the_problems_are_what_they_say() -> None:
    """Gradients are not nought, and most of their entries fit float16."""
    for name, problem in PROBLEMS.items():
        grads = exact(problem).grads
        for argument, want in grads.items():
            assert want.isfinite().all() and want.dtype == torch.float64
            assert (want.abs() < 6e4).double().mean() > 0.4, (name, argument)
        assert max(want.abs().max().item() for want in grads.values()) > 1e-4, name
