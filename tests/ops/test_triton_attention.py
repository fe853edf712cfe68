"""varlen_attention's Triton kernels in Triton's interpreter: longer sequences than test_triton.py's, and dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import ops
from bertxfer_fast.ops._dispatch import library as _library

from . import test_varlen_attention as attention
from .cases import Case, Pack, dtypes
from .interpreter import add_one_product_after_the_other
from .reference import relative_error
from .test_triton import interpreted, pytestmark

LONG = Pack([150, 0, 1, 131, 40])

__all__ = ["interpreted", "pytestmark"]  # every operator runs on the backend "triton", interpreted


@pytest.mark.parametrize(
    ("dim", "layout", "dtype"),
    [
        (1, "contiguous", torch.float32),
        (26, "fused", torch.float16),
        (64, "transposed", torch.bfloat16),
        (64, "fused", torch.float32),
        (100, "unaligned", torch.bfloat16),
    ],
)
def test_several_tiles_of_rows_and_columns(dim: int, layout: str, dtype: torch.dtype) -> None:
    pack = Pack([150, 0, 1, 131, 40])
    shapes, layouts = (
        dict.fromkeys(attention.QKV, (pack.tokens, 2, dim)),
        dict.fromkeys(attention.QKV, layout),
    )
    attention.check_accuracy(Case(LONG, shapes, layouts, seed=1), dtype, None)


@dtypes
def test_widest_heads(dtype: torch.dtype) -> None:
    shapes = dict.fromkeys(attention.QKV, (73, 1, 256))
    case = Case(Pack([70, 3]), shapes, dict.fromkeys(attention.QKV, "fused"), seed=1)
    attention.check_accuracy(case, dtype, None)


def test_sharp_maps_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward makes scores in the thousands again: the very ones of the log-sum-exps, or rows add up to no 1."""
    add_one_product_after_the_other(monkeypatch)
    attention.test_sharp_maps_stay_finite("triton")


@dtypes
def test_upstream_gradient_of_any_layout(dtype: torch.dtype) -> None:
    attention.test_upstream_gradient_of_any_layout("triton", dtype)


def test_no_tokens() -> None:
    for lengths in ([], [0, 0]):
        q, k, v = (torch.zeros(0, 2, 8, requires_grad=True) for _ in range(3))
        out = ops.varlen_attention(q, k, v, Pack(lengths).cu_seqlens)
        assert out.shape == q.shape
        assert all(g.shape == q.shape for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_wrong_numbers_on_the_device_stay_inside_the_tensors() -> None:
    q, k, v = attention.attention_inputs(torch.float32, Pack([40])).values()
    wrong = torch.tensor([0, 30, 1000], dtype=torch.int32)
    out, lse = _library.overload("varlen_attention", "triton")(q, k, v, wrong, 1000, 0.1, 0.0, None)
    assert out.isfinite().all() and lse.isfinite().all()


def results(
    backend: str, pack: Pack, dim: int, dropout_p: float, seed: int, device: str = "cpu"
) -> list[Tensor]:
    """Out, the log-sum-exps and the gradients of q, k and v, of one backend's two operators."""
    tensors = attention.attention_inputs(torch.float32, pack, heads=2, dim=dim)
    upstream = torch.randn(tensors["q"].shape, generator=torch.Generator().manual_seed(1)).to(device)
    q, k, v = (t.to(device) for t in tensors.values())
    drawn = torch.tensor([seed], device=device)
    options: tuple[Any, ...] = (pack.cu_seqlens.to(device), max(pack.lengths), 0.2, dropout_p, drawn)
    out, lse = _library.overload("varlen_attention", backend)(q, k, v, *options)
    grads = _library.overload("varlen_attention_backward", backend)(upstream, q, k, v, out, lse, *options)
    return [out, lse, *grads]


@pytest.mark.skipif(_library.extension is None, reason="no compiled extension")
@pytest.mark.parametrize(("dropout_p", "seed"), [(0.1, 0), (0.5, 12345), (0.9, 2**62 - 1)])
def test_dropout_is_that_of_the_cpu_kernel(dropout_p: float, seed: int) -> None:
    """One entry of the mask drawn differently would show: no tolerance covers it."""
    pack = Pack([70, 0, 1, 37])
    for ours, theirs in zip(
        results("triton", pack, 26, dropout_p, seed), results("cpp", pack, 26, dropout_p, seed), strict=True
    ):
        assert relative_error(ours, theirs.double()) <= 2e-5


def test_dropout_gives_the_same_bits_for_a_seed_and_others_for_another() -> None:
    first, again, other = (results("triton", Pack([33, 20]), 16, 0.3, seed) for seed in (5, 5, 6))
    for name, a, b, c in zip(("out", "lse", "q", "k", "v"), first, again, other, strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (name == "lse"), name


class TestDropout:
    """What test_varlen_attention.py asks of every backend."""

    dropout = attention.TestDropout()

    @pytest.mark.parametrize("dropout_p", [0.1, 0.9])
    def test_drops_the_right_share_and_scales_the_rest(self, dropout_p: float) -> None:
        self.dropout.test_drops_the_right_share_and_scales_the_rest("triton", dropout_p)

    @dtypes
    def test_gradients_are_those_of_the_mask_that_was_drawn(self, dtype: torch.dtype) -> None:
        self.dropout.test_gradients_are_those_of_the_mask_that_was_drawn("triton", dtype)

    def test_every_sequence_has_its_own_mask(self) -> None:
        self.dropout.test_every_sequence_has_its_own_mask("triton")
