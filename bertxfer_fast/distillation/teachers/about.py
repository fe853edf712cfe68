"""Whose a store is: the record in its folder that it is compared by."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.spec import EncoderSpec
from ...models.stream import as_encoder
from .fingerprints import code_fingerprint, folder_fingerprint, teacher_fingerprint, tokenizer_fingerprint

__all__ = ["STORE_FILE", "About", "is_store", "known_about", "read_about", "write_about"]

STORE_FILE = "store.json"

# What two stores are compared by, and what it is called in the message.
_COMPARED = {"teacher": "weights or configuration", "tokenizer": "tokenizer", "code": "version of the code"}


@dataclass(frozen=True)
class About:
    """Whose a store is.

    Attributes:
        teacher: `teacher_fingerprint`.
        code: `code_fingerprint`.
        tokenizer: `tokenizer_fingerprint`; None where nobody said which it was.
        files: `folder_fingerprint` of the directory that the teacher was loaded from, if it was.
        name: the teacher in words.
        spec: the teacher's facts.
        inputs: names of what it reads beside text.
    """

    teacher: str
    code: str
    spec: EncoderSpec
    tokenizer: str | None = None
    files: str | None = None
    name: str = ""
    inputs: tuple[str, ...] = ()

    @staticmethod
    def of(
        teacher: Any,
        tokenizer: Any = None,
        *,
        folder: str | Path | None = None,
        loaded_as: str = "",
        name: str = "",
    ) -> About:
        """What is to be known of a teacher.

        Args:
            teacher: a transformers model, an `Encoder` or an `ActivationSource`.
            tokenizer: of its text.
            folder: that it was loaded from, if that is to be known again without loading it.
            loaded_as: the class that loaded it, which decides its head.
            name: the teacher in words.
        """
        return About(
            teacher=teacher_fingerprint(teacher),
            code=code_fingerprint(),
            spec=EncoderSpec.of(teacher),
            tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
            files=None if folder is None else folder_fingerprint(folder, loaded_as),
            name=name or ("" if folder is None else str(folder)) or EncoderSpec.of(teacher).name,
            inputs=_inputs_of(teacher),
        )

    def difference(self, other: About) -> str:
        """What of ``other`` is not as it is here, in words; "" where all is."""
        for name, words in _COMPARED.items():
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others and None not in (mine, others):
                return f"{words} {_short(others)}, want {words} {_short(mine)}"
        return ""

    def to_json(self) -> str:
        """For `STORE_FILE`."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> About:
        """What `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            read = json.loads(text)
            spec = {**read["spec"], "labels": tuple(read["spec"]["labels"])}
            return About(**{**read, "spec": EncoderSpec(**spec), "inputs": tuple(read["inputs"])})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"got no description of a store ({error!r})") from error


def is_store(path: str | Path) -> bool:
    """Whether a folder is a store."""
    return (Path(path) / STORE_FILE).is_file()


def known_about(
    store: str | Path, folder: str | Path, tokenizer: Any = None, *, loaded_as: str = ""
) -> About | None:
    """The record of a store, if its teacher is the model that is in a folder, as far as the files there tell.

    None where they do not: there is no store yet, or it has to be compared with the model itself.
    """
    if not is_store(store):
        return None
    there = read_about(Path(store))
    now = dataclasses.replace(
        there,
        code=code_fingerprint(),
        tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        files=folder_fingerprint(folder, loaded_as),
    )
    return None if now.files != there.files or now.difference(there) else there


def write_about(folder: Path, about: About) -> None:
    """Make a folder and say whose it is, wholly or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{STORE_FILE}.part"
    part.write_text(about.to_json(), encoding="utf-8")
    part.replace(folder / STORE_FILE)


def read_about(folder: Path) -> About:
    file = folder / STORE_FILE
    if not file.is_file():
        raise ValueError(f"store: got {folder}, want a store: there is no {STORE_FILE} in it")
    try:
        return About.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"store: {file} cannot be read: {error}") from error


def _inputs_of(teacher: Any) -> tuple[str, ...]:
    model = teacher if hasattr(teacher, "inputs") or hasattr(teacher, "stream") else as_encoder(teacher)
    return tuple(sorted(getattr(model, "inputs", None) or ()))


def _short(fingerprint: str | None) -> str:
    return str(fingerprint)[:8]
