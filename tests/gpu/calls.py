"""One call of every operator, on CUDA tensors: what the tests of the contract have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from bertxfer_fast import ops

#: Several tiles, none, one token; in all more than one block of any kernel.
LENGTHS = (300, 0, 65, 1, 128, 200)
TOKENS, HEADS = sum(LENGTHS), 3
USED = (290, 0, 65, 1, 0, 200)


@dataclass(frozen=True)
class Call:
    operator: str
    #: Shapes of the inputs with a gradient, and of those without.
    student: dict[str, tuple[int, ...]]
    teacher: dict[str, tuple[int, ...]]
    run: Callable[..., Tensor]

    def inputs(self, dtype: torch.dtype, seed: int = 0, device: str = "cuda") -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {**self.student, **self.teacher}
        values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {
            name: value.to(device, dtype).requires_grad_(name in self.student)
            for name, value in values.items()
        }


@functools.cache
def packing(device: Any) -> dict[str, Any]:
    """Made once for each device: moving it there stalls the stream, which no operator may do."""
    return {
        "cu_seqlens": torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device),
        "seqused": torch.tensor(USED, dtype=torch.int32, device=device),
        "max_seqlen": max(LENGTHS),
    }


def packed(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """The operator on tensors of this file's packing."""

    def run(**tensors: Tensor) -> Tensor:
        return function(**tensors, **packing(next(iter(tensors.values())).device), **options)

    return run


def attention(function: Callable[..., Tensor], operator: str, ds: int, dt: int, **options: Any) -> Call:
    return Call(
        operator,
        {name: (TOKENS, HEADS, ds) for name in ("q_student", "k_student")},
        {name: (TOKENS, HEADS, dt) for name in ("q_teacher", "k_teacher")},
        packed(function, **options),
    )


def pooled(mode: str, normalize: bool) -> Call:
    def run(**layers: Tensor) -> Tensor:
        options = {**packing(next(iter(layers.values())).device)}
        del options["max_seqlen"]
        out = ops.pool_features(list(layers.values()), mode=mode, normalize=normalize, **options)
        return (out.float() * torch.linspace(-1, 1, out.shape[1], device=out.device)).sum()

    return Call("pool_features", {f"layer{i}": (TOKENS, 264) for i in range(3)}, {}, run)


def attended(dim: int) -> Call:
    def run(**qkv: Tensor) -> Tensor:
        device = qkv["q"].device
        options = {**packing(device)}
        del options["seqused"]
        out = ops.varlen_attention(**qkv, **options)
        return (out.float() * torch.linspace(-1, 1, HEADS * dim, device=device).view(HEADS, dim)).sum()

    return Call("varlen_attention", {name: (TOKENS, HEADS, dim) for name in ("q", "k", "v")}, {}, run)


def projected(function: Callable[..., Tensor], operator: str) -> Call:
    student = {"student": (TOKENS, 312), "weight": (768, 312), "bias": (768,)}
    return Call(operator, student, {"teacher": (TOKENS, 768)}, function)


CALLS: dict[str, Call] = {
    **{
        f"attention_score_mse {method} {ds}/{dt}": attention(
            ops.attention_score_mse, "attention_score_mse", ds, dt, method=method
        )
        for method in ("gram", "tiled")
        for ds, dt in ((26, 64), (64, 64), (100, 200))
    },
    **{
        f"attention_map_loss {kind} {ds}/{dt}": attention(
            ops.attention_map_loss, "attention_map_loss", ds, dt, kind=kind
        )
        for kind in ("kl", "mse")
        for ds, dt in ((26, 64), (64, 64), (256, 128))
    },
    "relation_kl": Call(
        "relation_kl",
        {"x_student": (TOKENS, 48)},
        {"x_teacher": (TOKENS, 96)},
        packed(ops.relation_kl, heads=6),
    ),
    "hidden_mse": projected(ops.hidden_mse, "hidden_mse"),
    "hidden_mse without weight": Call(
        "hidden_mse", {"student": (TOKENS, 312)}, {"teacher": (TOKENS, 312)}, ops.hidden_mse
    ),
    "hidden_cosine": projected(ops.hidden_cosine, "hidden_cosine"),
    "logits_kl": Call(
        "logits_kl",
        {"student": (70, 30522)},
        {"teacher": (70, 30522)},
        lambda **x: ops.logits_kl(**x, temperature=2.0),
    ),
    "linear_logits_kl": Call(
        "linear_logits_kl",
        {"student": (300, 64), "weight_student": (30522, 64)},
        {"teacher": (300, 96), "weight_teacher": (30522, 96)},
        ops.linear_logits_kl,
    ),
    **{
        f"pool_features {mode}": pooled(mode, normalize=mode == "mean")
        for mode in ("mean", "cls", "max", "mean_sqrt")
    },
    **{f"varlen_attention {dim}": attended(dim) for dim in (26, 64, 100, 256)},
}


def outcome(name: str, tensors: dict[str, Tensor], scale: float = 1.0) -> list[Tensor]:
    """The loss of a call and its gradients, which are computed from ``scale`` times the loss."""
    call = CALLS[name]
    loss = call.run(**tensors)
    grads = torch.autograd.grad(loss, [tensors[x] for x in call.student], torch.full_like(loss, scale))
    return [loss.detach(), *(grads if scale == 1 else (grad.double() / scale for grad in grads))]
