"""Two processes that train one student over gloo: both have the weights that one process would have, and end well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bertxfer_fast.training.trainer import DistillationTrainer

from .test_trainer import features, trainer_of

PROGRAM = """
import atexit, json, sys
from torch import distributed
atexit.register(lambda: print("group left:", not distributed.is_initialized()))  # registered first, runs last
import torch
from safetensors.torch import save_file
from tests.training.test_processes import train
folder = sys.argv[1]
trainer = train(folder, per_device_train_batch_size=4)
print("world:", trainer.args.world_size, "backend:", distributed.get_backend())
weights = {name: value.contiguous() for name, value in trainer.student.state_dict().items()}
save_file(weights, f"{folder}/rank-{trainer.args.process_index}.safetensors")
dev = trainer.evaluate()
print("dev:", json.dumps({name: dev[name] for name in ("eval_loss", "eval_accuracy")}))
"""


def train(folder: Path | str, **changes: Any) -> DistillationTrainer:
    trainer = trainer_of(
        Path(folder),
        train=features(24, shortest=8, longest=8),
        eval_dataset=features(7),
        max_steps=3,
        **changes,
    )
    trainer.train()
    return trainer


def test_two_processes_train_as_one_does_and_end_well(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env={
                **os.environ,
                **shared,
                "ACCELERATE_USE_CPU": "true",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    shown = [process.communicate(timeout=240) for process in processes]
    for process, (out, err) in zip(processes, shown, strict=True):
        assert process.returncode == 0, err
        assert "terminate called" not in err
        assert "world: 2 backend: gloo" in out
        assert out.rstrip().endswith("group left: True")
    measured = [line for out, _ in shown for line in out.splitlines() if line.startswith("dev:")]
    assert measured[0] == measured[1]

    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in range(2))
    alone = train(tmp_path / "alone", per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, value in alone.student.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)
    dev = alone.evaluate()
    assert json.loads(measured[0].removeprefix("dev:")) == pytest.approx(
        {name: dev[name] for name in ("eval_loss", "eval_accuracy")}, rel=1e-3
    )
