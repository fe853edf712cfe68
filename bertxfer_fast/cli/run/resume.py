"""What lets a distillation go on where it stopped: a record of its settings, and one of every finished stage.

Only an empty place, or a run of these very settings and data, is written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError, user_input
from ..config.schema import DistillConfig

RUN_FILE, STAGE_FILE = "run.json", "stage.json"

# Paths whose content is compared: a run may be moved with all that it reads.
_READ = {"teacher", "student.path", "student.tokenizer", "tokenizer", "data.train", "data.eval"}
# Keys that may change between the start of a run and its continuation: they do not change what is learned.
_FREE_KEYS = {"output_dir", "data.test", "store.path", *_READ}
_FREE_TRAINING = {
    "disable_tqdm",
    "log_level",
    "report_to",
    "run_name",
    "save_total_limit",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
}


def check_output(config: DistillConfig, stages: Sequence[str]) -> None:
    """Whether `output_dir` may be written to.

    Raises:
        InputError: it is a file, or holds something else, or a run with other settings or data.
    """
    check_folder(Path(config.output_dir), config.where("output_dir"), stages, lambda: identity(config))


def check_folder(
    folder: Path, where: str, stages: Sequence[str], identity_now: Callable[[], Mapping[str, Any]]
) -> None:
    """Whether a folder may be written to by the run that `identity_now` tells of; see `check_output`."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{where}: {folder} is a file")
    record = folder / RUN_FILE
    if not record.is_file():
        found = next((name for name in ("config.json", *stages) if (folder / name).exists()), None)
        if found:
            raise InputError(f"{where}: {folder} holds {found} of something else; choose another output_dir")
        return
    with user_input(str(record)):
        read = json.loads(record.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"got a {type(read).__name__}, want the settings of a run")
        before = flat(read)
    now = flat(identity_now())
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if not _is_free(key)]
    if changed:
        raise InputError(
            f"{where}: {folder} holds a run that differs ({', '.join(changed)}); choose another output_dir, "
            "or delete that folder to start anew"
        )


def record_run(config: DistillConfig) -> None:
    """The first write of a run: what its continuation is compared with."""
    record_identity(Path(config.output_dir), config.where("output_dir"), identity(config))


def record_identity(folder: Path, where: str, found: Mapping[str, Any]) -> None:
    """Write down in a folder what the run there is; of one that goes on, what it was when it began."""
    if (folder / RUN_FILE).is_file():
        return
    with user_input(where):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RUN_FILE, json.dumps(found, indent=1))


def record_stage(folder: Path, record: Mapping[str, Any]) -> None:
    """Mark the stage that was written to `folder` as finished."""
    write_whole(folder / STAGE_FILE, json.dumps(record, indent=1))


def finished_stage(folder: Path) -> dict[str, Any] | None:
    """The record of a finished stage, None if it is not finished."""
    file = folder / STAGE_FILE
    if not file.is_file():
        return None
    with user_input(str(file)):
        return json.loads(file.read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it, even after a crash, finds all of it or none."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def identity(config: DistillConfig) -> dict[str, Any]:
    """What makes two runs the same: the settings, and what is in the files that training reads."""
    sources = {
        "student": config.student.path,
        "student.tokenizer": config.student.tokenizer,
        "tokenizer": config.tokenizer,
        "train": config.data.train,
        "eval": config.data.eval,
    }
    found: dict[str, Any] = {name: _sha256(Path(path)) for name, path in sources.items() if path is not None}
    found["teacher"] = [_sha256(Path(path)) for path in config.teachers]
    # Through JSON, so that it equals what is read back.
    return json.loads(json.dumps({**config.to_dict(), "content of": found}, default=str))


def _sha256(path: Path) -> str:
    """Of a file, or of the files of a model directory."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def flat(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; what is None or empty counts as left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{section}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.")
        elif value is not None and value != []:
            found[key] = value
    return found


def _is_free(key: str) -> bool:
    if key.startswith("tasks."):  # of one of several
        key = key.split(".", 2)[-1]
    section, _, _ = key.partition(".")
    return (
        key in _FREE_KEYS
        or section == "report"
        or (section in ("training", "stages") and key.rpartition(".")[2] in _FREE_TRAINING)
    )
