"""Waiting for replies on a SuperLink that loses some and is too busy at times, acted by a grid in this process."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from unittest.mock import Mock

import httpx
import pytest
from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from florana.errors import FederationError
from florana.federation import overdue, watched_grid
from florana.federation.local_grid import LocalGrid
from florana.federation.watched_grid import WatchedGrid

AT_WORK, ANSWERS, LOSES, LOSES_ONE, GONE = "at work", "answers", "loses", "loses one", "gone"
FAILS_QUESTIONS, LETS_QUESTIONS_EXPIRE = "fails questions", "lets questions expire"


class Busy(LocalGrid):
    """Nodes that answer their messages in order, each as told; ``broken`` looks for replies fail first."""

    def __init__(self, nodes: Sequence[str], broken: int = 0, status: int = 500) -> None:
        super().__init__(lambda *_: None, len(nodes))  # type: ignore[arg-type]  # gives messages their sender
        self._nodes, self._broken, self._status = list(nodes), broken, status
        self._inbox: dict[int, deque[Message]] = {n: deque() for n in range(len(nodes))}
        self._ready: dict[str, Message] = {}
        self._ids = itertools.count()
        self.questions: list[int] = []
        self.work: list[int] = []
        self.lost: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Put them behind what the nodes have to do."""
        asked = list(messages)
        for message in asked:
            message.metadata.__dict__["_message_id"] = f"m{next(self._ids)}"
            self._inbox[message.metadata.dst_node_id].append(message)
            question = message.metadata.message_type == MessageType.QUERY
            (self.questions if question else self.work).append(message.metadata.dst_node_id)
        return [message.metadata.message_id for message in asked]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the nodes do one message each, then hand over what is there."""
        if self._broken:
            self._broken -= 1
            response = httpx.Response(self._status, request=httpx.Request("POST", "http://here"))
            response.raise_for_status()
        for node, inbox in self._inbox.items():
            if inbox and self._nodes[node] != AT_WORK:
                self._answer(self._nodes[node], inbox.popleft())
        return [self._ready.pop(i) for i in message_ids if i in self._ready]

    def _answer(self, how: str, message: Message) -> None:
        question = message.metadata.message_type == MessageType.QUERY
        reply = Message(RecordDict(), reply_to=message)
        if how == GONE:
            reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        elif how == FAILS_QUESTIONS and question:
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no"), reply_to=message)
        elif how == LETS_QUESTIONS_EXPIRE:
            reply = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired"), reply_to=message)
        once = how == LOSES_ONE and self.work.count(message.metadata.dst_node_id) > 1
        if question or once or how in {ANSWERS, GONE}:
            self._ready[message.metadata.message_id] = reply


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundredths of seconds for seconds."""
    monkeypatch.setattr(watched_grid, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(watched_grid, "LONGEST_PAUSE", 0.002)
    monkeypatch.setattr(overdue, "FIRST_QUESTION", 0.02)


def send(
    grid: Busy, *, ask: bool, timeout: float = 10.0, ttl: float = 3600.0
) -> dict[int, Message]:
    """Node -> its reply, of a message to every node; every reply is told once."""
    told: list[int] = []
    watched = WatchedGrid(
        grid,
        lambda sent, _r, _s: told.append(sent.metadata.dst_node_id),
        on_lost=(lambda sent: grid.lost.append(sent.metadata.dst_node_id)) if ask else None,
    )
    messages = [
        Message(RecordDict(), node, MessageType.TRAIN, ttl=ttl) for node in range(len(grid._nodes))
    ]
    replies = list(watched.send_and_receive(messages, timeout=timeout))
    nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    assert [nodes[r.metadata.reply_to_message_id] for r in replies] == told
    assert len(set(told)) == len(told)
    return {nodes[r.metadata.reply_to_message_id]: r for r in replies}


@pytest.mark.parametrize("others", [[], [ANSWERS], [LOSES_ONE, GONE]])
def test_a_message_whose_reply_is_lost_is_sent_once_more(others: list[str]) -> None:
    """The second reply counts as that to the first message."""
    grid = Busy([LOSES_ONE, *others])
    replies = send(grid, ask=True)
    losers = [node for node, how in enumerate(grid._nodes) if how == LOSES_ONE]
    assert not any(replies[node].has_error() for node in losers)
    assert sorted(grid.work) == sorted([*range(len(grid._nodes)), *losers])
    assert sorted(grid.lost) == losers


def test_questions_from_before_say_nothing_of_what_is_sent_again() -> None:
    """A node that was asked twice while it worked answers both, the second before it comes to the message again."""
    grid = Busy([AT_WORK])
    later = threading.Timer(0.1, lambda: grid._nodes.__setitem__(0, LOSES_ONE))
    later.start()
    replies = send(grid, ask=True)
    assert len(grid.questions) >= 2
    assert not replies[0].has_error()
    assert grid.work == [0, 0]


def test_no_message_is_sent_again_that_would_be_late() -> None:
    """Its time is that of the first."""
    grid = Busy([LOSES])
    replies = send(grid, ask=True, ttl=0.01)
    assert replies[0].error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert grid.work == [0]


@pytest.mark.parametrize("how", [LOSES, FAILS_QUESTIONS])
def test_a_reply_that_is_lost_twice_is_an_error(how: str) -> None:
    """The node answers the question, if only by an error, so it is done with what came before."""
    grid = Busy([ANSWERS, how])
    replies = send(grid, ask=True)
    assert not replies[0].has_error()
    assert replies[1].error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
    assert "its reply is not here" in replies[1].error.reason
    assert set(grid.questions) == {1}
    assert grid.work.count(1) == 2
    assert grid.lost == [1]


def test_a_node_at_work_is_waited_for() -> None:
    """It answers no question, and is asked again after twice the time, not all the time."""
    grid = Busy([ANSWERS, AT_WORK])
    replies = send(grid, ask=True, timeout=0.5)
    assert list(replies) == [0]
    assert 2 <= len(grid.questions) <= 6
    assert set(grid.questions) == {1}


def test_a_question_that_the_superlink_answers_tells_nothing() -> None:
    """It expired; the node may be at work."""
    grid = Busy([ANSWERS, LETS_QUESTIONS_EXPIRE])
    assert list(send(grid, ask=True, timeout=0.3)) == [0]
    assert set(grid.questions) == {1}


def test_of_a_node_that_is_gone_its_own_message_says_so() -> None:
    """Flower answers for it."""
    assert send(Busy([GONE]), ask=True)[0].error.code == ErrorCode.NODE_UNAVAILABLE


def test_nobody_is_asked_where_nodes_work_on_several_messages() -> None:
    """In a simulation the question may be answered first."""
    grid = Busy([ANSWERS, LOSES])
    assert list(send(grid, ask=False, timeout=0.2)) == [0]
    assert grid.questions == []


def test_who_answers_in_time_is_not_asked() -> None:
    """A question costs the node a process."""
    grid = Busy([ANSWERS] * 3)
    assert len(send(grid, ask=True)) == 3
    assert grid.questions == []


def test_a_superlink_that_is_too_busy_is_asked_again() -> None:
    """Its internal errors pass, and nothing is lost by them."""
    assert list(send(Busy([ANSWERS], broken=3), ask=True)) == [0]


def test_a_question_that_could_not_be_sent_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when the next is due."""
    grid = Busy([LOSES])
    message = Message(RecordDict(), 0, MessageType.TRAIN)
    asker = overdue.Overdue(grid)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "push_messages", Mock(side_effect=OSError("busy")))
        with pytest.raises(OSError, match="busy"):
            asker.ask({"m": message}, elapsed=1.0, latest=0.0)
    asker.ask({"m": message}, elapsed=1.1, latest=0.0)
    asker.ask({"m": message}, elapsed=1.2, latest=0.0)
    assert grid.questions == [0]


def test_a_superlink_that_stays_broken_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the run's."""
    monkeypatch.setattr(watched_grid, "PATIENCE", 0.05)
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        send(Busy([ANSWERS], broken=10**6), ask=True)


def test_a_refusal_is_no_business() -> None:
    """What is not an internal error will not pass."""
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        send(Busy([ANSWERS], broken=1, status=403), ask=True)


def test_a_stop_ends_the_waiting_for_a_busy_superlink() -> None:
    """As it does any other."""
    stop = threading.Event()
    stop.set()
    watched = WatchedGrid(Busy([ANSWERS], broken=10**6), lambda *_: None, stop)
    with pytest.raises(FederationError, match="stopped"):
        watched.send_and_receive([Message(RecordDict(), 0, MessageType.TRAIN)])
