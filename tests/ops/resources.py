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

from bertxfer_fast.ops._dispatch.registry import OPS

#: Compute capabilities: Ampere, Hopper, and the newest one that the oldest supported Triton (3.6) also knows.
TARGETS = (80, 90, 100)
TOOL = Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
DOCUMENT = Path(__file__).parents[2] / "docs" / "kernel_resources.md"

#: float16 compiles to the same as bfloat16 but for the type of a matrix instruction's operands, and in the kernels that
#: keep these inside its range (bertxfer_fast/ops/_triton/ranges.py), which a test compiles.
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


VARIANTS = [
    Variant(name, label, lambda dtype, info=info, sizes=sizes: tuple(info.example(dtype, **sizes).values()))
    for name, info in OPS.items()
    if info.triton
    for label, sizes in info.sizes.items()
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
    from triton.runtime.jit import JITFunction

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

    launcher = OPS[variant.op].launcher()
    original = JITFunction.__getitem__
    JITFunction.__getitem__ = record
    try:
        launcher(*variant.inputs(dtype))
    finally:
        JITFunction.__getitem__ = original
    yield from found


def everything(
    targets: tuple[int, ...] = TARGETS, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> list[Compiled]:
    """Every distinct kernel of every variant, for each target."""
    distinct: dict[str, Compiled] = {}
    for target in targets:
        for variant in VARIANTS:
            for dtype in dtypes:
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
    parser.add_argument("--dtype", action="append", help="e.g. float16")
    parser.add_argument("--sample", action="store_true", help="each kernel once, for one target")
    parser.add_argument("--list", action="store_true", help="names as JSON, compiling nothing")
    options = parser.parse_args()
    targets = tuple(options.target or TARGETS)
    dtypes = tuple(getattr(torch, name) for name in options.dtype or ()) or DTYPES
    chosen = sample() if options.sample else everything(targets, dtypes)
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
