"""What a fault is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A fault to plant.

    Attributes:
        name: unique, what is wrong with the fault in.
        file: path from the checkout's root.
        old: text that stands exactly once in it.
        new: what replaces it.
        tests: what pytest is given: files, or single tests.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def planted(self, source: str) -> str:
        """``source`` with the fault in.

        Raises:
            ValueError: the text is not there, or stands more than once.
        """
        found = source.count(self.old)
        if found != 1:
            raise ValueError(f"{self.name}: got {found} places in {self.file} with its text, want 1")
        return source.replace(self.old, self.new)
