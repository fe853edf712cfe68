"""Only the losses, inside a training loop of your own.

    python examples/own_trainer.py

The operators take tensors and know nothing of models: ordinary padded transformers code calls them where it had a
loss of plain PyTorch. A right-padded batch [B, L, D] is a packed one without a copy; a learned projection that
bridges widths is an argument, and the projected states are never whole in memory.

Prints loss and accuracy after each pass over the text.
"""

from __future__ import annotations

import common
import torch
from transformers import DataCollatorWithPadding, set_seed

from bertxfer_fast import ops, students


def main(argv: list[str] | None = None) -> None:
    args = common.arguments(__doc__, argv)
    splits = common.reviews(args)
    teacher = common.fine_tuned(args).eval()

    set_seed(1)
    size = f"3x{teacher.config.hidden_size // 2}"
    student = students.smaller(teacher, size=size, init="random")
    projection = torch.nn.Linear(student.config.hidden_size, teacher.config.hidden_size)
    optimizer = torch.optim.AdamW([*student.parameters(), *projection.parameters()], lr=5e-4)
    collate = DataCollatorWithPadding(common.tokenizer(args))
    loader = torch.utils.data.DataLoader(splits["train"], batch_size=32, shuffle=True, collate_fn=collate)

    for epoch in range(max(1, round(args.epochs))):
        student.train()
        for batch in loader:
            batch.pop("labels")
            with torch.no_grad():
                theirs = teacher(**batch, output_hidden_states=True)
            mine = student(**batch, output_hidden_states=True)
            kept = batch["attention_mask"].bool()  # states of padding say nothing
            states = ops.hidden_mse(
                mine.hidden_states[-1][kept],
                theirs.hidden_states[-1][kept],
                projection.weight,
                projection.bias,
            )
            loss = states + ops.logits_kl(mine.logits, theirs.logits, temperature=2.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"pass {epoch + 1}: loss {loss.item():.3f}, {common.accuracy(student.eval(), splits['test'])}")


if __name__ == "__main__":
    main()
