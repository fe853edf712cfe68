"""Builds of the CUDA kernels under other flags of nvcc, for `make gpu-sweep`.

    python -m benchmarks.gpu.variants [NAME ...]

Each stands in build/variants/<name>/; the package's own is not touched. Needs nvcc, and no GPU.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .sweep import VARIANTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "variants"
LIBRARY = "_C_cuda.abi3.so"


def built() -> dict[str, str]:
    """Name -> path of those that are there."""
    paths = {name: FOLDER / name / LIBRARY for name in VARIANTS}
    return {name: str(path) for name, path in paths.items() if path.exists()}


def with_flag(text: str, flag: str) -> str:
    """The text of a ninja file whose nvcc gets one more flag.

    Raises:
        ValueError: there is not one line that names nvcc.
    """
    changed, found = re.subn(r"^(nvcc = .*)$", rf"\1 {flag}", text, flags=re.MULTILINE)
    if found != 1:
        raise ValueError(f"text: got {found} lines that name nvcc, want 1")
    return changed


def main(names: list[str]) -> int:
    sys.path.insert(0, str(ROOT))
    import build_kernels

    unknown = [name for name in names if name not in VARIANTS]
    nvcc = build_kernels.find_nvcc()
    if unknown or nvcc is None:
        why = (
            f"variants: got {unknown[0]!r}, want one of {', '.join(VARIANTS)}"
            if unknown
            else "no nvcc on the PATH"
        )
        print(why, file=sys.stderr)
        return 2
    for name in names or VARIANTS:
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        text = with_flag(build_kernels.cuda_ninja(folder, folder / LIBRARY, nvcc), VARIANTS[name])
        build_kernels.run_ninja(folder / "build.ninja", text)
        print(folder / LIBRARY)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
