"""The catalogue of planted faults fits the sources; `make mutants` runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .mutants.__main__ import ROOT
from .mutants.catalogue import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_be_planted(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.planted(source) != source
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (ROOT / Path(file)).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name.partition('::')[0]}\b", text, re.MULTILINE) or not name, test


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_text_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 0 places"):
        Mutant("x", "setup.py", "no such text", "", ("tests",)).planted("something else")
