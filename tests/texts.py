"""The files that examples/fetch.py leaves, in tiny: for the examples and the rows of the quality table."""

from __future__ import annotations

import json
import random
from pathlib import Path

from .folders import WORDS, sentences, tiny_tokenizer
from .tiny import tiny_bert

#: Words that say which label a review has, so that there is something to learn.
_SIGNS = {"negative": ("bad", "poor", "awful"), "positive": ("good", "fine", "great")}
ENTITIES = ("person", "movie")


def make_texts(folder: Path) -> Path:
    """An encoder (6 layers, 24 wide, 12 heads) with its tokenizer, reviews, tweets with names, plain sentences."""
    tiny_bert(6, 24, 12, intermediate=96).save_pretrained(folder / "teacher")
    tiny_tokenizer(folder / "teacher")
    for seed, (split, count) in enumerate({"train": 48, "dev": 12, "test": 16}.items()):
        rows = _reviews(count, seed)
        lines = "".join(f"{text}\t{label}\n" for text, label in rows)
        (folder / f"{split}.tsv").write_text("text\tlabel\n" + lines)
        _write_entities(folder / "entities" / f"{split}.jsonl", count, seed)
    plain = [text for text, _ in sentences(30, 7)]
    (folder / "unlabelled.tsv").write_text("text\n" + "".join(f"{text}\n" for text in plain))
    (folder / "glosses.txt").write_text("".join(f"{text}\n" for text, _ in sentences(60, 8)))
    return folder


def _reviews(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        label = list(_SIGNS)[i % 2]
        words = [draw.choice(WORDS[6:30]) for _ in range(draw.randint(2, 8))]
        words.insert(draw.randint(0, len(words)), draw.choice(_SIGNS[label]))
        rows.append((" ".join(words), label))
    return rows


def _write_entities(path: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    path.parent.mkdir(exist_ok=True)
    lines = []
    for i in range(count):
        words = [draw.choice(WORDS[10:30]) for _ in range(draw.randint(3, 8))]
        labels = ["O"] * len(words)
        kind, place = ENTITIES[i % 2], draw.randint(0, len(words) - 2)
        words[place : place + 2] = ["red", "blue"] if kind == "person" else ["fast", "slow"]
        labels[place : place + 2] = [f"B-{kind}", f"I-{kind}"]
        lines.append(json.dumps({"words": words, "labels": labels}))
    path.write_text("".join(f"{line}\n" for line in lines))
