"""Files that a command writes, which are none of those that it reads, and none that a run left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

# Of a model's folder: weights and configuration, whole or in shards, and the tokenizer.
_OF_MODEL = ("config.json", "model.safetensors*", "model-*-of-*.safetensors", "*token*.json", "vocab.json")


def check_output(flag: str, output: str, model: str, *read: str | None) -> None:
    """An output may replace a file, but none that is read, and no record of a run.

    Args:
        flag: that names the output.
        output: its path.
        model: directory of the model that is read.
        read: other files that are read; None: there is none.

    Raises:
        InputError: it is one of them, under whatever name, or the record of a run.
    """
    # Here: these rooms import torch, which a command does when it has read its words.
    from ..evaluation.report import REPORT_FILE
    from ..evaluation.results import RESULTS_FILE
    from .run.resume import RUN_FILE

    path = Path(output)
    files = [*(Path(name) for name in read if name is not None), *_files_of(model)]
    if path.exists() and any(file.exists() and path.samefile(file) for file in files):
        raise InputError(f"{flag}: got {output!r}, a file that is read, want another")
    whole = path.resolve()
    if whole.name in (RUN_FILE, RESULTS_FILE, REPORT_FILE) and (whole.parent / RUN_FILE).is_file():
        raise InputError(f"{flag}: got {output!r}, the record of a run, want another name")


def _files_of(model: str) -> Iterator[Path]:
    for pattern in _OF_MODEL:
        yield from Path(model).expanduser().glob(pattern)
