"""Every Triton kernel compiled without a GPU, for the targets below, and what each takes of a multiprocessor.

    python -m tests.ops.resources            print the table
    python -m tests.ops.resources --write    write it to docs/kernel_resources.md

The launchers of the operators run on CPU tensors and no kernel is launched: what they would have launched, with the
configuration their tables pick, is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Compute capabilities: Ampere, Hopper, and the newest one that the oldest supported Triton (3.6) also knows.
TARGETS = (80, 90, 100)
TOOL = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel_resources.md"

#: float16 compiles to the same as bfloat16 but for the type of a matrix instruction's operands.
DTYPES = (torch.bfloat16, torch.float32)
INTRODUCTION = """# What the Triton kernels take of a multiprocessor

Compiled ahead of time by Triton {version}, with the configurations of the kernels' tables, by
`python -m tests.ops.resources --write`. Registers are a thread's, KB the shared memory of a program. No kernel may
spill: `tests/ops/test_triton_compiles.py`.

"""

Inputs = Callable[[torch.dtype], tuple[Any, ...]]


@dataclass(frozen=True)
class Variant:
    """A call of an operator's launcher: shapes are small, except where a size selects a configuration."""

    op: str
    label: str
    inputs: Inputs = field(compare=False)


@dataclass
class Compiled:
    """One kernel, as one call of one operator launches it."""

    op: str
    label: str
    dtype: str
    kernel: str
    signature: dict[str, str]
    constants: dict[Any, Any]
    attrs: dict[Any, Any]
    options: dict[str, Any]
    module: str
    target: int
    specialization: str

    @property
    def key(self) -> str:
        """Kernels with the same key are the same."""
        return repr((self.module, self.kernel, self.specialization, self.target))

    @property
    def name(self) -> str:
        return f"{self.op} {self.kernel} {self.label} {self.dtype}"


def packing(length: int) -> Tensor:
    return torch.tensor([0, length], dtype=torch.int32)


def pair(ds: int, dt: int, dtype: torch.dtype, length: int, heads: int = 12) -> list[Tensor]:
    return [torch.zeros(length, heads, dim, dtype=dtype) for dim in (ds, ds, dt, dt)]


def score(ds: int, dt: int, length: int, heads: int = 12) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        tensors = pair(ds, dt, dtype, length, heads)
        return (*tensors, packing(length), None, length, 0.1, 0.1, "mean", "auto", True)

    return inputs


def projected(ds: int, dt: int, tokens: int, *, weight: bool = True) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        student, teacher = torch.zeros(tokens, ds, dtype=dtype), torch.zeros(tokens, dt, dtype=dtype)
        layer = (torch.zeros(dt, ds, dtype=dtype), torch.zeros(dt, dtype=dtype)) if weight else (None, None)
        return student, teacher, *layer, "mean", True

    return inputs


def logits(classes: int) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        return (*(torch.zeros(2, classes, dtype=dtype) for _ in range(2)), 2.0, "batchmean", True)

    return inputs


def linear_logits(classes: int, width: int) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        shapes = ((2, width), (classes, width), (classes,))
        return (*(torch.zeros(shape, dtype=dtype) for shape in 2 * shapes), 2.0, "batchmean", True)

    return inputs


def pooled(layers: int, mode: str, sequences: int, *, width: int = 768, normalize: bool = False) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        hidden = [torch.zeros(2 * sequences, width, dtype=dtype) for _ in range(layers)]
        starts = 2 * torch.arange(sequences + 1, dtype=torch.int32)
        return hidden, starts, None, torch.ones(layers), mode, normalize

    return inputs


def unpooled(layers: int, mode: str, *, normalize: bool = False) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        hidden, *rest = pooled(layers, mode, 4, normalize=normalize)(dtype)
        rows, argmax = torch.zeros(4, 768, dtype=dtype), torch.zeros(4, 768, dtype=torch.int32)
        return rows, hidden, *rest, rows, argmax, torch.ones(4), True

    return inputs


def scaled(dtype: torch.dtype) -> tuple[Any, ...]:
    return torch.zeros(4096, dtype=dtype), torch.ones(()), dtype


def scaled_in_place(dtype: torch.dtype) -> tuple[Any, ...]:
    return (
        [torch.zeros(4096, dtype=dtype), torch.zeros(4096), torch.zeros(4096)],
        torch.ones(()),
        torch.ones(()),
    )


MODES = ("mean", "mean_sqrt", "max", "cls")


def attention_map(ds: int, dt: int, kind: str) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        return (*pair(ds, dt, dtype, 512), packing(512), None, 512, 0.1, 0.1, kind, "mean", True)

    return inputs


