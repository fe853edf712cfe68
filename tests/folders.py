"""Folders that the tests of features and of the command share: tiny models, tokenizers, data and a recipe."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from bertxfer_fast import cli

from .tiny import VOCAB, tiny_bert

_WORDS = """good bad fine poor great awful film movie plot actor scene story music the a is was not very and but
it of in to this that with one two red blue green fast slow up down left right states ##s ##ly ##ing , ."""
WORDS = _WORDS.split()
BYTE_VOCAB = 347  # of `byte_tokenizer`


def tiny_tokenizer(folder: Path, *, lowercase: bool = True, words: list[str] | None = None) -> Any:
    """A WordPiece tokenizer of 50 tokens, as many as the tiny models know."""
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS if words is None else words
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    assert len(vocab) == len(set(vocab)) == VOCAB
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizerFast(
        vocab={word: i for i, word in enumerate(vocab)}, do_lower_case=lowercase, model_max_length=64
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def byte_tokenizer(folder: Path, *, trim_offsets: bool = True) -> Any:
    """A byte-level BPE tokenizer as RoBERTa's: bytes, and words with the space before them, whole and cut short."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [f"Ġ{word}" for word in WORDS[:30]]
    merges = dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word)))
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    assert len(tokens) == len(set(tokens)) == BYTE_VOCAB
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    inner.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=True
    )
    names = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "mask": 4, "cls": 0, "sep": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        **{f"{role}_token": special[i] for role, i in names.items()},
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.choice(WORDS[:30]) for _ in range(draw.randint(2, 9))]
        rows.append((" ".join(words), draw.choice(["neg", "neutral", "pos"])))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))


def make_place(tmp_path: Path) -> Path:
    """A folder with a teacher (4 layers), its tokenizer, three files, and recipe.yaml."""
    tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(tmp_path / "teacher")
    write_tsv(tmp_path / "train.tsv", sentences(24, 0))
    write_tsv(tmp_path / "dev.tsv", sentences(8, 1))
    write_tsv(tmp_path / "test.tsv", sentences(10, 2))
    recipe: dict[str, Any] = {
        "recipe": "tinybert",
        "teacher": "teacher",
        "student": {"num_hidden_layers": 2, "hidden_size": 12, "init": "random"},
        "data": {
            "train": "train.tsv",
            "eval": "dev.tsv",
            "test": "test.tsv",
            "text": "sentence",
            "label": "label",
            "max_length": 16,
        },
        "output_dir": "out",
        "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": "1e-3"},
        "stages": {"prediction": {"num_train_epochs": 1}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path


def change(place: Path, **changes: Any) -> None:
    """Set keys (section__key) of the recipe."""
    path = place / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section = recipe
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))


def distill(place: Path, *flags: str) -> int:
    """Run the recipe; with a report that costs little, unless it says itself what it wants of one."""
    recipe = place / "recipe.yaml"
    own = "report:" in recipe.read_text() or any(flag.startswith("--report") for flag in flags)
    brief = () if own else ("--report.resamples=10", "--report.sentences=0")
    return cli.main(["distill", str(recipe), *flags, *brief])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_logit(place: Path) -> None:
    tiny_bert(4, 16, 4, head="ForSequenceClassification", num_labels=1).save_pretrained(place / "teacher")
    for name in ("train", "dev", "test"):
        write_tsv(place / f"{name}.tsv", [("good film", "0.5"), ("bad film", "-1")])
    change(place, task="regression")
