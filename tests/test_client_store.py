"""What clients keep on their own disks: by run and round, and never applied twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from florana.adapter import Plan
from florana.aggregators import build, plan_of
from florana.errors import FederationError
from florana.federation.client_app import HOME, LocalResult, answer_train, own_model, write_plan
from florana.federation.client_store import ClientStore
from florana.federation.records import Held, pack
from toys import assert_same_bits, make_adapter, toy_client

KEY = "0123456789abcdef"


def state(number: float) -> RecordDict:
    """A state that can be told from others."""
    array = Array(np.full(3, number, dtype=np.float32))
    return RecordDict({"a": ArrayRecord({"x": array}), "c": ConfigRecord({"round": number})})


def number_in(found: RecordDict) -> float:
    """Which of them it is."""
    numbers = found.array_records["a"]["x"].numpy()
    assert numbers.tolist() == [found.config_records["c"]["round"]] * 3
    return float(numbers[0])


def test_a_round_that_is_done_again_starts_where_it_did(tmp_path: Path) -> None:
    """Reading for round t gives the newest state of an earlier round, whatever was written for t before."""
    store = ClientStore.of(tmp_path, KEY, 3)
    assert not store.read(1)
    for server_round in (1, 2, 5):
        store.write(server_round, state(server_round))
    assert number_in(store.read(6)) == number_in(store.read(9)) == 5
    assert number_in(store.read(5)) == number_in(store.read(3)) == 2
    store.write(5, state(5.5))
    assert number_in(store.read(6)) == 5.5
    assert number_in(store.read(5)) == 2


def test_a_server_that_went_back_takes_the_client_with_it(tmp_path: Path) -> None:
    """States of rounds that no longer count are forgotten when an earlier round is done again."""
    store = ClientStore.of(tmp_path, KEY, 0)
    for server_round in (1, 2, 3):
        store.write(server_round, state(server_round))
    store.write(2, state(2.5))
    assert number_in(store.read(3)) == number_in(store.read(9)) == 2.5
    assert not store.read(2)  # long gone; the server sends the whole model then


def test_runs_and_partitions_do_not_meet(tmp_path: Path) -> None:
    """Two runs, and two clients of one run on one node, keep apart."""
    ClientStore.of(tmp_path, KEY, 0).write(1, state(1))
    assert not ClientStore.of(tmp_path, KEY[::-1], 0).read(2)
    assert not ClientStore.of(tmp_path, KEY, 1).read(2)


@pytest.mark.parametrize("key", ["", "../../etc", "0123", "g" * 16, "0" * 80])
def test_a_key_that_no_server_makes_is_refused(tmp_path: Path, key: str) -> None:
    """It becomes part of a path, and comes from the wire."""
    with pytest.raises(FederationError, match="run-key"):
        ClientStore.of(tmp_path, key, 0)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """And what to do about it."""
    store = ClientStore.of(tmp_path, KEY, 0)
    store.write(1, state(1))
    path = store.folder / "round-1.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FederationError, match=r"round-1\.safetensors is damaged[\s\S]*delete"):
        store.read(2)


def test_what_is_trained_at_home_twice_counts_once(tmp_path: Path) -> None:
    """fedsa-lora: B after round 2 is that of one training, though the message of round 2 came twice."""
    plan = plan_of(build("fedsa-lora", {}), 1)
    store = ClientStore.of(tmp_path, KEY, 1)

    def message(server_round: int) -> RecordDict:
        content = pack(make_adapter())
        told = {"server-round": server_round, "keep": False, "uplink": "float32", "builds-on": -1}
        content["config"] = ConfigRecord({**told, **write_plan(plan)})
        return content

    def train(start: Held, given: Plan, server_round: int, partition: int) -> LocalResult:
        return toy_client(start, given, server_round, partition)

    def answer(server_round: int) -> dict[str, object]:
        kept = store.read(server_round)
        answer_train(message(server_round), kept, 1, make_adapter(), train)
        store.write(server_round, kept)
        assert f"{HOME}-arrays" in kept
        return dict(own_model(Held(make_adapter()), kept, make_adapter()).adapter.tensors({"B"}))

    answer(1)
    once = answer(2)
    assert_same_bits(answer(2), once)  # type: ignore[arg-type]
    assert any((answer(3)[name] != once[name]).any() for name in once)  # type: ignore[attr-defined]
