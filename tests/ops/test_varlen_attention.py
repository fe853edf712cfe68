"""varlen_attention: softmax attention inside every sequence of a pack, and its dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bertxfer_fast import ops

from . import reference
from .cases import (
    WRONG_CU_SEQLENS,
    WRONG_MAX_SEQLEN,
    Case,
    MaxSeqlenContract,
    Pack,
    cases,
    dtypes,
    packs,
    threads,
    wrong,
    wrong_tensor,
)
from .reference import EPS32, assert_as_accurate_as_pytorch, largest, relative_error, uneven

QKV = ("q", "k", "v")
SHAPES = dict.fromkeys(QKV, "THd")
scales = st.sampled_from((None, 0.05, 0.7))


def attention_inputs(dtype: torch.dtype, pack: Pack, *, heads: int = 3, dim: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(pack.tokens, heads, dim, generator=generator).to(dtype) for name in QKV}


class TestContract(MaxSeqlenContract):
    operator = "varlen_attention"
    function = staticmethod(ops.varlen_attention)
    plain = staticmethod(reference.varlen_attention)
    student = QKV

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return attention_inputs(dtype, pack)

    @pytest.fixture(params=[None, 0.5], ids=["default-scale", "own-scale"])
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return {"scale": request.param}

    @pytest.fixture(
        params=[
            *(bad for name in QKV for bad in wrong_tensor(name, 3, pair="q")),
            *(
                wrong(f"{name} with fewer {what}", name, {name: cut})
                for name in ("k", "v")
                for what, cut in (
                    ("tokens", lambda t: t[1:]),
                    ("heads", lambda t: t[:, 1:]),
                    ("dims", lambda t: t[..., 1:]),
                )
            ),
            wrong("k of another dtype", "k", {"k": lambda t: t.half()}),
            wrong("v of another dtype", "v", {"v": lambda t: t.bfloat16()}),
            wrong("no head dim", "q", dict.fromkeys(QKV, lambda t: t[..., :0])),
            wrong("head dim 257", "q", dict.fromkeys(QKV, lambda t: t.repeat(1, 1, 9)[..., :257])),
            wrong("dropout_p negative", "dropout_p", {"dropout_p": -0.1}),
            wrong("dropout_p one", "dropout_p", {"dropout_p": 1.0}),
            wrong("dropout_p nan", "dropout_p", {"dropout_p": float("nan")}),
            wrong("dropout_p a string", "dropout_p", {"dropout_p": "some"}),
            wrong("scale a string", "scale", {"scale": "big"}),
            *WRONG_CU_SEQLENS,
            *WRONG_MAX_SEQLEN,
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


def check_accuracy(case: Case, dtype: torch.dtype, scale: float | None) -> None:
    packing = case.pack.packing
    tensors = case.tensors(dtype)
    floors = cancellation(tensors, scale)
    if dtype != torch.float32:
        for name, floor in rounded_output(tensors, packing, scale).items():
            floors[name] += floor
    assert_as_accurate_as_pytorch(
        lambda **x: ops.varlen_attention(**x, **packing, scale=scale),
        lambda **x: reference.varlen_attention(**x, **packing, scale=scale),
        tensors,
        QKV,
        upstream=uneven,
        floors=floors,
    )


def rounded_output(
    tensors: dict[str, Tensor], packing: dict[str, Any], scale: float | None
) -> dict[str, float]:
    """What FlashAttention's sum(P dP) = out . d out is off by because out is rounded to half precision, twice that."""
    q, k, v = (tensors[name].detach().double() for name in QKV)
    if not v.numel():
        return {}
    out = reference.varlen_attention(q, k, v, packing["cu_seqlens"], scale=scale)
    sums = (uneven(out) * (out.to(tensors["v"].dtype) - out)).sum(-1).T  # [H, T]
    twice = 2 * (v.shape[-1] ** -0.5 if scale is None else scale)
    of_q, of_k = torch.zeros_like(q), torch.zeros_like(k)
    for s in reference.sequences(packing["cu_seqlens"]):
        error = twice * torch.softmax(reference.scores(q[s], k[s], scale), dim=-1) * sums[:, s, None]
        of_q[s] = torch.einsum("hij,jhd->ihd", error, k[s])
        of_k[s] = torch.einsum("hij,ihd->jhd", error, q[s])
    return {"gradient of q": largest(of_q), "gradient of k": largest(of_k)}


