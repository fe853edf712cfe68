"""A small sentence encoder whose vectors may be cut short.

    python examples/sentence_vectors.py

Three layers learn a six-layer encoder's sentence vectors, turned onto their principal axes: the first numbers of a
vector say most. Because the distance is summed over prefixes (Matryoshka), a prefix is a good vector in itself.

Prints how well cosines of held-out sentences agree with the teacher's, by Spearman's rank correlation: with whole
vectors, and with a third of them.
"""

from __future__ import annotations

import common
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, set_seed

from bertxfer_fast import Distiller, FeatureExtractor, data, objectives, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    tokenizer = common.tokenizer(args)
    teacher = AutoModel.from_pretrained(args.data / "teacher")

    set_seed(1)
    student = students.smaller(teacher, num_hidden_layers=teacher.config.num_hidden_layers // 2)
    width = student.config.hidden_size
    wanted = objectives.Embeddings(projection="pca", sizes=(width, width // 3))

    # Plain text is enough.
    texts = data.encode(args.data / "unlabelled.tsv", tokenizer, max_length=64)
    common.train(Distiller(teacher, student, [wanted]), texts, args, learning_rate=5e-4)

    sentences = list(data.load(args.data / "test.tsv")["text"])
    teachers = FeatureExtractor(teacher, tokenizer).extract(sentences)
    students_ = FeatureExtractor(student, tokenizer).extract(sentences)
    for size in (width, width // 3):
        agreement = spearmanr(cosines(teachers), cosines(students_[:, :size])).statistic
        print(f"{size} of {width} numbers: {agreement:.3f}")


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    """Of all pairs of different sentences."""
    unit = torch.nn.functional.normalize(vectors)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns]


if __name__ == "__main__":
    main()
