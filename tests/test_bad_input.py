"""Whatever is wrong with an input is said in one sentence, before anything is written, and no finished step is lost.

A table of bad inputs: recipes, files, models, commands, runs to continue, tensors, arguments, environments. Of a
command each ends with exit code 2 and one line, of a call from Python with a ValueError or TypeError.
docs/errors.md shows the sentences; `python -m tests.test_bad_input --write` writes it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers

from bertxfer_fast import cli

from .bad_calls import BATCHES, MODELS_IN_PYTHON, OPERATORS
from .bad_inputs import (
    COMMANDS,
    CONTINUED,
    ENVIRONMENTS,
    FILES,
    FLAGS,
    MODELS,
    RECIPES,
    base,
    nothing,
)
from .folders import contents, distill

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
COMMAND = "python -m tests.test_bad_input --write"

# What this package does not do right yet, by (section, input), with the reason. Removed when it does.
KNOWN_FAULTS: dict[tuple[str, str], str] = {}


# ---- trying them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What an input led to: the one line, without the program's name, and what is not as promised."""

    sentence: str
    wrong: str = ""


@functools.cache
def finished() -> Path:
    """A place whose recipe has run; of its checkpoints the last stage's is still there."""
    place = copy_of(base() / "fresh")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["distill", str(place / "recipe.yaml")]) == 0  # as those that go on, flag for flag
    shutil.copytree(place, base() / "finished")
    return base() / "finished"


def copy_of(folder: Path) -> Path:
    """Always under one path, which a run that goes on compares."""
    place = base() / "place"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    return place


