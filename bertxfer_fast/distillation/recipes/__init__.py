"""Published methods, one file each; `get` knows them by name.

``recipes.get("tinybert", padding="reference")`` gives a `Recipe`; its options are the keyword arguments of the function
that builds it. A new recipe is a file with one such function under `register`.
"""

from __future__ import annotations

from .base import Recipe, Stage, get, names, options, register
from .tinybert import tinybert

__all__ = ["Recipe", "Stage", "get", "names", "options", "register", "tinybert"]
