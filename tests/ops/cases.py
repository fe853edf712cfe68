"""What the op tests have in common: drawn packs and layouts, bad packings, and the contract every op keeps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import bertxfer_fast
from bertxfer_fast.ops._dispatch.formula import DOUBLE_BACKWARD

from .reference import Outcome, evaluate, largest, relative_error, uneven

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

#: Dimensions and lengths around vector widths and tile edges, beside everything in between.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 26, 31, 32, 33, 63, 64, 65, 127, 128, 129)
widths = st.one_of(st.sampled_from((*EDGES, 130)), st.integers(1, 130))
heads = st.integers(1, 4)
lengths = st.one_of(
    st.just(0), st.integers(1, 9), st.sampled_from((*EDGES, 255, 256, 257)), st.integers(1, 300)
)

#: How a tensor may lie in memory: see `lay_out`.
LAYOUTS = ("contiguous", "fused", "transposed", "strided_last", "unaligned", "expanded")
layouts = st.sampled_from(LAYOUTS)
layouts_1d = st.sampled_from(("contiguous", "fused", "strided_last", "unaligned"))


@dataclass
class Pack:
    """The packing of a drawn batch. `longest` is what is passed as max_seqlen: None, exact or too large."""

    lengths: list[int]
    used: list[int] | None = None
    longest: int | None = None

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)

    @property
    def seqused(self) -> Tensor | None:
        return None if self.used is None else torch.tensor(self.used, dtype=torch.int32)

    @property
    def packing(self) -> dict[str, Any]:
        """Keyword arguments of the ops; what is left out is not in it."""
        options = {"cu_seqlens": self.cu_seqlens, "seqused": self.seqused, "max_seqlen": self.longest}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def unused(self) -> Tensor:
        """bool [T], True where a token does not count."""
        mask = torch.zeros(self.tokens, dtype=torch.bool)
        if self.used is not None:
            for start, length, used in zip(self.cu_seqlens.tolist(), self.lengths, self.used, strict=False):
                mask[start + used : start + length] = True
        return mask


@st.composite
def packs(
    draw: st.DrawFn, *, max_tokens: int = 500, max_pairs: int = 120_000, partly_used: bool = True
) -> Pack:
    """Packs of up to six sequences, of which the first may take all tokens and any may be empty."""
    chosen: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        room = min(max_tokens - sum(chosen), math.isqrt(max_pairs - sum(n * n for n in chosen)))
        chosen.append(min(draw(lengths), room))
    used = [draw(st.integers(0, n)) for n in chosen] if partly_used and draw(st.booleans()) else None
    longest = draw(st.sampled_from((None, max(chosen), max(chosen) + 5)))
    return Pack(chosen, used, longest)


any_pack = packs()


@dataclass
class Case:
    """A drawn example: small to print, `tensors` builds its inputs."""

    pack: Pack
    shapes: dict[str, tuple[int, ...]]
    layouts: dict[str, str]
    seed: int
    amplitude: float = 1.0
    #: Tokens outside seqused are NaN: whoever reads them shows it.
    poison: bool = field(default=True, repr=False)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        built, unused = {}, self.pack.unused
        for name, shape in self.shapes.items():
            values = self.amplitude * torch.randn(shape, generator=generator)
            if self.poison and len(values) == len(unused):
                values[unused] = math.nan
            built[name] = lay_out(values.to(dtype), self.layouts[name])
        return built


@st.composite
def cases(
    draw: st.DrawFn, shapes: dict[str, str], *, packs: st.SearchStrategy[Pack] | None = None, **sizes: Any
) -> Case:
    """Inputs of an op: `shapes` maps their names to letters, one per dimension, as in {"q": "THd", "bias": "d"}.

    T is the number of tokens of the pack, H a number of heads; other letters are widths, unless `sizes` says how
    to draw them.
    """
    pack = draw(any_pack if packs is None else packs)
    known = {"T": pack.tokens}
    for letter in "".join(shapes.values()):
        if letter not in known:
            known[letter] = draw(sizes.get(letter, heads if letter == "H" else widths))
    return Case(
        pack,
        {name: tuple(known[letter] for letter in letters) for name, letters in shapes.items()},
        {name: draw(layouts if len(letters) > 1 else layouts_1d) for name, letters in shapes.items()},
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from((0.3, 1.0))),
    )


def lay_out(values: Tensor, layout: str) -> Tensor:
    """`values` with the strides of `layout`; memory that belongs to the storage but not to the view is NaN."""
    tokens, *rest = values.shape
    nan = {"dtype": values.dtype, "fill_value": math.nan}
    if layout == "fused":  # one of q, k, v in the output of a fused projection
        view = torch.full((tokens, 3, *rest), **nan)[:, 1]
    elif layout == "transposed":  # heads before tokens, as transformers' attention functions get them
        view = torch.full((rest[0], tokens, *rest[1:]), **nan).transpose(0, 1)
    elif layout == "strided_last":
        view = torch.full((*values.shape[:-1], 2 * values.shape[-1]), **nan)[..., ::2]
    elif layout == "unaligned":
        view = torch.full((values.numel() + 1,), **nan)[1:].view(values.shape)
    elif layout == "expanded":  # one set of values for all heads, as multi-query attention's keys
        return values[:, :1].clone().expand(values.shape)
    else:
        return values.contiguous()
    return view.copy_(values)


def wrong(name: str, argument: str, change: dict[str, Any]) -> Any:
    """A pytest parameter: arguments to replace (a function gets the good value), the one the message must name."""
    return pytest.param((change, argument), id=name.replace(" ", "-"))


def assert_refused(
    function: Callable[..., Any], good: dict[str, Any], change: dict[str, Any], argument: str
) -> None:
    """ValueError or TypeError, in the one grammar of all errors."""
    bad = {name: value(good.get(name)) if callable(value) else value for name, value in change.items()}
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**{**good, **bad})
    message = str(caught.value)
    assert re.search(rf"\b({argument})\b", message)
    assert re.fullmatch(r"[\w\[\]]+: got .+, want .+", message, re.DOTALL), message


def wrong_tensor(name: str, dims: int, *, pair: str | None = None, names: str = "") -> list[Any]:
    """What can be wrong with any tensor argument, which the message calls `names`, by default `name`.

    `pair` is the argument whose device it has to share: the message may put it on either.
    """
    argument = names or name
    found = [
        wrong(f"{name} is None", argument, {name: None}),
        wrong(f"{name} is a list", argument, {name: lambda t: t.tolist()}),
        wrong(f"{name} with {dims - 1} dims", argument, {name: lambda t: t[0]}),
        wrong(f"{name} with {dims + 1} dims", argument, {name: lambda t: t[None]}),
        *(
            wrong(f"{name} {dtype}", argument, {name: lambda t, dtype=dtype: t.to(dtype)})
            for dtype in (torch.int32, torch.bool, torch.complex64, torch.float64)
        ),
    ]
    if pair is not None:
        found.append(wrong(f"{name} on another device", f"{name}|{pair}", {name: lambda t: t.to("meta")}))
    return found


def seqused(values: Callable[[int], int], dtype: torch.dtype = torch.int32) -> dict[str, Tensor]:
    return {"seqused": torch.tensor([values(n) for n in SMALL.lengths], dtype=dtype)}


SMALL = Pack([4, 3, 6])

WRONG_CU_SEQLENS = [
    wrong("cu_seqlens descends", "cu_seqlens", {"cu_seqlens": lambda cu: cu[[0, 2, 1, 3]]}),
    wrong("cu_seqlens starts at 1", "cu_seqlens", {"cu_seqlens": lambda cu: cu.clamp_min(1)}),
    wrong("cu_seqlens starts below 0", "cu_seqlens", {"cu_seqlens": lambda cu: cu - (cu == 0).int()}),
    wrong(
        "cu_seqlens ends before T", "cu_seqlens", {"cu_seqlens": lambda cu: cu.clamp_max(SMALL.tokens - 1)}
    ),
    wrong(
        "cu_seqlens ends after T", "cu_seqlens", {"cu_seqlens": lambda cu: cu + (cu == SMALL.tokens).int()}
    ),
    wrong("cu_seqlens overshoots", "cu_seqlens", {"cu_seqlens": lambda cu: cu + 100 * (cu == cu[1]).int()}),
    wrong("cu_seqlens int64", "cu_seqlens", {"cu_seqlens": lambda cu: cu.long()}),
    wrong("cu_seqlens float", "cu_seqlens", {"cu_seqlens": lambda cu: cu.float()}),
    wrong("cu_seqlens is a list", "cu_seqlens", {"cu_seqlens": lambda cu: cu.tolist()}),
    wrong("cu_seqlens is None", "cu_seqlens", {"cu_seqlens": None}),
    wrong("cu_seqlens with 2 dims", "cu_seqlens", {"cu_seqlens": lambda cu: cu[None]}),
    wrong("cu_seqlens without entry", "cu_seqlens", {"cu_seqlens": lambda cu: cu[:0]}),
    wrong("cu_seqlens on another device", "cu_seqlens", {"cu_seqlens": lambda cu: cu.to("meta")}),
]
WRONG_MAX_SEQLEN = [
    wrong("max_seqlen too small", "max_seqlen", {"max_seqlen": max(SMALL.lengths) - 1}),
    wrong("max_seqlen negative", "max_seqlen", {"max_seqlen": -1}),
    wrong("max_seqlen a float", "max_seqlen", {"max_seqlen": 6.0}),
    wrong("max_seqlen a string", "max_seqlen", {"max_seqlen": "6"}),
    wrong("max_seqlen a tensor of many", "max_seqlen", {"max_seqlen": SMALL.cu_seqlens}),
]
WRONG_SEQUSED = [
    wrong("seqused beyond the sequence", "seqused", seqused(lambda n: n + 1)),
    wrong("seqused negative", "seqused", seqused(lambda n: -1)),
    wrong("seqused of another N", "seqused", {"seqused": torch.zeros(4, dtype=torch.int32)}),
    wrong("seqused int64", "seqused", seqused(lambda n: n, torch.int64)),
    wrong("seqused is a list", "seqused", {"seqused": SMALL.lengths}),
    wrong(
        "seqused on another device", "seqused", {"seqused": torch.zeros(3, dtype=torch.int32, device="meta")}
    ),
]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def poisoned_memory(sizes: set[int]) -> Iterator[None]:
    """Uninitialised memory holds NaN: what torch.empty fills itself, and freed blocks the allocator hands out again."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        blocks = [
            torch.full((size,), math.nan, dtype=dtype) for size in sizes for dtype in DTYPES for _ in range(4)
        ]
        del blocks
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class RecordedCalls(TorchDispatchMode):
    """Every call of one of the package's operators: the operator, its arguments, its results."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "bertxfer_fast":
            assert not kwargs, "schemas have positional arguments only"
            self.calls.append((func, args, result))
        return result


class OpContract:
    """What every differentiable op promises, DESIGN section 4. A test class of an op inherits it and says

    - `operator`, `function`, `plain`: the schema name, the public function, its reference,
    - `student`, `teacher`: names of the inputs with and without gradient,
    - `inputs(dtype, pack)`: these tensors, a fresh copy each time,
    - `variant`: a fixture with the options worth distinguishing, `irrelevant` those the reference does not know,
    - `bad_argument`: a fixture over `wrong` arguments.
    """

    operator: str
    function: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    irrelevant: tuple[str, ...] = ()
    #: Whether there is a kernel in C++.
    compiled = True
    student: tuple[str, ...]
    teacher: tuple[str, ...] = ()
    is_loss = False
    autocast_error = 1e-6
    #: Whether kernels leave sums over tokens to a library that adds them up differently for each number of threads.
    uses_library_products = False
    pack = Pack([64, 0, 37, 5, 1, 70])
    small_pack = Pack([9, 3, 0, 30, 2, 11])
    #: Enough work for kernels to split it among threads.
    large_pack = Pack([40, 0, 128, 17, 300, 1, 129, 64, 64, 200])

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        raise NotImplementedError

    def call(self, variant: dict[str, Any], packing: dict[str, Any], **tensors: Tensor) -> Tensor:
        return self.function(**tensors, **packing, **variant)

    def reference(self, variant: dict[str, Any], packing: dict[str, Any], **tensors: Tensor) -> Tensor:
        options = {name: value for name, value in variant.items() if name not in self.irrelevant}
        return self.plain(**tensors, **packing, **options)

    def packing(self, pack: Pack) -> dict[str, Any]:
        return pack.packing

    def gets_grad(self, argument: str) -> bool:
        """Whether an argument of the operator's schema is differentiable."""
        return argument in self.student

    def positions(self, variant: dict[str, Any], name: str, tensor: Tensor) -> list[int]:
        """Flat positions of an input where a NaN must show in the result."""
        return [0, tensor.numel() - 1]

    def upstream(self, out: Tensor) -> Tensor:
        """The gradient handed to backward."""
        return torch.ones_like(out) if self.is_loss else uneven(out)

    def run(
        self,
        variant: dict[str, Any],
        tensors: dict[str, Tensor],
        wrt: tuple[str, ...] | None = None,
        *,
        pack: Pack | None = None,
        function: Callable[..., Tensor] | None = None,
        dtype: torch.dtype | None = None,
        upstream_scale: float = 1.0,
    ) -> Outcome:
        packing = self.packing(pack or self.pack)

        def bound(**leaves: Tensor) -> Tensor:
            return (function or self.call)(variant, packing, **leaves)

        def upstream(out: Tensor) -> Tensor:
            return upstream_scale * self.upstream(out)

        wrt = self.student if wrt is None else wrt
        return evaluate(bound, tensors, wrt, dtype=dtype, upstream=upstream)

    def test_runs_on_the_backend_under_test(self, backend: str, variant: dict[str, Any]) -> None:
        """Forward and backward: or else all these tests would test one implementation twice."""
        table = bertxfer_fast.explain()
        with RecordedCalls() as recorded:
            self.run(variant, self.inputs(torch.float32, self.pack))
        assert recorded.calls, "the public function calls no registered operator"
        for op, _, _ in recorded.calls:
            name = op._schema.name.partition("::")[2]
            assert op._overloadname == table[name]["cpu"]["implementation"], op
            assert op._overloadname == backend or not self.compiled, op

    # Determinism

    @dtypes
    def test_same_inputs_give_the_same_bits(
        self, backend: str, variant: dict[str, Any], dtype: torch.dtype
    ) -> None:
        tensors = self.inputs(dtype, self.pack)
        first = self.run(variant, tensors)
        for _ in range(3):
            first.assert_same_bits(self.run(variant, tensors), "between two identical calls")

    @dtypes
    def test_bits_do_not_depend_on_the_number_of_threads(
        self, backend: str, variant: dict[str, Any], dtype: torch.dtype
    ) -> None:
        if backend == "eager":
            pytest.skip("torch.matmul splits a long sum differently for each number of threads")
        if self.uses_library_products:
            pytest.skip("the library's product splits a long sum differently for each number of threads")
        tensors = self.inputs(dtype, self.large_pack)
        outcomes = {}
        for count in (1, 2, 4):
            with threads(count):
                outcomes[count] = self.run(variant, tensors, pack=self.large_pack)
        for count in (2, 4):
            outcomes[1].assert_same_bits(outcomes[count], f"between 1 and {count} threads")

    # Autograd

    def test_result_has_the_promised_type(self, backend: str, variant: dict[str, Any]) -> None:
        for dtype in DTYPES:
            tensors = self.inputs(dtype, self.pack)
            got = self.run(variant, tensors)
            if self.is_loss:
                assert got.out.dtype == torch.float32 and got.out.shape == ()
            for name, grad in got.grads.items():
                assert grad.dtype == tensors[name].dtype, f"gradient of {name}"

    @dtypes
    def test_gradient_scales_with_the_upstream_gradient(
        self, backend: str, variant: dict[str, Any], dtype: torch.dtype
    ) -> None:
        tensors = self.inputs(dtype, self.pack)
        scale = 3.0 if self.is_loss else 4.0  # a power of two keeps half-precision gradients exact
        once, more = self.run(variant, tensors), self.run(variant, tensors, upstream_scale=scale)
        for name, grad in once.grads.items():
            info = torch.finfo(grad.dtype)
            tolerance = 4 * scale * (info.eps * largest(grad) + info.smallest_normal)
            assert largest(more.grads[name].double() - scale * grad.double()) <= tolerance, (
                f"gradient of {name}"
            )

    def test_backward_may_run_twice(self, backend: str, variant: dict[str, Any]) -> None:
        leaves = {
            n: t.requires_grad_(n in self.student) for n, t in self.inputs(torch.float32, self.pack).items()
        }
        wrt = [leaves[name] for name in self.student]
        out = self.call(variant, self.packing(self.pack), **leaves)
        first = torch.autograd.grad(out, wrt, self.upstream(out), retain_graph=True)
        second = torch.autograd.grad(out, wrt, self.upstream(out))
        for name, a, b in zip(self.student, first, second, strict=True):
            assert torch.equal(a, b), f"gradient of {name} changed"

    def test_double_backward_is_refused_in_words(self, backend: str, variant: dict[str, Any]) -> None:
        leaves = {
            n: t.requires_grad_(n in self.student) for n, t in self.inputs(torch.float32, self.pack).items()
        }
        wrt = [leaves[name] for name in self.student]
        out = self.call(variant, self.packing(self.pack), **leaves)
        with pytest.raises(RuntimeError, match=re.escape(DOUBLE_BACKWARD)):
            grads = torch.autograd.grad(out, wrt, self.upstream(out).requires_grad_(), create_graph=True)
            torch.autograd.grad(sum(g.float().square().sum() for g in grads), wrt)

    def test_teacher_gets_no_gradient(self, backend: str, variant: dict[str, Any]) -> None:
        leaves = {n: t.requires_grad_() for n, t in self.inputs(torch.float32, self.pack).items()}
        out = self.call(variant, self.packing(self.pack), **leaves)
        out.backward(self.upstream(out))
        for name, leaf in leaves.items():
            assert (leaf.grad is None) == (name in self.teacher), name

    def test_teacher_alone_makes_no_graph(self, backend: str, variant: dict[str, Any]) -> None:
        leaves = {
            n: t.requires_grad_(n in self.teacher) for n, t in self.inputs(torch.float32, self.pack).items()
        }
        assert not self.call(variant, self.packing(self.pack), **leaves).requires_grad

    def test_any_subset_may_require_grad(self, backend: str, variant: dict[str, Any]) -> None:
        """Alone or with others, an input gets the same gradient."""
        tensors = self.inputs(torch.float32, self.pack)
        everything = self.run(variant, tensors)
        for name in self.student:
            alone = self.run(variant, tensors, (name,))
            assert relative_error(alone.grads[name], everything.grads[name].double()) <= 1e-6, name
            assert relative_error(alone.out, everything.out.double()) <= 1e-6, name

    @pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires grad"])
    def test_without_grad_there_is_no_gradient_work(
        self, backend: str, variant: dict[str, Any], how: str
    ) -> None:
        tensors = self.inputs(torch.float32, self.pack)
        guard = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
        with guard(), RecordedCalls() as recorded:
            leaves = {n: t.requires_grad_(how == "no_grad" and n in self.student) for n, t in tensors.items()}
            out = self.call(variant, self.packing(self.pack), **leaves)
        assert not out.requires_grad
        assert relative_error(out, self.run(variant, tensors).out.double()) <= 1e-6
        if self.is_loss:
            for op, _, results in recorded.calls:
                assert sum(r.numel() for r in results) <= 2, (
                    f"{op} returned more than the loss and its grad_scale"
                )

    # Memory and values

    @dtypes
    def test_results_are_written_completely(
        self, backend: str, variant: dict[str, Any], dtype: torch.dtype
    ) -> None:
        tensors = self.inputs(dtype, self.pack)
        clean = self.run(variant, tensors)
        with poisoned_memory({t.numel() for t in (*tensors.values(), clean.out)}):
            poisoned = self.run(variant, tensors)
        for name, value in poisoned.items():
            assert value.isfinite().all(), f"{name} was not written everywhere"
        clean.assert_same_bits(poisoned, "when uninitialised memory holds NaN")

    def test_inputs_are_not_modified(self, backend: str, variant: dict[str, Any]) -> None:
        tensors = self.inputs(torch.float32, self.pack)
        before = {name: t.clone() for name, t in tensors.items()}
        self.run(variant, tensors)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, before[name]), name

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_and_inf_are_not_swallowed(self, backend: str, variant: dict[str, Any], value: float) -> None:
        for dtype in DTYPES:
            for name in (*self.student, *self.teacher):
                for position in self.positions(variant, name, self.inputs(dtype, self.pack)[name]):
                    tensors = self.inputs(dtype, self.pack)
                    tensors[name].view(-1)[position] = value
                    for wrt in ((), self.student):
                        out = self.run(variant, tensors, wrt).out
                        assert not out.isfinite().all(), (
                            f"{value} at {position} of {name} vanished ({dtype}, {wrt})"
                        )

    # Transforms

    def test_opcheck(self, backend: str, variant: dict[str, Any]) -> None:
        """torch.library.opcheck on every operator call that a forward and a backward make."""
        with RecordedCalls() as recorded:
            self.run(variant, self.inputs(torch.bfloat16, self.pack))  # shows what stays float32 inside
        for op, args, _ in recorded.calls:
            own = op._schema.name == f"bertxfer_fast::{self.operator}"
            opcheck(op, self.with_grad(op, args) if own else self.detached(args))

    @staticmethod
    def detached(args: Any) -> Any:
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)

    def with_grad(self, op: Any, args: Any) -> Any:
        """Copies of the recorded arguments; those that get a gradient in the public function require grad."""
        names = [argument.name for argument in op._schema.arguments]
        return tuple(
            torch.utils._pytree.tree_map_only(
                torch.Tensor, lambda t, name=name: t.requires_grad_(self.gets_grad(name)), value
            )
            for name, value in zip(names, self.detached(args), strict=True)
        )

    def test_compiles_as_one_graph(self, backend: str, variant: dict[str, Any]) -> None:
        self.check_compiled(variant, [self.pack], backend="aot_eager", dynamic=False)

    def test_one_graph_serves_any_number_of_tokens(self, backend: str, variant: dict[str, Any]) -> None:
        self.check_compiled(variant, [self.pack, self.small_pack], backend="aot_eager", dynamic=True)

    @pytest.mark.slow
    def test_compiles_with_inductor(self, backend: str, variant: dict[str, Any]) -> None:
        self.check_compiled(variant, [self.pack, self.small_pack], backend="inductor", dynamic=True)

    def check_compiled(self, variant: dict[str, Any], packs: list[Pack], **compile_options: Any) -> None:
        """The same numbers from a full graph, compiled for the first pack and not again for the others."""
        torch._dynamo.reset()
        compiled = torch.compile(self.call, fullgraph=True, **compile_options)
        for i, pack in enumerate(packs):
            tensors = self.inputs(torch.float32, pack)
            plain = self.run(variant, tensors, pack=pack)
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                traced = self.run(variant, tensors, pack=pack, function=compiled)
            for (name, a), (_, b) in zip(plain.items(), traced.items(), strict=True):
                assert relative_error(b, a.double()) <= 1e-5, f"{name} differs under torch.compile"

    def test_autocast_does_not_reach_inside(self, backend: str, variant: dict[str, Any]) -> None:
        """Autocast may choose the dtype of the arguments, where the op says so; it may not touch the accumulation."""
        tensors = self.inputs(torch.float32, self.pack)
        plain = self.run(variant, tensors)
        with torch.autocast("cpu", torch.bfloat16):
            cast = self.run(variant, tensors)
        for (name, a), (_, b) in zip(plain.items(), cast.items(), strict=True):
            assert relative_error(b, a.double()) <= self.autocast_error, f"{name} under autocast"
            assert b.dtype == a.dtype, name

    # Bad input

    def test_bad_arguments_are_named(self, backend: str, bad_argument: tuple[dict[str, Any], str]) -> None:
        good = {**self.inputs(torch.float32, SMALL), **self.packing(SMALL)}
        self.function(**good)
        assert_refused(self.function, good, *bad_argument)


