"""What the commands print, and what libraries do not."""

from __future__ import annotations


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def quiet() -> None:
    """Turn progress bars and warnings of libraries off: they are for the training, which shows its own."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
