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
from florana.federation.overdue import Overdue, never_came
from florana.federation.relay_grid import RelayGrid

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
        ask: whether nodes that are long in answering are asked if they are still at work; only where a node takes one message
            after the other, as SuperNodes do and Ray's actors do not.
    """

    def __init__(
        self,
        grid: Grid,
        on_reply: OnReply,
        stop: threading.Event | None = None,
        *,
        ask: bool = False,
    ) -> None:
        super().__init__(grid)
        self._on_reply = on_reply
        self._stop = stop or threading.Event()
        self._ask = ask

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
        """Send messages and wait for their replies, each at most once; an error stands for one that was lost.

        Raises:
            FederationError: if the run is to stop.
        """
        sent = list(messages)
        began, latest, replies = time.monotonic(), 0.0, []
        self._grid.push_messages(sent)
        waiting = {message.metadata.message_id: message for message in sent}
        overdue = Overdue(self._grid)

        def take(message_id: str, reply: Message) -> None:
            nonlocal latest
            message = waiting.pop(message_id, None)
            if message is not None:
                latest = time.monotonic() - began
                replies.append(reply)
                self._on_reply(message, reply, latest)

        while waiting and (timeout is None or time.monotonic() - began < timeout):
            came = self._patiently(self._look, [*waiting, *overdue.questions])
            for reply in came:
                take(reply.metadata.reply_to_message_id, reply)
            for lost in filter(None, map(overdue.lost, came)):
                if lost in waiting:
                    take(lost, never_came(waiting[lost]))
            elapsed = time.monotonic() - began
            if waiting and self._ask:
                self._patiently(overdue.ask, waiting, elapsed, latest)
            if waiting and self._stop.wait(pause(elapsed)):
                raise FederationError("the run was stopped while clients were at work")
        return replies

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
