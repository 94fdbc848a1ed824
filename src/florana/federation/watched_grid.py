"""A grid that tells of every reply when it comes, puts up with a busy SuperLink, and can be stopped while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from florana.errors import FederationError
from florana.federation.overdue import Overdue
from florana.federation.relay_grid import RelayGrid
from florana.federation.waiting import Waiting

P = ParamSpec("P")
T = TypeVar("T")

OnReply = Callable[[Message, Message, float], None]
"""(message, its reply, seconds from the one to the other) -> nothing."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 3.0
"""Seconds between two looks for replies. Each look takes the SuperLink's database for itself, which clients' replies wait for."""

PATIENCE = 120.0
"""Seconds for which the SuperLink may answer with internal errors, such as that its database is locked."""


class WatchedGrid(RelayGrid):
    """Another grid with a watched :meth:`send_and_receive`.

    Args:
        grid: does the work.
        on_reply: told of every reply.
        stop: once set, waiting ends with an error.
        on_lost: told of every message whose reply is lost, before it is sent once more. Without it no node is asked and nothing
            is sent again; right where a node may take a message before an earlier one, as Ray's actors do.
    """

    def __init__(
        self,
        grid: Grid,
        on_reply: OnReply,
        stop: threading.Event | None = None,
        on_lost: Callable[[Message], None] | None = None,
    ) -> None:
        super().__init__(grid)
        self._on_reply = on_reply
        self._stop = stop or threading.Event()
        self._on_lost = on_lost

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are connected.

        Raises:
            FederationError: if the run is to stop.
        """
        if self._stop.is_set():
            raise FederationError("the run was stopped")
        return self._patiently(self._grid.get_node_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies, each at most once.

        A message whose reply is lost is sent again, to expire when the first would have; an error stands for a reply that is
        lost twice.

        Raises:
            FederationError: if the run is to stop.
        """
        sent = list(messages)
        began, latest, replies = time.monotonic(), 0.0, []
        self._grid.push_messages(sent)
        waiting, overdue = Waiting(sent), Overdue(self._grid)
        while waiting.messages and (timeout is None or time.monotonic() - began < timeout):
            came = self._patiently(self._look, [*waiting.messages, *overdue.questions])
            elapsed = time.monotonic() - began
            answered = [*filter(None, map(waiting.take, came))]
            lost = waiting.messages.keys() & {*map(overdue.lost, came)}
            for message, reply in [*answered, *self._send_again(waiting, lost, elapsed)]:
                latest = elapsed
                replies.append(reply)
                self._on_reply(message, reply, elapsed)
            if waiting.messages and self._on_lost is not None:
                self._patiently(overdue.ask, waiting.messages, elapsed, latest)
            if waiting.messages and self._stop.wait(pause(elapsed)):
                raise FederationError("the run was stopped while clients were at work")
        return replies

    def _send_again(
        self, waiting: Waiting, lost: Iterable[str], elapsed: float
    ) -> list[tuple[Message, Message]]:
        """Send messages whose replies are lost once more; those for which that was tried, with an error for a reply."""
        given_up = []
        for message_id in lost:
            again = waiting.once_more(message_id, elapsed)
            if again is None:
                given_up.append(waiting.give_up(message_id))
                continue
            if self._on_lost is not None:
                self._on_lost(waiting.messages[message_id])
            self._patiently(self._grid.push_messages, [again])
            waiting.sent_again(message_id, again.metadata.message_id)
        return given_up

    def _look(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there."""
        return list(self._grid.pull_messages(message_ids))

    def _patiently(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a call says that may be done again, however often the SuperLink is too busy for it."""
        began = time.monotonic()
        while True:
            try:
                return call(*args, **kwargs)
            except httpx.HTTPStatusError as error:
                internal = error.response.status_code == httpx.codes.INTERNAL_SERVER_ERROR
                if not internal or time.monotonic() - began > PATIENCE:
                    raise
            if self._stop.wait(LONGEST_PAUSE):
                raise FederationError("the run was stopped")


def pause(elapsed: float) -> float:
    """Seconds until the next look: a twentieth of the time that has passed, within bounds."""
    return min(max(elapsed / 20, SHORTEST_PAUSE), LONGEST_PAUSE)
