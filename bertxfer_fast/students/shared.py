"""One encoder under several heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .network import Network

__all__ = ["share_encoder"]

# What makes a head's row of a sequence is the head's business; a `Network` has its head among its own parts.
_OWN = ("pooler", "classifier")

# What a module keeps that does not change what it computes from its weights.
_MODES = ("training", "gradient_checkpointing")


def share_encoder(students: Mapping[str, PreTrainedModel]) -> None:
    """Let transformers models of one family and size use the first one's embeddings and layers, in place.

    Each stays an ordinary model with a head of its own (and a pooler of its own, where it has one), that runs and saves
    as before; training one moves the layers of all. Students of other kinds (`build`) share all but their
    ``classifier``.

    Args:
        students: by name, at least two.

    Raises:
        TypeError: something that is no transformers model.
        ValueError: fewer than two, the same model twice, models whose encoders differ, or a `Network` whose head is
            not called ``classifier``.
    """
    named = list(students.items())
    if len(named) < 2:
        raise ValueError(f"students: got {[name for name, _ in named]}, want at least two")
    for name, student in named:
        if not isinstance(student, PreTrainedModel):
            raise TypeError(f"students[{name!r}]: got {type(student).__name__}, want a transformers model")
        if isinstance(student, Network) and student.num_logits and not hasattr(student, "classifier"):
            raise ValueError(
                f"students[{name!r}]: got {type(student).__name__} without a part called classifier, want that name "
                "for its head: all else is shared"
            )
    if len({id(student) for _, student in named}) < len(named):
        raise ValueError(f"students: got one model under two names of {list(students)}, want a model each")
    first_name, first = named[0]
    shared = _parts(first)
    for name, student in named[1:]:
        own = _parts(student)
        differing = _difference(shared, own)
        if differing is not None:
            raise ValueError(
                f"students[{name!r}]: got an encoder that differs from {first_name!r}'s in {differing}, want the same "
                "family and sizes"
            )
    for _, student in named[1:]:
        base: Any = student.base_model
        for part, module in shared.items():
            setattr(base, part, module)
        student.tie_weights()  # a masked LM's last map is the table of the embeddings that it has now


def _parts(student: PreTrainedModel) -> dict[str, nn.Module]:
    """The children of an encoder that are no part of a head."""
    base: Any = student.base_model
    return {name: module for name, module in base.named_children() if name not in _OWN}


def _difference(first: Mapping[str, nn.Module], other: Mapping[str, nn.Module]) -> str | None:
    """A name of what two encoders do not have alike; None where there is none."""
    shapes = [
        {
            (f"{part}.{name}", value.shape)
            for part, modules in parts.items()
            for name, value in modules.state_dict().items()
        }
        for parts in (first, other)
    ]
    # Weights of one shape may be other heads, windows or activations: a saved student would be read with its own.
    settings = [set(_settings(parts)) for parts in (first, other)]
    differing = shapes[0] ^ shapes[1] or settings[0] ^ settings[1]
    return min((name for name, _ in differing), default=None)


def _settings(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """(name, what it is) of each module's class and plain values; rates of dropout may differ."""
    for part, whole in parts.items():
        for inside, module in whole.named_modules(prefix=part):
            yield inside, type(module).__name__
            if isinstance(module, nn.Dropout):
                continue
            for name, value in vars(module).items():
                if (
                    not name.startswith("_")
                    and name not in _MODES
                    and "dropout" not in name
                    and _is_plain(value)
                ):
                    yield f"{inside}.{name}", repr(value)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str | range)
