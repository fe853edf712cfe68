"""Float64 references of every op, and the rule that says how close a backend has to come to them.

Each reference is the definition of its paper, sequence by sequence, in the order one would write it on a
blackboard; it takes the arguments of the public function, of which max_seqlen changes nothing. References follow
the dtype of what they are given: on float64 inputs they are the truth, on float32, bfloat16 or float16 inputs they
are "plain PyTorch at the same dtype", the yardstick of DESIGN section 9.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps


def sequences(cu_seqlens: Tensor, seqused: Tensor | None = None) -> Iterator[slice]:
    """The tokens that count of each sequence of the pack, as slices of its first dimension."""
    for n, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        yield slice(start, end if seqused is None else start + int(seqused[n]))


def reduce(terms: Tensor, reduction: str) -> Tensor:
    """Sum or mean over all `terms`; nothing to average is a loss of 0, not 0/0."""
    return terms.mean() if reduction == "mean" and terms.numel() else terms.sum()


def scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """Attention scores [H, L, L] of one sequence, q and k: [L, H, D] (Vaswani et al. 2017, eq. 1)."""
    return torch.einsum("ihd,jhd->hij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)


def attention_score_mse(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int | None = None,
    seqused: Tensor | None = None,
    scale_student: float | None = None,
    scale_teacher: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """MSE of the scores before the softmax (TinyBERT, Jiao et al. 2020, eq. 7), mean over H * sum(L^2)."""
    differences = [
        scores(q_student[s], k_student[s], scale_student) - scores(q_teacher[s], k_teacher[s], scale_teacher)
        for s in sequences(cu_seqlens, seqused)
    ]
    return reduce(torch.cat([d.flatten() for d in differences]).square(), reduction)


def attention_map_loss(
    q_student: Tensor,
    k_student: Tensor,
    q_teacher: Tensor,
    k_teacher: Tensor,
    cu_seqlens: Tensor,
    *,
    kind: str = "kl",
    max_seqlen: int | None = None,
    seqused: Tensor | None = None,
    scale_student: float | None = None,
    scale_teacher: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Distance of the attention maps.

    "kl": KL(teacher || student) of every row, mean over H * sum(L) rows (MiniLM, Wang et al. 2020, eq. 5).
    "mse": squared difference of the maps, mean over H * sum(L^2) entries (TextBrewer's attention_mse).
    """
    terms = []
    for s in sequences(cu_seqlens, seqused):
        student = torch.log_softmax(scores(q_student[s], k_student[s], scale_student), dim=-1)
        teacher = torch.log_softmax(scores(q_teacher[s], k_teacher[s], scale_teacher), dim=-1)
        if kind == "kl":
            terms.append((teacher.exp() * (teacher - student)).sum(dim=-1).flatten())
        else:
            terms.append((student.exp() - teacher.exp()).square().flatten())
    return reduce(torch.cat(terms), reduction)


def relation_kl(
    x_student: Tensor, x_teacher: Tensor, cu_seqlens: Tensor, *, heads: int, **options: Any
) -> Tensor:
    """KL(teacher || student) of every row of softmax(x x^T / sqrt(d)), heads re-split (MiniLMv2, Wang et al. 2021)."""
    student, teacher = (x.unflatten(1, (heads, -1)) for x in (x_student, x_teacher))
    return attention_map_loss(student, student, teacher, teacher, cu_seqlens, kind="kl", **options)


