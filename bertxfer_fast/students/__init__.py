"""Students: what a teacher's knowledge is moved into.

`smaller` makes one of the teacher's own class, `build` one of another kind; `load` opens either again.
`transfer_weights` blends a teacher's weights into a student, `share_encoder` puts one encoder under several heads.
Importing this module makes the kinds known to transformers, whose Auto classes then open their folders too.
"""

from __future__ import annotations

from ..models.hf.loading import load_saved as load
from .bilstm import BiLSTM
from .build import build
from .embeddings import distilled_table, inherited_table, teacher_table
from .gru import GRU
from .mlp import MLP
from .network import Network, NetworkConfig, kinds, options, register
from .shared import share_encoder
from .sizes import parse_size
from .smaller import smaller, uniform_layers
from .static import Static
from .textcnn import TextCNN
from .transfer import Moved, Transfer, transfer_weights

__all__ = [
    "GRU",
    "MLP",
    "BiLSTM",
    "Moved",
    "Network",
    "NetworkConfig",
    "Static",
    "TextCNN",
    "Transfer",
    "build",
    "distilled_table",
    "inherited_table",
    "kinds",
    "load",
    "options",
    "parse_size",
    "register",
    "share_encoder",
    "smaller",
    "teacher_table",
    "transfer_weights",
    "uniform_layers",
]
