"""Methods as lists of stages: which objectives, in which order, with which training defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..objectives import Objective
from ..registry import Registry

__all__ = ["Recipe", "Stage", "get", "names", "options", "register"]


@dataclass(frozen=True)
class Stage:
    """One training run of a recipe.

    Attributes:
        name: of the stage, unique in its recipe.
        build_objectives: makes the stage's objectives, new ones at each call.
        training: defaults of `DistillationArguments` that the method's authors used; whoever runs it may override.
        masking: share of the tokens that are hidden from both models where the task is a masked LM, whose labels they
            are; 0: none. Other tasks do not look at it.
    """

    name: str
    build_objectives: Callable[[], list[Objective]]
    training: dict[str, Any] = field(default_factory=dict)
    masking: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.masking < 1:
            raise ValueError(
                f"masking: got {self.masking}, want a share of the tokens, 0 or more and less than 1"
            )


@dataclass(frozen=True)
class Recipe:
    """A named sequence of stages; each starts from the student the one before it left."""

    name: str
    stages: list[Stage]

    @property
    def needs_teacher(self) -> bool:
        """Whether an objective of any stage that counts learns from a teacher."""
        objectives = [o for stage in self.stages for o in stage.build_objectives()]
        return any(o.needs_teacher and o.weight > 0 for o in objectives)


_registry: Registry[Callable[..., Recipe]] = Registry("recipe")
Builder = TypeVar("Builder", bound=Callable[..., Recipe])


def register(builder: Builder) -> Builder:
    """Make a function that builds a `Recipe` known by its own name. A decorator.

    Raises:
        ValueError: another one has that name.
    """
    _registry.add(builder.__name__, builder)
    return builder


def names() -> list[str]:
    """The names that `get` knows."""
    return _registry.names()


def options(name: str) -> dict[str, Any]:
    """The options of a recipe with their defaults.

    Raises:
        ValueError: unknown recipe.
    """
    parameters = inspect.signature(_registry.get(name)).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def get(name: str, /, **chosen: Any) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: an unknown recipe or option (the message names the nearest known one), or a bad value.
    """
    _registry.check_options(name, chosen, options(name))
    recipe = _registry.get(name)(**chosen)
    for stage in recipe.stages:  # a bad value is an error now, not when its stage starts
        stage.build_objectives()
    return recipe
