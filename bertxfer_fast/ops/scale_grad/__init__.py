"""``grad * scale``: the whole backward pass of an operator whose forward already computed its gradient.

A forward operator returns its gradient with a float32 ``grad_scale`` that is still to be multiplied in. Kernels store
the gradient of the loss itself, float16's in float32, and ``grad_scale`` is 1; only logits_kl, whose gradient is as
large as the logits and bounded, stores float16 at a size that suits it, and ``grad_scale`` is the rest. The backward
pass multiplies by ``grad_scale`` and the upstream gradient, a loss scale included, and rounds once; in place there is
nothing to do for a product of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dispatch import backend, library
from .._dispatch.examples import normal
from .._dispatch.registry import OpInfo
from . import eager


def scale_grads(
    grads: Sequence[Tensor],
    needed: Sequence[bool],
    grad_scale: Tensor,
    upstream: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """``(grad * (grad_scale * upstream)).to(dtype)`` for every gradient that is needed, the products in float32.

    A backward pass that frees its graph needs the stored gradients no more: then the results take their memory, all in
    one call, which saves a copy of them. With ``retain_graph=True`` they are left alone.

    Args:
        grads: any shapes; float32, bfloat16 or float16.
        needed: which of them are wanted; the others become None.
        grad_scale, upstream: float32, 0-dim, on the device of ``grads``: what is left to multiply the stored gradients
            by, and the gradient of the loss.
        dtype: of the results, by default each gradient's own.
    """
    chosen = backend.pick("scale_grad", grad_scale.device.type)
    keep = _keeps_graph_alive()
    in_place = [
        grad
        for grad, wanted in zip(grads, needed, strict=True)
        if wanted and not keep and dtype in (None, grad.dtype) and _is_ours_alone(grad)
    ]
    if in_place:
        # Only on the CPU: to ask a GPU for the product would be to wait for it.
        if grad_scale.device.type != "cpu" or grad_scale.item() * upstream.item() != 1.0:
            library.overload("scale_grad_", chosen)(in_place, grad_scale, upstream)
        if len(in_place) == len(grads):
            return list(grads)
    scaled, product = [], None
    for grad, wanted in zip(grads, needed, strict=True):
        if not wanted or any(grad is done for done in in_place):
            scaled.append(grad if wanted else None)
            continue
        product = grad_scale * upstream if product is None else product
        scaled.append(scale_grad(grad, product, dtype))
    return scaled


def scale_grad(grad: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``(grad * scale).to(dtype)``, a tensor of its own."""
    chosen = backend.pick("scale_grad", grad.device.type)
    return library.overload("scale_grad", chosen)(grad, scale, grad.dtype if dtype is None else dtype)


# These two are torch's own and undocumented: without the first, a graph counts as kept, without the second every
# gradient as shared, so that scaling copies.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_storage_use_count = getattr(torch._C, "_storage_Use_Count", lambda storage: _OWN_USES + 1)
#: References to a stored gradient's memory when nobody else has one: autograd's, its unpacked tensor's, the caller's.
_OWN_USES = 3


def _keeps_graph_alive() -> bool:
    """Whether this is anything but a backward pass over real tensors that frees its graph."""
    return torch.compiler.is_compiling() or torch.is_grad_enabled() or _keeps_graph()


def _is_ours_alone(grad: Tensor) -> bool:
    return (
        type(grad) is Tensor
        and grad.is_contiguous()
        and _storage_use_count(grad.untyped_storage()._cdata) <= _OWN_USES
    )


def _fake(grad: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(grad.shape, dtype=dtype, device=grad.device)


def _fake_in_place(grads: list[Tensor], grad_scale: Tensor, upstream: Tensor) -> None:
    return None


def _example(dtype: torch.dtype = torch.float32, *, numel: int = 7) -> dict[str, Any]:
    return {"grad": normal(dtype)(numel), "scale": torch.tensor(0.5), "dtype": dtype}


def _example_in_place(dtype: torch.dtype = torch.float32, *, numel: int = 7) -> dict[str, Any]:
    grads = [normal(dtype)(numel), *(normal(torch.float32)(numel) for _ in range(2))]
    return {"grads": grads, "grad_scale": torch.tensor(0.5), "upstream": torch.tensor(3.0)}


library.register(
    OpInfo(
        name="scale_grad",
        module=__name__,
        schema="(Tensor grad, Tensor scale, ScalarType dtype) -> Tensor",
        eager=eager.scale_grad,
        fake=_fake,
        example=_example,
        sizes={"": {"numel": 4096}},
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
library.register(
    OpInfo(
        name="scale_grad_",
        module=__name__,
        schema="(Tensor(a!)[] grads, Tensor grad_scale, Tensor upstream) -> ()",
        eager=eager.scale_grad_,
        fake=_fake_in_place,
        example=_example_in_place,
        sizes={"three": {"numel": 4096}},
        compiled=("cpp", "cuda"),
        triton="triton",
    )
)
