"""An encoder and its tokenizer, ready to run; one that comes from a directory is read once in a process."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.collators import collate_inputs
from ..data.loaders import packed_batches, sequence_lengths
from ..models.activations import LayerActivations
from ..models.encoder import module_of, reads
from ..models.hf.loading import load_tokenizer, model_folder
from ..models.loans import default_device, device_of
from ..models.spec import EncoderSpec
from ..models.stream import TeacherStream, as_encoder
from ..students import load
from .inputs import Features
from .views import View

__all__ = ["Loaded", "forget_models", "loaded"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """An encoder that is ready to run.

    Attributes:
        encoder: the `Encoder`.
        tokenizer: its tokenizer, None where there is none.
    """

    encoder: Any
    tokenizer: Any

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec

    @property
    def model(self) -> Any:
        """The module that runs."""
        return module_of(self.encoder)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def pooled(
        self, features: Features, views: list[View], tokens_per_batch: int, order: Any = None
    ) -> list[Tensor]:
        """Token features as every view has them, float32 ``[N, dim]`` each, out of one pass of the encoder.

        Args:
            features: checked; a text without any token becomes zeros.
            views: what is made of the hidden states.
            tokens_per_batch: of a packed batch.
            order: the rows to run, in order.
        """
        rows = [
            torch.zeros(len(sequence_lengths(features)), view.dim(self.spec.hidden_size), dtype=torch.float32)
            for view in views
        ]
        for indices, hidden, cu_seqlens in self.hidden_states(
            features, frozenset().union(*(view.layers for view in views)), tokens_per_batch, order
        ):
            for into, view in zip(rows, views, strict=True):
                into[indices] = view.pool(hidden, cu_seqlens).float().cpu()
        return rows

    def hidden_states(
        self, features: Features, layers: frozenset[int], tokens_per_batch: int, order: Any = None
    ) -> Any:
        """(rows, hidden states ``[T, D]`` by layer, cu_seqlens ``[N + 1]``) of packed batches over token features."""
        stream = TeacherStream(self.encoder, hidden=layers)
        collate = partial(collate_inputs, **reads(self.encoder))
        for indices, batch in packed_batches(features, tokens_per_batch, self.device, collate, order):
            hidden: dict[int, Tensor] = {}

            def keep(seen: LayerActivations, hidden: dict[int, Tensor] = hidden) -> None:
                assert seen.hidden is not None
                hidden[seen.index] = seen.hidden

            with torch.no_grad():
                stream.stream(batch, keep)
                yield indices, hidden, batch["cu_seq_lens_q"]

    @property
    def version(self) -> int:
        """A number that changes when a weight is changed in place."""
        return sum(parameter._version for parameter in self.model.parameters())


def loaded(model: Any, tokenizer: Any, device: str | torch.device | None) -> Loaded:
    """What a `FeatureExtractor` was given, ready to run.

    Raises:
        TypeError: no model.
        ValueError: a directory without a model, or without a tokenizer where none was given.
    """
    if not isinstance(model, str | Path):
        encoder = as_encoder(model)
        module = module_of(encoder)
        if module is None:
            raise TypeError(f"model: got {type(model).__name__}, want an Encoder that is an nn.Module")
        if device is not None:
            module.to(device)
        return Loaded(encoder, tokenizer)
    folder = model_folder(model, "model")
    if device is None:
        device = default_device()
    if tokenizer is None:
        tokenizer = _shared("tokenizer", folder, lambda: load_tokenizer(folder))
    return Loaded(_shared(f"encoder on {device}", folder, lambda: _read(folder, device)), tokenizer)


def _read(folder: Path, device: str | torch.device) -> Any:
    model = load(folder, bare=True, dtype="auto")
    model.to(device)
    return as_encoder(model)


# ---- read once ----------------------------------------------------------------------------------------------


@dataclass
class _Shelf:
    """What was read from directories: all that someone still uses, and the directory read last."""

    lock: Any = field(default_factory=threading.RLock)
    alive: Any = field(default_factory=weakref.WeakValueDictionary)
    last: tuple[Any, dict[str, Any]] = (None, {})


_shelf = _Shelf()


def _shared(what: str, folder: Path, read: Any) -> Any:
    """What ``read`` gives, the same object as long as the files of the folder are the same ones."""
    files = [(p.name, s.st_size, s.st_mtime_ns) for p in sorted(folder.iterdir()) for s in [p.stat()]]
    place = str(folder.resolve()), tuple(files)
    with _shelf.lock:
        thing = _shelf.alive.get((what, place))
        if thing is None:
            thing = _shelf.alive[what, place] = read()
        if _shelf.last[0] != place:
            _shelf.last = place, {}
        _shelf.last[1][what] = thing
        return thing


def forget_models() -> None:
    """Let go of the model that was read last and is kept for the next extractor of the same directory."""
    with _shelf.lock:
        _shelf.last = None, {}
