"""`make gpu PART=profile`: what ncu says of four kernels, kept as text."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .plan import JOBS, Plan
from .problems import HALF
from .schedule import Step

ROOT = Path(__file__).resolve().parents[2]
#: A spec's label, whose backend, and the kernels of it that are looked at.
KERNELS = (
    ("score 64x512x12x32x64", "cuda", "regex:gram"),
    ("map kl 64x512x12x32x64", "cuda", "regex:rows"),
    ("map kl 64x512x12x32x64", "triton", "regex:rows"),
    ("hidden_mse 32768x312->768", "triton", "regex:hidden|mse|residual"),
)


def profile_plan() -> Plan:
    specs = {spec.label: spec for spec in HALF}
    steps = [Step("device", 12.0, {"do": f"{JOBS}:device_facts"})]
    for label, backend, kernels in KERNELS:
        job = {
            "do": f"{__name__}:profile",
            "spec": specs[label].job(),
            "backend": backend,
            "kernels": kernels,
        }
        steps.append(Step(f"profile {backend} {label}", 40.0, job, specs[label].part))
    return Plan(steps)


def profile(spec: dict[str, Any], backend: str, kernels: str) -> Iterator[dict[str, Any]]:
    """A job: one call under ncu, which runs each of its first launches many times."""
    if shutil.which("ncu") is None:
        raise RuntimeError("no ncu on the PATH")
    # Clocks stay as they are: the card's settings are not ours.
    options = ["--set", "full", "--clock-control", "none", "--kernel-name", kernels, "--launch-count", "2"]
    command = ["ncu", *options, sys.executable, "-m", __name__]
    done = subprocess.run(
        [*command, json.dumps({"spec": spec, "backend": backend})], cwd=ROOT, capture_output=True, text=True
    )
    yield {
        "kind": "profile",
        "backend": backend,
        "kernels": kernels,
        "code": done.returncode,
        "text": done.stdout,
    }
    if done.returncode or "No kernels were profiled" in done.stdout:
        raise RuntimeError(f"ncu ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}")


if __name__ == "__main__":
    from . import jobs

    asked = json.loads(sys.argv[1])
    jobs._call(jobs._problem(asked["spec"]), asked["backend"])()
    jobs.torch.cuda.synchronize()
