"""How the Triton kernels of all operators are compiled and started, and how their configuration is chosen.

Launchers never read a value back from the device, so every operator can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

Meta = dict[str, Any]

#: Arguments that change from batch to batch. Triton would compile a kernel again whenever one of them becomes, or no
#: longer is, 1 or a multiple of 16, or a pointer to a slice becomes aligned: with ragged batches, in mid-training.
VARYING = (
    "cu_seqlens_ptr",
    "seqused_ptr",
    "losses_ptr",
    "partials_ptr",
    "products_ptr",
    "weights_ptr",
    "tokens",
    "sequences",
    "heads",
    "count",
    "programs",
    "shares",
    "splits",
    "tiled_up_to",
    "first_loss",
    "size",
    "first_size",
    "second_size",
    "third_size",
)

#: Decorator of every kernel that is launched.
kernel = functools.partial(triton.jit, do_not_specialize=VARYING)


def launch(
    kernel: Any, programs: int, *args: Any, num_warps: int = 4, num_stages: int = 2, **constants: Any
) -> None:
    """Every kernel of the package starts here, on a one-dimensional grid."""
    if programs > 0:
        meta = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
        kernel[(programs,)](*args, **meta, **constants)


def dot_precision(*tensors: Tensor) -> str:
    """``"ieee"``, or ``"tf32"`` where the user allowed it for float32 products (torch.set_float32_matmul_precision)."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed and any(t.dtype == torch.float32 for t in tensors) else "ieee"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs run at once at least; in the interpreter 1."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


#: What `capability` tells where there is no GPU: kernels that are only compiled set it.
compiled_for = 90


def capability(device: torch.device) -> int:
    """Compute capability, 80 for sm_80: a size that tables of configurations may ask for."""
    if device.type != "cuda":
        return compiled_for
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


#: A row of a table of configurations: bounds of the sizes it is for, and the configuration.
Choice = tuple[tuple[int, ...], Meta]


def configuration(table: list[Choice], *sizes: int) -> Meta:
    """The first row whose every bound is at least the size; a table's last row has to hold everything."""
    for bounds, meta in table:
        if all(size <= bound for size, bound in zip(sizes, bounds, strict=True)):
            return meta
    raise AssertionError(f"no configuration for {sizes}")
