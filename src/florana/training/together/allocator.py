"""Freed memory that is kept for the next step, where C's allocator would give it back."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Final

MOST: Final = 2**30
"""Bytes: larger blocks are the system's own, and more than this is not kept at the heap's end."""

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""Parameters of glibc's ``mallopt``."""


@cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to :data:`MOST` bytes.

    A pass makes and frees blocks of megabytes. glibc gives such blocks back to the system, and gets the next ones page by
    page, each page by a fault: with eight clients at once on two threads a tenth of the time (docs/performance.md). The peak of the
    memory that is held stays what it is; it is held longer.

    Returns:
        Whether the allocator is glibc's, and did so.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, MOST) and mallopt(M_TRIM_THRESHOLD, MOST))
