"""Other people's kernels for the same losses, used where they can be imported; a sentence where they cannot."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from . import device
from .harness import Call, with_gradients

#: Name in the results -> the module that has it. LinearARD is no package, but a checkout: `make gpu PEERS=dir`.
LINEAR_ARD = "peer: LinearARD", "kernels.attention_KL.integration"
LIGER = "peer: Liger", "liger_kernel.transformers.fused_linear_jsd"
FLASH = "peer: flash-attn", "flash_attn"
TORCH = "peer: torch varlen", "torch.nn.attention.varlen"


def _load(module: str) -> Any:
    """The module, or the words that say why not."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a peer may fail in ways of its own
        return f"is not importable ({type(error).__name__}: {str(error)[:120]})"


def linear_ard(qs: Tensor, ks: Tensor, qt: Tensor, kt: Tensor) -> dict[str, Call | str]:
    """KL of attention maps, forward and backward, of ``[B, L, H, D]``; half precision only.

    It wants ``[B, H, L, D]`` without gaps, which it gets for nothing, and sums over the rows.
    """
    name, module = LINEAR_ARD
    found = _load(module) if device.ON_GPU else None
    if found is None or qs.dtype == torch.float32:
        return {}
    if isinstance(found, str):
        return {name: found}
    qs, ks, qt, kt = (x.detach().transpose(1, 2).contiguous() for x in (qs, ks, qt, kt))
    qs.requires_grad_(), ks.requires_grad_()
    scales = {"sm_scale_s": qs.shape[-1] ** -0.5, "sm_scale_t": qt.shape[-1] ** -0.5}
    rows = qs.shape[0] * qs.shape[1] * qs.shape[2]

    def loss() -> Tensor:
        return found.attn_kl_align(qs, ks, qt, kt, None, False, **scales) / rows

    return {name: with_gradients(loss, [qs, ks])}


def liger(student: Tensor, weight_student: Tensor, teacher: Tensor, weight_teacher: Tensor) -> dict[str, Any]:
    """KL(teacher || student) of logits from hidden states, mean over tokens: its generalised JSD at beta 0."""
    name, module = LIGER
    found = _load(module) if device.ON_GPU else None
    if found is None or isinstance(found, str):
        return {} if found is None else {name: found}
    loss = found.LigerFusedLinearJSD(jsd_beta=0.0, temperature=1.0)
    arguments = student, weight_student, teacher, weight_teacher, None
    return {name: with_gradients(lambda: loss(*arguments), [student, weight_student])}


def flash_attention(
    qkv: tuple[Tensor, ...], grad: Tensor, cu_seqlens: Tensor, longest: int
) -> dict[str, Any]:
    """Attention over packed ``[T, H, D]``, forward and backward, of its authors and of torch; half precision only."""
    if not device.ON_GPU or qkv[0].dtype == torch.float32:
        return {}
    leaves = [x.detach().requires_grad_() for x in qkv]

    def backward_too(attention: Any) -> Call:
        def call() -> tuple[Tensor, ...]:
            out = attention(*leaves, cu_seqlens, cu_seqlens, longest, longest)
            return out, *torch.autograd.grad(out, leaves, grad)

        return call

    calls: dict[str, Any] = {}
    for (name, module), function in ((FLASH, "flash_attn_varlen_func"), (TORCH, "varlen_attn")):
        found = _load(module)
        calls[name] = found if isinstance(found, str) else backward_too(getattr(found, function))
    return calls
