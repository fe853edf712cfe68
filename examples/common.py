"""What the examples share: their arguments, real text, and a teacher that is fine-tuned once for all of them."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fetch
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, set_seed
from transformers.utils import logging

from bertxfer_fast import DistillationArguments, DistillationTrainer, Distiller, data, objectives
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.evaluation.precision import bf16_is_faster

LABEL2ID = {"negative": 0, "positive": 1}


def arguments(
    text: str | None,
    argv: Sequence[str] | None,
    *,
    epochs: float = 2.0,
    needs: Sequence[str] = ("encoder", "reviews"),
) -> argparse.Namespace:
    """The arguments that every example takes; ``text`` is its docstring, ``needs`` what is fetched for it."""
    parser = argparse.ArgumentParser(description=(text or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with text and encoder (default: fetched, see fetch.py)"
    )
    parser.add_argument("--output", type=Path, default=Path("demo/examples"), help="for what is trained")
    parser.add_argument("--epochs", type=float, default=epochs, help="passes over the text in each training")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    if args.data is None:
        args.data = Path("demo/data")
        fetch.fetch(args.data, *needs)
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def tokenizer(args: argparse.Namespace) -> Any:
    return AutoTokenizer.from_pretrained(args.data / "teacher")


def reviews(args: argparse.Namespace) -> dict[str, Any]:
    """Movie-review snippets as token features with labels: train, dev and test."""
    return {
        split: data.encode(
            args.data / f"{split}.tsv", tokenizer(args), label="label", label2id=LABEL2ID, max_length=64
        )
        for split in ("train", "dev", "test")
    }


def names(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, int]]:
    """Tweets as token features with a label for each first piece of a word, and the labels' ids."""
    folder = args.data / "entities"
    label2id = data.label_map(folder / "train.jsonl", "labels")
    splits = {
        split: data.encode(
            folder / f"{split}.jsonl",
            tokenizer(args),
            text="words",
            label="labels",
            task="token-classification",
            label2id=label2id,
            max_length=64,
        )
        for split in ("train", "test")
    }
    return splits, label2id


def with_labels(config: Any, label2id: dict[str, int]) -> Any:
    """A copy of a configuration with other labels."""
    config = copy.deepcopy(config)
    config.label2id, config.id2label = label2id, {i: name for name, i in label2id.items()}
    return config


def train(
    distiller: Distiller, rows: Any, args: argparse.Namespace, *, learning_rate: float, **chosen: Any
) -> Any:
    """Train what a Distiller holds and return the student; batches are packed.

    The arguments are those of transformers' Trainer, and some of ours, see `DistillationArguments`.
    """
    set_seed(1)
    settings = {"num_train_epochs": args.epochs, "tokens_per_batch": 1024, "warmup_steps": 0.1, **chosen}
    trainer = DistillationTrainer(
        distiller,
        DistillationArguments(
            output_dir=str(args.output / "training"),
            learning_rate=learning_rate,
            bf16=torch.cuda.is_available() or bf16_is_faster(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows,
    )
    be_quiet(trainer)
    trainer.train()
    distiller.release()
    return trainer.student


def be_quiet(trainer: Any) -> None:
    trainer.remove_callback(PrinterCallback)


def fine_tuned(args: argparse.Namespace) -> Any:
    """The teacher: the encoder with a head, trained on the labels alone. Kept, and shared by the examples."""
    folder = args.output / "teacher"
    if not (folder / "config.json").is_file():
        set_seed(1)
        names = {"label2id": LABEL2ID, "id2label": {i: name for name, i in LABEL2ID.items()}}
        model = AutoModelForSequenceClassification.from_pretrained(args.data / "teacher", **names)
        train(Distiller(None, model, [objectives.Labels()]), reviews(args)["train"], args, learning_rate=1e-4)
        model.save_pretrained(folder)
        tokenizer(args).save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder)


def accuracy(model: Any, rows: Any) -> str:
    return f"{evaluate(model, rows)['accuracy']:.3f}"


def joined(*parts: Dataset) -> Dataset:
    """Features one after the other; labels go where not all have them."""
    columns = set.intersection(*(set(part.column_names) for part in parts))
    return concatenate_datasets([part.select_columns(sorted(columns)) for part in parts])
