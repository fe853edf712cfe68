"""A student of your own: any module that reads packed tokens.

    python examples/own_student.py

An `Encoder` is an `nn.Module` with a `spec`, the plain facts about it, and a `run`, which reads a packed batch and
hands to a tap what is wanted. This one is a gated mean of word vectors.

Prints the accuracy of teacher and student on the test split.
"""

from __future__ import annotations

import common
import torch
from torch import nn

from bertxfer_fast import objectives
from bertxfer_fast.data.loaders import packed_batches
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.models import EncoderSpec, LayerActivations, PackedOutput
from bertxfer_fast.ops import pool_features
from bertxfer_fast.packing import PackingCollator


class GatedMean(nn.Module):
    """Word vectors, each times a gate that its neighbours do not see, averaged over a text."""

    def __init__(self, vocab_size: int, width: int, num_labels: int) -> None:
        super().__init__()
        self.spec = EncoderSpec(
            "GatedMean",
            num_layers=0,
            hidden_size=width,
            vocab_size=vocab_size,
            num_labels=num_labels,
            head="sequence",
        )
        self.embeddings = nn.Embedding(vocab_size, width)
        self.gate = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, num_labels)

    def run(self, batch, tap=None):
        # [1, T] tokens of all texts of the batch, end to end; cu_seq_lens_q says where each begins.
        rows = self.embeddings(batch["input_ids"][0])
        rows = rows * self.gate(rows).sigmoid()
        cu_seqlens = batch["cu_seq_lens_q"]
        logits = self.classifier(pool_features(rows, cu_seqlens, mode="mean"))
        if tap is not None and tap.wants("logits"):
            tap.sink(LayerActivations("logits", 0, cu_seqlens, batch["max_length_q"], logits=logits))
        return PackedOutput(logits=logits)


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv, epochs=4)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args)

    torch.manual_seed(1)
    student = GatedMean(teacher.config.vocab_size, 64, teacher.config.num_labels)
    distiller = Distiller(teacher, student, [objectives.Logits(kind="mse")])

    # A training loop of your own: the distiller is a module whose forward returns a loss.
    optimizer = torch.optim.AdamW((p for p in distiller.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(round(args.epochs)):
        for _, batch in packed_batches(splits["train"], 1024, torch.device("cpu"), PackingCollator()):
            distiller(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for name, model in {"teacher": teacher, "student": student}.items():
        print(f"{name}: {common.accuracy(model, splits['test'])}")


if __name__ == "__main__":
    main()
