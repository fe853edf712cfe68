"""Several training processes: leaving them."""

from __future__ import annotations

import atexit
import functools
import time

from torch import distributed

__all__ = ["leave_at_exit"]

#: Seconds that the group's threads get at the end: they need the interpreter for microseconds.
PARTING = 0.25


@functools.cache
def leave_at_exit() -> None:
    """Have the process leave its gloo group in peace before Python ends.

    A thread of the group drops the tensors of the last exchange a little after the exchange is done, and needs the
    interpreter for that. Where Python is ending by then, the thread is cancelled in the middle of a destructor and
    takes the process down after all work is done ("terminate called without an active exception", now and then).
    Leaving the group ends its threads only if nobody else holds it, and a model wrapped for many processes does; so
    the threads get a moment in which nobody holds the interpreter.

    A group of another backend is left alone: leaving NCCL's may wait for processes that have failed.
    """
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
        time.sleep(PARTING)
