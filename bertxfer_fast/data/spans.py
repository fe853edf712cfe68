"""Questions and the spans of their contexts that answer them: from characters to tokens, in windows."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["answer_of", "characters_of", "context_tokens", "question_windows", "windows_of"]

Answer = tuple[str, int | None]  # the text, and where it begins in the context


def answer_of(value: Any) -> Answer | None:
    """The first answer that a cell of the label column holds, None where it says that there is none.

    Args:
        value: ``{"text": [...], "answer_start": [...]}`` as SQuAD has it (lists, empty ones for no answer, or single
            values), or the answer's text alone.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, str):
        return value, None
    if isinstance(value, Mapping) and {"text", "answer_start"} <= value.keys():
        text, start = value["text"], value["answer_start"]
        if isinstance(text, list) and isinstance(start, list) and len(text) == len(start):
            if not text:
                return None
            text, start = text[0], start[0]
        if isinstance(text, str) and isinstance(start, int):
            return text, start
    raise ValueError(f"{value!r} is no answer, want its text, or a mapping with text and answer_start")


def characters_of(answer: Answer | None, context: str) -> tuple[int, int] | None:
    """The characters from and to of an answer in its context.

    Raises:
        ValueError: it does not stand there, or in several places and none is named.
    """
    if answer is None:
        return None
    text, start = answer
    if not text.strip():
        raise ValueError("the answer is blank")
    if start is None:
        start = context.find(text)
        if start >= 0 and context.find(text, start + 1) >= 0:
            raise ValueError(f"the context has {text!r} more than once, want answer_start beside the text")
    if start < 0 or context[start : start + len(text)] != text:
        raise ValueError(f"{text!r} is not in the context" + (f" at {start}" if start > 0 else ""))
    # Blanks around an answer are in no token: at the end of a window they would seem to lie outside of it.
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip())


def question_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[tuple[int, int] | None] | None,
    *,
    max_length: int,
    stride: int | None,
) -> dict[str, list[Any]]:
    """Token features of every question with each window of its context, in order.

    Args:
        tokenizer: a fast one.
        questions, contexts: as many of each.
        answers: characters of each answer in its context; None: no labels.
        max_length: tokens of a sequence at most; of a longer one the context is cut.
        stride: tokens that neighbouring windows of a context share; None: one window, the first.

    Returns:
        ``input_ids``, ``token_type_ids`` where the tokenizer gives them, and ``labels``: first and last token of the
        answer, or 0, 0, the first token, where the window does not hold it.

    Raises:
        ValueError: a question that leaves no room for its context.
    """
    tokens = windows_of(tokenizer, questions, contexts, max_length=max_length, stride=stride)
    features = {key: list(tokens[key]) for key in ("input_ids", "token_type_ids") if key in tokens}
    if answers is None:
        return features
    rows = tokens.get("overflow_to_sample_mapping", range(len(questions)))
    features["labels"] = [
        _tokens_of(answers[row], tokens["offset_mapping"][i], context_tokens(tokens, i))
        for i, row in enumerate(rows)
    ]
    return features


def windows_of(
    tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], *, max_length: int, stride: int | None
) -> Any:
    """Every question with each window of its context as the tokenizer's ``BatchEncoding``, with offsets.

    Raises:
        ValueError: see `question_windows`.
        RuntimeError: the tokenizers installed would lose the end of a context.
    """
    if stride is not None:
        _check_windows()
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    lengths = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    long = [i for i, length in enumerate(lengths) if room - length <= (stride or 0)]
    if long:
        shared = f" and a stride of {stride}" if stride else ""
        raise ValueError(
            f"max_length: got {max_length}, want more: a question of {lengths[long[0]]} tokens{shared} "
            f"leave{'' if stride else 's'} no room for its context"
        )
    return tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride or 0,
        return_overflowing_tokens=stride is not None,
        return_offsets_mapping=True,
        padding=False,
        return_attention_mask=False,
    )


@functools.cache
def _check_windows() -> None:
    """Fails where the tokenizers at hand stop before the end of a text that is cut into windows."""
    import tokenizers

    cutting = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    cutting.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    cutting.enable_truncation(4, stride=2)
    if 1 + len(cutting.encode("a " * 12).overflowing) < 5:  # of four tokens, a new pair in each
        raise RuntimeError(
            f"stride: tokenizers {tokenizers.__version__} loses the last windows of a text, want 0.23.3 or newer"
        )


def context_tokens(tokens: Any, i: int) -> list[int]:
    """The tokens of window ``i`` that are of its context."""
    offsets = tokens["offset_mapping"][i]
    return [
        t for t, which in enumerate(tokens.sequence_ids(i)) if which == 1 and offsets[t][0] < offsets[t][1]
    ]


def _tokens_of(
    answer: tuple[int, int] | None, offsets: Sequence[tuple[int, int]], context: Sequence[int]
) -> list[int]:
    """First and last token of an answer; 0, 0 where this window does not hold all of it."""
    if answer is None or not context:
        return [0, 0]
    start, end = answer
    if offsets[context[0]][0] > start or offsets[context[-1]][1] < end:
        return [0, 0]
    inside = [i for i in context if offsets[i][1] > start and offsets[i][0] < end]
    return [inside[0], inside[-1]] if inside else [0, 0]
