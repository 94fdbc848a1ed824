"""Who takes part: partitions, waiting with a bound, replies that are nobody's, late or absurd."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from florana.errors import FederationError
from florana.federation.client_app import build_client_app
from florana.federation.local_grid import FIRST_NODE_ID, LocalGrid
from florana.federation.strategy import LoraStrategy, RoundOutcome
from toys import make_adapter, sampled, toy_client

pytestmark = pytest.mark.usefixtures("quiet_flower")


def asked_app(claims: dict[int, object] | None = None) -> ClientApp:
    """Toy clients that say which partition they are, or claim another one."""
    app = build_client_app(make_adapter(), toy_client)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        own = int(context.node_config["partition-id"])
        said = (claims or {}).get(own, own)
        who = MetricRecord({"partition-id": said})  # type: ignore[dict-item]
        return Message(RecordDict({"metrics": who}), reply_to=message)

    return app


class Shuffled(LocalGrid):
    """Node ids say nothing of partitions, and nodes come and go."""

    absent: frozenset[int] = frozenset()
    """Partitions that are not connected."""

    def get_node_ids(self) -> list[int]:
        """In any order."""
        nodes = [n for n in super().get_node_ids() if n - FIRST_NODE_ID not in self.absent]
        return nodes[::-1]


def rounds(grid: LocalGrid, count: int = 3, **options: object) -> tuple[list[RoundOutcome], list[str]]:  # fmt: skip
    """The outcomes, and what was told."""
    outcomes: list[RoundOutcome] = []
    notes: list[str] = []
    settings = {"method": "fedit", "wait_seconds": 0.2, **options}
    strategy = LoraStrategy(
        make_adapter(),
        on_round=outcomes.append,
        on_note=notes.append,
        on_left_out=lambda r, client, reason: notes.append(f"{r} {client}: {reason}"),
        **settings,  # type: ignore[arg-type]
    )
    strategy.start(grid, strategy.initial_arrays(), num_rounds=count)
    return outcomes, notes


class Renumbered(LocalGrid):
    """Node 1000 + k stands for partition 5 − k, as where ids are drawn at random."""

    def _answer(self, message: Message) -> Message:
        metadata = message.metadata
        node = metadata.dst_node_id
        metadata.__dict__["_dst_node_id"] = 2 * FIRST_NODE_ID + 5 - node
        reply = super()._answer(message)
        metadata.__dict__["_dst_node_id"] = node
        return reply


def test_the_clients_that_are_drawn_do_not_depend_on_node_ids() -> None:
    """A run that asks for partitions draws the clients that a grid in the order of the partitions draws."""
    chosen = {"participation": 0.5, "seed": 3, "min_clients": 2}
    plain, _ = rounds(LocalGrid(asked_app(), 6), **chosen)
    asked, _ = rounds(Renumbered(asked_app(), 6), **chosen, partitions=6)
    assert sampled(asked) == sampled(plain)
    assert len({tuple(drawn) for drawn in sampled(plain)}) > 1


def test_a_node_that_says_another_partition_than_before_is_refused() -> None:
    """Asked, it said 5; in its reply it says 1: refused by name, the round goes on."""
    outcomes, notes = rounds(LocalGrid(asked_app({1: 3}), 3), partitions=4, min_clients=2)
    assert sampled(outcomes) == [[0, 2]] * 3
    assert any("says it is partition 1, and was 3 before" in note for note in notes)


@pytest.mark.parametrize("said", [-1, 4, 0.5])
def test_a_node_that_is_no_partition_of_this_run_is_not_drawn(said: object) -> None:
    """And it is told which, and what was expected."""
    outcomes, notes = rounds(LocalGrid(asked_app({1: said}), 3), partitions=3, min_clients=2)
    assert sampled(outcomes) == [[0, 2]] * 3
    assert any(f"node {FIRST_NODE_ID + 1} cannot take part: its partition-id is {said}" in n for n in notes)  # fmt: skip


def test_of_two_nodes_with_one_partition_the_first_is_drawn() -> None:
    """As after the restart of a node whose old self still counts as connected."""
    outcomes, _ = rounds(LocalGrid(asked_app({2: 1}), 3), partitions=2, min_clients=2)
    assert sampled(outcomes) == [[0, 1]] * 3
    assert all(not outcome.left_out for outcome in outcomes)


def test_a_node_that_came_back_under_another_id_takes_its_place_at_once() -> None:
    """Its old id still counts as connected, and fails: the next round draws the new one."""
    grid = Deployed(asked_app({3: 1}), 4)  # node 1001, which fails, and 1003 are both partition 1
    grid.lost = None
    grid.rename = {3: 1}
    outcomes, _ = rounds(grid, partitions=3, min_clients=2)
    assert sampled(outcomes) == [[0, 2], [0, 1, 2], [0, 1, 2]]


def test_too_few_nodes_are_waited_for_and_then_the_run_stops() -> None:
    """Bounded by wait_seconds, told before and after; what was done stays done."""
    grid = Shuffled(asked_app(), 3)
    grid.absent = frozenset({1, 2})
    began = time.monotonic()
    with pytest.raises(FederationError, match=r"round 1: 1 nodes are connected after 0\.2 s, the round needs 2"):  # fmt: skip
        rounds(grid, partitions=3)
    assert 0.2 <= time.monotonic() - began < 30


def test_a_late_joiner_takes_part_from_the_next_round_on() -> None:
    """The first round goes on without it when the wait is over, with a line that says so."""
    grid = Shuffled(asked_app(), 3)
    grid.absent = frozenset({0})
    outcomes: list[RoundOutcome] = []

    def joined(outcome: RoundOutcome) -> None:
        outcomes.append(outcome)
        grid.absent = frozenset()

    notes: list[str] = []
    strategy = LoraStrategy(
        make_adapter(),
        "fedit",
        partitions=3,
        wait_seconds=0.2,
        on_round=joined,
        on_note=notes.append,
    )
    strategy.start(grid, strategy.initial_arrays(), num_rounds=3)
    assert sampled(outcomes) == [[1, 2], [0, 1, 2], [0, 1, 2]]
    assert "round 1: going on with 2 of 3 nodes" in notes
    assert f"node {FIRST_NODE_ID} is client 0" in notes


class Deployed(LocalGrid):
    """Errors come from node 1, as those that a SuperLink makes, and an old reply comes again."""

    failing = FIRST_NODE_ID + 1
    lost: int | None = FIRST_NODE_ID + 3
    rename: dict[int, int]
    """Partition by the grid -> by the client's own word."""
    old: Message | None = None

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """The replies, one of them lost, one of them an error, one of them from the last round."""
        sent = list(messages)
        replies = super().send_and_receive(sent, timeout=timeout)
        train = [r for r in replies if "arrays" in (r.content if not r.has_error() else {})]
        if not train:
            return replies
        made = []
        for message, reply in zip(sent, replies, strict=True):
            if message.metadata.dst_node_id == self.failing:
                error = Message(Error(5, "Node Unavailable"), reply_to=message)
                error.metadata.__dict__["_src_node_id"] = 1
                made.append(error)
            elif message.metadata.dst_node_id != self.lost:
                metrics = reply.content.metric_records["metrics"]
                own = int(metrics["partition-id"])  # type: ignore[arg-type]
                metrics["partition-id"] = getattr(self, "rename", {}).get(own, own)
                made.append(reply)
        made += [self.old] if self.old is not None else []
        self.old = replies[0]
        return made


