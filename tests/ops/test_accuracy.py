"""Every operator on thousands of random problems, also where the student has almost become its teacher.

    BERTXFER_CASES=50000 pytest -m slow tests/ops/test_accuracy.py     more cases than 10 000 for each op
    BERTXFER_CASE=hidden_mse:1234 pytest tests/ops/test_accuracy.py    the one case that a failure named

A case is its op's name and a number, which seed everything that is drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch.registry import OPS

from . import reference
from .cases import DTYPES, EDGES, LAYOUTS, PAIR_SHAPES, Case, Pack, lay_out
from .reference import (
    EPS32,
    assert_as_accurate_as_pytorch,
    kl_floor,
    largest,
    near,
    relative_error,
)
from .test_hidden_cosine import unit_rounding
from .test_linear_logits_kl import logits_rounding
from .test_pool_features import LAYERS, MODES
from .test_pool_features import check_accuracy as check_pooling
from .test_varlen_attention import QKV
from .test_varlen_attention import check_accuracy as check_attention

CASES = int(os.environ.get("BERTXFER_CASES", "10000"))
ONE_CASE = os.environ.get("BERTXFER_CASE", "")
#: Cases for each op in the default suite, and in one slow test.
FEW, CHUNK = 50, 500


def sizes(rng: Random) -> list[int]:
    """Lengths of one to four sequences: short ones mostly, so that thousands of cases take minutes."""
    draws = (lambda: 0, lambda: rng.randint(1, 9), lambda: rng.randint(0, 80), lambda: rng.choice(EDGES[:15]))
    lengths = [rng.choices(draws, (1, 3, 4, 2))[0]() for _ in range(rng.randint(1, 4))]
    return [rng.randint(250, 350)] if rng.random() < 0.02 else lengths


def width(rng: Random) -> int:
    return rng.choice(EDGES) if rng.random() < 0.5 else rng.randint(1, 130)


def nearness(rng: Random) -> float | None:
    """None for a student of its own, or how far it is from its teacher: 1 down to 1e-4."""
    return None if rng.random() < 0.5 else 10 ** rng.uniform(-4, 0)


@dataclass
class Problem:
    """Inputs of a loss. `distance` and `follow` make one side of the pair from the other.

    `follow(tensors, noise)` replaces inputs by those of the other side plus `noise(t)`, numbers of t's shape and of
    the size `distance`. It runs in float64; only its result is rounded to the dtype.
    """

    case: Case
    dtype: torch.dtype
    distance: float | None = None
    follow: Callable[[dict[str, Tensor], Callable[[Tensor], Tensor]], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.distance is not None:  # two sides of which one repeats itself are not close
            self.case.layouts = {
                name: "fused" if layout == "expanded" else layout
                for name, layout in self.case.layouts.items()
            }

    def dense(self, neighbour: int | None = None) -> dict[str, Tensor]:
        """The inputs, or those of a neighbour 1 % away whose two sides are as close to each other."""
        tensors = {
            name: t.clone(memory_format=torch.contiguous_format)
            for name, t in self.case.tensors(self.dtype).items()
        }
        if neighbour is not None:
            tensors = near(tensors, 1e-2, neighbour)
        if self.distance is not None and self.follow is not None:
            generator = torch.Generator().manual_seed(self.case.seed + 1)

            def noise(t: Tensor) -> Tensor:
                return self.distance * torch.randn(t.shape, generator=generator, dtype=torch.float64)

            wide = {name: t.double() for name, t in tensors.items()}
            tensors = {**tensors, **self.follow(wide, noise)}
        return {name: t.to(self.dtype) for name, t in tensors.items()}

    def laid_out(self) -> dict[str, Tensor]:
        return {name: lay_out(t, self.case.layouts[name]) for name, t in self.dense().items()}

    def neighbours(self) -> list[dict[str, Tensor]]:
        return [self.dense(0), self.dense(1)]


def follow_teacher(tensors: dict[str, Tensor], noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Every input of the student is the teacher's, each number off by a fraction of itself."""
    return {
        name: (t := tensors[name.replace("student", "teacher")]) * (1 + noise(t))
        for name in tensors
        if "student" in name
    }


