"""``grad * factor``: the whole backward pass of an operator whose forward already computed its gradient.

A forward operator returns its gradient with a float32 ``factor`` that is still missing. Where the dtype has float32's
range, kernels store the gradient whole and the factor is 1; float16 gradients are stored at a size that suits them, and
the factor is the rest. The backward pass multiplies by the factor and the upstream gradient, a loss scale
included, and rounds once; in place there is nothing to do for a product of 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backend, _library
from .._autograd import DOUBLE_BACKWARD
from .eager import scale_grad as _eager
from .eager import scale_grad_ as _eager_in_place


def scale_grad(grad: Tensor, factor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``(grad * factor).to(dtype)`` in one pass, the product in float32.

    A backward pass that frees its graph needs the stored gradient no more: then the result takes its memory, which
    saves a copy of it. With ``retain_graph=True`` it is left alone.

    Args:
        grad: any shape; float32, bfloat16 or float16.
        factor: float32, 0-dim, on the device of ``grad``.
        dtype: of the result, by default that of ``grad``.
    """
    backend = _backend.pick("scale_grad", grad.device.type)
    if dtype in (None, grad.dtype) and _is_last_use(grad):
        _library.overload("scale_grad_", backend)(grad, factor)
        return grad
    return _library.overload("scale_grad", backend)(grad, factor, grad.dtype if dtype is None else dtype)


# Known to torch alone. One that does not tell is taken to keep its graph.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_holders = getattr(torch._C, "_storage_Use_Count", lambda storage: _OURS + 1)
#: Who holds a stored gradient's memory that nobody else does: autograd, its unpacked tensor, and who asks.
_OURS = 3


def _is_last_use(grad: Tensor) -> bool:
    """Whether this is a backward pass over real tensors that frees its graph, and nobody else holds ``grad``."""
    if torch.compiler.is_compiling() or type(grad) is not Tensor or torch.is_grad_enabled():
        return False
    alone = grad.is_contiguous() and not _keeps_graph()
    return alone and _holders(grad.untyped_storage()._cdata) <= _OURS


def _fake(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)


def _backward(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError(DOUBLE_BACKWARD)


def _fake_in_place(grad: Tensor, factor: Tensor) -> None:
    return None


_library.register("scale_grad", eager=_eager, fake=_fake, backward=_backward)
_library.register("scale_grad_", eager=_eager_in_place, fake=_fake_in_place)
