"""Clients that come and go: whoever trains, trains on the server's model, to the last bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from florana.adapter import Plan
from florana.aggregators import build, plan_of
from florana.federation.client_app import LocalResult
from florana.federation.local_grid import FIRST_NODE_ID, LocalGrid
from florana.federation.records import Held
from florana.federation.strategy import RoundOutcome
from toys import (
    METHODS,
    assert_same_bits,
    assert_same_states,
    by_hand,
    federate,
    products,
    sampled,
    toy_client,
)

pytestmark = pytest.mark.usefixtures("quiet_flower")

every_method = pytest.mark.parametrize("method", METHODS)
FEDERATED = [name for name in METHODS if plan_of(build(name, {}), 1).sent]

Seen = list[tuple[int, int, Held]]


def watching(seen: Seen) -> object:
    """A client that notes what it starts from."""

    def client(start: Held, plan: Plan, server_round: int, partition: int) -> LocalResult:
        seen.append((server_round, partition, start))
        return toy_client(start, plan, server_round, partition)

    return client


def assert_all_began_with_the_servers_model(
    method: str, seen: Seen, outcomes: list[RoundOutcome]
) -> None:
    """What the server did not leave at home has the server's bits on every client that trained."""
    before = {outcome.server_round: outcome for outcome in outcomes}
    for server_round, _, start in seen:
        outcome = before[server_round]
        shared = frozenset({"A", "B", "basis", "heads"}) - outcome.plan.home
        assert_same_bits(start.adapter.tensors(shared), outcome.before.adapter.tensors(shared))
        assert_same_bits(products(start.residual), products(outcome.before.residual))


@every_method
def test_a_client_that_missed_rounds_begins_with_the_servers_model(method: str) -> None:
    """With half of the clients drawn, gaps of one and more rounds are filled: adapter and F, bit for bit."""
    seen: Seen = []
    outcomes = federate(
        watching(seen), rounds=6, clients=6, participation=0.5, seed=2, method=method
    )  # type: ignore[arg-type]
    drawn = sampled(outcomes)
    gaps = {
        b - a for c in range(6) for a, b in pairwise([r for r, d in enumerate(drawn) if c in d])
    }
    assert {1, 2} < gaps  # otherwise this test tests nothing
    assert len(seen) == 18
    assert_all_began_with_the_servers_model(method, seen, outcomes)


@dataclass(frozen=True)
class Fate:
    """What befalls a client in a round: its memory is lost before, its training fails, its reply is lost."""

    forgets: bool
    fails: bool
    unheard: bool


SPARED = Fate(False, False, False)


def round_of(message: Message) -> int:
    """The round that a message of the server belongs to."""
    return int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]


class Unlucky(LocalGrid):
    """A grid on which clients lose memory and replies, all but the first client of each round."""

    def __init__(self, app: ClientApp, clients: int, fates: dict[tuple[int, int], Fate]) -> None:
        super().__init__(app, clients)
        self.fates = fates

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """As the parent, with misfortunes."""
        struck = {}
        for message in (messages := list(messages))[1:]:
            client = message.metadata.dst_node_id - FIRST_NODE_ID
            struck[client] = self.fates.get((round_of(message), client), SPARED)
            if struck[client].forgets:
                self.states[client].clear()
        replies = super().send_and_receive(messages, timeout=timeout)
        lost = {client for client, fate in struck.items() if fate.unheard}
        return [r for r in replies if r.metadata.src_node_id - FIRST_NODE_ID not in lost]


fates = st.dictionaries(
    st.tuples(st.integers(1, 5), st.integers(0, 3)),
    st.builds(Fate, st.booleans(), st.booleans(), st.booleans()),
    max_size=8,
)


@pytest.mark.parametrize(
    ("method", "wire"),
    [
        ("fedex-lora", {}),
        ("fedex-lora", {"downlink": "int8"}),
        ("rolora", {}),
        ("fedsa-lora", {"uplink": "int8"}),
        ("fed-sb", {"downlink": "bfloat16", "uplink": "bfloat16"}),
        ("hetlora", {}),
        ("florana-opt", {"downlink": "float16"}),
    ],
)
@settings(max_examples=12, deadline=None)
@given(fates=fates, seed=st.integers(0, 50))
def test_whatever_befalls_clients_those_that_train_have_the_servers_model(
    method: str, wire: dict[str, str], fates: dict[tuple[int, int], Fate], seed: int
) -> None:
    """Memory lost, training failed, replies lost, rounds missed, in any order: no client trains on another model."""
    seen: Seen = []

    def client(start: Held, plan: Plan, server_round: int, partition: int) -> LocalResult:
        seen.append((server_round, partition, start))
        result = toy_client(start, plan, server_round, partition)
        first = min(c for r, c, _ in seen if r == server_round) == partition
        if not first and fates.get((server_round, partition), SPARED).fails:
            raise OSError("for a moment")
        return result

    outcomes = federate(
        client,
        rounds=5,
        clients=4,
        participation=0.75,
        seed=seed,
        min_clients=1,
        method=method,
        grid_type=lambda app, clients: Unlucky(app, clients, fates),
        **wire,
    )
    assert len(outcomes) == 5
    assert_all_began_with_the_servers_model(method, seen, outcomes)


