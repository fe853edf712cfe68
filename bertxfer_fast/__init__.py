"""A distillation engine for BERT-family encoders.

``bertxfer_fast.ops`` holds the fused losses and needs torch alone. Everything above it (streams, distiller, students,
teachers, trainers, features) is imported on first use, so that ``import bertxfer_fast`` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> module that holds it ("" : the name is that module itself).
_LAZY = {
    "Distiller": "distillation.distiller",
    "DistillationArguments": "training.arguments",
    "DistillationTrainer": "training.trainer",
    "MultiTask": "distillation.multitask",
    "MultiTaskTrainer": "training.multitask",
    "FeatureExtractor": "features",
    "TeacherStream": "models.stream",
    "build_info": "ops",
    "explain": "ops",
    "objectives": "",
    "ops": "",
    "packing": "",
    "recipes": "",
    "students": "",
    "teachers": "",
    "transfer_weights": "students",
    "use_backend": "ops",
}
#: Public modules that stand in a room.
_ROOM_OF = {
    "objectives": "distillation.objectives",
    "recipes": "distillation.recipes",
    "teachers": "distillation.teachers",
}

__all__ = [
    "DistillationArguments",
    "DistillationTrainer",
    "Distiller",
    "FeatureExtractor",
    "MultiTask",
    "MultiTaskTrainer",
    "TeacherStream",
    "__version__",
    "build_info",
    "explain",
    "objectives",
    "ops",
    "packing",
    "recipes",
    "students",
    "teachers",
    "transfer_weights",
    "use_backend",
]

if TYPE_CHECKING:
    from . import ops, packing, students
    from .distillation import objectives, recipes, teachers
    from .distillation.distiller import Distiller
    from .distillation.multitask import MultiTask
    from .features import FeatureExtractor
    from .models.stream import TeacherStream
    from .ops import build_info, explain, use_backend
    from .students import transfer_weights
    from .training.arguments import DistillationArguments
    from .training.multitask import MultiTaskTrainer
    from .training.trainer import DistillationTrainer


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'bertxfer_fast' has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name] or _ROOM_OF.get(name, name)}", __name__)
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