def test_errors_of_the_superlink_are_told_by_the_client_they_are_for() -> None:
    """So are replies that never came; a reply to an earlier round's message is refused; others count."""
    outcomes, notes = rounds(Deployed(asked_app(), 5), partitions=5, min_clients=2)
    assert sampled(outcomes) == [[0, 2, 4]] * 3
    for number, outcome in enumerate(outcomes, start=1):
        assert outcome.left_out == {
            "client 1": "its SuperNode is gone: Node Unavailable",
            "client 3": "no reply came in time",
        }
        replayed = f"{number} node {FIRST_NODE_ID}: its reply answers no message of this round"
        assert (replayed in notes) == (number > 1)


def test_an_update_above_the_bound_is_refused() -> None:
    """max_norm: each client's step is measured by itself; without a bound all take part."""
    free, _ = rounds(LocalGrid(asked_app(), 4), count=1)
    assert sampled(free) == [[0, 1, 2, 3]]
    sizes = {
        u.client_id: sum(
            float((pair.delta_w() - make_adapter().pairs[name].delta_w()).norm()) ** 2
            for name, pair in u.adapter.pairs.items()
        )
        ** 0.5
        for u in free[0].updates
    }
    ordered = sorted(sizes, key=lambda client: sizes[client])
    bound = (sizes[ordered[-2]] + sizes[ordered[-1]]) / 2
    bounded, notes = rounds(LocalGrid(asked_app(), 4), count=1, max_norm=bound)
    assert sampled(bounded) == [sorted(int(c) for c in ordered[:-1])]
    assert any(f"1 client {ordered[-1]}: its training changed ΔW by" in note for note in notes)