class Forgetful(LocalGrid):
    """A grid on which client 1 loses its memory before round 3."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """As the parent."""
        messages = list(messages)
        if messages and round_of(messages[0]) == 3:
            self.states[1].clear()
        return super().send_and_receive(messages, timeout=timeout)


@pytest.mark.parametrize("method", ["fedex-lora", "ideal", "ffa-lora", "fedsa-lora", "fed-sb"])
def test_a_client_that_lost_its_memory_is_named_once_and_then_served_whole(method: str) -> None:
    """Round 3 goes on without it and says why; in round 4 it takes part again, on the server's model."""
    seen: Seen = []
    outcomes = federate(watching(seen), rounds=4, method=method, grid_type=Forgetful)  # type: ignore[arg-type]
    assert sampled(outcomes) == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]]
    (reason,) = outcomes[2].left_out.values()
    assert list(outcomes[2].left_out) == ["node 1001"]
    assert "client 1 raised AdapterError" in reason
    assert "nothing is held here" in reason
    assert "must be sent whole" in reason
    assert_all_began_with_the_servers_model(method, seen, outcomes)


class Repeating(LocalGrid):
    """A grid that delivers every message of round 2 twice; the server hears of it or not."""

    heard = True

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """As the parent, and again."""
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and round_of(messages[0]) == 2:
            ids = [message.metadata.message_id for message in messages]
            more = super().send_and_receive(messages, timeout=timeout)
            for message, reply, first in zip(messages, more, ids, strict=True):
                message.metadata.__dict__["_message_id"] = first  # it was the same message
                reply.metadata.__dict__["_reply_to_message_id"] = first
            replies += more if self.heard else []
        return replies


class RepeatingUnheard(Repeating):
    """The same, the second replies lost."""

    heard = False


@pytest.mark.parametrize("grid", [Repeating, RepeatingUnheard])
@pytest.mark.parametrize("method", ["fedex-lora", "ideal", "flora", "rolora"])
def test_a_message_that_is_delivered_twice_is_applied_once(
    method: str, grid: type[Repeating]
) -> None:
    """An increment says what it builds on, so that nobody adds it a second time."""
    seen: Seen = []
    outcomes = federate(watching(seen), rounds=4, method=method, grid_type=grid)  # type: ignore[arg-type]
    assert_all_began_with_the_servers_model(method, seen, outcomes)
    assert sampled(outcomes)[1] == sampled(outcomes)[3] == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["florana", "fedit", "hetlora"])
def test_methods_that_send_everything_need_no_memory(method: str) -> None:
    """A client that forgot takes part as if nothing had been, and is asked to remember nothing."""
    outcomes = federate(rounds=4, method=method, grid_type=Forgetful)
    assert_same_states(outcomes, by_hand(method, 4, range(4)))
    kept: list[LocalGrid] = []

    def grid(app: ClientApp, clients: int) -> LocalGrid:
        kept.append(LocalGrid(app, clients))
        return kept[0]

    federate(rounds=2, method=method, grid_type=grid)
    assert not any(kept[0].states.values())


@pytest.mark.parametrize("method", ["fedex-lora", "rolora"])
def test_after_an_error_a_client_is_sent_everything(method: str) -> None:
    """The server no longer relies on what a client held that raised."""

    def client(start: Held, plan: Plan, server_round: int, partition: int) -> LocalResult:
        if (server_round, partition) == (2, 1):
            raise OSError("for a moment")
        return toy_client(start, plan, server_round, partition)

    outcomes = federate(client, rounds=4, method=method)
    assert sampled(outcomes) == [[0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    usual = federate(rounds=4, method=method)
    more = [a.bytes_down - b.bytes_down for a, b in zip(outcomes, usual, strict=True)]
    assert more[2] > 0  # the whole again, once
    assert abs(more[3]) < 200