def relation(heads: int, ds: int, dt: int) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        x = [torch.zeros(512, width, dtype=dtype) for width in (ds, dt)]
        return (*x, packing(512), None, 512, heads, 0.1, 0.1, "mean", True)

    return inputs


def attend(dim: int, dropout_p: float = 0.0, *, backward: bool = False) -> Inputs:
    def inputs(dtype: torch.dtype) -> tuple[Any, ...]:
        tensors = [torch.zeros(512, 12, dim, dtype=dtype) for _ in range(5 if backward else 3)]
        if backward:
            tensors.append(torch.zeros(12, 512))
        seed = torch.zeros(1, dtype=torch.int64) if dropout_p else None
        return (*tensors, packing(512), 512, 0.1, dropout_p, seed)

    return inputs


#: Student's and teacher's: TinyBERT-4's, MiniLM's, BERT's, and the next two powers of two.
HEAD_DIMS = ((26, 64), (32, 64), (64, 64), (128, 128), (256, 256))

VARIANTS = [
    *(Variant("attention_score_mse", f"{ds}/{dt}", score(ds, dt, 512)) for ds, dt in HEAD_DIMS),
    Variant("attention_score_mse", "64/64 split", score(64, 64, 2048, heads=1)),
    *(
        Variant("attention_map_loss", f"{ds}/{dt} {kind}", attention_map(ds, dt, kind))
        for ds, dt in HEAD_DIMS
        for kind in ("kl", "mse")
    ),
    Variant("relation_kl", "8/16", relation(48, 384, 768)),
    Variant("relation_kl", "32/64", relation(12, 384, 768)),
    Variant("hidden_mse", "312/768", projected(312, 768, 5760)),
    Variant("hidden_mse", "312/768 few tokens", projected(312, 768, 64)),
    Variant("hidden_mse", "768 no weight", projected(768, 768, 64, weight=False)),
    Variant("hidden_cosine", "312/768", projected(312, 768, 64)),
    Variant("hidden_cosine", "312/312", projected(312, 312, 64)),
    Variant("hidden_cosine", "768 no weight", projected(768, 768, 64, weight=False)),
    Variant("hidden_cosine", "312/1536", projected(312, 1536, 64)),
    *(Variant("logits_kl", str(classes), logits(classes)) for classes in (2, 1000, 3000, 30522)),
    Variant("linear_logits_kl", "30522", linear_logits(30522, 16)),
    *(Variant("pool_features", f"{mode} x 4", pooled(4, mode, 2)) for mode in MODES),
    *(Variant("pool_features", f"{mode} x 1", pooled(1, mode, 2)) for mode in MODES),
    *(Variant("pool_features", f"{mode} x 4 split", pooled(4, mode, 1, width=128)) for mode in MODES[:3]),
    Variant("pool_features", "max x 4 normalized", pooled(4, "max", 2, normalize=True)),
    Variant("pool_features", "mean x 13", pooled(13, "mean", 2)),
    *(Variant("pool_features_backward", f"{mode} x 4", unpooled(4, mode)) for mode in MODES),
    Variant("pool_features_backward", "mean x 1 normalized", unpooled(1, "mean", normalize=True)),
    *(
        Variant(f"varlen_attention{suffix}", f"{dim}{dropped}", attend(dim, dropout_p, backward=bool(suffix)))
        for suffix in ("", "_backward")
        for dim, dropout_p, dropped in (
            *((dim, 0.0, "") for dim in (26, 32, 64, 128, 256)),
            (64, 0.1, " dropout"),
        )
    ),
    Variant("scale_grad", "", scaled),
    Variant("scale_grad_", "three", scaled_in_place),
]


def specialise(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: int) -> tuple[Any, ...]:
    """Key, signature, constants, attributes and options of a launch, as Triton's just-in-time compiler makes them."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import compute_cache_key, create_function_from_signature

    backend = make_backend(GPUTarget("cuda", target, 32))
    kwargs = {"debug": False, **kwargs}
    bound, specialization, options = create_function_from_signature(fn.signature, fn.params, backend)(
        *args, **kwargs
    )
    key = compute_cache_key({}, specialization, options)
    options, signature, constants, attrs = fn._pack_args(backend, kwargs, bound, specialization, options)
    return key, signature, constants, attrs, options.__dict__


def launches(variant: Variant, dtype: torch.dtype, target: int) -> Iterator[Compiled]:
    """What a call of the operator's Triton launcher would launch on a GPU of compute capability ``target``."""
    from importlib import import_module

    from triton.runtime.jit import JITFunction

    from bertxfer_fast.ops._dispatch import library as _library
    from bertxfer_fast.ops._triton import launching

    launching.compiled_for = target
    found: list[Compiled] = []

    def record(fn: Any, grid: Any) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            key, signature, constants, attrs, options = specialise(fn, args, kwargs, target)
            short = str(dtype).removeprefix("torch.")
            found.append(
                Compiled(
                    variant.op,
                    variant.label,
                    short,
                    fn.fn.__name__,
                    signature,
                    constants,
                    attrs,
                    options,
                    fn.fn.__module__,
                    target,
                    key,
                )
            )

        return run

    launcher = getattr(import_module(_library.TRITON[variant.op]), variant.op)
    original = JITFunction.__getitem__
    JITFunction.__getitem__ = record
    try:
        launcher(*variant.inputs(dtype))
    finally:
        JITFunction.__getitem__ = original
    yield from found


