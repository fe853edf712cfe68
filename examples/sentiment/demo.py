"""A real distillation, from nothing to a table: `make demo`, or `python demo.py --output DIR --seeds 1 2 3 --full`.

1. Fetch a real 6-layer encoder and 10 072 labelled movie-review snippets (../fetch.py).
2. Fine-tune the encoder on them: that is the teacher.
3. Keep every second layer of the encoder, as it was before fine-tuning: that is where the student starts.
4. Distil the teacher into it with the `tinybert` recipe (recipe.yaml).
5. Train the same start on the labels, without a teacher, for as many passes over the text.
6. Measure the three on the test split; write a table and a plot of the loss curves.

Where a processor has instructions for bf16 the trainings use it; elsewhere it is emulated, slower than float32.

By default all of that is done on 4 000 of the snippets in minutes; `--full` takes all 8 056 that are for training, more
often. Finished steps are kept under DIR, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import disable_progress_bars
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from bertxfer_fast import (
    DistillationArguments,
    DistillationTrainer,
    Distiller,
    cli,
    data,
    students,
)
from bertxfer_fast.distillation.objectives import Labels
from bertxfer_fast.evaluation import summary
from bertxfer_fast.evaluation.curves import loss_curves
from bertxfer_fast.evaluation.precision import bf16_is_faster
from bertxfer_fast.evaluation.tables import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fetch

RECIPE = Path(__file__).resolve().parent / "recipe.yaml"
SETTINGS = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
LABEL2ID = {"negative": 0, "positive": 1}
LEARNING_RATE = 1e-4  # of what is trained on the labels alone


@dataclass(frozen=True)
class Size:
    """How much is learned from, and how often.

    Attributes:
        name: the run's folders are called by it.
        rows: training snippets, None for all of them.
        teacher_epochs: passes over the text that fine-tune the teacher.
        stages: by stage of the recipe, its passes over the text and its learning rate.
        timed_passes: over the test split, for the speeds in the table.
    """

    name: str
    rows: int | None
    teacher_epochs: int
    stages: dict[str, dict[str, float]]
    timed_passes: int

    @property
    def alone_epochs(self) -> int:
        """The student without a teacher sees the text as often as the distilled one does in all stages together."""
        return int(sum(stage["num_train_epochs"] for stage in self.stages.values()))

    def train_file(self, texts: Path) -> Path:
        """The training file; its first rows, in the shuffled order that it has, where not all are taken."""
        path = texts / "train.tsv"
        if self.rows is None:
            return path
        lines = path.read_text(encoding="utf-8").split("\n")
        chosen = texts / f"train-{self.rows}.tsv"
        chosen.write_text("\n".join(lines[: 1 + self.rows]) + "\n", encoding="utf-8")
        return chosen


SHORT = Size("seed", rows=4000, teacher_epochs=1, stages=SETTINGS["stages"], timed_passes=1)
FULL = Size(
    "full-seed",
    rows=None,
    teacher_epochs=2,
    stages={
        "intermediate": {"num_train_epochs": 3, "learning_rate": 2e-4},
        "prediction": {"num_train_epochs": 2, "learning_rate": 1e-4},
    },
    timed_passes=5,
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="one whole run for each (default: 1)"
    )
    parser.add_argument(
        "--full", action="store_true", help="all of the text, more often; several times as long"
    )
    args = parser.parse_args(argv)
    size = FULL if args.full else SHORT
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    started = time.perf_counter()
    with step("teacher and text"):
        if fetch.main([str(args.output / "data")]):
            return 1
    runs = [run(args.output.resolve(), size, seed) for seed in args.seeds]
    report(args.output, size, args.seeds, runs)
    print(f"\n{time.perf_counter() - started:.0f} s in all. Table, plot and models are in {args.output}/")
    return 0


def training() -> dict[str, Any]:
    """The recipe's arguments for all stages, in float32 where bf16 would be slower."""
    pays = torch.cuda.is_available() or bf16_is_faster()
    return {**SETTINGS["training"], "bf16": SETTINGS["training"]["bf16"] and pays}


@contextmanager
def step(name: str) -> Iterator[None]:
    print(f"-- {name}", flush=True)
    started = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - started:.0f} s", flush=True)


