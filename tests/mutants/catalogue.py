"""The faults. Each is one replacement in one file, and names the tests that have to fail with it in."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EQUIVALENT", "MUTANTS", "Mutant"]


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


MUTANTS: tuple[Mutant, ...] = ()

#: Faults that no test can notice, and why: (name, file, reason).
EQUIVALENT: tuple[tuple[str, str, str], ...] = ()
