"""What a checkpoint directory holds: an ordinary student, the objectives' projections, and Trainer's own files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

PROJECTIONS = "distiller.safetensors"
TRAINER_STATE = "trainer_state.json"  # the last file that Trainer writes


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in `folder` that was written to its end, or None.

    A run that is killed while saving leaves a directory without its last file, the trainer state.
    """
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        step = path.name.partition("-")[2]
        try:
            json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if step.isdigit():
            found.append((int(step), str(path)))
    return max(found)[1] if found else None


def check_checkpoint(folder: str | Path) -> None:
    """Whether a training can go on from a checkpoint: nothing is missing, and whole as far as first and last bytes say.

    Raises:
        ValueError: a file is missing or not whole; it is named.
    """
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (Path(folder) / name).is_file():
            raise ValueError(
                f"resume_from_checkpoint: got {folder} without {name}, want it: a new optimizer would not go on as the "
                f"uninterrupted run; delete {Path(folder).name} to go on from the one before"
            )
    for file in sorted(Path(folder).iterdir()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    continue
            except SafetensorError as error:
                whole = f": {error}"
        elif file.suffix in (".pt", ".pth") and not zipfile.is_zipfile(file):
            whole = ""
        else:
            continue
        raise ValueError(
            f"{file} cannot be read{whole}; delete {file.parent.name} to go on from the one before"
        )


def below(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What stands in a state under names with this prefix, by the rest of its names."""
    return {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}


def save_projections(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the objectives' state, if they have any."""
    if state:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / PROJECTIONS
        )


def load_projections(objectives: nn.Module, folder: Path) -> None:
    """Read what `save_projections` wrote into `objectives`, in place.

    Raises:
        ValueError: the file is missing, or belongs to other objectives.
    """
    if not objectives.state_dict():
        return
    file = folder / PROJECTIONS
    if not file.is_file():
        raise ValueError(f"folder: got {folder} without {PROJECTIONS}, want it: these objectives need it")
    try:
        objectives.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ValueError(f"folder: got {file} of other objectives, want that of these: {error}") from error


def load_student(student: PreTrainedModel, folder: Path) -> None:
    """Read the weights of a saved student into `student`, in place.

    Raises:
        ValueError: a student of another shape was saved there.
    """
    # transformers' own loader, not the file: it knows tied, renamed and sharded weights.
    saved = type(student).from_pretrained(folder, dtype=student.dtype, local_files_only=True)
    try:
        student.load_state_dict(saved.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"folder: got {folder} with a student of another shape, want this one's: {error}"
        ) from error