class LossContract(OpContract):
    """The contract of an op that returns a float32 scalar."""

    is_loss = True

    @pytest.mark.parametrize("amplitude", [1.0, 0.05])
    def test_loss_scale_keeps_small_half_precision_gradients(
        self, backend: str, variant: dict[str, Any], amplitude: float
    ) -> None:
        """float16 gradients too small to be represented must survive a loss scale: scaled first, then rounded.

        The scale is the one a gradient scaler settles on: the largest that overflows nothing, at most 2^16.
        """
        tensors = {n: amplitude * t for n, t in self.inputs(torch.float16, self.large_pack).items()}
        options: dict[str, Any] = {"pack": self.large_pack, "function": self.reference}
        unscaled = self.run(variant, tensors, **options, dtype=torch.float64)
        steepest = max(largest(grad) for grad in unscaled.grads.values())
        scale = 2.0 ** min(16, math.floor(math.log2(2**15 / steepest)))
        exact = self.run(variant, tensors, **options, upstream_scale=scale, dtype=torch.float64)
        plain = self.run(variant, tensors, **options, upstream_scale=scale)
        got = self.run(variant, tensors, pack=self.large_pack, upstream_scale=scale)
        for name, truth in exact.grads.items():
            # What float16 itself cannot hold is nobody's error.
            rounding = relative_error(truth.to(got.grads[name].dtype), truth)
            ordinary = relative_error(plain.grads[name], truth)
            allowed = max(4e-3, 2 * ordinary if math.isfinite(ordinary) else 0.0, 1.1 * rounding)
            assert relative_error(got.grads[name], truth) <= allowed, f"gradient of {name}"


