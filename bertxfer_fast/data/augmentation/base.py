"""What every way of augmenting is: it looks at texts a window at a time, then changes one copy after the other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from torch import Tensor

from ...errors import did_you_mean
from .texts import Text

__all__ = ["Draft", "Method", "Proposals", "Tools", "get", "names", "options", "register", "share", "whole"]


class Proposals(Protocol):
    """Words that can stand in a place of a text: `models.words.WordModel`, or a source of your own.

    Attributes:
        has_masked_lm: whether `masked` can be called.
    """

    has_masked_lm: bool

    def masked(self, batch: dict[str, Any], places: Tensor, count: int) -> Tensor:
        """Ids ``[M, count]`` of the likeliest words at the masked ``places [M]`` of a packed batch."""
        ...

    def nearest(self, words: Sequence[Sequence[int]], count: int) -> Tensor:
        """Ids ``[n, count]`` of the words most like ``n`` others, which are given by their token ids."""
        ...


@dataclass(frozen=True)
class Tools:
    """What methods work with.

    Attributes:
        tokenizer: of transformers, a fast one.
        proposals: a source of words; None where no method needs one.
        tokens_per_batch: tokens of a packed batch.
        max_length: the longest sequence that the model behind `proposals` takes, in tokens; None for no limit.
    """

    tokenizer: Any
    proposals: Proposals | None = None
    tokens_per_batch: int = 8192
    max_length: int | None = None


@dataclass
class Draft:
    """A copy of a text on its way from method to method.

    Attributes:
        text: what it is a copy of.
        first: the word of `text` that it begins with.
        words: its words; word ``i`` stands for word ``first + i`` of `text`.
    """

    text: Text
    first: int
    words: list[str]

    def is_changed(self, i: int) -> bool:
        """Whether word ``i`` is no longer the text's."""
        return self.words[i] != self.text.words[self.first + i]


class Method:
    """Base of all methods. A new one defines ``change`` (and ``prepare``, for work on many texts at once) under
    `register`; its options are the keyword arguments of its ``__init__``.

    Attributes:
        default_name: its name in the registry.
        copies: how many copies of a text its authors made.
        needs_proposals: whether it needs a source of words.
        cuts: whether its copies can have fewer words than the text.
    """

    default_name: ClassVar[str]
    copies: ClassVar[int] = 10
    needs_proposals: ClassVar[bool] = False
    cuts: ClassVar[bool] = False

    def bind(self, tools: Tools) -> None:
        """Take the tools, before any text is read.

        Raises:
            ValueError: they are not enough.
        """
        if self.needs_proposals and tools.proposals is None:
            raise ValueError(f"{self.default_name}: got no model, want one that proposes words")
        self.tools = tools

    def prepare(self, texts: Sequence[Text]) -> Sequence[Any]:
        """What the copies of each text are drawn from; the place for batched work."""
        return [None] * len(texts)

    def change(self, draft: Draft, prepared: Any, draw: np.random.Generator) -> None:
        """Change one copy in place.

        Args:
            draft: the copy.
            prepared: what `prepare` gave for its text.
            draw: decides; nothing else may, or the result would not depend on seed and text alone.
        """
        raise NotImplementedError

    @property
    def told(self) -> str:
        """Where its words come from, for whoever runs it."""
        return ""


_METHODS: dict[str, type[Method]] = {}
Kind = TypeVar("Kind", bound=type[Method])


def register(method: Kind) -> Kind:
    """Make a method known under its ``default_name``. A decorator.

    Raises:
        ValueError: another one has that name.
    """
    if _METHODS.setdefault(method.default_name, method) is not method:
        raise ValueError(f"method: got {method.default_name!r} twice, want each name once")
    return method


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_METHODS)


def options(name: str) -> dict[str, Any]:
    """The options of a method with their defaults.

    Raises:
        ValueError: unknown method (the message names the nearest known one).
    """
    if name not in _METHODS:
        raise ValueError(f"method: got {name!r}, want a known one{did_you_mean(name, _METHODS)}")
    init: Callable[..., None] = _METHODS[name].__init__
    parameters = [p for p in inspect.signature(init).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {parameter.name: parameter.default for parameter in parameters}


def get(name: str, /, **chosen: Any) -> Method:
    """The method of that name.

    Raises:
        ValueError: an unknown method or option, or a bad value.
    """
    known = options(name)
    for option in chosen:
        if option not in known:
            raise ValueError(
                f"method {name}: got option {option!r}, want a known one{did_you_mean(option, known)}"
            )
    return _METHODS[name](**chosen)


def share(name: str, value: Any) -> float:
    """A probability.

    Raises:
        ValueError: it is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{name}: got {value!r}, want a number from 0 to 1")
    return float(value)


def whole(name: str, value: Any) -> int:
    """A number of things.

    Raises:
        ValueError: it is none, or there is none of them.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, want a whole number from 1")
    return value
