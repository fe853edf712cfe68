"""Students: what a teacher's knowledge is moved into."""

from __future__ import annotations

from .smaller import smaller, uniform_layers

__all__ = ["smaller", "uniform_layers"]
