"""Teachers that are not one model that runs: a store of what one said, a black box, several averaged.

    store = teachers.Store.at("store", teachers.About.of(teacher, tokenizer))
    distiller = Distiller(teachers.StoredTeacher(store, teacher), student, [objectives.Logits()])

All are an `ActivationSource`, which is what a `Distiller` takes as its teacher.
"""

from __future__ import annotations

from .about import About, is_store, known_about
from .blackbox import BLACK_BOX_SUFFIXES, BlackBox, read_rows
from .columns import DTYPES, Column
from .ensemble import MEANS, AveragedTeachers
from .filling import fill
from .fingerprints import (
    code_fingerprint,
    dataset_keys,
    folder_fingerprint,
    row_keys,
    teacher_fingerprint,
    tokenizer_fingerprint,
)
from .other_tokens import OtherTokens
from .store import Store
from .stored import StoredTeacher

__all__ = [
    "BLACK_BOX_SUFFIXES",
    "DTYPES",
    "MEANS",
    "About",
    "AveragedTeachers",
    "BlackBox",
    "Column",
    "OtherTokens",
    "Store",
    "StoredTeacher",
    "code_fingerprint",
    "dataset_keys",
    "fill",
    "folder_fingerprint",
    "is_store",
    "known_about",
    "read_rows",
    "row_keys",
    "teacher_fingerprint",
    "tokenizer_fingerprint",
]
