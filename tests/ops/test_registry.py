"""Each operator's record, and the lists that are derived from it: an operator is its own rooms and nothing else."""

from __future__ import annotations

import dataclasses
import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import autograd, library
from bertxfer_fast.ops._dispatch.backend import unavailable
from bertxfer_fast.ops._dispatch.formula import DOUBLE_BACKWARD, Formula
from bertxfer_fast.ops._dispatch.registry import OPS, OpInfo, public

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [name for name, info in OPS.items() if info.function is not None]
#: Without scale_grad_, which returns nothing that could be differentiated.
BACKWARD_ONLY = [name for name, info in OPS.items() if not info.differentiable and name != "scale_grad_"]


def tensors_of(value: Any) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]


def requiring_grad(info: OpInfo) -> dict[str, Any]:
    """The example's arguments; every floating tensor of them requires a gradient."""
    example = info.example()
    for tensor in tensors_of(example):
        tensor.requires_grad_(tensor.is_floating_point())
    return example


def gradients(info: OpInfo, out: Tensor, example: dict[str, Any]) -> dict[str, list[Tensor | None]]:
    """The gradient of each tensor argument; a list has one for each of its tensors."""
    out.backward(torch.linspace(1, 2, out.numel()).view(out.shape))
    return {name: [x.grad for x in tensors_of(value)] for name, value in example.items() if tensors_of(value)}


def check_opcheck(name: str, backend: str) -> None:
    """In half precision, which shows what is float32 inside. The contracts of cases.py do it for every option."""
    info = OPS[name]
    for dtype in (torch.bfloat16, torch.float16):
        example = info.example(dtype)
        for argument in info.differentiable:
            for tensor in tensors_of(example[argument]):
                tensor.requires_grad_()
        opcheck(library.overload(name, backend), tuple(example.values()))


def check_gradients(name: str) -> None:
    """What is declared gets a gradient, and nothing else, on the fast path and on the registered one: the same bits."""
    info = OPS[name]
    fast, registered = requiring_grad(info), requiring_grad(info)
    leading = [value for argument, value in fast.items() if argument != "need_grad"]
    found = gradients(info, autograd.run(name, "cpu", *leading), fast)
    op = autograd.overload_for(name, "cpu", torch.ones(()))
    theirs = gradients(info, op(*registered.values())[0], registered)
    for argument, mine in found.items():
        for a, b in zip(mine, theirs[argument], strict=True):
            assert (a is not None) == (b is not None) == (argument in info.differentiable), argument
            assert a is None or torch.equal(a, b), argument


@pytest.mark.parametrize("name", OPS)
def test_an_example_has_the_arguments_of_the_schema(name: str) -> None:
    info = OPS[name]
    for sizes in ({}, *info.sizes.values()):
        assert list(info.example(torch.bfloat16, **sizes)) == list(info.arguments)


@pytest.mark.parametrize("name", OPS)
def test_opcheck_of_every_operator(backend: str, name: str) -> None:
    if unavailable(name, backend, "cpu") is not None:
        pytest.skip(unavailable(name, backend, "cpu"))
    check_opcheck(name, backend)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_declared_gets_a_gradient(backend: str, name: str) -> None:
    check_gradients(name)


@pytest.mark.parametrize("name", PUBLIC)
def test_eager_calls_do_without_the_registered_formula(name: str) -> None:
    """It costs tens of microseconds, which is most of what a small call takes."""
    args = [value for argument, value in requiring_grad(OPS[name]).items() if argument != "need_grad"]
    assert autograd.run(name, "cpu", *args).grad_fn.name().startswith("_Fast")


@pytest.mark.parametrize("name", BACKWARD_ONLY)
def test_what_runs_in_a_backward_pass_has_no_derivative(name: str) -> None:
    results = library.overload(name, "eager")(*requiring_grad(OPS[name]).values())
    with pytest.raises(RuntimeError, match=re.escape(DOUBLE_BACKWARD)):
        tensors_of(results)[0].sum().backward()


@pytest.mark.parametrize("name", [name for name, info in OPS.items() if "cpp" in info.compiled])
def test_compiled_operators_name_what_is_wrong(name: str) -> None:
    """Callers of torch.ops have no checks but these, in the grammar of all errors."""
    if library.extension is None:
        pytest.skip(library.extension_error)
    info = OPS[name]
    everything = {
        "pool_features_backward": {"mode": "max", "normalize": True}
    }  # or else three arguments are not read
    example = info.example(**everything.get(name, {}))
    for argument, kind in info.arguments.items():
        if "Tensor" not in kind or example[argument] is None:
            continue
        with pytest.raises(RuntimeError) as caught:
            wrong = torch.utils._pytree.tree_map(lambda t: t.to(torch.complex64), example[argument])
            library.overload(name, "cpp")(*{**example, argument: wrong}.values())
        assert re.search(r", \w+: got .+, want .+", str(caught.value)), argument


@pytest.mark.parametrize("row", [-1, 5, 2**31 - 1])
def test_rows_that_are_not_the_sequences_own_are_not_written(row: int) -> None:
    """Sequence 0 has tokens 0 to 4."""
    if library.extension is None:
        pytest.skip(library.extension_error)
    example = OPS["pool_features_backward"].example(mode="max")
    example["argmax"][0, 1] = row
    with pytest.raises(RuntimeError, match=f"argmax: got {row} at sequence 0, want 0 to 4"):
        library.overload("pool_features_backward", "cpp")(*example.values())


def test_every_operator_has_its_rooms() -> None:
    for info in OPS.values():
        assert (ROOT / "bertxfer_fast" / "ops" / info.room / "eager.py").is_file()
        assert (ROOT / "tests" / "ops" / f"test_{info.room}.py").is_file()
        assert info.compiled == () or (ROOT / "csrc" / info.room).is_dir()
        assert info.benchmark is None or (ROOT / "benchmarks" / f"bench_{info.benchmark}.py").is_file()


