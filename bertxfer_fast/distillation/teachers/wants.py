"""What somebody looks at in a teacher: a spot, as it is or pooled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from ...models.activations import LayerActivations, Spot
from ..objectives.pooled import pooled_of

__all__ = ["Want", "distinct", "numbers_of", "with_numbers"]

#: A spot of the teacher that somebody looks at, and the pooling through which alone it is looked at; None: as it is.
Want = tuple[Spot, str | None]


def distinct(wants: Iterable[Want]) -> tuple[Want, ...]:
    """The wants, sorted, without those that another one serves: who has every token's states can pool them.

    Only hidden states are pooled: of any other place it is wanted as it is.
    """
    wants = {(spot, pooling if spot[0] == "hidden" else None) for spot, pooling in wants}
    return tuple(sorted((want for want in wants if want[1] is None or (want[0], None) not in wants), key=str))


def numbers_of(activations: LayerActivations, pooling: str | None) -> Tensor:
    """What activations are to somebody who looks at them through a pooling, or as they are: ``[R, width]``."""
    if pooling is not None:
        return pooled_of(activations, pooling)
    numbers = activations.logits if activations.place == "logits" else activations.hidden
    assert numbers is not None
    return numbers


def with_numbers(activations: LayerActivations, numbers: Mapping[str | None, Tensor]) -> LayerActivations:
    """Activations of which these are the `numbers_of`, by pooling: all that is wanted of a spot at once.

    Args:
        activations: what else is known of them.
        numbers: by None alone, or by poolings alone, as `distinct` leaves them.
    """
    whole = numbers.get(None)
    return replace(
        activations,
        hidden=None if activations.place == "logits" else whole,
        pooled={pooling: rows for pooling, rows in numbers.items() if pooling is not None} or None,
        logits=whole if activations.place == "logits" else None,
    )
