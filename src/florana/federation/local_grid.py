"""A Flower grid whose clients live in this process: no daemon, no Ray, one base model for all.

Messages go to the ClientApp one after the other, in the order of the partitions, or train messages to a group of clients
at once, so that a run is the same every time. This is the only module that touches private parts of Flower; they were checked with
flwr 1.41.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from florana.federation.client_states import ClientStates

FIRST_NODE_ID = 1_000
"""Node ids of the clients start here; Flower keeps small ones for itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A train message to one client, with what that client remembers.

    Args:
        partition: which client.
        content: its own copy of the message's records.
        state: its own copy of what it remembers, to be written to; kept if the client succeeds.
    """

    partition: int
    content: RecordDict
    state: RecordDict


class Group(Protocol):
    """Answers the train messages of several clients at once."""

    @property
    def size(self) -> int:
        """Clients at a time."""

    def __call__(self, asked: Sequence[Asked], /) -> list[RecordDict | Exception]:
        """Each client's reply, or what it raised, in their order."""


class LocalGrid(Grid):
    """Run a ClientApp for ``num_partitions`` clients in this process, one after the other.

    Args:
        client_app: the app that answers messages; its context names the partition.
        num_partitions: number of clients.
        run_config: given to every client as ``context.run_config``.
        states: partition -> what clients of an interrupted run remembered (``context.state``);
            :class:`~florana.federation.client_states.ClientStates` are gone on with, and others copied.
        group: answers train messages in place of the ClientApp, several at a time.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_partitions: int,
        run_config: dict[str, Any] | None = None,
        states: Mapping[int, RecordDict] | None = None,
        group: Group | None = None,
    ) -> None:
        self._client_app, self._group = client_app, group
        self._num_partitions = num_partitions
        self._run_config = run_config or {}
        self._states = states if isinstance(states, ClientStates) else dict(states or {})
        for partition in range(num_partitions):
            self._states.setdefault(partition, RecordDict())
        self._message_ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self.set_run(Run.create_empty(run_id=1))

    def set_run(self, run: Run) -> None:
        """Make this process belong to ``run``, as its server."""
        self._run = run
        TaskIdentity.run_id, TaskIdentity.task_id = run.run_id, 0
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    @property
    def states(self) -> Mapping[int, RecordDict]:
        """Partition -> what that client remembers."""
        return self._states

    @property
    def run(self) -> Run:
        """The run that this grid belongs to."""
        return self._run

    def get_node_ids(self) -> list[int]:
        """Node ids in the order of the partitions."""
        return [FIRST_NODE_ID + partition for partition in range(self._num_partitions)]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have every message answered now; the replies wait to be pulled."""
        asked = list(messages)
        for message in asked:
            message.metadata.__dict__["_message_id"] = str(next(self._message_ids))
        for batch in self._batches(asked):
            for message, reply in zip(batch, self._answer_all(batch), strict=True):
                self._replies[message.metadata.message_id] = reply
        return [message.metadata.message_id for message in asked]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 (clients here cannot be late)
    ) -> list[Message]:
        """Have every message answered and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _batches(self, messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
        """Messages that are answered at once: train messages in a row, as many as the group takes."""
        size = self._group.size if self._group else 1
        for training, run in itertools.groupby(
            messages, lambda m: m.metadata.message_type == MessageType.TRAIN
        ):
            same, step = list(run), size if training else 1
            yield from (same[i : i + step] for i in range(0, len(same), step))

    def _answer_all(self, messages: Sequence[Message]) -> list[Message]:
        if self._group is None or len(messages) == 1:
            return [self._answer(message) for message in messages]
        partitions = [m.metadata.dst_node_id - FIRST_NODE_ID for m in messages]
        asked = [
            Asked(p, copy.deepcopy(m.content), copy.deepcopy(self._states[p]))
            for p, m in zip(partitions, messages, strict=True)
        ]
        answers = self._group(asked)
        replies = []
        for message, one, answer in zip(messages, asked, answers, strict=True):
            if isinstance(answer, Exception):
                replies.append(_failure(message, one.partition, answer))
                continue
            self._states[one.partition] = one.state  # kept only when the client succeeded
            replies.append(Message(answer, reply_to=message))
        return replies

    def _answer(self, message: Message) -> Message:
        partition = message.metadata.dst_node_id - FIRST_NODE_ID
        context = Context(
            run_id=self._run.run_id,
            node_id=message.metadata.dst_node_id,
            node_config={"partition-id": partition, "num-partitions": self._num_partitions},
            state=copy.deepcopy(self._states[partition]),
            run_config=dict(self._run_config),
        )
        # Records are shared between messages; a client that changes its own must not change the others'.
        # The numbers are not copied: an Array holds them as immutable bytes.
        message.content = copy.deepcopy(message.content)
        try:
            reply = self._client_app(message, context)
        except Exception as error:
            return _failure(message, partition, error)
        self._states[partition] = context.state  # kept only when the client succeeded
        return reply


def _failure(message: Message, partition: int, error: Exception) -> Message:
    reason = f"client {partition} raised {type(error).__name__}: {error}"
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
