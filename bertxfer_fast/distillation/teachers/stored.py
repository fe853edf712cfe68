"""A teacher that is read from what it said before, and asked where it has said nothing yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...data.collators import Features
from ...models.activations import LayerActivations, Sink, Spot
from ...models.encoder import module_of
from ...models.spec import EncoderSpec
from ...models.stream import source_of
from .fingerprints import row_keys
from .rows import Rows
from .store import Shelf
from .wants import Want, distinct, with_numbers

__all__ = ["StoredTeacher", "part_of_pack"]

logger = logging.getLogger(__name__)

_PER_TOKEN = ("input_ids", "token_type_ids", "position_ids")


class StoredTeacher:
    """An `ActivationSource` over a store: rows that are in it are read, others are asked of the teacher and kept.

    What it hands out is always what the store has of a row, also at the first time, so that every epoch is taught the
    same numbers. A teacher that is given is not run, and one that is given as a function not even loaded, as long as
    the store has everything. Where an objective looks at something that is not kept (attention), the teacher runs as
    if there were no store.

    Args:
        shelf: a `Store`, or another `Shelf`.
        teacher: whom to ask: a transformers model, an `Encoder`, an `ActivationSource`, or a function that loads one of
            them; None: nobody, then a row or a column that is not in the store is an error.

    Attributes:
        spec: the teacher's facts.
        inputs: names of what it reads beside text.
    """

    def __init__(self, shelf: Shelf, teacher: Any = None) -> None:
        self.shelf = shelf
        self._asked = teacher if isinstance(teacher, _Asked) else _Asked(teacher)
        self._wants: tuple[Want, ...] | None = None

    @property
    def spec(self) -> EncoderSpec:
        return self.shelf.about.spec

    @property
    def inputs(self) -> frozenset[str]:
        return frozenset(self.shelf.about.inputs)

    @property
    def fingerprint(self) -> str:
        return self.shelf.about.teacher

    @property
    def model(self) -> nn.Module | None:
        """The teacher's module, if it is loaded."""
        return self._asked.module

    @property
    def wants(self) -> tuple[Want, ...]:
        """What is looked at, see `select`; everything that the store has where nobody has chosen."""
        if self._wants is not None:
            return self._wants
        columns = [rows.column for rows in self.shelf.columns.values()]
        return distinct((column.spot, column.pooling) for column in columns)

    @property
    def can_ask(self) -> bool:
        """Whether there is a teacher to ask, loaded or not."""
        return bool(self._asked)

    @property
    def live(self) -> Any:
        """Whoever is asked, loaded now if need be; None: nobody."""
        return self._asked.teacher() if self._asked else None

    def select(self, wants: Iterable[Want]) -> Any:
        """The source of just these spots: a `StoredTeacher`, or the teacher itself where they are not kept.

        Raises:
            ValueError: the store has no such column, and there is nobody to ask.
        """
        wants = distinct(wants)
        for want in wants:
            (place, index), pooling = want
            if self.shelf.column_for(want) is not None:
                continue
            if not self._asked:
                there = ", ".join(sorted(self.shelf.columns)) or "nothing"
                how = f" for each {'text' if pooling else 'token'}" if place == "hidden" else ""
                raise ValueError(
                    f"teacher: got {self.shelf.where} with {there}, want {place} {index}{how}: an objective matches it"
                )
            if place not in ("logits", "hidden"):
                logger.info("the teacher runs: %s is not kept in %s", place, self.shelf.where)
                return source_of(self._asked.teacher(), wants)
        chosen = StoredTeacher(self.shelf, self._asked)
        chosen._wants = wants
        return chosen

    def stream(self, batch: Mapping[str, Any], sink: Sink) -> None:
        """Hand over what the store has of a packed batch, after asking the teacher for what it has not.

        Raises:
            ValueError: rows that are not in the store, and nobody to ask.
        """
        wants = self._reads()
        keys = row_keys(batch, self.shelf.about.inputs)
        found = {want: self._find(want, keys) for want in wants}
        missing = np.flatnonzero(np.logical_or.reduce([where[:, 0] < 0 for where in found.values()]))
        if len(missing):
            self._ask(batch, keys, missing, wants)
            found = {want: self._find(want, keys) for want in wants}
        cu_seqlens, longest = batch["cu_seq_lens_q"], batch.get("max_length_q")
        longest = int(cu_seqlens.diff().max() if longest is None else longest)
        spots: dict[Spot, list[Want]] = {}
        for want in wants:
            spots.setdefault(want[0], []).append(want)
        for spot, of_spot in spots.items():
            with torch.no_grad():
                numbers = {
                    want[1]: self._rows(want).gather(found[want], cu_seqlens.device) for want in of_spot
                }
            sink(with_numbers(LayerActivations(*spot, cu_seqlens, longest), numbers))

    def check(self, data: Mapping[str, Features]) -> None:
        """Whether there is an answer for every row of some data sets, of the store or of somebody to ask.

        Raises:
            ValueError: there is none; the message says for which row.
        """
        if self._asked or self._wants is None:
            return
        names = [name for want in self._reads() if (name := self.shelf.column_for(want)) is not None]
        for split, features in data.items():
            missing = self.shelf.missing(features, names)
            if len(missing):
                count = f"{len(missing)} of {len(features)} rows of {split}"
                raise ValueError(
                    f"teacher: got {count} that are not in {self.shelf.where} (row {missing[0] + 1} first), want all: "
                    "has the text, the tokenizer or max_length changed?"
                )

    def flush(self) -> None:
        """Write what the teacher said and is not on the disk yet."""
        self.shelf.flush()

    def _reads(self) -> tuple[Want, ...]:
        """The wants as they are read: who pools is served by every token's states where these are what is kept."""
        reads = []
        for spot, pooling in self.wants:
            name = self.shelf.column_for((spot, pooling))
            pooled = name is None or self.shelf.columns[name].column.pooling is not None
            reads.append((spot, pooling if pooled else None))
        return distinct(reads)

    def _rows(self, want: Want) -> Rows:
        name = self.shelf.column_for(want)
        assert name is not None
        return self.shelf.columns[name]

    def _find(self, want: Want, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """As `Rows.find`; nothing of a column that there is not."""
        if self.shelf.column_for(want) is None:
            return np.full((len(keys), 2), -1)
        return self._rows(want).find(keys)

    def _ask(
        self,
        batch: Mapping[str, Any],
        keys: NDArray[np.bytes_],
        missing: NDArray[np.int64],
        wants: tuple[Want, ...],
    ) -> None:
        """Run the teacher on what is missing, and keep what it says."""
        if not self._asked:
            ids = part_of_pack(batch, missing[:1], ())["input_ids"][0, :8].tolist()
            raise ValueError(
                f"teacher: got {len(missing)} of {len(keys)} rows that are not in {self.shelf.where} (the first starts "
                f"with the ids {ids}), want rows it was made of: has the text, the tokenizer or max_length changed?"
            )
        _, firsts = np.unique(keys[missing], return_index=True)
        missing = missing[np.sort(firsts)]
        part = part_of_pack(batch, missing, self.inputs)
        lengths = part["cu_seq_lens_q"].diff().cpu().numpy().astype(np.int64)
        said: dict[Want, Tensor] = {}

        def keep(activations: LayerActivations) -> None:
            for want in wants:
                if want[0] == activations.spot:
                    said[want] = self._column(want).of(activations)

        with torch.no_grad():
            source_of(self._asked.teacher(part["input_ids"].device), wants).stream(part, keep)
        for want in wants:
            (place, index), _ = want
            if want not in said:
                raise ValueError(f"teacher: got no {place} {index} from {self.spec.name}, want it")
            lacking = self._find(want, keys[missing])[:, 0] < 0
            if lacking.all():
                self.shelf.append(want, keys[missing], lengths, said[want])
            elif lacking.any():  # another column is what was missing of the rest
                rows = torch.from_numpy(lacking).to(said[want].device)
                if self._column(want).per_token:
                    rows = rows.repeat_interleave(torch.from_numpy(lengths).to(rows.device))
                self.shelf.append(want, keys[missing][lacking], lengths[lacking], said[want][rows])

    def _column(self, want: Want) -> Any:
        name = self.shelf.column_for(want)
        return self.shelf.columns[name].column if name is not None else self.shelf.new_column(want)


class _Asked:
    """Whoever is asked: loaded when there is something to ask, on the device of the question."""

    def __init__(self, teacher: Any) -> None:
        is_function = not hasattr(teacher, "stream") and not isinstance(teacher, nn.Module)
        loads = callable(teacher) and is_function and not hasattr(teacher, "run")
        self._load: Callable[[], Any] | None = teacher if loads else None
        self._teacher = None if loads else teacher

    def __bool__(self) -> bool:
        return self._teacher is not None or self._load is not None

    @property
    def module(self) -> nn.Module | None:
        return None if self._teacher is None else module_of(self._teacher)

    def teacher(self, device: torch.device | None = None) -> Any:
        if self._teacher is None:
            assert self._load is not None
            self._teacher = self._load()
        module = self.module
        if module is not None and device is not None:
            first = next(module.parameters(), None)
            if first is not None and first.device != device:
                module.to(device)
        return self._teacher


def part_of_pack(batch: Mapping[str, Any], rows: NDArray[np.int64], inputs: Iterable[str]) -> dict[str, Any]:
    """Some sequences of a packed batch as a packed batch, with what a teacher reads of them.

    Args:
        batch: see `Encoder.run`.
        rows: their indices, rising.
        inputs: names of what is read beside text.
    """
    cu_seqlens = batch["cu_seq_lens_q"]
    if len(rows) == len(cu_seqlens) - 1:
        return dict(batch)
    index = torch.from_numpy(rows).to(cu_seqlens.device)
    lengths = cu_seqlens.diff().index_select(0, index)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    starts = cu_seqlens.index_select(0, index).long() - bounds[:-1]
    total = int(bounds[-1])
    tokens = torch.arange(total, device=index.device) + starts.repeat_interleave(lengths, output_size=total)
    names = [name for name in (*_PER_TOKEN, *inputs) if isinstance(batch.get(name), Tensor)]
    part: dict[str, Any] = {name: batch[name].index_select(1, tokens) for name in names}
    longest = int(lengths.max())
    return {
        **part,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