def cancellation(tensors: dict[str, Tensor], scale: float | None) -> dict[str, float]:
    """Roundings of dP - sum(P dP), which FlashAttention forms from out and its gradient; nothing cancels exactly."""
    q, k, v = (tensors[name].double() for name in QKV)
    if not v.numel():
        return {}
    steepest = 5 * v.shape[-1] ** 0.5 * largest(v.norm(dim=-1))  # of dP, for an upstream gradient within 5
    steepest *= 4 * EPS32 * (v.shape[-1] ** -0.5 if scale is None else scale)
    return {"gradient of q": steepest * largest(k), "gradient of k": steepest * largest(q)}


@dtypes
@given(case=cases(SHAPES, packs=packs(partly_used=False)), scale=scales)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, case: Case, scale: float | None
) -> None:
    check_accuracy(case, dtype, scale)


@pytest.mark.slow
@dtypes
@settings(max_examples=200)
@given(case=cases(SHAPES, packs=packs(partly_used=False, max_tokens=1500, max_pairs=400_000)), scale=scales)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, case: Case, scale: float | None
) -> None:
    check_accuracy(case, dtype, scale)


@dtypes
@pytest.mark.parametrize("dim", [26, 32, 64, 256])
def test_heads_of_real_models(backend: str, dtype: torch.dtype, dim: int) -> None:
    pack = Pack([12, 128, 0, 300, 257, 1, 64, 33])
    heads = 768 // dim if dim > 32 else 12
    case = Case(pack, dict.fromkeys(QKV, (pack.tokens, heads, dim)), dict.fromkeys(QKV, "fused"), seed=1)
    check_accuracy(case, dtype, None)


def test_sharp_maps_stay_finite(backend: str) -> None:
    """Scores in the thousands, where exp overflows unless the maximum is taken off first."""
    pack = Pack([40, 300])
    tensors = attention_inputs(torch.float32, pack)
    tensors |= {name: 40 * tensors[name] for name in ("q", "k")}
    assert_as_accurate_as_pytorch(
        lambda **x: ops.varlen_attention(**x, **pack.packing),
        lambda **x: reference.varlen_attention(**x, **pack.packing),
        tensors,
        QKV,
        upstream=uneven,
    )


@dtypes
@pytest.mark.parametrize(("at", "above"), [(40, 20), (600, 14), (600, 30), (1100, 400)], ids=str)
def test_a_late_key_far_above_the_others(backend: str, dtype: torch.dtype, at: int, above: int) -> None:
    """Weights of a tile of keys need not start from the highest score, unless one is far above, in this tile or later.

    Of half precision only what the forward pass made: where one key has all the weight, the others' gradients are
    differences from an output that is rounded.
    """
    pack = Pack([1101, 700])
    tensors = attention_inputs(dtype, pack, heads=1)
    tensors["q"][..., 0] = 4.0
    tensors["k"][at, :, 0] += (
        above * tensors["k"].shape[-1] ** 0.5 / 4.0
    )  # with the default scale: so many nats
    assert_as_accurate_as_pytorch(
        lambda **x: ops.varlen_attention(**x, **pack.packing),
        lambda **x: reference.varlen_attention(**x, **pack.packing),
        tensors,
        QKV if dtype == torch.float32 else ("v",),
        upstream=uneven,
        floors=cancellation(tensors, None),
    )


@dtypes
def test_a_sequence_does_not_notice_the_one_before(backend: str, dtype: torch.dtype) -> None:
    """Of an odd number of tokens, after a longer one whose scores are far below zero: what that has left in memory,
    taken for a log-sum-exp of the row that is not there, would weigh infinitely much."""
    pack = Pack([34, 33])
    tensors = attention_inputs(dtype, pack, heads=1)
    tensors["q"][:34, :, 0], tensors["k"][:34, :, 0] = 100.0, -100.0
    leaves = [x.requires_grad_() for x in tensors.values()]
    gradients = torch.autograd.grad(ops.varlen_attention(*leaves, **pack.packing).sum(), leaves)
    for gradient in gradients:
        assert gradient.isfinite().all()


@dtypes
def test_long_sequences(backend: str, dtype: torch.dtype) -> None:
    """Of several tiles of queries and of keys, the last ones incomplete."""
    pack = Pack([1101, 513, 0, 1024])
    check_accuracy(
        Case(pack, dict.fromkeys(QKV, (pack.tokens, 2, 26)), dict.fromkeys(QKV, "fused"), seed=1), dtype, None
    )


