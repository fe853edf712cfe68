"""Features of N sequences -> one packed batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..tasks import Task
from .packing import cu_seqlens_of, positions_of

__all__ = [
    "ALIGNMENT",
    "INPUTS",
    "SPANS",
    "TEACHER",
    "Features",
    "PackingCollator",
    "collate_inputs",
    "collator_for",
]

#: What the names of a teacher's own tokens begin with, where it has another tokenizer than the student.
TEACHER = "teacher_"
#: Which of them stand where each of the student's tokens does, see `encode_both`.
SPANS = f"{TEACHER}spans"
#: What the names in a batch begin with that say the same of a pack, see `models.activations.Alignment`.
ALIGNMENT = "alignment_"

INPUTS = ("input_ids", "token_type_ids")
_CHECKED = ("attention_mask", "position_ids")  # nothing of them is in a batch, but they can contradict it

Features: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass
class PackingCollator:
    """Features of N sequences -> one packed batch, for ``DataLoader(collate_fn=...)``.

    A feature has ``input_ids`` (a list, array or tensor of n integers), and may have ``token_type_ids`` (n), further
    `inputs` (``[n, ...]``) and ``labels`` (or ``label``); other keys are left out. Sequences keep the order of the
    features. The batch:

    - ``input_ids``, ``position_ids``, ``token_type_ids``: int64 ``[1, T]``; positions restart at 0 for every sequence.
    - further inputs: ``[1, T, ...]``.
    - ``cu_seq_lens_q``, ``cu_seq_lens_k``: int32 ``[N+1]``; ``max_length_q``, ``max_length_k``: python ints.
    - ``teacher_input_ids`` and its like: where the features have a teacher's own tokens, a pack of their own. With
      ``teacher_spans`` (n pairs) also which of these tokens stand for those of the student: ``alignment_rows``,
      ``alignment_tokens`` and ``alignment_bounds``, see `models.activations.Alignment`.
    - ``labels``: integers (class ids) -> int64 ``[N]``; floats (regression) -> float32 ``[N]``; a vector each
      (multi-label) -> float32 ``[N, C]``; with `token_labels`, one integer a token -> int64 ``[1, T]``.

    Args:
        label_dtype: overrides the dtype of the labels (say, torch.float32 for whole-number regression targets).
        token_labels: whether every token has a label.
        inputs: names of what a model reads beside text, such as ``bbox``: one value, or row, a token.
        limits: by name, the number of rows of the smallest table that is looked up; an id beyond it is an error here,
            where looking costs no host sync.

    Raises:
        ValueError: when called, for no features, an empty or a padded sequence, keys that only some features have,
            ids beyond their limit, positions that do not count from 0, and token labels, type ids or further inputs of
            another length than the tokens.
    """

    label_dtype: torch.dtype | None = None
    token_labels: bool = False
    inputs: Collection[str] = ()
    limits: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, features: Features) -> dict[str, Any]:
        if not features:
            raise ValueError("features: got none, want at least one to pack")
        for i, feature in enumerate(features):
            if not np.all(np.asarray(feature.get("attention_mask", 1)) != 0):
                raise ValueError(
                    f"features[{i}]: got padding (zeros in attention_mask), want none: tokenise with padding=False"
                )
        ids = _column(features, "input_ids", torch.int64)
        lengths = torch.tensor([len(x) for x in ids])
        if not bool(lengths.all()):
            # A head that reads the first token of every sequence would read its neighbour's.
            raise ValueError(
                f"features[{int(lengths.argmin())}]: got no input_ids, want one or more: drop empty sequences"
            )
        cu_seqlens = cu_seqlens_of(lengths)
        position_ids = positions_of(cu_seqlens, torch.repeat_interleave(lengths))
        longest = int(lengths.max())
        batch: dict[str, Any] = {
            "input_ids": torch.cat(ids)[None],
            "position_ids": position_ids[None],
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": longest,
            "max_length_k": longest,
        }
        if _present(features, "token_type_ids"):
            batch["token_type_ids"] = _per_token(features, "token_type_ids", lengths, torch.int64)
        for name in sorted(self.inputs):
            if _present(features, name):
                batch[name] = _per_token(features, name, lengths, rows=True)
        for name, count in self.limits.items():
            if name in batch:
                _check_ids(name, batch[name][0], cu_seqlens, count)
        if _present(features, "position_ids"):
            given = _per_token(features, "position_ids", lengths, torch.int64)
            if not torch.equal(given, batch["position_ids"]):
                raise ValueError(
                    "position_ids: got others than 0, 1, 2, ... in each feature, want those, or none"
                )
        for key in ("labels", "label"):
            if _present(features, key):
                batch["labels"] = self._labels(features, key, lengths)
                break
        if _present(features, f"{TEACHER}input_ids"):
            batch.update(_of_teacher(features))
            if _present(features, SPANS):
                batch.update(_spans(features, lengths, batch[f"{TEACHER}cu_seq_lens_q"]))
        return batch

    def _labels(self, features: Features, key: str, lengths: Tensor) -> Tensor:
        if self.token_labels:
            return _per_token(features, key, lengths, self.label_dtype or torch.int64)
        values = _column(features, key)
        if len({v.shape for v in values}) > 1 or values[0].ndim > 1:
            raise ValueError(
                f"{key}: got shapes {sorted({tuple(v.shape) for v in values})}, want one number or one vector of the "
                "same length a feature; labels for every token need token_labels=True"
            )
        labels = torch.stack(values)
        whole = labels.ndim == 1 and not labels.is_floating_point()
        return labels.to(self.label_dtype or (torch.int64 if whole else torch.float32))


def _of_teacher(features: Features) -> dict[str, Any]:
    """The teacher's own tokens of each text as a pack of their own, under names of its own."""
    own = [
        {name.removeprefix(TEACHER): value for name, value in feature.items() if name.startswith(TEACHER)}
        for feature in features
    ]
    return {f"{TEACHER}{name}": value for name, value in PackingCollator()(own).items()}


