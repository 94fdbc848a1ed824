"""How many threads the jobs on folders use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside, on as many as before outside.

    The matrices of one module are so small that threads wait for each other longer than they compute: on a busy
    machine with two threads the same job took ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