def everything(targets: tuple[int, ...] = TARGETS) -> list[Compiled]:
    """Every distinct kernel of every variant, for each target."""
    distinct: dict[str, Compiled] = {}
    for target in targets:
        for variant in VARIANTS:
            for dtype in DTYPES:
                for launch in launches(variant, dtype, target):
                    distinct.setdefault(launch.key, launch)
    return list(distinct.values())


def sample() -> list[Compiled]:
    """Each kernel once, as the first variant launches it: in half precision and for Hopper."""
    first: dict[tuple[str, str], Compiled] = {}
    for launch in everything((90,)):
        first.setdefault((launch.module, launch.kernel), launch)
    return list(first.values())


@dataclass
class Usage:
    """What a kernel takes: registers a thread, bytes of shared memory a block, bytes of local memory a thread."""

    launch: Compiled
    registers: int
    shared: int
    spilled: int
    warps: int


def compile_one(launch: Compiled) -> Usage:
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = import_module(launch.module)
    kernels = {getattr(getattr(x, "fn", None), "__name__", ""): x for x in vars(module).values()}
    source = ASTSource(
        fn=kernels[launch.kernel], signature=launch.signature, constexprs=launch.constants, attrs=launch.attrs
    )
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", launch.target, 32), options=launch.options)
    except Exception as error:
        raise RuntimeError(f"{launch.name} does not compile for sm_{launch.target}: {error}") from error
    registers, spilled = cubin_resources(compiled.asm["cubin"])
    return Usage(launch, registers, compiled.metadata.shared, spilled, compiled.metadata.num_warps)


def cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and local memory (spills, stack) of a cubin with one kernel, per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run(
            [TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (registers,) = re.findall(r"REG:(\d+)", shown)
    (stack,), (local,) = re.findall(r"STACK:(\d+)", shown), re.findall(r"LOCAL:(\d+)", shown)
    return int(registers), int(stack) + int(local)


def compile_all(found: list[Compiled], workers: int) -> list[Usage]:
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(compile_one, found))


def table(usages: list[Usage]) -> str:
    """Markdown: a row for each kernel and call, a column for each target."""
    columns = ("operator", "kernel", "sizes", "dtype", *(f"sm_{target}" for target in TARGETS))
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for usage in usages:
        launch = usage.launch
        cell = f"{usage.warps} warps, {usage.registers} registers, {usage.shared / 1024:.0f} KB"
        cell += f", **{usage.spilled} bytes spilled**" if usage.spilled else ""
        row = launch.op, launch.kernel.strip("_"), launch.label, launch.dtype
        rows.setdefault(row, {})[launch.target] = cell
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row, cells in rows.items():
        lines.append("| " + " | ".join((*row, *(cells.get(target, "") for target in TARGETS))) + " |")
    return "\n".join(lines)


def named(launch: Compiled) -> dict[str, Any]:
    return {
        "operator": launch.op,
        "kernel": launch.kernel.strip("_"),
        "sizes": launch.label,
        "dtype": launch.dtype,
        "target": launch.target,
    }


def record(usage: Usage) -> dict[str, Any]:
    return {
        **named(usage.launch),
        "registers": usage.registers,
        "shared": usage.shared,
        "spilled": usage.spilled,
    }


def triton_version() -> str:
    import triton

    return triton.__version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="part of an operator's or kernel's name")
    parser.add_argument("--target", type=int, action="append")
    parser.add_argument("--sample", action="store_true", help="each kernel once, for one target")
    parser.add_argument("--list", action="store_true", help="names as JSON, compiling nothing")
    options = parser.parse_args()
    targets = tuple(options.target or TARGETS)
    chosen = sample() if options.sample else everything(targets)
    found = [launch for launch in chosen if options.only in launch.name]
    if options.list:
        print(json.dumps([named(launch) for launch in found]))
        return
    usages = compile_all(found, os.cpu_count() or 1)
    text = table(usages)
    if options.json:
        print(json.dumps([record(usage) for usage in usages]))
    elif options.write:
        DOCUMENT.write_text(INTRODUCTION.format(version=triton_version()) + text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
