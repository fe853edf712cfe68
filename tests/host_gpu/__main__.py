"""``python -m tests.host_gpu COMMAND...``: runs a command where the host is a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .build import build, reason_not_to


def environment(folder: Path) -> dict[str, str]:
    def before(name: str) -> str:
        return os.pathsep.join([str(folder), *filter(None, [os.environ.get(name)])])

    return {
        **os.environ,
        "BERTXFER_HOST_GPU": "1",
        "LD_PRELOAD": str(folder / "runtime.so"),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH"),
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), before("PYTHONPATH")]),
        "TRITON_LIBCUDA_PATH": str(folder),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def main() -> None:
    reason = reason_not_to()
    if reason or len(sys.argv) < 2:
        sys.exit(f"python -m tests.host_gpu: {reason or 'got no command, want one to run'}")
    os.execvpe(sys.argv[1], sys.argv[1:], environment(build()))


if __name__ == "__main__":
    main()
