"""The model card of a saved student: what was made of what, and the numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .. import tasks
from .tables import format_value, table

__all__ = ["ModelCard", "how_to_load", "short_name"]


@dataclass
class ModelCard:
    """What the README.md of a saved student says. Fields left empty leave their section out.

    Attributes:
        recipe: name of the distillation recipe.
        teacher: name of the teacher (a local path is shortened to its last folder: a card is published, a
            machine's folders are not its business).
        student: facts of the student, for example `{"layers": 3, "parameters": 17_000_000}`.
        stages: one mapping per stage, printed as a table.
        data: split name -> number of sequences.
        files: split name -> name of its file.
        command: that made it.
        metrics: measured numbers, one mapping per row (for example teacher and student), printed as given.
        auto_class: the transformers class that loads the student.
        module: what has to be imported before, where the student's class is not transformers' own.
        task: what its head does, in words.
    """

    recipe: str = ""
    teacher: str = ""
    student: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    metrics: Sequence[Mapping[str, Any]] = ()
    auto_class: str = "AutoModel"
    module: str = ""
    task: str = ""

    def render(self, name: str = "student") -> str:
        """The card as Markdown with a YAML head; `name` is its heading."""
        teacher = short_name(self.teacher)
        head = {"library_name": "transformers", "tags": ["distillation", "bertxfer_fast"]}
        parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---", f"# {name}"]
        origin = f" from `{teacher}`" if teacher else ""
        recipe = f" with the `{self.recipe}` recipe" if self.recipe else ""
        task = f" Task: {self.task}." if self.task else ""
        made = "A student model distilled" if teacher else "A model trained"
        parts.append(f"{made}{origin}{recipe} by bertxfer_fast.{task}")
        if self.student:
            facts = "\n".join(
                f"- {key.replace('_', ' ')}: {format_value(value)}" for key, value in self.student.items()
            )
            parts.append(f"## Student\n\n{facts}")
        if self.stages:
            parts.append(f"## Training\n\n{table(self.stages)}")
        if self.data:
            of_file = {split: f" of `{name}`" for split, name in self.files.items()}
            sizes = "\n".join(
                f"- {split}: {count:,} sequences{of_file.get(split, '')}"
                for split, count in self.data.items()
            )
            parts.append(f"## Data\n\n{sizes}")
        if self.metrics:
            parts.append(f"## Measured\n\n{table(self.metrics)}")
        if self.command:
            parts.append(f"## Made by\n\n```sh\n{self.command}\n```")
        ordinary = "An ordinary transformers model; bertxfer_fast is not needed to run it."
        known = f"import {self.module}  # makes the class known to transformers\n" if self.module else ""
        parts.append(
            f"## Use\n\n{'' if known else ordinary + chr(10) * 2}"
            f"```python\n{known}from transformers import {self.auto_class}, AutoTokenizer\n\n"
            f'model = {self.auto_class}.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```'
        )
        return "\n\n".join(parts) + "\n"

    def write(self, folder: str | Path) -> Path:
        """Write `README.md` into `folder` (which must exist), headed by the folder's name."""
        path = Path(folder) / "README.md"
        path.write_text(self.render(Path(folder).resolve().name), encoding="utf-8")
        return path


def how_to_load(student: Any) -> dict[str, Any]:
    """The fields of a `ModelCard` that say how a student is loaded."""
    own = type(student).__module__
    return {
        "auto_class": tasks.auto_class(type(student).__name__),
        "module": "" if own.startswith("transformers.") else own,
    }


def short_name(model: str) -> str:
    """A model's public name: a hub id stays, a path becomes its last folder."""
    looks_like_path = Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    return Path(model).name if looks_like_path or "\\" in model or Path(model).exists() else model
