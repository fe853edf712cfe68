"""The errors that end a command with one line, and the hints that messages about names share.

Needs nothing but the standard library, so that every module can use it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_LISTED = 20  # more known names than this would hide the message


class InputError(ValueError):
    """Something the user gave cannot be used; the message says where it stands."""


class NonFiniteLossError(ArithmeticError):
    """A loss, the gradient or a weight became NaN or infinite; training stopped before anything was overwritten.

    Attributes:
        names: what is not finite: objectives by name, `"loss"` (their sum), `"gradient"`, or a weight's name.
        step: optimizer steps done when it was computed.
        checkpoint: directory of the last good checkpoint, None if there is none.
    """

    def __init__(
        self, names: Sequence[str], values: Sequence[float], step: int, checkpoint: str | None
    ) -> None:
        self.names, self.step, self.checkpoint = tuple(names), step, checkpoint
        found = ", ".join(f"{name} is {value}" for name, value in zip(names, values, strict=True))
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
        super().__init__(f"{found} after {step} optimizer steps; training stopped, {kept}")


@contextmanager
def user_input(where: str = "") -> Iterator[None]:
    """Errors about input raised in here become one `InputError` that starts with `where` the input stands."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{where}: {one_line(error)}" if where else one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], *, listing: bool = True) -> str:
    """What to append to a message about an unknown `name`: `; did you mean 'x'?` or `; known: x, y`.

    Args:
        name: as it was written; upper and lower case count as the same.
        known: the names there are.
        listing: whether to list a short `known` when none of it is spelled much like `name`.
    """
    names = sorted(known)
    spelled = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {spelled[close[0]]!r}?"
    return f"; known: {', '.join(names)}" if listing and 0 < len(names) <= _LISTED else ""
