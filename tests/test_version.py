"""The version stands in one place; the wheel, the kernels and the package read it there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bertxfer_fast

ROOT = Path(__file__).resolve().parent.parent


def test_wheel_and_kernels_have_the_version_of_the_package() -> None:
    for code in ("import build_kernels; print(build_kernels.VERSION)", "import setup"):
        words = ["--version"] if code == "import setup" else []
        command = [sys.executable, "-c", code, *words]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert shown.split()[-1] == bertxfer_fast.__version__
    written = [
        name
        for name in ("pyproject.toml", "build_kernels.py")
        if bertxfer_fast.__version__ in (ROOT / name).read_text()
    ]
    assert written == []
