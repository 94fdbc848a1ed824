"""A client's own end to work that nobody waits for any more."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from florana.errors import FederationError


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Break off what takes longer than this.

    A SuperNode does one message after the other. A client that still trains when its message has expired would keep
    the node from the next round too, and from every one after that. It needs the main thread, where Flower's
    processes do a client's work, and a system with ``SIGALRM``; elsewhere nothing is broken off.

    Args:
        seconds: the message's time to live.

    Raises:
        FederationError: inside, wherever the work is, when the time is over.
    """
    timed = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if not timed:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise FederationError(
            f"this client was not done after {seconds:g} s, when its message expired; give it less to do "
            "(training.steps), or more time (federation.deadline_seconds)"
        )

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
