"""float16 inputs whose gradients fit float16 where what lies between does not: above 65504, or below its last digit.

The tests of each backend run them: test_float16_range.py, test_triton.py and test_cuda_emulated.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import library
from bertxfer_fast.ops._dispatch.registry import OPS

from . import reference
from .cases import Pack

Tensors = dict[str, Tensor]
LARGEST = torch.finfo(torch.float16).max


@dataclass
class Problem:
    """Inputs of a public function, float16 unless they say otherwise; the teacher's get no gradient."""

    op: str
    tensors: Callable[[Callable[..., Tensor]], Tensors]
    options: dict[str, Any] = field(default_factory=dict)
    upstream: float = 1.0

    def inputs(self) -> Tensors:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, size: float = 1.0) -> Tensor:
            drawn = size * torch.randn(shape, generator=generator)
            return drawn.clamp(-LARGEST, LARGEST).half()

        return self.tensors(normal)


def states(
    student: float, teacher: float, weight: float | None = None, tokens: int = 64
) -> Callable[..., Tensors]:
    """Sizes of hidden states, 24 wide, and of the weight to 48 if there is one."""

    def tensors(normal: Callable[..., Tensor]) -> Tensors:
        made = {"student": normal(tokens, 24, size=student)}
        made["teacher"] = normal(tokens, 24 if weight is None else 48, size=teacher)
        if weight is not None:
            made["weight"] = normal(48, 24, size=weight)
        return made

    return tensors


def far_apart(normal: Callable[..., Tensor]) -> Tensors:
    return {"student": torch.full((60, 20), 5e4).half(), "teacher": torch.full((60, 20), -5e4).half()}


def beyond_float16(normal: Callable[..., Tensor]) -> Tensors:
    """A teacher in float32."""
    return {"student": normal(64, 128), "teacher": 3e6 * normal(64, 128).float()}


def rows_of_all_lengths(normal: Callable[..., Tensor]) -> Tensors:
    """A long row, a short one and one of nothing: 1e8 lies between what their lengths divide by."""
    made = states(1.0, 1.0, 0.2, tokens=4096)(normal)
    made["student"][::2] *= 1e-6
    made["student"][7] = 0.0
    made["bias"] = normal(48, size=1e-6)
    return made


def heads(*sizes: float, pack: Pack, dims: tuple[int, int] = (16, 8)) -> Callable[..., Tensors]:
    """Sizes of q and k of student and teacher."""

    def tensors(normal: Callable[..., Tensor]) -> Tensors:
        names = ("q_student", "k_student", "q_teacher", "k_teacher")
        widths = (dims[0], dims[0], dims[1], dims[1])
        return {
            name: normal(pack.tokens, 2, width, size=size)
            for name, width, size in zip(names, widths, sizes, strict=True)
        }

    return tensors


def relations(student: float, teacher: float) -> Callable[..., Tensors]:
    return lambda normal: {
        "x_student": normal(64, 12, size=student),
        "x_teacher": normal(64, 12, size=teacher),
    }


def outputs(student: float, teacher: float, weight: float) -> Callable[..., Tensors]:
    def tensors(normal: Callable[..., Tensor]) -> Tensors:
        return {
            "student": normal(32, 16, size=student),
            "weight_student": normal(90, 16, size=weight),
            "bias_student": normal(90),
            "teacher": normal(32, 24, size=teacher),
            "weight_teacher": normal(90, 24, size=weight),
        }

    return tensors


def attended(normal: Callable[..., Tensor]) -> Tensors:
    """Products of upstream gradients and values are above 65504; small keys and queries bring them back."""
    q, k = (normal(70, 2, 8, size=1e-2) for _ in range(2))
    return {"q": q, "k": k, "v": normal(70, 2, 8, size=2e4)}


#: Scores of 1e9, whose float32 roundings are in the hundreds: only who makes a score once, or twice with the same
#: roundings, has weights. The products of Triton's interpreter and of the CUDA emulator round in another order.
HUGE_SCORES = "relation_kl of large states"