def _spans(features: Features, lengths: Tensor, bounds: Tensor) -> dict[str, Tensor]:
    """Spans of the teacher's tokens in the pack that `bounds` are of, see `PackingCollator`."""
    spans = _per_token(features, SPANS, lengths, torch.int64, rows=True)[0]
    sequence = torch.repeat_interleave(lengths)
    first, last = spans.unbind(1)
    bad = ((first < 0) | (first > last) | (last > bounds.diff()[sequence])).nonzero().flatten()
    if len(bad):
        row = int(sequence[bad[0]])
        raise ValueError(
            f"features[{row}]: got {spans[bad[0]].tolist()} in {SPANS}, want the first and one past the last of "
            f"{int(bounds.diff()[row])} {TEACHER}input_ids"
        )
    first, last = first + bounds[sequence], last + bounds[sequence]
    rows = (last > first).nonzero().flatten()
    counts = (last - first)[rows]
    cu_spans = cu_seqlens_of(counts)
    tokens = torch.arange(int(cu_spans[-1])) + (first[rows] - cu_spans[:-1]).repeat_interleave(counts)
    return {f"{ALIGNMENT}rows": rows, f"{ALIGNMENT}tokens": tokens, f"{ALIGNMENT}bounds": cu_spans}


def collator_for(
    task: Task, *, inputs: Collection[str] = (), limits: Mapping[str, int] | None = None
) -> PackingCollator:
    """The collator whose labels the heads of a task understand; the rest as in `PackingCollator`."""
    dtype = {
        "float": torch.float32,
        "multi-hot": torch.float32,
        "similarity": torch.float32,
        "span": torch.int64,
    }
    return PackingCollator(dtype.get(task.labels or ""), task.head == "token", inputs, limits or {})


def collate_inputs(
    features: Features, *, inputs: Collection[str] = (), limits: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """A packed batch of what an encoder reads; labels stay behind. The rest as in `PackingCollator`."""
    kept = {*INPUTS, *_CHECKED, *inputs}
    rows = [{name: value for name, value in row.items() if name in kept} for row in features]
    return PackingCollator(inputs=inputs, limits=limits or {})(rows)


def _check_ids(name: str, ids: Tensor, cu_seqlens: Tensor, count: int) -> None:
    bad = ((ids < 0) | (ids >= count)).nonzero().flatten()
    if len(bad):
        row = int(torch.searchsorted(cu_seqlens, bad[0].int(), right=True)) - 1
        raise ValueError(
            f"features[{row}]: got {int(ids[bad[0]])} in {name}, want ids 0..{count - 1}, the model's table"
        )


def _present(features: Features, key: str) -> bool:
    """Whether the features have `key`; an error when only some do."""
    without = [i for i, feature in enumerate(features) if feature.get(key) is None]
    if without and len(without) < len(features):
        raise ValueError(f"features[{without[0]}]: got no {key}, want one as in other features of the batch")
    return not without


def _column(features: Features, key: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    if not _present(features, key):
        raise ValueError(f"features: got the keys {sorted(features[0])}, want {key}")
    return [torch.as_tensor(feature[key], dtype=dtype) for feature in features]


def _per_token(
    features: Features, key: str, lengths: Tensor, dtype: torch.dtype | None = None, *, rows: bool = False
) -> Tensor:
    """`key` of all features as ``[1, T, ...]``, after checking that each has one value (or row) a token."""
    values = _column(features, key, dtype)
    for i, (value, length) in enumerate(zip(values, lengths.tolist(), strict=True)):
        if value.shape[:1] != (length,) or (value.ndim > 1 and not rows):
            raise ValueError(
                f"features[{i}]: got {key} of shape {list(value.shape)}, want one for each of {length} input_ids"
            )
    return torch.cat(values)[None]
