"""A grid whose clients are asked a few at a time, so that a server which takes in replies one by one holds few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from flwr.app import Message
from flwr.serverapp import Grid

from florana.federation.relay_grid import RelayGrid


class StreamedGrid(RelayGrid):
    """Another grid, whose :meth:`send_and_receive` sends messages as their replies are asked for.

    It suits clients in this process, which work only when they are asked. On a network all are asked at once, or
    they would wait for each other.

    Args:
        grid: does the work.
        at_once: how many clients are asked at a time.
    """

    def __init__(self, grid: Grid, at_once: int = 1) -> None:
        super().__init__(grid)
        self._at_once = at_once

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """The replies, in the order of the messages; each is made when it is asked for, and not kept."""
        waiting = iter(messages)
        while some := list(islice(waiting, self._at_once)):
            yield from self._grid.send_and_receive(some, timeout=timeout)
