"""Pooling of packed hidden states, several layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import backend as _backend
from .._dispatch import library as _library
from .._dispatch.autograd import gpu_size, run_constant
from .._dispatch.checks import check_choice, check_packing, check_same_device, check_same_dtype, check_tensor
from .eager import pool_features as _eager
from .eager import pool_features_backward as _eager_backward

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

    With ``x = sum_l layer_weights[l] * hidden[l]``, a sequence of n tokens becomes

    - ``"mean"``: ``x.mean(0)``; ``"mean_sqrt"``: ``x.sum(0) / sqrt(n)``; ``"max"``: ``x.max(0)``;
    - ``"cls"``: ``x[0]``, the first token.

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
        ValueError, TypeError: naming the argument, what it got and what it wants.

    ``mean_sqrt`` is the pooling of Cer et al., "Universal Sentence Encoder", 2018; the weighted sum of layers
    that of Peters et al., "Deep contextualized word representations", 2018.
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
        first.shape[0], cu_seqlens, None if cu_seqlens_is_cheap(cu_seqlens) else first.shape[0], seqused
    )
    check_same_device("hidden", first, cu_seqlens=cu_seqlens, seqused=seqused)
    weights = _layer_weights(layer_weights, len(layers), first.device)
    args = (layers, cu_seqlens, seqused, weights, mode, normalize)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*layers, weights)):
        size = gpu_size(first.device.type, layers)
        op = _library.overload("pool_features", _backend.pick("pool_features", first.device.type, size))
        return op(*args)[0]
    return run_constant("pool_features", first.device.type, *args)[0]


def cu_seqlens_is_cheap(cu_seqlens: object) -> bool:
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
    ctx.set_materialize_grads(False)
    ctx.layers = len(hidden)
    ctx.save_for_backward(cu_seqlens, seqused, layer_weights, *output, *hidden)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return [None] * ctx.layers, None, None, None, None, None
    cu_seqlens, seqused, layer_weights, pooled, argmax, norm, *hidden = ctx.saved_tensors
    size = gpu_size(grad.device.type, hidden)
    backend = _backend.pick("pool_features_backward", grad.device.type, size)
    grad_hidden, grad_weights = _library.overload("pool_features_backward", backend)(
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
        ctx.needs_input_grad[3],
    )
    return grad_hidden, None, None, grad_weights, None, None


def _double_backward(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("pool_features cannot be differentiated twice (double backward)")


_library.register(
    "pool_features",
    eager=_eager,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
_library.register(
    "pool_features_backward",
    eager=_eager_backward,
    fake=_fake_backward,
    backward=_double_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton_backward",
)