def run(output: Path, size: Size, seed: int) -> dict[str, dict[str, Any]]:
    """Teacher, distilled student and student without a teacher, of one seed; returns what was measured of each."""
    folder = output / f"{size.name}-{seed}"
    done = folder / "measured.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    texts = output / "data"
    files = {"train": size.train_file(texts), "test": texts / "test.tsv"}
    tokenizer = AutoTokenizer.from_pretrained(texts / "teacher")
    splits = {
        name: data.encode(
            path,
            tokenizer,
            label="label",
            label2id=LABEL2ID,
            max_length=SETTINGS["data"]["max_length"],
        )
        for name, path in files.items()
    }
    with step(f"seed {seed}: fine-tune the teacher"):
        teacher = encoder(texts / "teacher", seed)
        fine_tune(teacher, folder / "teacher", size.teacher_epochs, seed, splits["train"], tokenizer)
    start = folder / "start"
    if not start.is_dir():
        layers = encoder(texts / "teacher", seed).config.num_hidden_layers // 2
        students.smaller(encoder(texts / "teacher", seed), num_hidden_layers=layers).save_pretrained(start)
    with step(f"seed {seed}: distil"):
        paths = {"teacher": folder / "teacher", "student": start, "output_dir": folder / "student"}
        paths |= {f"data.{name}": path for name, path in files.items()}
        stages = {
            f"stages.{name}.{key}": value
            for name, stage in size.stages.items()
            for key, value in stage.items()
        }
        chosen = {**paths, **stages, "seed": seed, "training.bf16": training()["bf16"]}
        flags = [f"--{key}={value}" for key, value in chosen.items()]
        if code := cli.main(["distill", str(RECIPE), *flags]):
            raise SystemExit(code)
    with step(f"seed {seed}: the same student without a teacher"):
        alone = AutoModelForSequenceClassification.from_pretrained(start)
        fine_tune(alone, folder / "alone", size.alone_epochs, seed, splits["train"], tokenizer)
    names = {"teacher": "teacher", "student": "student", "student without teacher": "alone"}
    measured = {
        name: summary(
            AutoModelForSequenceClassification.from_pretrained(folder / path),
            splits["test"],
            repeats=size.timed_passes,
        )
        for name, path in names.items()
    }
    done.write_text(json.dumps(measured, indent=1), encoding="utf-8")
    return measured


def encoder(path: Path, seed: int) -> PreTrainedModel:
    """The pre-trained encoder with a new classification head."""
    set_seed(seed)
    labels = {"label2id": LABEL2ID, "id2label": {i: name for name, i in LABEL2ID.items()}}
    return AutoModelForSequenceClassification.from_pretrained(path, **labels)


def fine_tune(
    model: PreTrainedModel, folder: Path, epochs: int, seed: int, features: Any, tokenizer: Any
) -> None:
    """Trains on the labels alone: a Distiller without a teacher."""
    history = folder / "history.json"
    if history.is_file():
        return
    arguments = DistillationArguments(
        output_dir=str(folder),
        seed=seed,
        num_train_epochs=epochs,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        disable_tqdm=not sys.stderr.isatty(),
        **training(),
    )
    set_seed(seed)
    trainer = DistillationTrainer(
        Distiller(None, model, [Labels()]), arguments, train_dataset=features, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()
    history.write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


def report(output: Path, size: Size, seeds: Sequence[int], runs: Sequence[dict[str, dict[str, Any]]]) -> None:
    """The table of means over seeds, and the first seed's loss curves."""
    rows = []
    for name in runs[0]:
        mean = {key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]}
        mean["parameters"] = runs[0][name]["parameters"]
        share = statistics.mean(run[name]["accuracy"] / run["teacher"]["accuracy"] for run in runs)
        rows.append({"model": name, "accuracy": mean.pop("accuracy"), "of the teacher's": share, **mean})
    text = table(rows)
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    folder = output / f"{size.name}-{seeds[0]}"
    histories = {"teacher": history(folder / "teacher" / "history.json")}
    for stage in SETTINGS["stages"]:
        histories[stage] = history(folder / "student" / stage / "stage.json")
    histories["without teacher"] = history(folder / "alone" / "history.json")
    loss_curves(histories, output / "losses.png", title="tinybert on movie reviews")
    print(f"\nTest split, mean of {len(runs)} seed{'s' if len(runs) > 1 else ''}:\n\n{text}")


def history(path: Path) -> list[dict[str, Any]]:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return recorded["log_history"] if isinstance(recorded, dict) else recorded


if __name__ == "__main__":
    sys.exit(main())
