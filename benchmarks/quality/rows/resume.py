"""Killed and resumed.

`bertxfer distill` with each recipe on 200 texts: one run is left alone, another is killed (SIGKILL) as soon as its
first checkpoint is whole and called again. The weights of the two students are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, set_seed

from bertxfer_fast import recipes

from ..place import Place
from ..row import Claim, Row, Run

TEXTS = 200
#: Recipes whose teacher is the encoder alone, or with a masked-LM head.
PLAIN = {"tinybert_general": "none", "minilm": "none", "minilmv2": "none", "embedding": "none"}
MASKED_LM = {"distilbert": "masked-lm"}


def measure(run: Run) -> None:
    place = run.place
    train = run.folder / "train.tsv"
    train.parent.mkdir(parents=True, exist_ok=True)
    lines = (place.data / "train.tsv").read_text(encoding="utf-8").split("\n")
    train.write_text("\n".join(lines[: 1 + TEXTS]) + "\n", encoding="utf-8")

    def both(name: str) -> dict[str, float]:
        command = [sys.executable, "-m", "bertxfer_fast", "distill", str(_recipe(place, run, name, train))]
        folders = [run.folder / name / way for way in ("whole", "killed")]
        _finish([*command, "--output_dir", str(folders[0])])
        killed = _kill_at_checkpoint([*command, "--output_dir", str(folders[1])], folders[1])
        _finish([*command, "--output_dir", str(folders[1])])
        whole, resumed = (load_file(folder / "model.safetensors") for folder in folders)
        differ = max(float((whole[key].double() - resumed[key].double()).abs().max()) for key in whole)
        return {"killed at step": killed, "largest difference of a weight": differ}

    for name in recipes.names():
        run.measure(name, lambda name=name: both(name))
    found = [numbers["largest difference of a weight"] for numbers in run.measured.values()]
    run.measure("all recipes", lambda: {"largest difference of a weight": max(found)})


def _recipe(place: Place, run: Run, name: str, train: Path) -> Path:
    """A recipe file for a short run with a checkpoint every few steps."""
    teacher, task = run.sentiment.folder, "sequence-classification"
    if name in PLAIN:
        teacher, task = place.encoder, PLAIN[name]
    elif name in MASKED_LM:
        teacher, task = run.folder / "masked-lm", MASKED_LM[name]
        if not teacher.is_dir():
            set_seed(run.seed)
            AutoModelForMaskedLM.from_pretrained(place.encoder).save_pretrained(teacher)
            run.sentiment.tokenizer.save_pretrained(teacher)
    settings: dict[str, Any] = {
        "recipe": name,
        "teacher": str(teacher),
        "task": task,
        "student": {"num_hidden_layers": 3},
        "data": {"train": str(train), "text": "text", "max_length": 64},
        "output_dir": "out",
        "seed": run.seed,
        "training": {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4},
    }
    if task == "sequence-classification":
        settings["data"]["label"] = "label"
    file = run.folder / name / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")  # JSON is YAML
    return file


def _finish(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")


def _kill_at_checkpoint(command: list[str], folder: Path) -> int:
    """Start it, kill it when a checkpoint is whole; the step of that."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        states = sorted(folder.glob("*/checkpoint-*/trainer_state.json"))
        if states:
            process.kill()
            process.wait()
            return int(states[0].parent.name.rpartition("-")[2])
        time.sleep(0.02)
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its first checkpoint")


ROW = Row(
    "resume",
    measure,
    (
        Claim(
            "largest difference of a weight, all recipes",
            "all recipes",
            "largest difference of a weight",
            most=0.0,
            digits=9,
        ),
    ),
    minutes=6,
    seeds=(1,),
)
