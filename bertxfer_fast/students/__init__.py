"""Students: what a teacher's knowledge is moved into."""

from __future__ import annotations

from .smaller import smaller, uniform_layers
from .transfer import Moved, Transfer, transfer_weights

__all__ = ["Moved", "Transfer", "smaller", "transfer_weights", "uniform_layers"]
