"""When Python's garbage collector need not look: while libraries are imported, and when the process ends.

torch, transformers and PEFT make a million objects that all stay. The collector looks through them again and again while they
come, and once more at the end, and finds nothing: two of the six CPU seconds of a process that does little else
(docs/performance.md). In somebody else's process the collector stays as it is.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_ours = False


@cache
def process_is_ours() -> None:
    """Say that this process is the command line's or a Flower app's, and let it end without a last look at all its objects."""
    global _ours
    _ours = True
    atexit.register(gc.freeze)


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Import ``module`` in this block without collections; what is there afterwards, later collections leave alone.

    Nothing is done in a process that is not ours, or if the module is there already.

    Args:
        module: full name of what the block imports.

    Example:
        >>> with importing("florana.lowrank"):
        ...     import florana.lowrank
    """
    if not _ours or module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
