"""Published methods, one file each; `get` knows them by name.

``recipes.get("tinybert", padding="reference")`` gives a `Recipe`; its options are the keyword arguments of the function
that builds it. A new recipe is a file with one such function under `register`.
"""

from __future__ import annotations

from .base import Recipe, Stage, get, names, options, register
from .distilbert import distilbert
from .embedding import embedding
from .finetune import finetune
from .logits import logits
from .minilm import minilm
from .minilmv2 import minilmv2
from .pkd import pkd
from .tinybert import tinybert
from .tinybert_general import tinybert_general

__all__ = [
    "Recipe",
    "Stage",
    "distilbert",
    "embedding",
    "finetune",
    "get",
    "logits",
    "minilm",
    "minilmv2",
    "names",
    "options",
    "pkd",
    "register",
    "tinybert",
    "tinybert_general",
]
