"""Model directories: what is in one, and which transformers class loads it. Nothing here reaches for a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
)
_CLASS_OF_TASK = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "none": "AutoModel",
}


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


def load_model(folder: str | Path, task: str) -> tuple[Any, list[str]]:
    """A model with the head of a task, in float32, and the names of its weights that the folder does not have.

    Args:
        folder: a model directory.
        task: `"sequence-classification"`, `"regression"`, `"token-classification"` or `"none"` (no head).

    Raises:
        ValueError: weights that cannot be read or do not fit config.json.
    """
    try:
        model, notes = getattr(transformers, _CLASS_OF_TASK[task]).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: its weights cannot be read: {error}") from error
    if notes.get("mismatched_keys"):
        raise ValueError(
            f"{folder}: weights and config.json disagree on {sorted(notes['mismatched_keys'])[0]}"
        )
    # A bare encoder's pooler is not part of what a task without head distils.
    return model, [] if task == "none" else sorted(notes["missing_keys"])


def own_task(config: Any) -> str:
    """The task of the head that a model was saved with, by its transformers configuration."""
    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith("ForTokenClassification"):
        return "token-classification"
    if name.endswith("ForSequenceClassification"):
        regression = config.problem_type == "regression" or config.num_labels == 1
        return "regression" if regression else "sequence-classification"
    return "none"


def auto_class(model: PreTrainedModel) -> str:
    """Name of the transformers class that loads such a model without knowing its family."""
    for head in ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"):
        if type(model).__name__.endswith(head):
            return f"AutoModel{head}"
    return "AutoModel"


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