@dtypes
def test_upstream_gradient_of_any_layout(backend: str, dtype: torch.dtype) -> None:
    """Autograd hands over expanded (from a sum) and transposed gradients as they are."""
    pack = Pack([20, 7])
    tensors = attention_inputs(dtype, pack)
    transposed = torch.randn(32, 3, pack.tokens).to(dtype).permute(2, 1, 0)
    for upstream in (torch.ones((), dtype=dtype).expand(pack.tokens, 3, 32), transposed):
        strided, dense = (
            reference.evaluate(
                lambda **x: ops.varlen_attention(**x, **pack.packing),
                tensors,
                QKV,
                upstream=lambda out, u=u: u,
            )
            for u in (upstream, upstream.contiguous())
        )
        for (name, a), (_, b) in zip(strided.items(), dense.items(), strict=True):
            assert relative_error(a, b.double()) <= 8 * torch.finfo(dtype).eps, name


def test_result_is_contiguous_whatever_the_input(backend: str) -> None:
    pack = Pack([20, 7])
    tensors = {
        name: t.transpose(0, 1).contiguous().transpose(0, 1)
        for name, t in attention_inputs(torch.float32, pack).items()
    }
    assert ops.varlen_attention(**tensors, **pack.packing).is_contiguous()


class TestDropout:
    """The mask is never stored: forward and backward have to draw the same one."""

    pack = Pack([31, 0, 64, 5])

    def attend(self, dropout_p: float = 0.4, seed: int = 7, **tensors: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return ops.varlen_attention(**tensors, **self.pack.packing, dropout_p=dropout_p)

    def maps(self, dropout_p: float, seed: int) -> Tensor:
        """The dropped map [H, L, L] of one sequence, read off by attending to unit vectors."""
        pack = Pack([64])
        tensors = attention_inputs(torch.float32, pack, heads=2, dim=64)
        tensors["v"] = torch.eye(64)[:, None].expand(64, 2, 64)
        torch.manual_seed(seed)
        return ops.varlen_attention(**tensors, **pack.packing, dropout_p=dropout_p).transpose(0, 1)

    def test_follows_the_generator(self, backend: str) -> None:
        tensors = attention_inputs(torch.float32, self.pack)
        assert torch.equal(self.attend(**tensors), self.attend(**tensors))
        assert not torch.equal(self.attend(**tensors), self.attend(seed=8, **tensors))

    def test_two_calls_draw_two_masks(self, backend: str) -> None:
        tensors = attention_inputs(torch.float32, self.pack)
        torch.manual_seed(0)
        first, second = (
            ops.varlen_attention(**tensors, **self.pack.packing, dropout_p=0.4) for _ in range(2)
        )
        assert not torch.equal(first, second)

    def test_mask_does_not_depend_on_the_number_of_threads(self, backend: str) -> None:
        kept = []
        for count in (1, 2, 4):
            with threads(count):
                kept.append(self.maps(0.4, seed=3) != 0)
        assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])

    @pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
    def test_drops_the_right_share_and_scales_the_rest(self, backend: str, dropout_p: float) -> None:
        full = self.maps(0.0, seed=0)
        for seed in range(4):
            dropped = self.maps(dropout_p, seed)
            kept = dropped != 0
            assert relative_error(dropped[kept], full[kept].double() / (1 - dropout_p)) <= 1e-5
            # 8192 draws: 5 standard deviations are below 0.028
            assert abs(kept.float().mean().item() - (1 - dropout_p)) <= 0.028
            for axis in (0, 1, 2):  # no head, row or column is dropped alike
                assert kept.float().mean(dim=axis).std() > 0

    @dtypes
    def test_gradients_are_those_of_the_mask_that_was_drawn(self, backend: str, dtype: torch.dtype) -> None:
        pack, seed, dropout_p = Pack([64]), 5, 0.3
        dropped = (self.maps(dropout_p, seed) != 0) / (1 - dropout_p)
        tensors = attention_inputs(dtype, pack, heads=2, dim=64)

        def op(**x: Tensor) -> Tensor:
            torch.manual_seed(seed)
            return ops.varlen_attention(**x, **pack.packing, dropout_p=dropout_p)

        def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            weights = torch.softmax(reference.scores(q, k, None), dim=-1) * dropped.to(q.dtype)
            return torch.einsum("hij,jhd->ihd", weights, v)

        assert_as_accurate_as_pytorch(op, plain, tensors, QKV, upstream=uneven)

    def test_every_sequence_has_its_own_mask(self, backend: str) -> None:
        """Equal sequences in one pack come out different."""
        one = attention_inputs(torch.float32, Pack([16]))
        pack = Pack([16, 16])
        twice = {name: torch.cat([t, t]) for name, t in one.items()}
        out = ops.varlen_attention(**twice, **pack.packing, dropout_p=0.5)
        assert not torch.equal(out[:16], out[16:])
