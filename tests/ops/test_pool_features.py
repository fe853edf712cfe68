"""pool_features: every mode, several layers, gradients to hidden states and layer weights."""

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
    SMALL,
    WRONG_CU_SEQLENS,
    WRONG_SEQUSED,
    Case,
    OpContract,
    Pack,
    cases,
    dtypes,
    lay_out,
    packs,
    wrong,
    wrong_tensor,
)
from .reference import assert_as_accurate_as_pytorch, relative_error, sequences, uneven

MODES = ("mean", "cls", "max", "mean_sqrt")
modes = pytest.mark.parametrize("mode", MODES)


def two_layers(hidden_0: Tensor, hidden_1: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
    return ops.pool_features([hidden_0, hidden_1], cu_seqlens, **options)


def two_layers_reference(hidden_0: Tensor, hidden_1: Tensor, cu_seqlens: Tensor, **options: Any) -> Tensor:
    return reference.pool_features([hidden_0, hidden_1], cu_seqlens, **options)


def hidden_layers(dtype: torch.dtype, pack: Pack, *, width: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers = {f"hidden_{i}": torch.randn(pack.tokens, width, generator=generator).to(dtype) for i in (0, 1)}
    return {**layers, "layer_weights": torch.tensor([0.7, 0.45])}


class TestContract(OpContract):
    operator = "pool_features"
    function = staticmethod(two_layers)
    plain = staticmethod(two_layers_reference)
    student = ("hidden_0", "hidden_1", "layer_weights")

    def inputs(self, dtype: torch.dtype, pack: Pack) -> dict[str, Tensor]:
        return hidden_layers(dtype, pack)

    def gets_grad(self, argument: str) -> bool:
        return argument in ("hidden", "layer_weights")

    def positions(self, variant: dict[str, Any], name: str, tensor: Tensor) -> list[int]:
        if variant["mode"] == "cls" and name != "layer_weights":
            return [0, tensor.numel() - self.pack.lengths[-1] * tensor.shape[1]]
        return super().positions(variant, name, tensor)

    @pytest.fixture(params=[(mode, normalize) for mode in MODES for normalize in (False, True)], ids=str)
    def variant(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        return dict(zip(("mode", "normalize"), request.param, strict=True))

    @pytest.fixture(
        params=[
            *(bad for name in ("hidden_0", "hidden_1") for bad in wrong_tensor(name, 2, names="hidden")),
            wrong("hidden_1 on another device", "hidden", {"hidden_1": lambda t: t.to("meta")}),
            wrong("layers of two widths", "hidden", {"hidden_1": lambda t: t[:, 1:]}),
            wrong("layers of two lengths", "hidden", {"hidden_1": lambda t: t[1:]}),
            wrong("layers of two dtypes", "hidden", {"hidden_1": lambda t: t.half()}),
            wrong("mode unknown", "mode", {"mode": "median"}),
            wrong("mode None", "mode", {"mode": None}),
            wrong("too few layer_weights", "layer_weights", {"layer_weights": [1.0]}),
            wrong("too many layer_weights", "layer_weights", {"layer_weights": [1.0, 1.0, 1.0]}),
            wrong("layer_weights a float", "layer_weights", {"layer_weights": 0.5}),
            wrong("layer_weights of strings", "layer_weights", {"layer_weights": ["a", "b"]}),
            wrong("layer_weights with 2 dims", "layer_weights", {"layer_weights": lambda w: w[None]}),
            wrong("layer_weights int64", "layer_weights", {"layer_weights": torch.tensor([1, 2])}),
            wrong("layer_weights elsewhere", "layer_weights", {"layer_weights": lambda w: w.to("meta")}),
            *WRONG_CU_SEQLENS,
            *WRONG_SEQUSED,
        ]
    )
    def bad_argument(self, request: pytest.FixtureRequest) -> Any:
        return request.param


@pytest.mark.parametrize("hidden", [[], (), None, "hidden", 3.0], ids=repr)
def test_hidden_must_be_a_tensor_or_a_list_of_them(backend: str, hidden: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"\bhidden\b"):
        ops.pool_features(hidden, SMALL.cu_seqlens)


LAYERS = tuple(f"hidden_{i}" for i in range(3))
drawn = st.integers(1, len(LAYERS)).flatmap(lambda count: cases(dict.fromkeys(LAYERS[:count], "TD")))
options = st.fixed_dictionaries(
    {"weights": st.sampled_from((None, "tensor", "list")), "normalize": st.booleans(), "bare": st.booleans()}
)


def with_one_winner(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Drawn layers whose largest and smallest token are clear in every column, so that max has one gradient."""
    tensors = case.tensors(dtype)
    for name, tensor in tensors.items():
        values = tensor.clone(memory_format=torch.contiguous_format)
        columns = torch.arange(values.shape[1])
        for s in sequences(case.pack.cu_seqlens, case.pack.seqused):
            tokens = values[s]
            if len(tokens) > 1:
                high, low = tokens.amax(dim=0) + 1, tokens.amin(dim=0) - 1
                tokens[columns % len(tokens), columns] = high
                tokens[(columns + 1) % len(tokens), columns] = low
        tensors[name] = lay_out(values, case.layouts[name])
    return tensors


def check_accuracy(case: Case, dtype: torch.dtype, mode: str, drawn: dict[str, Any]) -> None:
    tensors = with_one_winner(case, dtype)
    layers = tuple(tensors)
    generator = torch.Generator().manual_seed(case.seed)
    weights = torch.randn(len(layers), generator=generator)  # negative ones, too: max then picks other tokens
    given = {**case.pack.packing, "mode": mode, "normalize": drawn["normalize"]}
    given.pop("max_seqlen", None)
    wrt: tuple[str, ...] = layers
    if drawn["weights"] == "tensor":
        tensors["layer_weights"] = weights
        wrt = (*wrt, "layer_weights")
    elif drawn["weights"] == "list":
        given["layer_weights"] = weights.tolist()

    def op(**x: Tensor) -> Tensor:
        hidden = [x.pop(name) for name in layers]
        return ops.pool_features(hidden[0] if len(hidden) == 1 and drawn["bare"] else hidden, **given, **x)

    def plain(**x: Tensor) -> Tensor:
        return reference.pool_features([x.pop(name) for name in layers], **given, **x)

    floors = {"gradient of layer_weights": unit_rounding(tensors, weights, given, dtype)}
    assert_as_accurate_as_pytorch(op, plain, tensors, wrt, upstream=uneven, floors=floors)


def unit_rounding(
    tensors: dict[str, Tensor], weights: Tensor, given: dict[str, Any], dtype: torch.dtype
) -> float:
    """What the weights' gradient loses where backward reads the normalised result, rounded to the dtype of hidden.

    It sums over sequences <g - u <u, g>, pooled layer> / norm; plain PyTorch loses more, but not in every sum.
    """
    if not given["normalize"]:
        return 0.0
    layers = [t.double() for name, t in tensors.items() if name.startswith("hidden")]
    options = {name: value for name, value in given.items() if name not in ("normalize", "layer_weights")}
    mixed = reference.pool_features(layers, layer_weights=weights.double(), **options)
    pooled = torch.stack([reference.pool_features([layer], **options) for layer in layers])
    ratio = pooled.norm(dim=-1).amax(dim=0) / mixed.norm(dim=-1).clamp_min(1e-12)
    return 0.5 * torch.finfo(dtype).eps * (uneven(mixed).norm(dim=-1) * ratio).sum().item()


@modes
@dtypes
@given(case=drawn, options=options)
def test_is_as_accurate_as_plain_pytorch(
    backend: str, dtype: torch.dtype, mode: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, mode, options)


@pytest.mark.slow
@modes
@dtypes
@settings(max_examples=200)
@given(
    case=cases({"hidden_0": "TD", "hidden_1": "TD"}, packs=packs(max_tokens=3000), D=st.integers(1, 1100)),
    options=options,
)
def test_is_as_accurate_as_plain_pytorch_on_many_shapes(
    backend: str, dtype: torch.dtype, mode: str, case: Case, options: dict[str, Any]
) -> None:
    check_accuracy(case, dtype, mode, options)


@modes
@dtypes
@pytest.mark.parametrize("width", [312, 768])
def test_last_four_layers_of_real_models(backend: str, dtype: torch.dtype, mode: str, width: int) -> None:
    pack = Pack([12, 128, 0, 300, 1, 64])
    names = [f"hidden_{i}" for i in range(4)]
    case = Case(pack, dict.fromkeys(names, (pack.tokens, width)), dict.fromkeys(names, "contiguous"), seed=2)
    check_accuracy(case, dtype, mode, {"weights": "tensor", "normalize": False, "bare": False})


@modes
@dtypes
def test_result_has_the_dtype_of_the_hidden_states(backend: str, dtype: torch.dtype, mode: str) -> None:
    assert (
        ops.pool_features(hidden_layers(dtype, SMALL)["hidden_0"], SMALL.cu_seqlens, mode=mode).dtype == dtype
    )


@dtypes
@pytest.mark.parametrize("mode", ["max", "cls"])
def test_picking_modes_are_exact_on_one_layer(backend: str, dtype: torch.dtype, mode: str) -> None:
    """They copy a value, so not one bit may change."""
    pack = Pack([300, 1, 17])
    hidden = hidden_layers(dtype, pack)["hidden_0"]
    pooled = ops.pool_features(hidden, pack.cu_seqlens, mode=mode)
    assert torch.equal(pooled, reference.pool_features([hidden], pack.cu_seqlens, mode=mode))


@dtypes
def test_max_of_negative_values_is_not_zero(backend: str, dtype: torch.dtype) -> None:
    pack = Pack([9, 33])
    hidden = -hidden_layers(dtype, pack)["hidden_0"].abs() - 1
    assert (ops.pool_features(hidden, pack.cu_seqlens, mode="max") <= -1).all()


@dtypes
def test_tied_maxima_share_one_gradient(backend: str, dtype: torch.dtype) -> None:
    """Which of equal tokens gets the gradient is free; that it is handed out once is not."""
    pack = Pack([8, 1, 20])
    upstream = torch.arange(1.0, 13.0).view(3, 4).to(dtype)
    outcome = reference.evaluate(
        lambda hidden: ops.pool_features(hidden, pack.cu_seqlens, mode="max"),
        {"hidden": torch.ones(pack.tokens, 4, dtype=dtype)},
        ("hidden",),
        upstream=lambda out: upstream,
    )
    sums = torch.stack([outcome.grads["hidden"][s].float().sum(dim=0) for s in sequences(pack.cu_seqlens)])
    assert relative_error(sums, upstream.double()) <= 1e-2


@modes
@pytest.mark.parametrize("normalize", [False, True])
def test_empty_sequences_pool_to_zeros(backend: str, mode: str, normalize: bool) -> None:
    """Neither 0/0 nor the -inf that a maximum starts from; and no gradient that is NaN."""
    for pack in (Pack([0, 4, 0]), Pack([3, 4, 2], [0, 4, 0]), Pack([0]), Pack([])):
        outcome = reference.evaluate(
            lambda hidden_0, pack=pack: ops.pool_features(
                hidden_0, **pack.packing, mode=mode, normalize=normalize
            ),
            {"hidden_0": hidden_layers(torch.float32, pack)["hidden_0"]},
            ("hidden_0",),
            upstream=uneven,
        )
        assert outcome.out.shape == (len(pack.lengths), 40)
        for name, value in outcome.items():
            assert value.isfinite().all(), name
        for row, length in zip(outcome.out, pack.used or pack.lengths, strict=True):
            assert bool(row.any()) == (length > 0)


@modes
def test_normalized_rows_have_length_one(backend: str, mode: str) -> None:
    pack = Pack([5, 30, 1])
    layers = hidden_layers(torch.float32, pack)
    pooled = two_layers(**layers, cu_seqlens=pack.cu_seqlens, mode=mode, normalize=True)
    assert relative_error(pooled.norm(dim=1), torch.ones(3, dtype=torch.float64)) <= 1e-6


@modes
def test_layers_are_averaged_when_no_weights_are_given(backend: str, mode: str) -> None:
    pack = Pack([5, 30, 1])
    layers = hidden_layers(torch.float32, pack)
    del layers["layer_weights"]
    mean = (layers["hidden_0"].double() + layers["hidden_1"].double()) / 2
    pooled = two_layers(**layers, cu_seqlens=pack.cu_seqlens, mode=mode)
    assert relative_error(pooled, reference.pool_features([mean], pack.cu_seqlens, mode=mode)) <= 1e-6
