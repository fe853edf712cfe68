"""Sentence vectors.

Three layers learn what an encoder of six says of every token last, the means of which are its sentence vectors: of the
training reviews, sentences of news, tweets and products, and 100 000 definitions of a dictionary, each read once and
without dropout. At equal steps that brings the vectors nearer than learning them alone. The student starts as the
encoder's first, fifth and sixth layer: of all 20 choices the one whose vectors are nearest to its own before any
training. The embeddings stay as they are. What is compared is the cosine of every pair of 2 000 held-out sentences,
1 008 reviews and 992 definitions. The 128 dimensions are the student's vectors on their own principal axes, found on
training reviews. Speed is that of packed inference on the held-out sentences, the median of three ratios.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, set_seed

from bertxfer_fast import FeatureExtractor, objectives, students
from bertxfer_fast.evaluation.speed import parameter_count, throughput

from ..row import Claim, Row, Run
from ..training import train

GLOSSES, HELD_OUT, SMALL = 100_000, 992, 128


def measure(run: Run) -> None:
    place, problem = run.place, run.sentiment
    teacher = AutoModel.from_pretrained(place.encoder).eval()
    glosses = place.glosses(GLOSSES + HELD_OUT)
    held_out = [*problem.texts("test"), *glosses[-HELD_OUT:]]
    reviews = problem.texts("train")

    def vectors(model: Any, texts: list[str]) -> torch.Tensor:
        rows = FeatureExtractor(model, problem.tokenizer, max_length=problem.max_length).extract(texts)
        return torch.nn.functional.normalize(rows.double())

    wanted = _cosines(vectors(teacher, held_out))

    def numbers(model: Any) -> dict[str, float]:
        rows = vectors(model, held_out)
        _, _, axes = torch.linalg.svd(vectors(model, reviews), full_matrices=False)
        return {
            "Spearman": float(spearmanr(wanted, _cosines(rows)).statistic),
            f"Spearman of {SMALL}": float(spearmanr(wanted, _cosines(rows @ axes[:SMALL].T)).statistic),
            "parameters": parameter_count(model),
        }

    def distilled() -> dict[str, float]:
        set_seed(run.seed)
        depth = teacher.config.num_hidden_layers
        layers = (0, *range(depth - depth // 2 + 1, depth))
        student = students.smaller(teacher, num_hidden_layers=len(layers), layers=layers, dropout=0.0)
        done = train(
            run.folder,
            student,
            [objectives.HiddenStates("last", projection="none")],
            problem.unlabelled([*reviews, *place.sentences, *glosses[:-HELD_OUT]]),
            teacher=teacher,  # live: each text is read once, and a store of all tokens would be larger than the model
            seed=run.seed,
            epochs=1,
            learning_rate=1e-3,
            freeze="embeddings",
        )
        rows = problem.unlabelled(held_out)
        ratio = statistics.median(
            throughput(student, rows, repeats=1) / throughput(teacher, rows, repeats=1) for _ in range(3)
        )
        return {**numbers(student), "speed ratio": ratio, "steps": done["steps"]}

    run.measure("teacher", lambda: numbers(teacher))
    run.measure("student", distilled)


def _cosines(vectors: torch.Tensor) -> np.ndarray:
    """Of all pairs of different texts."""
    unit = torch.nn.functional.normalize(vectors)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns].numpy()


ROW = Row(
    "embedding",
    measure,
    (
        Claim("Spearman with the teacher's cosines", "student", "Spearman", least=0.98),
        Claim("the same with 128 of 384 dimensions", "student", f"Spearman of {SMALL}", least=0.95),
        Claim("speed over the teacher's", "student", "speed ratio", least=1.8, digits=2),
    ),
    minutes=26,
    needs=("encoder", "reviews", "glosses"),
)