def follow_projection(tensors: dict[str, Tensor], noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The teacher is what the student is projected to."""
    projected = tensors["student"] @ tensors["weight"].T if "weight" in tensors else tensors["student"]
    projected = projected + tensors.get("bias", 0.0)
    return {"teacher": projected * (1 + noise(projected))}


def draw(rng: Random, shapes: dict[str, str], pack: Pack, **known: int) -> Case:
    """A case of `cases.cases`, drawn without hypothesis: it is hundreds of times quicker."""
    known["T"] = pack.tokens
    for letter in sorted(set("".join(shapes.values())) - set(known)):
        known[letter] = rng.randint(1, 4) if letter == "H" else width(rng)
    layouts = {
        name: rng.choice([x for x in LAYOUTS if len(letters) > 1 or x not in ("transposed", "expanded")])
        for name, letters in shapes.items()
    }
    built = {name: tuple(known[letter] for letter in letters) for name, letters in shapes.items()}
    return Case(pack, built, layouts, rng.getrandbits(30), rng.choice((0.3, 1.0)))


def draw_pack(rng: Random) -> Pack:
    lengths = sizes(rng)
    used = [rng.randint(0, n) for n in lengths] if rng.random() < 0.4 else None
    return Pack(lengths, used, rng.choice((None, max(lengths), max(lengths) + 5)))


def pair_options(rng: Random, distance: float | None) -> dict[str, Any]:
    """Scales, the same on both sides where those are close, and the reduction."""
    scales = [rng.choice((None, 0.05, 0.5)), rng.choice((None, 0.02, 0.4))]
    if distance is not None:
        scales[1] = scales[0]
    names = ("scale_student", "scale_teacher")
    chosen = {name: scale for name, scale in zip(names, scales, strict=True) if scale is not None}
    return {"reduction": rng.choice(("mean", "sum")), **chosen}


def check(
    problem: Problem,
    name: str,
    wrt: tuple[str, ...],
    options: dict[str, Any],
    *,
    irrelevant: tuple[str, ...] = (),
    floors: dict[str, float] | None = None,
) -> None:
    known = {key: value for key, value in options.items() if key not in irrelevant}

    def plain(**x: Tensor) -> Tensor:
        return getattr(reference, name)(**x, **known)

    assert_as_accurate_as_pytorch(
        lambda **x: getattr(ops, name)(**x, **options),
        plain,
        problem.laid_out(),
        wrt,
        floors=floors,
        neighbours=problem.neighbours() if problem.distance is not None else None,
    )


def attention(rng: Random, dtype: torch.dtype) -> tuple[Problem, dict[str, Any], int]:
    """A pair of attention inputs, the options every loss on them knows, and how many rows count."""
    distance, pack, dim = nearness(rng), draw_pack(rng), width(rng)
    case = draw(rng, PAIR_SHAPES, pack, s=dim, t=width(rng) if distance is None else dim)
    rows = sum(pack.used or pack.lengths) * case.shapes["q_student"][1]
    options = {**pack.packing, **pair_options(rng, distance)}
    return Problem(case, dtype, distance, follow_teacher), options, rows


def attention_score_mse(rng: Random, dtype: torch.dtype, method: str) -> None:
    problem, options, _ = attention(rng, dtype)
    wrt = ("q_student", "k_student")
    floors = {"result": score_rounding(problem, options, method)}
    check(
        problem,
        "attention_score_mse",
        wrt,
        {**options, "method": method},
        irrelevant=("method",),
        floors=floors,
    )
    check_digits(problem, options, method)


def score_rounding(problem: Problem, options: dict[str, Any], method: str) -> float:
    """How far float32 sums may move a loss that is small beside the scores' squares: DESIGN's floor for tiny losses.

    Tiles sum a difference of scores over the head dims of both sides at once, twice as many terms as either score has,
    so each is off by some roundings of the scores. Gram matrices are summed in float32 down to a loss of 1 % of the
    scores' squares, of which they are off by up to two and a half roundings. Below that they are exact.
    """
    wide = {name: t.double() for name, t in problem.dense().items()}
    loss = reference.attention_score_mse(**wide, **options).item()
    squares = sum(
        reference.attention_score_mse(
            **{name: torch.zeros_like(t) if side in name else t for name, t in wide.items()}, **options
        ).item()
        for side in ("student", "teacher")
    )
    tiles = 4 * EPS32 * (loss * squares) ** 0.5
    return tiles if method == "tiled" else tiles + 2.5 * EPS32 * squares * (loss > 0.9e-2 * squares)


def check_digits(problem: Problem, options: dict[str, Any], method: str) -> None:
    """A loss down to 1e-8 of the squared scores is off by at most 1e-3 of itself: see test_attention_score_mse.py.

    That holds for a mean of many: a few differences of scores can be smaller than all roundings of the scores.
    """
    tensors = problem.dense()
    wide = {name: t.double() for name, t in tensors.items()}
    loss = reference.attention_score_mse(**wide, **options)
    nothing = {name: t if "teacher" in name else torch.zeros_like(t) for name, t in wide.items()}
    scores = reference.attention_score_mse(**nothing, **options)
    used = problem.case.pack.used or problem.case.pack.lengths
    if max(used) >= 8 and loss >= 1e-8 * scores:
        got = ops.attention_score_mse(**tensors, **options, method=method)
        error = relative_error(got, loss)
        assert error <= 1e-3, f"a loss of {loss / scores:.1e} of the scores is off by {error:.1e} of itself"


def attention_map(rng: Random, dtype: torch.dtype, kind: str) -> None:
    problem, options, rows = attention(rng, dtype)
    x = problem.dense()
    floors = map_rounding(x["q_student"], x["k_student"], options, rows)
    if kind == "kl":
        floors |= kl_floor(rows, options["reduction"])
    else:  # each entry of the maps, at most 1 and 1 in sum, is off by a rounding or two
        exact = reference.attention_map_loss(
            **{n: t.double() for n, t in x.items()}, kind=kind, **options
        ).item()
        terms = rows if options["reduction"] == "sum" else 1
        # A square's derivative has a two; and a score that is made twice may round twice, by a share of itself.
        highest = max(1.0, *(largest_score(problem, side, options) for side in ("student", "teacher")))
        floors = {name: 2 * highest * size for name, size in floors.items()}
        floors["result"] = (2 * EPS32) ** 2 * terms + 4 * EPS32 * (exact * terms) ** 0.5
    check(problem, "attention_map_loss", ("q_student", "k_student"), {**options, "kind": kind}, floors=floors)


def largest_score(problem: Problem, side: str, options: dict[str, Any]) -> float:
    wide = {name: t.nan_to_num().double() for name, t in problem.dense().items()}
    q, k, scale = wide[f"q_{side}"], wide[f"k_{side}"], options.get(f"scale_{side}")
    tokens = reference.sequences(options["cu_seqlens"], options.get("seqused"))
    return max((largest(reference.scores(q[s], k[s], scale)) for s in tokens), default=0.0)


def map_rounding(q: Tensor, k: Tensor, options: dict[str, Any], rows: int) -> dict[str, float]:
    """What the gradients of a map may be off: they are products with P - R, two maps whose ones round to float32."""
    scale = options.get("scale_student", q.shape[-1] ** -0.5)
    terms = max(rows, 1) if options["reduction"] == "mean" else 1
    step = {
        name: 2 * EPS32 * scale * largest(t.nan_to_num().double()) / terms for name, t in (("k", q), ("q", k))
    }
    return {f"gradient of {name}_student": size for name, size in step.items()}


def relation_kl(rng: Random, dtype: torch.dtype) -> None:
    distance, pack, heads, dim = nearness(rng), draw_pack(rng), rng.randint(1, 4), width(rng)
    other = width(rng) if distance is None else dim
    case = draw(rng, {"x_student": "Ts", "x_teacher": "Tt"}, pack, s=heads * dim, t=heads * other)
    options = {**pack.packing, **pair_options(rng, distance), "heads": heads}
    problem = Problem(case, dtype, distance, follow_teacher)
    rows = heads * sum(pack.used or pack.lengths)
    x = problem.dense()["x_student"].unflatten(1, (heads, -1))
    # A token's score with itself is its length squared: roundings are of numbers far above one.
    highest = max(2.0, self_score(problem, "student", options), self_score(problem, "teacher", options))
    both = highest * sum(map_rounding(x, x, options, rows).values())
    (kl,) = kl_floor(rows, options["reduction"]).values()
    floors = {"result": highest * kl, "gradient of x_student": both}
    check(problem, "relation_kl", ("x_student",), options, floors=floors)


def self_score(problem: Problem, side: str, options: dict[str, Any]) -> float:
    x = problem.dense()[f"x_{side}"].unflatten(1, (options["heads"], -1)).nan_to_num().double()
    return options.get(f"scale_{side}", x.shape[-1] ** -0.5) * largest(x.square().sum(-1))


def projected(rng: Random, dtype: torch.dtype) -> Problem:
    """Hidden states with and without a weight, with and without a bias."""
    inputs = rng.choice((("student", "teacher"), ("student", "teacher", "weight"), None))
    shapes = {"student": "Ts", "teacher": "Tt", "weight": "ts", "bias": "t"}
    shapes = {name: shapes[name] for name in inputs or shapes}
    if "weight" not in shapes:
        shapes["teacher"] = "Ts"
    return Problem(draw(rng, shapes, Pack(sizes(rng))), dtype, nearness(rng), follow_projection)


def hidden_mse(rng: Random, dtype: torch.dtype) -> None:
    problem = projected(rng, dtype)
    wrt = tuple(name for name in problem.case.shapes if name != "teacher")
    options = {"reduction": rng.choice(("mean", "sum"))}
    check(
        problem,
        "hidden_mse",
        wrt,
        options,
        floors={"result": product_rounding(problem.dense(), **options)},
    )


def product_rounding(tensors: dict[str, Tensor], reduction: str) -> float:
    """How far the loss moves when a half-precision product is rounded, as torch.nn.functional.linear rounds it.

    Plain PyTorch's is, too, but its roundings may cancel. A sum of them is within 3.5 of its standard deviations.
    """
    eps = torch.finfo(tensors["student"].dtype).eps
    if eps == EPS32 or "weight" not in tensors or not tensors["teacher"].numel():
        return 0.0
    wide = {name: t.double() for name, t in tensors.items()}
    product = wide["student"] @ wide["weight"].T
    residual = product + wide.get("bias", 0.0) - wide["teacher"]
    moved = 0.5 * eps * residual.square().sum() + eps * (2 * residual * product).norm()
    moved += (0.5 * eps) ** 2 * product.square().sum()
    return moved.item() / (residual.numel() if reduction == "mean" else 1)


def hidden_cosine(rng: Random, dtype: torch.dtype) -> None:
    problem = projected(rng, dtype)
    wrt = tuple(name for name in problem.case.shapes if name != "teacher")
    options = {"reduction": rng.choice(("mean", "sum"))}
    floors = unit_rounding(problem.dense(), **options)
    check(problem, "hidden_cosine", wrt, options, floors=floors)


def soft_labels(rng: Random) -> dict[str, Any]:
    return {
        "temperature": rng.choice((0.5, 1.0, 2.0, 10.0)),
        "reduction": rng.choice(("batchmean", "sum")),
    }


def logits_kl(rng: Random, dtype: torch.dtype) -> None:
    options, pack = soft_labels(rng), Pack(sizes(rng))
    case = draw(rng, {"student": "TV", "teacher": "TV"}, pack, V=rng.choice((1000, width(rng), width(rng))))
    problem = Problem(case, dtype, nearness(rng), follow_teacher)
    floors = kl_floor(pack.tokens, options["reduction"], options["temperature"])
    check(problem, "logits_kl", ("student",), options, floors=floors)


def linear_logits_kl(rng: Random, dtype: torch.dtype) -> None:
    options, pack, distance, dim = soft_labels(rng), Pack(sizes(rng)), nearness(rng), width(rng)
    shapes = {"student": "Ts", "weight_student": "Vs", "teacher": "Tt", "weight_teacher": "Vt"}
    sides = (
        rng.choice((("student", "teacher"), ())) if distance else rng.choice((("student",), ("teacher",), ()))
    )
    shapes |= {f"bias_{side}": "V" for side in sides}
    case = draw(rng, shapes, pack, s=dim, t=width(rng) if distance is None else dim)
    wrt = tuple(name for name in shapes if "student" in name)
    problem = Problem(case, dtype, distance, follow_teacher)
    floors = kl_floor(pack.tokens, options["reduction"], options["temperature"])
    floors["result"] += logits_rounding(problem.dense(), options)
    check(problem, "linear_logits_kl", wrt, options, floors=floors)


def pool_features(rng: Random, dtype: torch.dtype) -> None:
    layers = LAYERS[: rng.randint(1, len(LAYERS))]
    case = draw(rng, dict.fromkeys(layers, "TD"), draw_pack(rng))
    options = {
        "weights": rng.choice((None, "tensor", "list")),
        "normalize": rng.random() < 0.5,
        "bare": rng.random() < 0.5,
    }
    check_pooling(case, dtype, rng.choice(MODES), options)


def varlen_attention(rng: Random, dtype: torch.dtype) -> None:
    lengths = sizes(rng)
    pack = Pack(lengths, None, rng.choice((None, max(lengths), max(lengths) + 5)))
    case = draw(rng, dict.fromkeys(QKV, "THd"), pack, d=width(rng))
    check_attention(case, dtype, rng.choice((None, 0.05, 0.7)))


CHECKS: dict[str, Callable[[Random, torch.dtype], None]] = {
    "attention_score_mse_auto": lambda rng, dtype: attention_score_mse(rng, dtype, "auto"),
    "attention_score_mse_gram": lambda rng, dtype: attention_score_mse(rng, dtype, "gram"),
    "attention_score_mse_tiled": lambda rng, dtype: attention_score_mse(rng, dtype, "tiled"),
    "attention_map_kl": lambda rng, dtype: attention_map(rng, dtype, "kl"),
    "attention_map_mse": lambda rng, dtype: attention_map(rng, dtype, "mse"),
    "relation_kl": relation_kl,
    "hidden_mse": hidden_mse,
    "hidden_cosine": hidden_cosine,
    "logits_kl": logits_kl,
    "linear_logits_kl": linear_logits_kl,
    "pool_features": pool_features,
    "varlen_attention": varlen_attention,
}


def test_every_operator_is_checked() -> None:
    rooms = {info.room for info in OPS.values() if info.function is not None}
    assert {room for room in rooms if not any(check.startswith(room) for check in CHECKS)} == set()


def chunks() -> Iterator[Any]:
    """The name of an op and the numbers of its cases."""
    if ONE_CASE:
        name, _, number = ONE_CASE.partition(":")
        yield pytest.param(name, range(int(number), int(number) + 1), id=ONE_CASE)
        return
    for name in CHECKS:
        yield pytest.param(name, range(FEW), id=name)
        for start in range(0, CASES, CHUNK):
            numbers = range(start, min(start + CHUNK, CASES))
            yield pytest.param(name, numbers, id=f"{name}:{start}", marks=pytest.mark.slow)


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
@pytest.mark.parametrize(("name", "numbers"), list(chunks()))
def test_is_as_accurate_as_plain_pytorch(backend: str, name: str, numbers: range) -> None:
    wrong = {}
    for number in numbers:
        try:
            CHECKS[name](Random(f"{name}:{number}"), DTYPES[number % len(DTYPES)])
        except AssertionError as error:
            if ONE_CASE:
                raise
            wrong[number] = error
    if wrong:
        lines = [f"BERTXFER_CASE={name}:{i}: {str(error).splitlines()[0]}" for i, error in wrong.items()]
        pytest.fail("\n".join((f"{len(wrong)} of {len(numbers)} cases:", *lines[:20])), pytrace=False)