class MaxSeqlenContract(OpContract):
    """The contract of an op that takes a max_seqlen."""

    def test_one_graph_serves_any_max_seqlen(self, backend: str, variant: dict[str, Any]) -> None:
        packs = [replace(pack, longest=max(pack.lengths)) for pack in (self.pack, self.small_pack)]
        self.check_compiled(variant, packs, backend="aot_eager", dynamic=True)


PAIR = ("q_student", "k_student", "q_teacher", "k_teacher")
PAIR_SHAPES = {"q_student": "THs", "k_student": "THs", "q_teacher": "THt", "k_teacher": "THt"}

pair_options = st.fixed_dictionaries(
    {"reduction": st.sampled_from(("mean", "sum"))},
    optional={"scale_student": st.sampled_from((0.05, 0.5)), "scale_teacher": st.sampled_from((0.02, 0.4))},
)


def attention_pair(
    dtype: torch.dtype, pack: Pack, *, heads: int = 3, student: int = 26, teacher: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs of an attention loss, contiguous, by default with the head dims of TinyBERT-4 and BERT-base."""
    generator = torch.Generator().manual_seed(seed)
    dims = {"q_student": student, "k_student": student, "q_teacher": teacher, "k_teacher": teacher}
    return {
        name: torch.randn(pack.tokens, heads, dim, generator=generator).to(dtype)
        for name, dim in dims.items()
    }


class AttentionPairContract(LossContract, MaxSeqlenContract):
    """The contract of a loss between the attention of student and teacher."""

    student = PAIR[:2]
    teacher = PAIR[2:]

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return attention_pair(dtype, pack)

    @staticmethod
    def wrong_arguments() -> list[Any]:
        return [
            *(bad for name in PAIR for bad in wrong_tensor(name, 3, pair="q_student")),
            *(
                wrong(f"{name} with {what}", f"{name}|{PAIR[0]}", {name: cut})
                for name in PAIR
                for what, cut in (
                    ("fewer tokens", lambda t: t[:-1]),
                    ("fewer heads", lambda t: t[:, 1:]),
                    ("one head", lambda t: t[:, :1]),
                )
            ),
            wrong("k_student of another head dim", "k_student", {"k_student": lambda t: t[..., 1:]}),
            wrong("k_teacher of another head dim", "k_teacher", {"k_teacher": lambda t: t[..., 1:]}),
            wrong("k_student of another dtype", "k_student", {"k_student": lambda t: t.bfloat16()}),
            wrong("k_teacher of another dtype", "k_teacher", {"k_teacher": lambda t: t.half()}),
            wrong("no head dim", "q_student", dict.fromkeys(PAIR[:2], lambda t: t[..., :0])),
            wrong(
                "head dim 257", "q_teacher", dict.fromkeys(PAIR[2:], lambda t: t.repeat(1, 1, 5)[..., :257])
            ),
            wrong("reduction unknown", "reduction", {"reduction": "average"}),
            wrong("reduction None", "reduction", {"reduction": None}),
            wrong("scale_student a string", "scale_student", {"scale_student": "big"}),
            wrong("scale_teacher a tensor of many", "scale_teacher", {"scale_teacher": torch.ones(2)}),
            *WRONG_CU_SEQLENS,
            *WRONG_MAX_SEQLEN,
            *WRONG_SEQUSED,
        ]
