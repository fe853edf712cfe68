"""Settings that hold for all tests, and the fixture that runs a test on every backend of the ops."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

import bertxfer_fast

from .ops.interpreter import use_interpreter

if not torch.cuda.is_available():
    use_interpreter()

# "ci", the default, draws the same examples in every run, "brief" fewer of them; "explore" draws new ones each time
# and remembers failures.
COMMON = {
    "deadline": None,
    "max_examples": 10,
    # The fixture `backend` sets one process-wide switch that holds for all examples of a test.
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("ci", derandomize=True, database=None, **COMMON)
settings.register_profile("brief", settings.get_profile("ci"), max_examples=5)
settings.register_profile("explore", print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# One thread: the tensors here are small, and two spinning threads on a busy core are many times slower. What depends
# on the number of threads is tested by setting it.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr:
        config.option.markexpr = "not slow"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")


@pytest.fixture(params=["eager", "cpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each implementation that the CPU may use, forced for all ops."""
    info = bertxfer_fast.build_info()
    if request.param == "cpp" and not info["compiled"]:
        if os.environ.get("BERTXFER_REQUIRE_COMPILED"):
            pytest.fail(info["reason"])
        pytest.skip(info["reason"])
    with bertxfer_fast.use_backend(request.param):
        yield request.param
