"""Clients in this process: each has its own records and its own memory, as if it were far away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from florana.adapter import Adapter
from florana.federation.client_app import build_client_app
from florana.federation.local_grid import FIRST_NODE_ID, Asked, LocalGrid
from florana.federation.records import ADAPTER, unpack
from toys import assert_same_bits, assert_same_states, by_hand, federate, make_adapter, toy_client

pytestmark = pytest.mark.usefixtures("quiet_flower")


def test_a_client_that_changes_its_message_changes_no_other() -> None:
    """Records are the client's own: arrays replaced, manifests deleted, tensors overwritten."""
    honest, app = build_client_app(make_adapter(), toy_client), ClientApp()
    received: list[Adapter] = []

    @app.train()
    def vandal(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        received.append(unpack(message.content, make_adapter()).adapter)
        content = message.content
        unpack(content, make_adapter()).adapter.extras["classifier.bias"].fill_(99.0)
        content.array_records["arrays"][ADAPTER] = Array(np.zeros(3, dtype=np.float32))
        content.config_records["config"]["server-round"] = 99
        content.config_records["manifest"]["json"] = "nonsense"
        del content["manifest"]
        return reply

    outcomes = federate(app, rounds=2)
    assert_same_states(outcomes, by_hand("florana", 2, range(4)))
    for adapter in received[:4]:
        assert_same_bits(adapter.tensors(), make_adapter().tensors())


def test_a_clients_state_persists_and_is_not_kept_when_it_fails() -> None:
    """Each client finds its own state of its last success, whatever it wrote before it raised."""
    honest, app = build_client_app(make_adapter(), toy_client), ClientApp()
    seen: list[tuple[int, int, object]] = []

    @app.train()
    def count(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        record = context.state.config_records.setdefault("mine", ConfigRecord({"rounds": []}))
        rounds = record["rounds"]
        assert isinstance(rounds, list)
        seen.append((server_round, partition, list(rounds)))
        rounds.append(server_round)  # type: ignore[arg-type]
        record["last"] = server_round
        context.state["mine"] = record
        if (server_round, partition) == (2, 1):
            raise RuntimeError("after writing")
        return honest(message, context)

    federate(app, rounds=3, clients=3)
    assert seen == [
        (1, 0, []), (1, 1, []), (1, 2, []),
        (2, 0, [1]), (2, 1, [1]), (2, 2, [1]),
        (3, 0, [1, 2]), (3, 1, [1]), (3, 2, [1, 2]),
    ]  # fmt: skip


def test_the_grid_tells_clients_who_they_are() -> None:
    """Partition, number of partitions and run_config reach the client; replies answer their messages."""
    app = ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        who = MetricRecord({"id": context.node_config["partition-id"]})  # type: ignore[dict-item]
        assert context.node_config["num-partitions"] == 3
        assert context.run_config == {"key": "value"}
        context.run_config["key"] = "changed by a client"
        return Message(RecordDict({"who": who}), reply_to=message)

    grid = LocalGrid(app, 3, {"key": "value"})
    nodes = grid.get_node_ids()
    assert nodes == [FIRST_NODE_ID, FIRST_NODE_ID + 1, FIRST_NODE_ID + 2]
    content = RecordDict({"x": ArrayRecord()})
    ids = grid.push_messages(
        [grid.create_message(content, MessageType.TRAIN, node, "group") for node in nodes]
    )
    assert len(set(ids)) == 3
    replies = grid.pull_messages(reversed(ids))
    assert [r.content.metric_records["who"]["id"] for r in replies] == [2, 1, 0]
    assert [r.metadata.reply_to_message_id for r in replies] == list(reversed(ids))
    assert list(grid.pull_messages(ids)) == []


class Twos:
    """A group of two that notes whom it is asked about, and fails for client 2 after writing to its state."""

    size = 2

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, asked: Sequence[Asked], /) -> list[RecordDict | Exception]:
        """A number per client."""
        self.asked.append([one.partition for one in asked])
        answers: list[RecordDict | Exception] = []
        for one in asked:
            one.state["mine"] = ConfigRecord({"written": one.partition})
            del one.content["x"]  # its own copy
            who = MetricRecord({"id": one.partition})
            answers.append(
                ValueError("not today") if one.partition == 2 else RecordDict({"who": who})
            )
        return answers


def test_a_group_answers_train_messages_and_fails_one_by_one() -> None:
    """Groups of two in the order of the messages; the last client alone, and evaluate messages, go to the app."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"who": MetricRecord({"id": -1})}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"who": MetricRecord({"id": -2})}), reply_to=message)

    group = Twos()
    grid = LocalGrid(app, 5, group=group)
    content = RecordDict({"x": ArrayRecord()})
    nodes = grid.get_node_ids()
    kinds = [MessageType.TRAIN] * 5 + [MessageType.EVALUATE] * 5
    messages = [
        grid.create_message(content, kind, node, "group")
        for kind, node in zip(kinds, nodes * 2, strict=True)
    ]
    replies = list(grid.send_and_receive(messages))
    assert group.asked == [[0, 1], [2, 3]]
    assert [r.metadata.reply_to_message_id for r in replies] == [
        m.metadata.message_id for m in messages
    ]
    failed = replies.pop(2)
    assert failed.error.reason == "client 2 raised ValueError: not today"
    ids = [r.content.metric_records["who"]["id"] for r in replies]
    assert ids == [0, 1, 3, -1, -2, -2, -2, -2, -2]
    assert [p for p, state in grid.states.items() if "mine" in state] == [0, 1, 3]
    assert "x" in content
