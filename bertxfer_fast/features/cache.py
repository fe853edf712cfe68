"""Features that are kept in memory, so that a search over layers and poolings runs the encoder once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .views import View, view_of

__all__ = ["FeatureCache"]


class FeatureCache:
    """Pooled features by text, shared by all extractors (and their clones) that it is given to.

    A text is looked up by itself, not by the list it stands in: the folds of a cross-validation are made of the same
    texts. What is found missing is computed in one pass of the encoder for every combination of `layers` and `pooling`
    named here, and for what was asked.

    Args:
        layers: as a grid has them: each is what `FeatureExtractor(layers=...)` takes.
        pooling: the poolings of the grid.
        max_mb: memory for features (1e6 bytes); when it is full, further texts are computed each time.

    Attributes:
        hits: texts that were found.
        misses: texts that the encoder had to read.

    A copy in another process (pickle, joblib's `n_jobs`) starts empty. A model whose weights are changed in place
    through `parameter.data` cannot be told from the one before: give its extractor a new cache.

    Example:
        >>> from bertxfer_fast.features import FeatureCache
        >>> cache = FeatureCache(layers=[-1, (-2, -1)], pooling=["cls", "mean"])
    """

    def __init__(
        self,
        layers: Sequence[int | Sequence[int]] = (),
        pooling: Sequence[str] = (),
        *,
        max_mb: float = 1024,
    ) -> None:
        if isinstance(pooling, str):
            raise TypeError(f"pooling: got {pooling!r}, want a list of them")
        if max_mb <= 0:
            raise ValueError(f"max_mb: got {max_mb}, want more than 0")
        self.layers, self.pooling, self.max_mb = list(layers), list(pooling), max_mb
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.hits = self.misses = self._bytes = 0
        self._owners: list[Any] = []
        self._rows: dict[tuple[Any, View], dict[bytes, Tensor]] = {}
        self._lock = threading.Lock()

    @property
    def megabytes(self) -> float:
        """What is kept, in 1e6 bytes."""
        return self._bytes / 1e6

    def views(self, asked: View, num_layers: int) -> list[View]:
        """The view that is asked for, and those of the grid that differ from it in layers and pooling alone."""
        found = [asked]
        for layers in self.layers:
            for pooling in self.pooling:
                view = view_of(num_layers, layers, pooling, asked.combine, None, asked.normalize)
                if asked.weights is None and view not in found:
                    found.append(view)
        return found

    def owner(self, *things: Any) -> tuple[int, ...]:
        """A key for features of these objects, which are kept alive, so that no other has their ids."""
        key = tuple(id(thing) for thing in things)
        if all(key != tuple(map(id, known)) for known in self._owners):
            self._owners.append(things)
        return key

    def missing(self, key: Any, views: list[View], texts: list[tuple[str, ...]]) -> list[int]:
        """The rows, each text once, that not every view has."""
        with self._lock:
            known = [self._rows.get((key, view), {}) for view in views]
            names = [_name(text) for text in texts]
            gone = {name: i for i, name in enumerate(names) if not all(name in rows for rows in known)}
            self.misses += len(gone)
            self.hits += len(texts) - len(gone)
            return sorted(gone.values())

    def store(self, key: Any, views: list[View], texts: list[tuple[str, ...]], rows: list[Tensor]) -> None:
        """Keep the rows ``[N, dim]`` of each view, as far as there is room."""
        with self._lock:
            for i, name in enumerate(map(_name, texts)):
                for view, of_view in zip(views, rows, strict=True):
                    size, kept = of_view[i].nbytes, self._rows.setdefault((key, view), {})
                    if name not in kept and self._bytes + size <= self.max_mb * 1e6:
                        kept[name] = of_view[i].clone()
                        self._bytes += size

    def look_up(self, key: Any, view: View, texts: list[tuple[str, ...]], fresh: dict[int, Tensor]) -> Tensor:
        """``[N, dim]``; ``fresh`` are rows that were computed just now, also those without room here."""
        names = [_name(text) for text in texts]
        computed = {names[i]: row for i, row in fresh.items()}
        with self._lock:
            kept = self._rows.get((key, view), {})
            return torch.stack([computed[name] if name in computed else kept[name] for name in names])

    def __repr__(self) -> str:
        return f"FeatureCache(layers={self.layers!r}, pooling={self.pooling!r}, max_mb={self.max_mb!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "pooling": self.pooling, "max_mb": self.max_mb}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.clear()


def _name(text: tuple[str, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in map(str.encode, text):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
