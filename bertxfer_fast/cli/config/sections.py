"""The sections of a recipe file: what each key holds, and a line of help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["DataConfig", "EnsembleConfig", "ReportConfig", "StoreConfig"]


@dataclass
class DataConfig:
    """Files (csv, tsv, jsonl, parquet, txt) and the columns to read from them."""

    train: str | None = field(default=None, metadata={"path": True, "help": "training file"})
    eval: str | None = field(
        default=None, metadata={"path": True, "help": "dev file, measured while training"}
    )
    test: str | None = field(
        default=None, metadata={"path": True, "help": "test file, measured once at the end"}
    )
    text: str = field(default="text", metadata={"help": "column with the text, or with lists of words"})
    text_pair: str | None = field(default=None, metadata={"help": "column with the second text of a pair"})
    label: str | None = field(
        default=None,
        metadata={"help": "column with the label, or with lists of labels (may be left out)"},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "cut texts to so many tokens (default: what the models can take)"}
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "question answering: tokens that windows of a long context share (default: cut it)"
        },
    )
    empty_rows: Literal["error", "skip", "keep"] = field(
        default="error",
        metadata={"help": "rows without text: refuse the file, leave them out, or encode the empty text"},
    )


@dataclass
class ReportConfig:
    """What is told when the last stage is done."""

    twin: bool = field(
        default=False,
        metadata={"help": "also train the student on labels alone, for as many steps, and compare"},
    )
    sentences: int = field(default=3, metadata={"help": "texts whose attention report.html shows"})
    resamples: int = field(default=1000, metadata={"help": "of the bootstrap for confidence intervals"})


@dataclass
class StoreConfig:
    """Where a teacher's answers are kept, so that it is asked once; see `teachers.Store`."""

    path: str | None = field(
        default=None,
        metadata={
            "path": True,
            "help": "directory that keeps what the teacher says, made in the first epoch",
        },
    )
    dtype: Literal["float32", "float16", "int8"] | None = field(
        default=None, metadata={"help": "of the numbers kept (default: as the store has it, else float32)"}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "largest logits kept of a token, of a token head (default: all)"}
    )


@dataclass
class EnsembleConfig:
    """How several teachers are one; see `teachers.AveragedTeachers`."""

    weights: list[float] | None = field(
        default=None, metadata={"help": "a positive number for each of several teachers (default: equal)"}
    )
    mean_of: Literal["probabilities", "logits"] = field(
        default="probabilities", metadata={"help": "what of several teachers is averaged"}
    )