# Documentation


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run_as_they_stand_in_the_docstring(name: str) -> None:
    function = OPS[name].function
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs={})
    assert found.examples
    report: list[str] = []
    assert doctest.DocTestRunner().run(found, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_have_one_layout(name: str) -> None:
    function = OPS[name].function
    doc = function.__doc__
    sections = re.findall(r"^    (\w+):$", doc, re.MULTILINE)
    assert sections == ["Args", "Returns", "Raises", "Example", "References"]
    assert "The eager expression that is avoided" in doc
    arguments = doc.partition("    Args:\n")[2].partition("    Returns:")[0]
    named = re.findall(r"^        ([\w, ]+): ", arguments, re.MULTILINE)
    code = function.__code__
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert sorted(", ".join(named).split(", ")) == sorted(taken)


# Declarations that are wrong


def copy_of(name: str, **changes: Any) -> OpInfo:
    return dataclasses.replace(OPS[name], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"differentiable": ("pupil",)}, "got 'pupil', want names of student, teacher"),
        ({"differentiable": ("temperature",)}, "got 'temperature', a float, want a tensor"),
        ({"differentiable": ()}, "want names together with"),
        ({"backward": None}, "want names together with"),
    ],
)
def test_a_record_that_contradicts_its_schema_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"logits_kl: differentiable: .*{message}"):
        copy_of("logits_kl", **changes)


def test_a_second_operator_of_the_same_name_is_refused() -> None:
    with pytest.raises(ValueError, match="logits_kl: got a second operator"):
        library.register(OPS["logits_kl"])


@pytest.mark.parametrize("returned", [0, 1, 2, 4])
def test_a_backward_of_another_length_than_declared_is_refused(
    returned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hidden_mse has three differentiable inputs."""
    broken = copy_of("hidden_mse", backward=lambda ctx, grad, needed: [None] * returned)
    monkeypatch.setitem(autograd.FORMULAS, "hidden_mse", Formula(broken))
    student = torch.ones(3, 4, requires_grad=True)
    loss = ops.hidden_mse(student, torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match=f"got {returned} gradients, want 3: student, weight, bias"):
        loss.backward()


def test_public_functions_are_those_of_the_records() -> None:
    assert sorted(ops.__all__) == sorted(["build_info", "explain", "use_backend", *public()])
    for name, function in public().items():
        assert getattr(ops, name) is function
    assert set(bertxfer_fast.explain()) == set(OPS)


# A new operator, in a folder of its own

TOY = {
    "eager.py": """
def toy(a, b, c, d, e, f, power):
    return a.sum() + (b * c).sum() + (d * e * f**power).sum(), f.new_ones(())
""",
    "__init__.py": '''
"""A sum of products, to show how an operator is added."""

import torch

from .._dispatch.autograd import run
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager


def toy(a, b, c, d, e, f, *, power=2):
    return run("toy", a.device.type, a, b, c, d, e, f, power)


def _save(ctx, inputs, output):
    _, _, _, d, e, f, ctx.power = inputs
    ctx.save_for_backward(d, e, f)


def _backward(ctx, grad, needed):
    d, e, f = ctx.saved_tensors
    return grad.expand(f.shape), grad * d * e * ctx.power * f ** (ctx.power - 1)


def _example(dtype=torch.float32, *, numel=3):
    return {**{name: torch.full((numel,), 2.0 + i).to(dtype) for i, name in enumerate("abcdef")}, "power": 2}


register(
    OpInfo(
        name="toy",
        module=__name__,
        schema="(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, int power) -> (Tensor out, Tensor unit)",
        function=toy,
        eager=eager.toy,
        fake=lambda a, *args: (a.new_empty(()), a.new_empty(())),
        example=_example,
        sizes={"wide": {"numel": 64}},
        differentiable=("a", "f"),
        setup_context=_save,
        backward=_backward,
    )
)
''',
}
FIND_IT = """
import importlib.util, sys
spec = importlib.util.find_spec("bertxfer_fast.ops")
spec.submodule_search_locations.append(sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)

import torch
import bertxfer_fast
from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import registry

assert "toy" in ops.__all__
entry = bertxfer_fast.explain()["toy"]["cpu"]
assert entry["implementation"] == "eager" and entry["reasons"]["cpp"] == "toy has no cpp implementation", entry
assert "toy" in registry.benchmarks()

f = torch.full((3,), 5.0, requires_grad=True)
others = [torch.full((3,), x, requires_grad=True) for x in (1.0, 2.0, 3.0, 4.0, 5.0)]
for function in (ops.toy, torch.compile(ops.toy, fullgraph=True, backend="aot_eager")):
    a, *rest = torch.autograd.grad(function(*others, f), (*others, f), allow_unused=True)
    assert torch.equal(a, torch.ones(3)) and torch.equal(rest.pop(), torch.full((3,), 4.0 * 5 * 2 * 5))
    assert rest == [None] * 4

from tests.ops import tables, test_registry
assert "| `ops.toy` | A sum of products, to show how an operator is added |" in tables.operators()
assert "from .toy import toy as toy" in tables.stub()
assert set(tables.outdated()) == {"README.md", "bertxfer_fast/ops/__init__.pyi"}
assert "toy" in test_registry.PUBLIC
test_registry.test_an_example_has_the_arguments_of_the_schema("toy")
test_registry.check_opcheck("toy", "eager")
test_registry.check_gradients("toy")
"""


def test_a_new_operator_is_found_in_every_list(tmp_path: Path) -> None:
    room = tmp_path / "toy"
    room.mkdir()
    for name, text in TOY.items():
        (room / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", FIND_IT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
