"""Files that a command writes, which are none of those that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

# Of a model's folder: weights and configuration, whole or in shards, and the tokenizer.
_OF_MODEL = ("config.json", "model.safetensors*", "model-*-of-*.safetensors", "*token*.json", "vocab.json")


def check_output(flag: str, output: str, model: str, *read: str | None) -> None:
    """An output may replace a file, but none that is read.

    Args:
        flag: that names the output.
        output: its path.
        model: directory of the model that is read.
        read: other files that are read; None: there is none.

    Raises:
        InputError: it is one of them, under whatever name.
    """
    path = Path(output)
    files = [*(Path(name) for name in read if name is not None), *_files_of(model)]
    if path.exists() and any(file.exists() and path.samefile(file) for file in files):
        raise InputError(f"{flag}: got {output!r}, a file that is read, want another")


def _files_of(model: str) -> Iterator[Path]:
    for pattern in _OF_MODEL:
        yield from Path(model).expanduser().glob(pattern)
