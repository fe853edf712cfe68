"""What the commands print, and what libraries do not."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def command_line(words: Sequence[str]) -> str:
    """The command as it was given, with the last parts of its paths alone: it is published, folders are not."""

    def short(word: str) -> str:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        return flag + equals + (os.path.basename(value.rstrip(os.sep)) if os.sep in value else value)

    return shlex.join(["bertxfer", *map(short, words)])


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries show no progress bars and no warnings: the command tells its own."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    others_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if others_bars:
            enable_progress_bars()
