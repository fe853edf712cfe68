"""Which implementation runs: forcing one, falling back, saying why; and an import that costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch.registry import OPS

from .cases import Pack, RecordedCalls, attention_pair

ROOT = Path(bertxfer_fast.__file__).parents[1]

BLOCK_EXTENSION = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "bertxfer_fast._C":
            raise ImportError("no such luck")
sys.meta_path.insert(0, Block())
"""

CALL_EVERYTHING = """
import torch
from bertxfer_fast.ops._dispatch.autograd import run
from bertxfer_fast.ops._dispatch.registry import OPS
def call_everything():
    results = {}
    for name, info in OPS.items():
        if info.differentiable:
            example = info.example()
            for tensor in torch.utils._pytree.tree_leaves([example[x] for x in info.differentiable]):
                tensor.requires_grad_()
            example.pop("need_grad", None)
            results[name] = run(name, "cpu", *example.values())
    return results
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in an interpreter of its own, with none of the package's environment variables but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BERTXFER_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def output(code: str, **environment: str) -> str:
    result = python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def implementation_that_ran() -> str:
    """The overload that a call of attention_score_mse ends up in."""
    pack = Pack([3, 4])
    with RecordedCalls() as recorded:
        ops.attention_score_mse(**attention_pair(torch.float32, pack), **pack.packing)
    return recorded.calls[0][0]._overloadname


def preferred() -> str:
    return "cpp" if bertxfer_fast.build_info()["compiled"] else "eager"


@pytest.fixture(autouse=True)
def nothing_forced() -> None:
    """These tests force backends themselves; whatever the environment asks for, they start and end with auto."""
    with bertxfer_fast.use_backend("auto"):
        yield


def test_auto_takes_the_compiled_kernel_where_there_is_one() -> None:
    assert implementation_that_ran() == preferred()


def test_use_backend_lasts_as_long_as_its_block(backend: str) -> None:
    with bertxfer_fast.use_backend("auto"):
        assert implementation_that_ran() == preferred()
        with bertxfer_fast.use_backend("eager"):
            assert implementation_that_ran() == "eager"
            with bertxfer_fast.use_backend(backend):
                assert implementation_that_ran() == backend
            assert implementation_that_ran() == "eager"
        assert implementation_that_ran() == preferred()


def test_use_backend_is_undone_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), bertxfer_fast.use_backend("eager"):
        raise ZeroDivisionError
    assert implementation_that_ran() == preferred()


def test_use_backend_without_a_block_stays() -> None:
    bertxfer_fast.use_backend("eager")
    assert implementation_that_ran() == "eager"
    bertxfer_fast.use_backend("auto")
    assert implementation_that_ran() == preferred()


@pytest.mark.parametrize("name", ["fast", "", "CPP", "triton4", None, 3])
def test_unknown_backend_names_are_refused(name: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"name.*eager"):
        bertxfer_fast.use_backend(name)
    assert implementation_that_ran() == preferred()


@pytest.mark.parametrize("name", ["auto", "eager", "cpp"])
def test_explain_lists_every_op_and_says_why(name: str) -> None:
    if name == "cpp" and not bertxfer_fast.build_info()["compiled"]:
        pytest.skip(bertxfer_fast.build_info()["reason"])
    with bertxfer_fast.use_backend(name):
        table = bertxfer_fast.explain()
    assert set(OPS) == set(table)
    for op, devices in table.items():
        assert {"cpu", "cuda"} <= set(devices)
        for device, entry in devices.items():
            others = {"eager", "cpp"} - {entry["implementation"]}
            for other in others:
                assert entry["reasons"].get(other), f"{op} on {device} does not say why not {other}"
            assert entry["implementation"] not in entry["reasons"]
    json.dumps(table)  # `bertxfer info` prints it


def test_explain_tells_what_really_runs(backend: str) -> None:
    with bertxfer_fast.use_backend(backend):
        assert bertxfer_fast.explain()["attention_score_mse"]["cpu"]["implementation"] == backend
        for op, info in OPS.items():
            used = bertxfer_fast.explain()[op]["cpu"]["implementation"]
            assert used == (backend if backend in info.backends else "eager")


def test_build_info_is_plain_data() -> None:
    info = bertxfer_fast.build_info()
    json.dumps(info)
    if info["compiled"]:
        assert info["reason"] is None
        assert info["instruction_set"] in info["instruction_sets"].split(",")
    else:
        assert info["reason"]


# What needs an interpreter of its own


def test_import_is_cheap() -> None:
    """No framework beyond torch is imported, nothing is compiled, CUDA is not started."""
    code = """
