"""``grad * factor``: the whole backward pass of an operator whose forward already computed its gradient.

A forward operator returns its gradient with a float32 ``factor`` that is still missing. Where the dtype has float32's
range, kernels store the gradient whole and the factor is 1; float16 gradients are stored at a size that suits them, and
the factor is the rest. The backward pass multiplies by the factor and the upstream gradient, a loss scale
included, and rounds once; in place there is nothing to do for a product of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import backend as _backend
from .._dispatch import library as _library
from .._dispatch.autograd import DOUBLE_BACKWARD
from .eager import scale_grad as _eager
from .eager import scale_grad_ as _eager_in_place


def scale_grads(
    grads: Sequence[Tensor],
    needed: Sequence[bool],
    factor: Tensor,
    upstream: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """``(grad * (factor * upstream)).to(dtype)`` for every gradient that is needed, the products in float32.

    A backward pass that frees its graph needs the stored gradients no more: then the results take their memory, all in
    one call, which saves a copy of them. With ``retain_graph=True`` they are left alone.

    Args:
        grads: any shapes; float32, bfloat16 or float16.
        needed: which of them are wanted; the others become None.
        factor, upstream: float32, 0-dim, on the device of ``grads``: what the stored gradients lack, and the gradient
            of the loss.
        dtype: of the results, by default each gradient's own.
    """
    backend = _backend.pick("scale_grad", factor.device.type)
    keep = _keeps_graph_alive()
    in_place = [
        grad
        for grad, wanted in zip(grads, needed, strict=True)
        if wanted and not keep and dtype in (None, grad.dtype) and _is_ours_alone(grad)
    ]
    if in_place:
        if (
            factor.device.type != "cpu" or factor.item() * upstream.item() != 1.0
        ):  # to ask a GPU would be to wait for it
            _library.overload("scale_grad_", backend)(in_place, factor, upstream)
        if len(in_place) == len(grads):
            return list(grads)
    scaled, product = [], None
    for grad, wanted in zip(grads, needed, strict=True):
        if not wanted or any(grad is done for done in in_place):
            scaled.append(grad if wanted else None)
            continue
        product = factor * upstream if product is None else product
        scaled.append(scale_grad(grad, product, dtype))
    return scaled


def scale_grad(grad: Tensor, factor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``(grad * factor).to(dtype)``, a tensor of its own."""
    backend = _backend.pick("scale_grad", grad.device.type)
    return _library.overload("scale_grad", backend)(grad, factor, grad.dtype if dtype is None else dtype)


# Known to torch alone. One that does not tell is taken to keep its graph.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_holders = getattr(torch._C, "_storage_Use_Count", lambda storage: _OURS + 1)
#: Who holds a stored gradient's memory that nobody else does: autograd, its unpacked tensor, and who asks.
_OURS = 3


def _keeps_graph_alive() -> bool:
    """Whether this is anything but a backward pass over real tensors that frees its graph."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or _keeps_graph()


def _is_ours_alone(grad: Tensor) -> bool:
    return type(grad) is Tensor and grad.is_contiguous() and _holders(grad.untyped_storage()._cdata) <= _OURS


def _fake(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)


def _backward(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError(DOUBLE_BACKWARD)


def _fake_in_place(grads: list[Tensor], factor: Tensor, upstream: Tensor) -> None:
    return None


_library.register(
    "scale_grad",
    eager=_eager,
    fake=_fake,
    backward=_backward,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
_library.register(
    "scale_grad_",
    eager=_eager_in_place,
    fake=_fake_in_place,
    compiled=("cpp", "cuda"),
    triton=f"{__name__}.triton",
)
