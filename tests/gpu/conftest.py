"""Every test here needs an NVIDIA GPU (marker `gpu`), and runs on each backend that the GPU may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bertxfer_fast
from bertxfer_fast.ops._dispatch import backend as _backend
from bertxfer_fast.ops._dispatch import library as _library
from bertxfer_fast.ops._dispatch.registry import OPS

from .calls import CALLS

HERE = Path(__file__).parent
#: Those to test: `make gpu` tests one after the other, what compiles nothing first.
BACKENDS = os.environ.get("BERTXFER_GPU_BACKENDS", "triton cuda").split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            reason = why_not_on_the_host(item.name) if os.environ.get("BERTXFER_HOST_GPU") else None
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def why_not_on_the_host(name: str) -> str | None:
    """Why a test says nothing where the host plays the GPU (tests/host_gpu), or None."""
    if "graph" in name:
        return "the host's GPU replays no graphs"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and "cuda" not in name
    if interpreted and any(x in name for x in ("read_back", "waits_for", "without_a_break")):
        return "Triton's interpreter waits for what it reads, and is not compiled"
    return None


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """One backend, forced for all operators that have it."""
    if request.param == "cuda" and _library.cuda_extension is None:
        pytest.skip(_library.cuda_extension_error)
    reason = _backend.unavailable("hidden_mse", request.param, "cuda")
    if reason:
        pytest.skip(reason)
    with bertxfer_fast.use_backend(request.param):
        yield request.param


@pytest.fixture(params=list(CALLS))
def call(request: pytest.FixtureRequest, backend: str) -> str:
    """The name of a call in `CALLS`, whose operator the backend has."""
    operator = CALLS[request.param].operator
    if backend not in OPS[operator].backends:
        pytest.skip(f"{operator} has no {backend} implementation")
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that torch.empty hands out is NaN: an element that no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