SHORT, LONG = Pack([24, 40, 0, 5]), Pack([150, 131])
PROBLEMS = {
    "hidden_mse of states far apart": Problem("hidden_mse", far_apart),
    "hidden_mse of large states": Problem("hidden_mse", states(3e4, 3e4)),
    "hidden_mse with a float32 teacher": Problem("hidden_mse", beyond_float16),
    "hidden_mse under a loss scale": Problem("hidden_mse", states(1e-3, 1e-3), upstream=65536.0),
    "hidden_mse of a large projection": Problem("hidden_mse", states(3e3, 3e3, 5.0), upstream=2.0**-10),
    "hidden_mse of a projection beyond float16": Problem(
        "hidden_mse", states(3e4, 3.0, 2.0), upstream=2.0**-14
    ),
    "hidden_mse of a small projection": Problem("hidden_mse", states(1e-3, 1e-3, 1e-2), upstream=65536.0),
    "hidden_cosine of tiny states": Problem("hidden_cosine", states(3e-7, 1.0)),
    "hidden_cosine of large states": Problem("hidden_cosine", states(5e4, 5e4), upstream=65536.0),
    "hidden_cosine of a tiny projection": Problem("hidden_cosine", states(1e-6, 1.0, 0.2)),
    "hidden_cosine of rows of all lengths": Problem("hidden_cosine", rows_of_all_lengths),
    **{
        f"attention_score_mse {method} of {what}": Problem(
            "attention_score_mse", heads(*sizes, pack=LONG), {**LONG.packing, "method": method}
        )
        for method in ("gram", "tiled")
        for what, sizes in (
            ("large scores", (700.0, 700.0, 500.0, 500.0)),
            ("a large teacher", (0.5, 0.5, 3e4, 1e3)),
            ("large keys", (1e-3, 6e4, 1.0, 1.0)),
        )
    },
    **{
        f"attention_map_loss {kind} of large keys": Problem(
            "attention_map_loss", heads(1e-4, 6e4, 1.0, 1.0, pack=SHORT), {**SHORT.packing, "kind": kind}
        )
        for kind in ("kl", "mse")
    },
    "attention_map_loss kl of large scores": Problem(
        "attention_map_loss", heads(200.0, 200.0, 200.0, 200.0, pack=SHORT), SHORT.packing
    ),
    HUGE_SCORES: Problem("relation_kl", relations(3e4, 100.0), {**Pack([24, 40]).packing, "heads": 3}),
    "relation_kl under a loss scale": Problem(
        "relation_kl", relations(1e-2, 1.0), {**Pack([24, 40]).packing, "heads": 3}, upstream=65536.0
    ),
    "logits_kl of many classes": Problem(
        "logits_kl",
        lambda normal: {"student": normal(3, 20000), "teacher": normal(3, 20000)},
        upstream=65536.0,
    ),
    "logits_kl of large logits": Problem(
        "logits_kl",
        lambda normal: {"student": normal(9, 300, size=1e4), "teacher": normal(9, 300, size=1e4)},
        {"temperature": 100.0},
    ),
    "linear_logits_kl of logits beyond float16": Problem("linear_logits_kl", outputs(300.0, 300.0, 300.0)),
    "linear_logits_kl of large weights": Problem("linear_logits_kl", outputs(1e-4, 1e-4, 5e4)),
    "linear_logits_kl of large states": Problem(
        "linear_logits_kl", outputs(2e4, 10.0, 1e-4), {"reduction": "sum", "temperature": 2.0}
    ),
    "varlen_attention of large values": Problem(
        "varlen_attention", attended, Pack([40, 30]).packing, upstream=1e3
    ),
    "pool_features of large states": Problem(
        "pool_features",
        lambda normal: {"hidden": normal(70, 9, size=5e4)},
        {**Pack([40, 30]).packing, "normalize": True},
        upstream=1e3,
    ),
}


def assert_results_are_as_the_fake_says(op: str, backend: str) -> None:
    """Dtypes and shapes with float16 inputs, whose gradients are stored in float32, with and without gradients."""
    info = OPS[op]
    for need_grad in (True, False) if "need_grad" in info.arguments else (None,):
        example = info.example(torch.float16)
        if need_grad is not None:
            example["need_grad"] = need_grad
        got, want = library.overload(op, backend)(*example.values()), info.fake(*example.values())
        kind = torch.utils._pytree.tree_map(lambda x: x is not None and (x.dtype, x.shape), (got, want))
        assert kind[0] == kind[1], need_grad


def differentiated(
    problem: Problem, function: Callable[..., Tensor], dtype: torch.dtype | None
) -> reference.Outcome:
    tensors = problem.inputs()
    wrt = tuple(name for name in tensors if not name.endswith("teacher"))

    def upstream(out: Tensor) -> Tensor:
        signs = 1.0 - 2.0 * (torch.arange(out.numel()).view(out.shape) % 2)
        return (problem.upstream * signs).to(out.dtype)

    return reference.evaluate(
        lambda **x: function(**x, **problem.options), tensors, wrt, dtype=dtype, upstream=upstream
    )


def exact(problem: Problem) -> reference.Outcome:
    plain = getattr(reference, problem.op)

    def function(**arguments: Any) -> Tensor:
        arguments.pop("method", None)
        if "hidden" in arguments:
            return plain([arguments.pop("hidden")], **arguments)
        return plain(**arguments)

    return differentiated(problem, function, torch.float64)


def check(name: str) -> None:
    """Wherever the gradient of float64 fits float16 it comes out, within a few roundings of the largest."""
    problem = PROBLEMS[name]
    truth, got = exact(problem), differentiated(problem, getattr(ops, problem.op), None)
    assert abs(got.out.double() - truth.out).max() <= 2e-3 * truth.out.abs().max()
    for argument, want in truth.grads.items():
        grad = got.grads[argument]
        assert grad.dtype == torch.float16
        fits = want.abs() < 6e4
        largest = want[fits].abs().max().item()
        error = (grad.double() - want)[fits].abs().max().item()
        assert error <= 5e-3 * largest + 2**-24, f"{argument} is off by {error:.3g} of {largest:.3g}"
