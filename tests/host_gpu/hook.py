"""What a process with a GPU of the host does when it has imported torch: an entry point that torch looks for.

Built into ``build/host_gpu`` (build.py), beside the libraries that it loads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load() -> None:
    import torch

    ctypes.CDLL(str(HERE / "operators.so")).install()
    # Their kernels would do nothing: the plain ones are made of operators that run.
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    spec = importlib.util.spec_from_file_location("bertxfer_fast._C_cuda", HERE / "_C_cuda.abi3.so")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["bertxfer_fast._C_cuda"] = module