@contextlib.contextmanager
def logged_to(stream: io.StringIO) -> Iterator[None]:
    """What libraries log goes there, too: their handlers keep the stderr that they found when they were made."""
    handler = logging.StreamHandler(stream)
    loggers = [logging.getLogger(name) for name in ("datasets", "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def of_command(folder: Path, break_it: Callable[[Path], Any], argv: Sequence[str]) -> Outcome:
    place = copy_of(folder)
    break_it(place)
    before, folders = contents(place), {path for path in place.rglob("*") if path.is_dir()}
    said, printed = io.StringIO(), io.StringIO()
    try:
        with logged_to(said), contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            code = cli.main([word.format(place=place) for word in argv])
    except Exception as error:
        return Outcome("", f"a traceback: {type(error).__name__}: {error}")
    text = said.getvalue()
    if code != 2 or not text.startswith("bertxfer: error: ") or text.count("\n") != 1:
        return Outcome(text, f"code {code}, {text!r}")
    if contents(place) != before or {path for path in place.rglob("*") if path.is_dir()} != folders:
        return Outcome(text, "something was written")
    return Outcome(
        text.removeprefix("bertxfer: error: ").strip().replace(f"{place}/", "").replace(str(place), ".")
    )


def of_call(call: Callable[[], Any]) -> Outcome:
    try:
        call()
    except (ValueError, TypeError) as error:
        text = str(error)
        return Outcome(text, "" if "\n" not in text else "more than one line")
    except Exception as error:
        return Outcome("", f"{type(error).__name__}: {error}")
    return Outcome("", "nothing was raised")


def of_environment(variables: dict[str, str]) -> Outcome:
    shown = subprocess.run(
        [sys.executable, "-m", "bertxfer_fast", "info"],
        cwd=PAGE.parents[1],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    text = shown.stderr
    if shown.returncode != 2 or not text.startswith("bertxfer: error: ") or text.count("\n") != 1:
        return Outcome("", f"code {shown.returncode}, {text!r}")
    return Outcome(text.removeprefix("bertxfer: error: ").strip())


# (section, input) -> (what tries it, the sentence as a regular expression)
CASES: dict[tuple[str, str], tuple[Callable[[], Outcome], str]] = {}


def add(section: str, words: str, attempt: Callable[[], Outcome], sentence: str) -> None:
    assert (section, words) not in CASES
    CASES[section, words] = attempt, sentence


RECIPE = "{place}/recipe.yaml"
for section, table in (("Recipes", RECIPES), ("Data files", FILES), ("Models", MODELS)):
    for words, (break_it, sentence) in table.items():
        add(section, words, lambda b=break_it: of_command(base() / "fresh", b, ["distill", RECIPE]), sentence)
for words, (flags, sentence) in FLAGS.items():
    argv = ["distill", RECIPE, *flags]
    add("Flags", words, lambda a=argv: of_command(base() / "fresh", nothing, a), sentence)
for words, (break_it, sentence) in CONTINUED.items():
    add("Runs that go on", words, lambda b=break_it: of_command(finished(), b, ["distill", RECIPE]), sentence)
for words, (break_it, argv, sentence) in COMMANDS.items():
    add("Other commands", words, lambda b=break_it, a=argv: of_command(base() / "fresh", b, a), sentence)
for words, (variables, sentence) in ENVIRONMENTS.items():
    add("Environment", words, lambda v=variables: of_environment(v), sentence)
for section, calls in (
    ("Python: operators", OPERATORS),
    ("Python: data and batches", BATCHES),
    ("Python: models and training", MODELS_IN_PYTHON),
):
    for words, (call, sentence) in calls.items():
        add(section, words, lambda c=call: of_call(c), sentence)


@functools.cache
def outcome(section: str, words: str) -> Outcome:
    return CASES[section, words][0]()


# ---- the page -----------------------------------------------------------------------------------------------

INTRODUCTION = f"""# Errors

Made by `{COMMAND}` with transformers {{version}}. Each input below was tried, and this is what was said. A command
ends with exit code 2 and the line shown (after `bertxfer: error: `), and has written nothing before; `--debug` shows
the traceback. A call from Python raises ValueError or TypeError with the sentence. `...` stands for another
library's words or a long list."""


def page() -> str:
    parts = [INTRODUCTION.format(version=minor_version())]
    for section in dict.fromkeys(section for section, _ in CASES):
        rows = [
            f"| {words} | {shown(outcome(section, words).sentence)} |"
            for named, words in CASES
            if named == section and (section, words) not in KNOWN_FAULTS
        ]
        if rows:
            parts += [f"## {section}", "\n".join(["| input | sentence |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def shown(sentence: str) -> str:
    """A sentence as the page has it: without what differs between machines and versions of other libraries."""
    text = re.sub(r"\d+\.\d+\.\d+\S*", "X.Y.Z", sentence)
    text = re.sub(r"(cannot be read: |run\.json: ).*", r"\1...", text)
    text = f"{text[:240].rpartition(' ')[0]} ..." if len(text) > 260 else text
    return text.replace("|", "\\|").replace("<", "&lt;")


def minor_version() -> str:
    return ".".join(transformers.__version__.split(".")[:2])


# ---- tests --------------------------------------------------------------------------------------------------


def parameters() -> list[Any]:
    return [
        pytest.param(
            *case,
            id=" - ".join(case),
            marks=[pytest.mark.xfail(strict=True, reason=KNOWN_FAULTS[case])] if case in KNOWN_FAULTS else [],
        )
        for case in CASES
    ]


@pytest.mark.parametrize(("section", "words"), parameters())
def test_bad_input_is_said_in_one_sentence_before_anything_is_written(section: str, words: str) -> None:
    found = outcome(section, words)
    assert not found.wrong
    assert re.search(CASES[section, words][1], found.sentence), found.sentence


def test_there_are_many_and_faults_name_some_of_them() -> None:
    assert len(CASES) - len(KNOWN_FAULTS) >= 80
    assert CASES.keys() >= KNOWN_FAULTS.keys()


def test_debug_shows_the_traceback() -> None:
    place = copy_of(base() / "fresh")
    with pytest.raises(ValueError, match="no column"):
        distill(place, "--data.text", "none", "--debug")
    with pytest.raises(ValueError, match="no column"):
        cli.main(["--debug", "distill", str(place / "recipe.yaml"), "--data.text", "none"])


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"with transformers {minor_version()}." not in text:
        pytest.skip(f"docs/errors.md is about another transformers than {transformers.__version__}")
    assert text == page(), f"run {COMMAND}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(f"got {sys.argv[1:]}, want --write")
    PAGE.write_text(page(), encoding="utf-8")
