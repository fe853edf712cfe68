"""Model directories: what is in one, and loading it. Nothing here reaches for a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from ... import tasks

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
)


def model_folder(path: str | Path, name: str) -> Path:
    """`path` as a model directory.

    Raises:
        ValueError: it is none; `name` says which argument it was.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{name}: no such directory: {path}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name}: {path} is not a transformers model (it has no config.json)")
    return folder


def is_model(path: str | Path) -> bool:
    """Whether a path is a model directory, as far as its files' names tell."""
    return (Path(path).expanduser() / "config.json").is_file()


def load_model(
    folder: str | Path, auto_class: str, dtype: torch.dtype | str = torch.float32, **settings: Any
) -> tuple[Any, list[str]]:
    """A model, by default in float32, and the names of its weights that the folder does not have.

    Args:
        folder: a model directory.
        auto_class: the transformers class that loads it, which decides the head: `tasks.Task.auto_class`.
        settings: what its configuration is to say instead, such as ``num_labels``; a head of another size starts anew.

    Raises:
        ValueError: weights that cannot be read or do not fit config.json.
    """
    try:
        model, notes = getattr(transformers, auto_class).from_pretrained(
            folder,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(settings),
            **settings,
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: its weights cannot be read: {error}") from error
    if notes.get("mismatched_keys") and not settings:
        raise ValueError(
            f"{folder}: weights and config.json disagree on {sorted(notes['mismatched_keys'])[0]}"
        )
    # A bare encoder's pooler is not part of what is distilled without a head.
    return model, [] if auto_class == "AutoModel" else sorted(notes["missing_keys"])


def load_saved(folder: str | Path, *, bare: bool = False, dtype: torch.dtype | str = torch.float32) -> Any:
    """The model that was saved in a folder, with the head it was saved with, in eval mode.

    Args:
        folder: of any transformers encoder, or of a student of any kind that is registered.
        bare: without the head, where it can be left out.
        dtype: of the weights; ``"auto"``: as they were saved.

    Raises:
        ValueError: no such folder, a kind that is not registered, or weights that cannot be read or are missing.
    """
    path = model_folder(folder, "folder")
    task = tasks.NONE if bare else saved_task(path)
    model, missing = load_model(path, task.auto_class, dtype)
    missing = missing if bare else [name for name in missing if "position_ids" not in name]
    if missing:
        raise ValueError(f"{folder}: got no weights for {missing[0]}, want all of them")
    return model.eval()


def saved_task(folder: str | Path) -> tasks.Task:
    """The task of the head that a model was saved with."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    saved_class = (config.architectures or [""])[0]
    # The class of a student of another kind does not tell its head; its configuration does.
    return tasks.task_of(saved_class, config.num_labels, config.problem_type, getattr(config, "head", None))


def make_known(model: type[Any]) -> None:
    """Let transformers' Auto classes open folders of a model class with a ``config_class`` of its own.

    A folder's config.json says its model_type, and a task which Auto class it is asked with.
    """
    config = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto_class in {tasks.get(name).auto_class for name in tasks.names()}:
        getattr(transformers, auto_class).register(config, model, exist_ok=True)


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a directory holds a tokenizer. Asking transformers would make one up from config.json alone."""
    return any((Path(folder).expanduser() / name).is_file() for name in _TOKENIZER_FILES)


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer saved in a directory.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"tokenizer: no such directory: {path}")
    if not has_tokenizer(folder):
        raise ValueError(f"tokenizer: there is no tokenizer in {path}")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"tokenizer: the tokenizer in {path} cannot be read: {error}") from error
