"""Mean, first-token, max or sqrt-mean pooling of packed hidden states, several layers in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch.autograd import overload_for, run
from .._dispatch.checks import check_choice, check_packing, check_same_device, check_same_dtype, check_tensor
from .._dispatch.examples import LENGTHS, normal, packing
from .._dispatch.library import register
from .._dispatch.registry import OpInfo
from . import eager

MODES = ("mean", "cls", "max", "mean_sqrt")


def pool_features(
    hidden: Tensor | Sequence[Tensor],
    cu_seqlens: Tensor,
    *,
    mode: str = "mean",
    layer_weights: Sequence[float] | Tensor | None = None,
    normalize: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """One vector per sequence from packed hidden states, in one pass over them.

    The eager expression that is avoided, for one sequence of n tokens, its layers ``h_l [n, D]``::

        x = sum(w * h_l for w, h_l in zip(layer_weights, hidden))      # [n, D]
        pooled = x.mean(0)                                             # mode="mean"
        pooled = x.sum(0) / n**0.5                                     # mode="mean_sqrt"
        pooled = x.max(0).values                                       # mode="max"
        pooled = x[0]                                                  # mode="cls", the first token

    An empty sequence becomes zeros.

    Args:
        hidden: ``[T, D]``, or a list of such layers, of one dtype: float32, bfloat16 or float16. Get gradients.
        cu_seqlens: int32 ``[N + 1]``, where each sequence starts; first 0, last T.
        mode: as above.
        layer_weights: one number per layer, or a float32 ``[layers]`` tensor, which gets a gradient;
            by default each layer weighs ``1 / layers``.
        normalize: divide each vector by its L2 norm (at least 1e-12).
        seqused: int32 ``[N]``, how many tokens of each sequence count.

    Returns:
        ``[N, D]`` in the dtype of ``hidden``; sums are float32.

    Raises:
        TypeError, ValueError: ``argument: got X, want Y``, before any work starts.

    Example:
        >>> import torch
        >>> from bertxfer_fast import ops
        >>> layers = [torch.randn(7, 768) for _ in range(4)]
        >>> cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # sequences of 3 and 4 tokens
        >>> ops.pool_features(layers, cu_seqlens, mode="mean", normalize=True).shape
        torch.Size([2, 768])

    References:
        Cer et al., "Universal Sentence Encoder", 2018 (``"mean_sqrt"``).
        Peters et al., "Deep contextualized word representations", 2018 (the weighted sum of layers).
    """
    if not isinstance(hidden, Tensor | Sequence):
        raise TypeError(f"hidden: got {type(hidden).__name__}, want a [T, D] tensor or a list of them")
    layers = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    if not layers:
        raise ValueError("hidden: got an empty list, want at least one [T, D] tensor")
    first = layers[0]
    for i, layer in enumerate(layers):
        name = "hidden" if isinstance(hidden, Tensor) else f"hidden[{i}]"
        check_tensor(name, layer, 2, "[T, D]")
        if layer.shape != first.shape:
            raise ValueError(
                f"{name}: got shape {tuple(layer.shape)}, want {tuple(first.shape)} as hidden[0]"
            )
        check_same_dtype("hidden[0]", first, **{name: layer})
        check_same_device("hidden[0]", first, **{name: layer})
    check_choice("mode", mode, MODES)
    check_packing(
        first.shape[0], cu_seqlens, None if _lengths_are_at_hand(cu_seqlens) else first.shape[0], seqused
    )
    check_same_device("hidden", first, cu_seqlens=cu_seqlens, seqused=seqused)
    weights = _layer_weights(layer_weights, len(layers), first.device)
    return run("pool_features", first.device.type, layers, cu_seqlens, seqused, weights, mode, normalize)


def _lengths_are_at_hand(cu_seqlens: object) -> bool:
    """Whether max_seqlen can be computed without a host sync (pooling itself does not need it)."""
    return not isinstance(cu_seqlens, Tensor) or cu_seqlens.device.type == "cpu"


def _layer_weights(weights: Sequence[float] | Tensor | None, layers: int, device: torch.device) -> Tensor:
    if weights is None:
        return torch.full((layers,), 1.0 / layers, dtype=torch.float32, device=device)
    if isinstance(weights, Tensor):
        if weights.dtype != torch.float32:
            raise TypeError(f"layer_weights: got dtype {weights.dtype}, want float32")
        if tuple(weights.shape) != (layers,):
            raise ValueError(f"layer_weights: got shape {tuple(weights.shape)}, want ({layers},)")
        if weights.device != device:
            raise ValueError(f"layer_weights: got device {weights.device}, want {device} as hidden")
        return weights
    if not isinstance(weights, Sequence) or not all(isinstance(w, int | float) for w in weights):
        raise TypeError(f"layer_weights: got {weights!r}, want one number per layer or a float32 tensor")
    values = [float(w) for w in weights]
    if len(values) != layers:
        raise ValueError(f"layer_weights: got {len(values)} numbers, want {layers}, one per layer")
    return torch.tensor(values, dtype=torch.float32, device=device)


def _fake(
    hidden: list[Tensor],
    cu_seqlens: Tensor,
    seqused: Tensor | None,
    layer_weights: Tensor,
    mode: str,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (cu_seqlens.shape[0] - 1, hidden[0].shape[1])
    return (
        hidden[0].new_empty(shape),
        hidden[0].new_empty(shape if mode == "max" else (0,), dtype=torch.int32),
        hidden[0].new_empty(shape[:1] if normalize else (0,), dtype=torch.float32),
    )


def _fake_backward(grad: Tensor, hidden: list[Tensor], *args: Any) -> tuple[list[Tensor], Tensor]:
    return [h.new_empty(h.shape) for h in hidden], hidden[0].new_empty(len(hidden), dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, cu_seqlens, seqused, layer_weights, ctx.mode, ctx.normalize = inputs
    ctx.save_for_backward(cu_seqlens, seqused, layer_weights, *output, *hidden)


def _backward(ctx: Any, grad: Tensor, needed: Sequence[Any]) -> tuple[list[Tensor], Tensor]:
    cu_seqlens, seqused, layer_weights, pooled, argmax, norm, *hidden = ctx.saved_tensors
    operator = overload_for("pool_features_backward", grad.device.type, hidden)
    _, need_weights = needed
    return operator(
        grad,
        hidden,
        cu_seqlens,
        seqused,
        layer_weights,
        ctx.mode,
        ctx.normalize,
        pooled,
        argmax,
        norm,
        need_weights,
    )


def _example(
    dtype: torch.dtype = torch.float32,
    *,
    layers: int = 2,
    width: int = 6,
    mode: str = "mean",
    normalize: bool = False,
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Any]:
    make = normal(dtype)
    return {
        "hidden": [make(sum(lengths), width) for _ in range(layers)],
        "cu_seqlens": packing(lengths),
        "seqused": None,
        "layer_weights": torch.full((layers,), 1.0 / layers),
        "mode": mode,
        "normalize": normalize,
    }


def _example_backward(dtype: torch.dtype = torch.float32, **sizes: Any) -> dict[str, Any]:
    forward = _example(dtype, **sizes)
    pooled, argmax, norm = eager.pool_features(**forward)
    grad = torch.linspace(-1, 1, pooled.numel()).view(pooled.shape).to(dtype)
    return {
        "grad": grad,
        **forward,
        "pooled": pooled,
        "argmax": argmax,
        "norm": norm,
        "need_weights": True,
    }


_TWO = {"width": 768, "lengths": (2, 2)}  # sequences
_FOUR = {"width": 768, "lengths": (2, 2, 2, 2)}

register(
    OpInfo(
        name="pool_features",
        module=__name__,
        schema=(
            "(Tensor[] hidden, Tensor cu_seqlens, Tensor? seqused, Tensor layer_weights, str mode, bool normalize) "
            "-> (Tensor pooled, Tensor argmax, Tensor norm)"
        ),
        function=pool_features,
        eager=eager.pool_features,
        fake=_fake,
        example=_example,
        sizes={
            **{
                f"{mode} x {layers}": {"layers": layers, "mode": mode, **_TWO}
                for layers in (4, 1)
                for mode in MODES
            },
            **{
                f"{mode} x 4 split": {"layers": 4, "mode": mode, "width": 128, "lengths": (2,)}
                for mode in ("mean", "mean_sqrt", "max")
            },
            "max x 4 normalized": {"layers": 4, "mode": "max", "normalize": True, **_TWO},
            "mean x 13": {"layers": 13, "mode": "mean", **_TWO},
        },
        differentiable=("hidden", "layer_weights"),
        setup_context=_setup_context,
        backward=_backward,
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
register(
    OpInfo(
        name="pool_features_backward",
        module=__name__,
        schema=(
            "(Tensor grad, Tensor[] hidden, Tensor cu_seqlens, Tensor? seqused, Tensor layer_weights, str mode, "
            "bool normalize, Tensor pooled, Tensor argmax, Tensor norm, bool need_weights) "
            "-> (Tensor[] grad_hidden, Tensor grad_weights)"
        ),
        eager=eager.pool_features_backward,
        fake=_fake_backward,
        example=_example_backward,
        sizes={
            **{f"{mode} x 4": {"layers": 4, "mode": mode, **_FOUR} for mode in MODES},
            "mean x 1 normalized": {"layers": 1, "mode": "mean", "normalize": True, **_FOUR},
        },
        compiled=("cpp", "cuda"),
        triton="triton_backward",
    )
)
