"""Messages that users see: hints for misspelt names, and errors of libraries turned into one line."""

from __future__ import annotations

import pytest

from bertxfer_fast.errors import InputError, did_you_mean, one_line, user_input


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("sentense", ["sentence", "label"], "; did you mean 'sentence'?"),
        ("LABEL", ["text", "Label"], "; did you mean 'Label'?"),
        ("x", ["b", "a"], "; known: a, b"),
        ("x", [f"long name {i}" for i in range(21)], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known) == hint
    assert did_you_mean(name, iter(known), listing=False) == (hint if "did you mean" in hint else "")


def test_errors_about_input_say_where_it_stands() -> None:
    with pytest.raises(InputError, match=r"^line 3: no such column: x$") as caught, user_input("line 3"):
        raise ValueError("no such\n  column: x")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(InputError, match=r"^said already$"), user_input("line 3"):
        raise InputError("said already")
    with pytest.raises(ZeroDivisionError), user_input("line 3"):  # a bug is no input error
        raise ZeroDivisionError
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
