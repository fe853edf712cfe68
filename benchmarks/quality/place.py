"""Where the rows find text and teachers: fetched, encoded and fine-tuned once, then shared by all of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import transformers
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PreTrainedModel, set_seed

from bertxfer_fast import cli, data, objectives, tasks, teachers
from bertxfer_fast.evaluation import evaluate
from bertxfer_fast.evaluation.speed import parameter_count

from .training import train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import fetch


@dataclass(frozen=True, eq=False)
class Problem:
    """A labelled text, and the encoder that was fine-tuned on it: the teacher.

    Attributes:
        name: of the problem.
        task: as `tasks.get` knows it.
        files: split -> file.
        text, label: columns.
        encoder: directory of the pre-trained encoder.
        folder: where its teacher is kept.
        seed: of its teacher.
        epochs, learning_rate: that the teacher is fine-tuned with.
        max_length: in tokens.
    """

    name: str
    task: tasks.Task
    files: dict[str, Path]
    text: str
    label: str
    encoder: Path
    folder: Path
    seed: int
    epochs: int
    learning_rate: float
    max_length: int = 64

    @functools.cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.encoder)

    @functools.cached_property
    def label2id(self) -> dict[str, int]:
        return data.label_map(self.files["train"], self.label)

    @functools.cache  # noqa: B019 (the few problems live as long as the process)
    def rows(self, split: str) -> Dataset:
        """Token features of a split, with labels."""
        return data.encode(
            self.files[split],
            self.tokenizer,
            text=self.text,
            label=self.label,
            task=self.task,
            label2id=self.label2id,
            max_length=self.max_length,
        )

    def texts(self, split: str) -> list[Any]:
        return list(data.load(self.files[split])[self.text])

    def unlabelled(self, texts: Any) -> Dataset:
        """Token features of further texts, which have no labels."""
        return data.encode(
            [{self.text: text} for text in texts],
            self.tokenizer,
            text=self.text,
            max_length=self.max_length,
        )

    def untrained(self, seed: int, folder: Path | None = None) -> PreTrainedModel:
        """The pre-trained encoder (or that of ``folder``) with a new head."""
        set_seed(seed)
        names = {"label2id": self.label2id, "id2label": {i: name for name, i in self.label2id.items()}}
        return getattr(transformers, self.task.auto_class).from_pretrained(folder or self.encoder, **names)

    def teacher(self) -> PreTrainedModel:
        """The fine-tuned encoder, anew at each call."""
        return getattr(transformers, self.task.auto_class).from_pretrained(self.folder).eval()

    def fine_tune(self) -> None:
        """Make the teacher, unless it is there."""
        if (self.folder / "config.json").is_file():
            return
        model = self.untrained(self.seed)
        train(
            self.folder / "training",
            model,
            [objectives.Labels()],
            self.rows("train"),
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        self.tokenizer.save_pretrained(self.folder)
        model.save_pretrained(self.folder)  # its config.json comes last and says that it is done

    def score(self, model: Any, split: str = "test") -> dict[str, float]:
        """The task's metrics of a model, and its size."""
        return {
            **evaluate(model, self.rows(split), task=self.task),
            "parameters": parameter_count(model),
        }


class Place:
    """A folder with the text in ``data`` and the teachers beside it.

    Args:
        folder: outside of git.
        data: a folder that has the files of `examples/fetch.py` already, of other content: nothing is fetched then.
    """

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data" if data is None else data.resolve()
        self.fetches = data is None

    def prepare(self, need: str, seeds: Sequence[int]) -> None:
        """Fetch what a row needs and fine-tune its teachers, one a seed.

        Raises:
            fetch.FetchError: it could not be fetched.
        """
        parts = {"sentiment": ("encoder", "reviews"), "entities": ("encoder", "entities")}.get(need, (need,))
        if self.fetches:
            fetch.fetch(self.data, *parts)
        if need in ("sentiment", "entities"):
            for seed in seeds:
                self.problem(need, seed).fine_tune()

    @property
    def encoder(self) -> Path:
        """The pre-trained encoder with its tokenizer."""
        return self.data / "teacher"

    @functools.cache  # noqa: B019 (one place a process)
    def problem(self, name: str, seed: int) -> Problem:
        """``"sentiment"`` or ``"entities"``, with the teacher of that seed."""
        folder = self.folder / "teachers" / f"{name}-{seed}"
        splits = ("train", "dev", "test")
        if name == "sentiment":
            files = {split: self.data / f"{split}.tsv" for split in splits}
            task, columns, training = "sequence-classification", ("text", "label"), (2, 1e-4)
        else:
            files = {split: self.data / "entities" / f"{split}.jsonl" for split in splits}
            task, columns, training = "token-classification", ("words", "labels"), (8, 2e-4)
        return Problem(name, tasks.get(task), files, *columns, self.encoder, folder, seed, *training)

    @functools.cached_property
    def sentences(self) -> list[str]:
        """News, tweets and product reviews, without labels."""
        return list(data.load(self.data / "unlabelled.tsv")["text"])

    #: More texts that the sentiment teacher can be asked about -> arguments of `bertxfer augment`.
    CHANGES: ClassVar[dict[str, tuple[str, ...]]] = {
        "changed": ("--method", "masking", "--method", "ngrams", "--option", "ngrams.p=0.5"),
        "replaced": ("--method", "tinybert", "--option", "p=0.4"),
    }

    def more(self, name: str) -> list[str]:
        """``"sentences"``, or four copies of each training review, changed in one of the ways of `CHANGES`."""
        if name == "sentences":
            return self.sentences
        file = self.folder / "texts" / f"{name}.tsv"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            command = [
                "augment",
                str(self.data / "train.tsv"),
                "--model",
                str(self.encoder),
                *self.CHANGES[name],
            ]
            settings = ["--copies", "4", "--no-originals", "--seed", "1", "--output", str(file)]
            if cli.main([*command, *settings]):
                raise RuntimeError(f"bertxfer {' '.join([*command, *settings])} failed")
        return list(data.load(file)["text"])

    def stored(self, name: str, teacher: PreTrainedModel, tokenizer: Any) -> teachers.StoredTeacher:
        """What a teacher said before; texts that are new to it are asked about and kept."""
        about = teachers.About.of(teacher, tokenizer)
        # A store refuses what other code says: after a change of the package there is a new one.
        store = teachers.Store.at(self.folder / "stores" / f"{name}-{about.code[:8]}", about)
        return teachers.StoredTeacher(store, teacher)

    def glosses(self, count: int) -> list[str]:
        """The first definitions of the dictionary, which are a sample of all."""
        with (self.data / "glosses.txt").open(encoding="utf-8") as lines:
            return [line.rstrip("\n") for line, _ in zip(lines, range(count), strict=False)]


def joined(*parts: Dataset) -> Dataset:
    """Features one after the other; labels go, where not all have them."""
    columns = set.intersection(*(set(part.column_names) for part in parts))
    return concatenate_datasets([part.select_columns(sorted(columns)) for part in parts])
