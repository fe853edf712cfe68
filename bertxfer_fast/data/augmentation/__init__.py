"""More texts out of those that there are: one file a way of changing words, `get` knows them by name.

    methods = [augmentation.get("tinybert", p=0.4)]
    rows = augmentation.Augmentation("train.tsv", tokenizer, methods, proposals=WordModel.load(folder, tokenizer))
    with writing.open_rows("more.tsv", rows.rows.features) as write: ...

A new way is a file with a `Method` under `register`.
"""

from __future__ import annotations

from .base import Draft, Method, Proposals, Tools, get, names, options, register
from .masking import Masking
from .ngrams import NGrams
from .rows import Augmentation
from .texts import Text
from .tinybert import TinyBERT
from .words import Words

__all__ = [
    "Augmentation",
    "Draft",
    "Masking",
    "Method",
    "NGrams",
    "Proposals",
    "Text",
    "TinyBERT",
    "Tools",
    "Words",
    "get",
    "names",
    "options",
    "register",
]
