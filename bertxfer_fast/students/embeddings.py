"""First embeddings of a student, made of its teacher: its own table, for other tokens too, or what it says of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.activations import LayerActivations
from ..models.loans import device_of
from ..models.spec import EncoderSpec
from ..models.stream import TeacherStream
from ..ops import pool_features

__all__ = [
    "ROLES",
    "distilled_table",
    "inherited_table",
    "special_tokens",
    "teacher_table",
    "vocabulary_size",
]

_TOKENS_PER_BATCH = 8192
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # part of a character's bytes

#: What special tokens are for, whatever a tokenizer calls them.
ROLES = ("bos", "eos", "cls", "sep", "pad", "unk", "mask")


def teacher_table(teacher: Any, size: int | None = None) -> Tensor:
    """The teacher's embedding table, projected on its first singular directions where another width is wanted.

    The truncated SVD is the best approximation of that rank: inner products of tokens change as little as possible.

    Args:
        teacher: a transformers model.
        size: width that is wanted; by default the teacher's.

    Returns:
        float32 ``[V, size]`` on the CPU.

    Raises:
        ValueError: wider than the teacher's.
    """
    table = teacher.get_input_embeddings().weight.detach().to("cpu", torch.float64)
    if size is None or size == table.shape[1]:
        return table.float()
    _check_size(size, table.shape[1])
    return (table @ _directions(table, size)).float()


def inherited_table(
    teacher: Any,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    size: int | None = None,
) -> Tensor:
    """The teacher's table for another vocabulary (Gee et al., "Fast Vocabulary Transfer", 2022).

    A token of which the teacher has the like keeps its row, a special token that of the one with its role. Any other
    one is the mean of the rows of those that the teacher's tokenizer cuts its text into; where it knows none of it,
    the row is random, with the table's mean and deviation, from torch's generator.

    Args:
        teacher: a transformers model.
        tokenizer: of the new table.
        teacher_tokenizer: the teacher's.
        size: width that is wanted, as in `teacher_table`.

    Returns:
        float32 ``[V, size]`` on the CPU, a row for each id of ``tokenizer``.
    """
    table = teacher_table(teacher, size)
    vocabulary, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    alike = _alike(tokenizer, teacher_tokenizer)
    ids = {token: [theirs[token]] for token in vocabulary if alike and token in theirs}
    others = [token for token in vocabulary if token not in ids]
    texts = [_text_of(token, tokenizer) for token in others]
    cut = teacher_tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    unknown = teacher_tokenizer.unk_token_id
    for token, text, found in zip(others, texts, cut, strict=True):
        ids[token] = [] if _UNREADABLE in text else [i for i in found if i != unknown]
    for token in tokenizer.all_special_tokens:
        ids[token] = []
    for role in ROLES:
        token, other = getattr(tokenizer, f"{role}_token"), getattr(teacher_tokenizer, f"{role}_token_id")
        if token is not None and other is not None:
            ids[token] = [other]
    made = table.mean(0) + table.std(0) * torch.randn(vocabulary_size(tokenizer), table.shape[1])
    tokens = [token for token, found in ids.items() if found]
    bounds = torch.tensor([0, *(len(ids[token]) for token in tokens)]).cumsum(0).int()
    rows = table[[i for token in tokens for i in ids[token]]]
    made[[vocabulary[token] for token in tokens]] = pool_features(rows, bounds)
    return made


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that a table for its tokens has."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def distilled_table(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    size: int | None = None,
    *,
    sif: float | None = 1e-4,
) -> Tensor:
    """What a teacher says of each token alone, as model2vec distils it.

    Every token goes through the teacher between the special tokens of a text of its own; the last hidden states' mean
    is its vector. Then principal components, then each row times ``sif / (sif + p)``, p the token's probability by
    Zipf's law: vocabularies list frequent tokens first. Rows of special tokens are zero.

    Args:
        teacher: a transformers encoder; it runs in eval mode where it is.
        tokenizer: the teacher's.
        size: principal components to keep; None: the vectors as they are.
        sif: the smoothing a of SIF weights; None: no weights.

    Returns:
        float32 ``[V, size]`` on the CPU, V the teacher's vocabulary.

    Raises:
        ValueError: more components than the teacher is wide, or ``sif`` that is not positive.
    """
    if sif is not None and sif <= 0:
        raise ValueError(f"sif: got {sif}, want a positive number, or None for no weights")
    stream = TeacherStream(teacher, hidden=[EncoderSpec.of(teacher).num_layers])
    count, width = stream.spec.vocab_size, stream.spec.hidden_size
    assert count is not None
    if size is not None:
        _check_size(size, width)
    before, after = _frame(tokenizer)
    length, device = len(before) + 1 + len(after), device_of(teacher)
    table = torch.empty(count, width)

    for tokens in torch.arange(count).split(max(1, _TOKENS_PER_BATCH // length)):
        ids = [torch.tensor(side).expand(len(tokens), -1) for side in (before, after)]
        batch: Mapping[str, Any] = {
            "input_ids": torch.cat([ids[0], tokens[:, None], ids[1]], 1).reshape(1, -1).to(device),
            "cu_seq_lens_q": torch.arange(0, len(tokens) * length + 1, length, dtype=torch.int32).to(device),
            "max_length_q": length,
        }

        def keep(last: LayerActivations, tokens: Tensor = tokens) -> None:
            assert last.hidden is not None
            table[tokens] = pool_features(last.hidden.float(), last.cu_seqlens).cpu()

        with torch.no_grad():
            stream.stream(batch, keep)
    special = torch.tensor([i for i in special_tokens(tokenizer) if i < count], dtype=torch.int64)
    text = torch.ones(count, dtype=torch.bool)
    text[special] = False
    rows = table[text].double()
    if size is not None:
        rows = rows - rows.mean(0)
        rows = rows @ _directions(rows, size)
    if sif is not None:
        probability = 1 / torch.arange(1, len(rows) + 1, dtype=torch.float64)
        rows = rows * (sif / (sif + probability / probability.sum()))[:, None]
    made = torch.zeros(count, rows.shape[1])
    made[text] = rows.float()
    return made


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that stand for no text; the unknown token stands for some."""
    return sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id})


def _alike(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers write alike what begins a word and what goes on with one."""
    models = [type(getattr(getattr(each, "backend_tokenizer", None), "model", None)) for each in (one, other)]
    return models[0] is models[1]


def _text_of(token: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a token stands for, with a space before it where it begins a word."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    inside = getattr(model, "continuing_subword_prefix", None)
    if inside and token.startswith(inside):
        return token.removeprefix(inside)
    text = tokenizer.convert_tokens_to_string([token])
    return f" {text.strip()}" if inside or token.startswith("\N{LOWER ONE EIGHTH BLOCK}") else text


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a text."""
    empty, probe = (list(tokenizer(text)["input_ids"]) for text in ("", "a"))
    same = next((i for i, (a, b) in enumerate(zip(empty, probe, strict=False)) if a != b), len(empty))
    return empty[:same], empty[same:]


def _directions(rows: Tensor, size: int) -> Tensor:
    """The first right singular vectors ``[D, size]`` of ``[V, D]``; of each, the largest number is positive."""
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    vectors = vectors.flip(1)[:, :size]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


def _check_size(size: int, width: int) -> None:
    if not 1 <= size <= width:
        raise ValueError(
            f"embedding_size: got {size}, want 1 to the teacher's {width}, or init='random': a projection adds no width"
        )
