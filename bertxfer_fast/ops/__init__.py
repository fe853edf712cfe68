"""The fused operators. All work on packed, token-major tensors; see each function's docstring.

The public functions are those of the rooms beside this file (``__init__.pyi`` lists them for type checkers).
"""

from __future__ import annotations

from ._dispatch import registry
from ._dispatch.backend import explain, use_backend
from ._dispatch.library import build_info

registry.discover(__name__, __path__)
_public = registry.public()
# Importing a room has bound its name here, which for most rooms is the name of their function too: this comes after.
globals().update(_public)

__all__ = ["build_info", "explain", "use_backend"]
__all__ += _public
