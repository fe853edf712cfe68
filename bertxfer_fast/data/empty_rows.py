"""What becomes of rows without text: one set of choices for files, lists and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["EMPTY_ROWS", "check_choice", "describe", "refusal", "row_numbers"]

#: Choice -> what it does with a row whose text, or second text, is missing or blank.
EMPTY_ROWS: Mapping[str, str] = {
    "error": "refuse the input before any work",
    "skip": "leave the row out",
    "zeros": "keep the row, with zeros for features",
    "keep": "encode the empty text as it is, special tokens alone",
}


def check_choice(empty_rows: str) -> None:
    """Raise ValueError for a choice that there is not."""
    if empty_rows not in EMPTY_ROWS:
        raise ValueError(f"empty_rows: got {empty_rows!r}, want one of {', '.join(EMPTY_ROWS)}")


def describe(empty: Mapping[str, Sequence[int]]) -> str:
    """The empty rows of every column in words; "" where there are none."""
    return "; ".join(f"no {column!r} in {row_numbers(rows)}" for column, rows in empty.items() if rows)


def refusal(found: str, *choices: str) -> ValueError:
    """The error about the empty rows that `describe` found; ``choices``, by default all, can be made instead."""
    choices = choices or tuple(choice for choice in EMPTY_ROWS if choice != "error")
    wanted = f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return ValueError(f"empty_rows: got {found}, want complete rows, or {wanted}")


def row_numbers(indices: Sequence[int], most: int = 5) -> str:
    """Row numbers as a reader counts them, from 1 after any header."""
    shown = ", ".join(str(i + 1) for i in indices[:most])
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more}"
