"""What a student is taught, one file each; `get` knows them by name.

A new objective is a file with a class of `Objective` under `register`.
"""

from __future__ import annotations

from .attention_maps import AttentionMaps
from .attention_scores import AttentionScores
from .base import SCHEDULES, Layers, Match, Objective, get, names, register
from .hidden_states import HiddenStates
from .labels import Labels
from .logits import Logits

__all__ = [
    "SCHEDULES",
    "AttentionMaps",
    "AttentionScores",
    "HiddenStates",
    "Labels",
    "Layers",
    "Logits",
    "Match",
    "Objective",
    "get",
    "names",
    "register",
]
