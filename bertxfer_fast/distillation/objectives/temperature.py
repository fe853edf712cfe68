"""Temperatures: one number, one that changes over the training, or one for every row of logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import did_you_mean
from ..registry import Registry

__all__ = ["Temperature", "TemperatureLike", "as_temperature"]

# Where a row's temperature would fall below this share of its base, it stays there: at 0 a softmax has no value.
_LEAST = 0.1
_KINDS: Registry[type[Temperature]] = Registry("temperature")


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by. As it stands, one number for the whole training.

    Attributes:
        value: the number; of other kinds that which they start from, or vary around.

    Raises:
        ValueError: a number that is not finite, or a temperature that is not positive.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            name = "temperature" if field.name == "value" else f"temperature: {field.name}"
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError(f"{name}: got {number!r}, want a positive number")
            if number <= 0 and field.name in ("value", "end"):
                raise ValueError(f"{name}: got {number}, want a positive number")
            object.__setattr__(self, field.name, float(number))

    #: Whether every row of logits has a temperature of its own.
    per_row = False

    def at(self, progress: float) -> float:
        """The temperature at training progress 0..1."""
        return self.value

    def of_rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Temperatures ``[R]`` of logits ``[R, C]``, without gradient, where ``per_row``."""
        raise NotImplementedError

    def _around(self, weights: Tensor, beta: float) -> Tensor:
        """Rows of larger weight than the mean are sharpened, others softened; the mean stays ``value``."""
        return (self.value + beta * (weights.mean() - weights)).clamp(min=_LEAST * self.value)


#: What an objective takes: a number, the name of a kind, or a mapping such as ``{"kind": "flsw", "beta": 2.0}``.
TemperatureLike = float | str | Mapping[str, Any] | Temperature


@dataclass(frozen=True)
class Linear(Temperature):
    """From ``value`` to ``end`` in a straight line over the training."""

    end: float = 1.0

    def at(self, progress: float) -> float:
        return self.value + (self.end - self.value) * min(max(progress, 0.0), 1.0)


@dataclass(frozen=True)
class Flsw(Temperature):
    """Lower where student and teacher differ: ``w = (1 - cos(student, teacher)) ** gamma`` (focal-loss style weights).

    ``tau = value + beta * (mean(w) - w)``, TextBrewer's ``flsw``.
    """

    beta: float = 1.0
    gamma: float = 1.0
    per_row = True

    def of_rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            s, t = (x.float() / (x.float().norm(dim=-1, keepdim=True) + 1e-7) for x in (student, teacher))
            # Rounding takes a cosine beyond 1, and a power of what is below 0 is no number.
            return self._around((1 - (s * t).sum(-1)).clamp(min=0).pow(self.gamma), self.beta)


@dataclass(frozen=True)
class Cwsm(Temperature):
    """Lower where the student is unsure: ``w = 1 / (max softmax(student) + 1e-3)`` (confidence-weighted, softmax).

    ``tau = value + beta * (mean(w) - w)``, TextBrewer's ``cwsm`` (arXiv 1911.07471).
    """

    beta: float = 1.0
    per_row = True

    def of_rows(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            confidence = student.float().softmax(-1).amax(-1)
            return self._around(1 / (confidence + 1e-3), self.beta)


for _name, _kind in {"constant": Temperature, "linear": Linear, "flsw": Flsw, "cwsm": Cwsm}.items():
    _KINDS.add(_name, _kind)


def as_temperature(given: Any) -> Temperature:
    """A number as it is, a name with its defaults, or ``{"kind": name, "value": 4.0, ...}``.

    Raises:
        ValueError: an unknown kind or option, a temperature that is not positive, or ``"linear"`` without a start or an
            end.
    """
    if isinstance(given, Temperature):
        return given
    if not isinstance(given, str | Mapping):
        return Temperature(given)
    options: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given)
    kind = _KINDS.get(options.pop("kind", "constant"))
    if kind is Linear and not options:  # from 1 to 1
        raise ValueError(
            "temperature: got 'linear' alone, want where it starts or ends beside it, as in "
            "{'kind': 'linear', 'value': 8, 'end': 1}"
        )
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"temperature: got option {option!r}, want a known one{did_you_mean(str(option), known)}"
            )
    return kind(**options)
