"""Published methods as lists of stages: which objectives, in which order, with which training defaults.

``recipes.get("tinybert", padding="reference")`` gives a `Recipe`; its options are the keyword arguments of the
function that builds it. Adding a recipe is adding one such function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import did_you_mean
from .objectives import AttentionScores, HiddenStates, Layers, Logits, Objective

__all__ = ["Recipe", "Stage", "get", "names", "options"]


@dataclass(frozen=True)
class Stage:
    """One training run of a recipe.

    Attributes:
        name: of the stage, unique in its recipe.
        build_objectives: makes the stage's objectives, new ones at each call.
        training: defaults of `DistillationArguments` that the method's authors used; whoever runs it may override.
    """

    name: str
    build_objectives: Callable[[], list[Objective]]
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A named sequence of stages; each starts from the student the one before it left."""

    name: str
    stages: list[Stage]


def tinybert(
    *,
    layers: Layers = "uniform",
    padding: str = "valid",
    projection: str = "shared",
    attention_weight: float | str = 1.0,
    hidden_weight: float | str = 1.0,
    temperature: float = 1.0,
) -> Recipe:
    """Task distillation of TinyBERT (Jiao et al., 2020): intermediate layers first, then predictions.

    Args:
        layers: map for attention and hidden states; explicit pairs count attention layers from 0 and hidden
            states from the embeddings, so they fit one of the two only: ``"uniform"`` is what the paper does.
        padding: ``"valid"`` or ``"reference"``, see `AttentionScores`.
        projection: of the hidden states, see `HiddenStates`.
        attention_weight, hidden_weight: a number or a schedule name.
        temperature: of the prediction stage.
    """

    def intermediate() -> list[Objective]:
        return [
            AttentionScores(layers, padding=padding, weight=attention_weight),
            HiddenStates(layers, projection=projection, padding=padding, weight=hidden_weight),
        ]

    def prediction() -> list[Objective]:
        return [Logits(temperature, kind="soft_ce")]

    training = {"per_device_train_batch_size": 32}
    return Recipe(
        "tinybert",
        [
            Stage("intermediate", intermediate, {**training, "learning_rate": 5e-5, "num_train_epochs": 10}),
            # A warm-up below 1 is a share of all steps.
            Stage(
                "prediction",
                prediction,
                {**training, "learning_rate": 3e-5, "num_train_epochs": 3, "warmup_steps": 0.1},
            ),
        ],
    )


_BUILDERS: dict[str, Callable[..., Recipe]] = {"tinybert": tinybert}


def names() -> list[str]:
    """The names that `get` knows."""
    return sorted(_BUILDERS)


def options(name: str) -> dict[str, Any]:
    """The options of a recipe with their defaults.

    Raises:
        ValueError: unknown recipe.
    """
    parameters = inspect.signature(_builder(name)).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def get(name: str, /, **chosen: Any) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: an unknown recipe or option (the message names the nearest known one), or a bad value.
    """
    known = options(name)
    for option in chosen:
        if option not in known:
            raise ValueError(f"recipe {name!r} has no option {option!r}{did_you_mean(option, known)}")
    recipe = _builder(name)(**chosen)
    for stage in recipe.stages:  # a bad value is an error now, not when its stage starts
        stage.build_objectives()
    return recipe


def _builder(name: str) -> Callable[..., Recipe]:
    if name not in _BUILDERS:
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, _BUILDERS)}")
    return _BUILDERS[name]
