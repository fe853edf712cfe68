"""First embeddings of a student, made of its teacher: its own table, or what it says of each token alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.activations import LayerActivations
from ..models.loans import device_of
from ..models.stream import TeacherStream
from ..ops import pool_features

__all__ = ["distilled_table", "special_tokens", "teacher_table"]

_TOKENS_PER_BATCH = 8192


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
    stream = TeacherStream(teacher, hidden=[teacher.config.num_hidden_layers])
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
