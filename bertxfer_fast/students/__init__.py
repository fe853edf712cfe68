"""Students: what a teacher's knowledge is moved into."""

from __future__ import annotations

from .shared import share_encoder
from .smaller import smaller, uniform_layers
from .transfer import Moved, Transfer, transfer_weights

__all__ = ["Moved", "Transfer", "share_encoder", "smaller", "transfer_weights", "uniform_layers"]