def hidden_mse(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """MSE of hidden states behind a learned projection (TinyBERT, eq. 8), mean over T * D."""
    projected = student if weight is None else student @ weight.T
    if bias is not None:
        projected = projected + bias
    return reduce((projected - teacher).square(), reduction)


def hidden_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    """1 - cos of hidden states behind a learned projection (DistilBERT, Sanh et al. 2019), mean over T."""
    projected = student if weight is None else student @ weight.T
    if bias is not None:
        projected = projected + bias
    return reduce(1 - torch.nn.functional.cosine_similarity(projected, teacher, dim=1), reduction)


def logits_kl(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    """KL of the softened class distributions times T^2 (Hinton et al. 2015, section 2), mean over rows."""
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    rows = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return reduce(rows, "mean" if reduction == "batchmean" else reduction) * temperature**2


def linear_logits_kl(
    student: Tensor,
    weight_student: Tensor,
    teacher: Tensor,
    weight_teacher: Tensor,
    *,
    bias_student: Tensor | None = None,
    bias_teacher: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`logits_kl` of two output layers."""
    logits, target = student @ weight_student.T, teacher @ weight_teacher.T
    logits = logits if bias_student is None else logits + bias_student
    target = target if bias_teacher is None else target + bias_teacher
    return logits_kl(logits, target, **options)


def pool_features(
    layers: list[Tensor],
    cu_seqlens: Tensor,
    *,
    mode: str = "mean",
    layer_weights: Tensor | list[float] | None = None,
    normalize: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """One vector per sequence: layers mixed, tokens pooled, L2-normalised if asked for; [N, D].

    The modes are those of sentence-transformers (Reimers and Gurevych 2019). An empty sequence pools to zeros.
    """
    if layer_weights is None:
        layer_weights = [1.0 / len(layers)] * len(layers)
    rows = []
    for s in sequences(cu_seqlens, seqused):
        tokens = sum(weight * layer[s] for weight, layer in zip(layer_weights, layers, strict=True))
        if not len(tokens):
            pooled = tokens.sum(dim=0)
        elif mode == "cls":
            pooled = tokens[0]
        elif mode == "max":
            pooled = tokens.max(dim=0).values
        elif mode == "mean":
            pooled = tokens.mean(dim=0)
        else:
            pooled = tokens.sum(dim=0) / math.sqrt(len(tokens))
        if normalize:
            pooled = pooled / torch.linalg.vector_norm(pooled).clamp_min(1e-12)
        rows.append(pooled)
    return torch.stack(rows) if rows else layers[0].new_empty(0, layers[0].shape[1])


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    max_seqlen: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * Q K^T) V inside every sequence (Vaswani et al. 2017, eq. 1), [T, H, D]."""
    outputs = [
        torch.einsum("hij,jhd->ihd", torch.softmax(scores(q[s], k[s], scale), dim=-1), v[s])
        for s in sequences(cu_seqlens)
    ]
    return torch.cat(outputs)


@dataclass
class Outcome:
    """What a function returned, and the gradient of every input it was differentiated in."""

    out: Tensor
    grads: dict[str, Tensor]

    def items(self) -> Iterator[tuple[str, Tensor]]:
        yield "result", self.out
        for name, grad in self.grads.items():
            yield f"gradient of {name}", grad

    def distances(self, truth: Outcome) -> dict[str, float]:
        """Largest difference by name; infinite where there is a NaN."""
        found = {
            name: largest(mine - theirs)
            for (name, mine), (_, theirs) in zip(self.items(), truth.items(), strict=True)
        }
        return {name: math.inf if math.isnan(value) else value for name, value in found.items()}

    def assert_same_bits(self, other: Outcome, why: str) -> None:
        for (name, mine), (_, theirs) in zip(self.items(), other.items(), strict=True):
            assert torch.equal(mine, theirs), f"{name} differs {why}: {(mine - theirs).abs().max()} at most"


def evaluate(
    function: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    wrt: tuple[str, ...],
    *,
    dtype: torch.dtype | None = None,
    upstream: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Outcome:
    """Run `function(**tensors)` forward and backward, on `dtype` copies or on the very tensors (strides kept).

    `upstream` makes the gradient handed to backward from the result.
    """
    leaves = {
        name: (t.detach() if dtype is None else t.detach().to(dtype)).requires_grad_(name in wrt)
        for name, t in tensors.items()
    }
    out = function(**leaves)
    if not wrt:
        return Outcome(out.detach(), {})
    grads = torch.autograd.grad(
        out, [leaves[name] for name in wrt], upstream(out), allow_unused=True, materialize_grads=True
    )
    return Outcome(out.detach(), dict(zip(wrt, grads, strict=True)))


def uneven(out: Tensor) -> Tensor:
    """An upstream gradient for a result that is not a scalar: the same numbers whatever the dtype of the result."""
    numbers = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return numbers.bfloat16().to(out.dtype)  # exact in all dtypes but for float16's range


def near(tensors: dict[str, Tensor], relative: float, seed: int) -> dict[str, Tensor]:
    """Dense copies in the same dtype, or in float64 if the step is below it, every number a step up or down."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if relative < 1e-3 else None
    return {
        name: (
            t.to(dtype) * (1 + relative * (torch.randint(0, 2, t.shape, generator=generator) * 2.0 - 1))
        ).to(dtype or t.dtype)
        for name, t in tensors.items()
    }


def assert_as_accurate_as_pytorch(
    op: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    wrt: tuple[str, ...],
    *,
    upstream: Callable[[Tensor], Tensor] = torch.ones_like,
    floors: dict[str, float] | None = None,
    neighbours: list[dict[str, Tensor]] | None = None,
) -> None:
    """DESIGN section 9: largest error <= 2x that of plain PyTorch at the same dtype, plus a floor.

    On a handful of numbers plain PyTorch is often exact by luck, so its error is the largest of three: on these
    inputs and on two neighbours 1 % away. Whoever calls with a student closer to its teacher than that hands over
    `neighbours` that are as close. Where it overflows (float16), the yardstick is float32. The floor is what
    float32 arithmetic cannot avoid: how far the truth moves when its inputs are four roundings off, four
    roundings of the result in float32 and one in its own dtype; and `floors`, by name, where terms cancel that
    plain PyTorch happens not to form.
    """

    def run(
        function: Callable[..., Tensor], on: dict[str, Tensor], dtype: torch.dtype | None = None
    ) -> Outcome:
        return evaluate(function, on, wrt, dtype=dtype, upstream=upstream)

    # Dense copies for PyTorch: oneDNN's bfloat16 products read past the rows of a strided matrix of odd width.
    dense = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    by_luck = sum(t.numel() for t in dense.values()) < 50_000 or any(dense[name].numel() < 64 for name in wrt)
    inputs = [dense]
    if by_luck:
        inputs += [near(dense, 1e-2, seed) for seed in (0, 1)] if neighbours is None else neighbours
    truths = [run(reference, x, torch.float64) for x in inputs]

    def yardstick(name: str, dtype: torch.dtype | None = None) -> float:
        if dtype not in errors:
            plain = [
                run(reference, x, dtype).distances(truth) for x, truth in zip(inputs, truths, strict=True)
            ]
            errors[dtype] = {name: max(e[name] for e in plain) for name in plain[0]}
        error = errors[dtype][name]
        return error if math.isfinite(error) or dtype is not None else yardstick(name, torch.float32)

    errors: dict[torch.dtype | None, dict[str, float]] = {}
    moved = [
        run(reference, near(dense, 4 * EPS32, seed)).distances(truths[0]) for seed in (0, 1)[: 1 + by_luck]
    ]
    got = run(op, tensors)
    for (name, mine), (_, truth) in zip(got.items(), truths[0].items(), strict=True):
        assert mine.shape == truth.shape, f"{name} is {tuple(mine.shape)}, wants {tuple(truth.shape)}"
        info = torch.finfo(mine.dtype)
        rounding = (0.5 * info.eps + 4 * EPS32) * largest(truth) + info.smallest_normal * info.eps
        allowed = 2 * yardstick(name) + max(m[name] for m in moved) + rounding + (floors or {}).get(name, 0.0)
        held = truth.to(mine.dtype)  # infinite where the dtype ends, which is nobody's error
        error = largest((mine - truth).masked_fill(mine == held, 0.0))
        assert error <= allowed, (
            f"{name} is off by {error:.3g}, allowed {allowed:.3g} (of {largest(truth):.3g})"
        )


def kl_floor(rows: int, reduction: str, temperature: float = 1.0) -> dict[str, float]:
    """What a KL of `rows` distributions may be off: p log(p / q) cancels down from terms of size p log p."""
    return {"result": 2 * EPS32 * temperature**2 * (rows if reduction == "sum" else 1)}


def largest(difference: Tensor) -> float:
    """Largest absolute value, 0 of nothing, NaN if there is one."""
    return difference.abs().max().item() if difference.numel() else 0.0


def relative_error(got: Tensor, truth: Tensor) -> float:
    return largest(got.double() - truth) / max(largest(truth), torch.finfo(torch.float64).tiny)
