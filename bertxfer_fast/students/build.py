"""A student of any kind for a teacher: its task, its labels, its vocabulary, and embeddings to start from."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.spec import EncoderSpec
from .embeddings import distilled_table, inherited_table, special_tokens, teacher_table, vocabulary_size
from .network import check_options, get

__all__ = ["build"]

_STARTS = ("teacher", "distilled", "random")


def build(
    kind: str,
    teacher: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    init: str | None = None,
    vocab_size: int | None = None,
    **chosen: Any,
) -> Any:
    """A student that is no transformer, with the teacher's head: ``build("bilstm", teacher, hidden_size=256)``.

    Args:
        kind: one of `kinds`: ``"bilstm"``, ``"gru"``, ``"textcnn"``, ``"mlp"``, ``"static"``, or one of your own.
        teacher: a transformers encoder, bare or with a head; left as it is.
        tokenizer: of the student's text. It says which tokens are special; ``"distilled"`` needs it.
        teacher_tokenizer: the teacher's, where ``tokenizer`` is another one, whose tokens the student then has.
        init: of the embeddings. ``"teacher"``: its table, see `teacher_table`, or of other tokens `inherited_table`;
            ``"distilled"``: what it says of each token alone, see `distilled_table`; ``"random"``. By default the
            kind's own: ``"distilled"`` for ``"static"`` with the teacher's tokenizer, else ``"teacher"``. Other weights
            are random, from torch's generator.
        vocab_size: rows of the table, for a student of whose tokens nothing else is known, which starts random; by
            default as many as there are tokens.
        **chosen: options of the kind, see `options`.

    Returns:
        A `Network` in training mode, float32, on the teacher's device.

    Raises:
        TypeError: ``teacher`` is not a transformers model.
        ValueError: an unknown kind or option (the message names the nearest known one), or a bad value, before
            anything is computed.
    """
    if not isinstance(teacher, PreTrainedModel):
        raise TypeError(f"teacher: got {type(teacher).__name__}, want a transformers model")
    network = get(kind)
    check_options(kind, chosen)
    others = teacher_tokenizer is not None
    if others and (tokenizer is None or vocab_size is not None):
        raise ValueError(
            "teacher_tokenizer: got one, want it beside the student's tokenizer and no vocab_size"
        )
    usual = "teacher" if others and network.init == "distilled" else network.init
    init = init or (usual if vocab_size is None else "random")
    if init not in _STARTS:
        raise ValueError(f"init: got {init!r}, want one of {', '.join(_STARTS)}")
    if vocab_size is not None and init != "random":
        raise ValueError(f"init: got {init!r}, want 'random': the teacher has no embeddings of other tokens")
    if init == "distilled" and others:
        raise ValueError("init: got 'distilled', want 'teacher' or 'random': the teacher reads other tokens")
    if init == "distilled" and tokenizer is None:
        raise ValueError("tokenizer: got None, want the teacher's: init='distilled' runs every token of it")
    facts, source, make = EncoderSpec.of(teacher), cast(Any, teacher), cast(Any, network.config_class)
    # A classifier's logits have names, if only LABEL_0; a masked-LM head's are the vocabulary's.
    masked_lm = facts.head == "token" and not facts.labels and facts.num_labels == facts.vocab_size
    names = facts.labels or [f"LABEL_{i}" for i in range(0 if masked_lm else facts.num_labels)]
    if masked_lm and others:
        raise ValueError("teacher: got a masked-LM head, want none: the student's vocabulary is another one")
    count = facts.vocab_size if vocab_size is None else vocab_size
    config = make(
        vocab_size=vocabulary_size(cast(Any, tokenizer)) if others else count,
        head=facts.head,
        masked_lm=masked_lm,
        special_ids=[] if tokenizer is None else special_tokens(tokenizer),
        problem_type=facts.problem_type,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        **chosen,
    )
    if config.embedding_size is None:
        own = facts.hidden_size if init == "distilled" else source.get_input_embeddings().weight.shape[1]
        size = network.embedding_size(config, own)
        # A table that starts from the teacher is no wider than its own; a linear map leads on to the layers' width.
        config.embedding_size = size if init == "random" else min(size, own)
    student = network(config)
    if init != "random":
        asked, size = chosen.get("embedding_size"), config.embedding_size
        table = _table(init, teacher, tokenizer, teacher_tokenizer, asked, size)
        with torch.no_grad():
            student.get_input_embeddings().weight.copy_(table)
    return student.to(source.device)


def _table(
    init: str, teacher: Any, tokenizer: Any, teacher_tokenizer: Any, asked: int | None, size: int
) -> torch.Tensor:
    if init == "teacher" and teacher_tokenizer is not None:
        return inherited_table(teacher, tokenizer, teacher_tokenizer, size)
    if init == "teacher":
        return teacher_table(teacher, size)
    # Of its own width the vectors stay as they are, unless components are asked for.
    whole = asked is None and size == EncoderSpec.of(teacher).hidden_size
    return distilled_table(teacher, tokenizer, None if whole else size)
