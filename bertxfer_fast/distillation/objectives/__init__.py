"""What a student is taught, one file each; `get` knows them by name.

A new objective is a file with a class of `Objective` under `register`.
"""

from __future__ import annotations

from .attention_maps import AttentionMaps
from .attention_scores import AttentionScores
from .base import SCHEDULES, Layers, Match, Objective, WeightLike, get, names, register
from .embeddings import Embeddings
from .hidden_cosine import HiddenCosine
from .hidden_states import HiddenStates
from .labels import Labels
from .linear_logits import LinearLogits
from .logits import Logits
from .patient_states import PatientStates
from .relations import Relations
from .scores import Scores
from .temperature import Temperature

__all__ = [
    "SCHEDULES",
    "AttentionMaps",
    "AttentionScores",
    "Embeddings",
    "HiddenCosine",
    "HiddenStates",
    "Labels",
    "Layers",
    "LinearLogits",
    "Logits",
    "Match",
    "Objective",
    "PatientStates",
    "Relations",
    "Scores",
    "Temperature",
    "WeightLike",
    "get",
    "names",
    "register",
]
