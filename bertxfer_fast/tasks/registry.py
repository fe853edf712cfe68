"""Names for things that come one file each: kinds of students, objectives, recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ..errors import did_you_mean

__all__ = ["Registry", "check_choice"]

Entry = TypeVar("Entry", bound=Callable)


class Registry(Generic[Entry]):
    """What is known by name.

    Args:
        what: the word for one entry, for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Register ``entry``; returns it.

        Raises:
            ValueError: another entry has that name.
        """
        if self._entries.setdefault(name, entry) is not entry:
            raise ValueError(f"{self.what}: got {name!r} twice, want each name once")
        return entry

    def get(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            ValueError: there is none; the message names the nearest one.
        """
        if name not in self._entries:
            raise ValueError(
                f"{self.what}: got {name!r}, want a known one{did_you_mean(name, self._entries)}"
            )
        return self._entries[name]

    def check_options(self, name: str, chosen: Iterable[str], known: Iterable[str]) -> None:
        """Raise ValueError for an option of an entry that is not a known one; the message names the nearest one."""
        for option in chosen:
            if option not in known:
                hint = did_you_mean(option, known)
                raise ValueError(f"{self.what} {name}: got option {option!r}, want a known one{hint}")

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)


def check_choice(argument: str, value: str, known: tuple[str, ...]) -> str:
    """``value`` if it is one of ``known``.

    Raises:
        ValueError: it is not; the message names the nearest one.
    """
    if value not in known:
        hint = did_you_mean(str(value), known, listing=False)
        raise ValueError(f"{argument}: got {value!r}, want one of {', '.join(map(repr, known))}{hint}")
    return value