import sys, torch
before = set(sys.modules)
import bertxfer_fast, bertxfer_fast.ops
heavy = {"transformers", "sklearn", "datasets", "triton", "accelerate", "matplotlib", "pandas", "scipy"}
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not heavy & new, heavy & new
assert "torch._inductor" not in set(sys.modules) - before
assert "torch.utils.cpp_extension" not in sys.modules
assert not torch.cuda.is_initialized()
"""
    output(code)


def test_public_names_are_listed_without_importing_them() -> None:
    code = """
import sys, bertxfer_fast
assert {"Distiller", "TeacherStream", "use_backend", "ops"} <= set(dir(bertxfer_fast))
assert "transformers" not in sys.modules
try:
    bertxfer_fast.NoSuchThing
except AttributeError as error:
    assert "NoSuchThing" in str(error)
else:
    raise AssertionError("no AttributeError")
"""
    output(code)


def test_environment_variable_forces_a_backend() -> None:
    code = (
        "import bertxfer_fast; print(bertxfer_fast.explain()['attention_score_mse']['cpu']['implementation'])"
    )
    assert output(code, BERTXFER_BACKEND="eager").strip() == "eager"
    assert output(code, BERTXFER_BACKEND="auto").strip() == preferred()
    assert output(code).strip() == preferred()


def test_environment_variable_with_an_unknown_name_is_refused() -> None:
    result = python("import bertxfer_fast; bertxfer_fast.explain()", BERTXFER_BACKEND="fastest")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("ValueError") and "BERTXFER_BACKEND" in last and "fastest" in last and "eager" in last
    )


def test_without_the_extension_everything_works_and_says_so_once() -> None:
    code = (
        BLOCK_EXTENSION
        + CALL_EVERYTHING
        + """
import warnings, bertxfer_fast
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        for name, value in call_everything().items():
            assert value.isfinite().all(), name
            value.sum().backward()
ours = [str(w.message) for w in caught if "bertxfer_fast" in str(w.message)]
assert len(ours) == 1 and "no such luck" in ours[0], ours

info = bertxfer_fast.build_info()
assert info["compiled"] is False and "no such luck" in info["reason"]
for op, devices in bertxfer_fast.explain().items():
    assert devices["cpu"]["implementation"] == "eager", op
    assert devices["cpu"]["reasons"]["cpp"], op
try:
    bertxfer_fast.use_backend("cpp")
except RuntimeError as error:
    assert "cpp" in str(error) and "no such luck" in str(error)
else:
    raise AssertionError("use_backend('cpp') was accepted")
with bertxfer_fast.use_backend("eager"):
    call_everything()
"""
    )
    output(code)


def test_import_alone_says_nothing_about_a_missing_extension() -> None:
    """Whoever only wants the data side is not warned; the warning comes with the first slow call."""
    output(BLOCK_EXTENSION + "import warnings; warnings.simplefilter('error'); import bertxfer_fast.ops")


def test_environment_variable_asking_for_a_missing_backend_is_refused() -> None:
    result = python(BLOCK_EXTENSION + CALL_EVERYTHING + "call_everything()", BERTXFER_BACKEND="cpp")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "cpp" in last and "no such luck" in last, last


def test_the_whole_suite_can_be_told_to_insist_on_the_extension() -> None:
    """A build that silently failed must not pass as a row of skips: BERTXFER_REQUIRE_COMPILED turns them red."""
    if os.environ.get("BERTXFER_REQUIRE_COMPILED"):
        assert bertxfer_fast.build_info()["compiled"], bertxfer_fast.build_info()["reason"]


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_kernels_of_lesser_processors(instruction_set: str) -> None:
    """The accuracy tests again, in a process that pretends to run on an older processor."""
    info = bertxfer_fast.build_info()
    if not info["compiled"]:
        pytest.skip(info["reason"])
    compiled = info["instruction_sets"].split(",")
    if instruction_set not in compiled[: compiled.index(info["instruction_set"])]:
        pytest.skip(f"nothing to lower: this processor runs {info['instruction_set']}")
    shown = output(
        "import bertxfer_fast; print(bertxfer_fast.build_info()['instruction_set'])",
        BERTXFER_ISA=instruction_set,
    )
    assert shown.strip() == instruction_set
    # From AVX-512 on the sets differ in products of bfloat16 alone, which two kernels use.
    files = "test_*.py" if instruction_set in ("baseline", "avx2") else "test_attention_*.py"
    files = [str(file) for file in Path(__file__).parent.glob(files) if file != Path(__file__)]
    selection = "cpp and (as_accurate_as_plain_pytorch or digits or threads)"
    arguments = ["-q", "-p", "no:cacheprovider", "-x", "-k", selection, *files]
    code = f"import pytest, sys; sys.exit(pytest.main({arguments!r}))"
    result = python(code, BERTXFER_ISA=instruction_set, HYPOTHESIS_PROFILE="brief")
    assert result.returncode == 0, result.stdout[-3000:]
