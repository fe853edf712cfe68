"""A teacher of which there are only vectors.

The encoder's sentence vectors of 1 500 reviews in a .npy file, without the encoder: the half-depth student that
learns from them for an epoch, in float32, beside the one that learns from the encoder itself. The students are
compared weight by weight, and their vectors of held-out reviews by cosine.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, set_seed

from bertxfer_fast import FeatureExtractor, objectives, students, teachers

from ..row import Claim, Row, Run
from ..training import train

ROWS = 1500


def measure(run: Run) -> None:
    problem = run.sentiment
    teacher = AutoModel.from_pretrained(run.place.encoder).eval()
    texts = problem.texts("train")[:ROWS]
    rows = problem.unlabelled(texts)

    def vectors(model: Any, of: list[str]) -> torch.Tensor:
        return FeatureExtractor(model, problem.tokenizer, max_length=problem.max_length).extract(of)

    def student_of(source: Any) -> Any:
        set_seed(run.seed)
        student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
        settings = {"teacher": source, "seed": run.seed, "epochs": 1, "learning_rate": 2e-4, "bf16": False}
        train(run.folder, student, [objectives.Embeddings()], rows, **settings)
        return student

    def both() -> dict[str, float]:
        file = run.folder / "vectors.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, vectors(teacher, texts).numpy())
        box = teachers.StoredTeacher(teachers.BlackBox({"train": file}, {"train": rows}, kind="vectors"))
        live, boxed = student_of(copy.deepcopy(teacher)), student_of(box)
        pairs = zip(live.parameters(), boxed.parameters(), strict=True)
        held_out = problem.texts("test")
        cosines = torch.cosine_similarity(vectors(live, held_out), vectors(boxed, held_out))
        return {
            "largest difference of a weight": max(float((a - b).detach().abs().max()) for a, b in pairs),
            "smallest cosine": float(cosines.min()),
        }

    run.measure("black box against live", both)


ROW = Row(
    "black_box",
    measure,
    (
        Claim(
            "largest difference of a weight",
            "black box against live",
            "largest difference of a weight",
            most=1e-5,
            digits=9,
        ),
        Claim(
            "smallest cosine of held-out vectors", "black box against live", "smallest cosine", least=0.9999
        ),
    ),
    minutes=3,
    needs=("encoder", "reviews"),
    seeds=(1,),
)
