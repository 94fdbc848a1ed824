"""What clients of this process remember, on disk: the same records, each array once, nothing unused for long."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from florana.errors import FederationError
from florana.federation.client_app import build_client_app
from florana.federation.client_states import ClientStates
from florana.federation.local_grid import LocalGrid
from toys import assert_same_states, federate, make_adapter, toy_client

pytestmark = pytest.mark.usefixtures("quiet_flower")


def state(*numbers: float, held_round: int = 0) -> RecordDict:
    """A client's records with one array and one setting."""
    array = Array(np.array(numbers, dtype=np.float32))
    return RecordDict(
        {"home": ArrayRecord({"flat": array}), "round": ConfigRecord({"round": held_round})}
    )


def files(folder: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    """In this process, and in another that knows what :attr:`said` was; an empty one too."""
    states = ClientStates(tmp_path / "states")
    states[0], states[1], states[2] = state(1, 2), state(3, held_round=5), RecordDict()
    for again in (states, ClientStates(tmp_path / "states", states.said)):
        assert again[0] == state(1, 2)
        assert again[1] == state(3, held_round=5)
        assert again[2] == RecordDict()
        assert list(again) == [0, 1, 2]


def test_equal_arrays_are_one_file(tmp_path: Path) -> None:
    """A hundred clients that hold one model, and one that holds another of the same size."""
    states = ClientStates(tmp_path)
    for client in range(100):
        states[client] = state(1, 2, 3)
    states[100] = state(3, 2, 1)
    states[101] = state(1, 2, 3)
    assert len(files(tmp_path)) == 2


def test_what_is_not_remembered_any_more_is_dropped_when_told(tmp_path: Path) -> None:
    """Not before: until then an earlier checkpoint may name it. What a kill left aside goes too."""
    states = ClientStates(tmp_path)
    states[0], states[1] = state(1), state(2)
    states[0] = state(3)
    (tmp_path / ".torn.tmp").write_bytes(b"half")
    assert len(files(tmp_path)) == 4
    states.drop_unused()
    assert len(files(tmp_path)) == 2
    assert (states[0], states[1]) == (state(3), state(2))


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path, damage: str) -> None:
    """Nothing is trained from other numbers than were kept."""
    states = ClientStates(tmp_path)
    states[0] = state(1, 2)
    (name,) = files(tmp_path)
    (tmp_path / name).unlink()
    again = ClientStates(tmp_path, states.said)
    assert again.missing == [name]
    if damage == "damaged":
        (tmp_path / name).write_bytes(b"other numbers")
        assert again.missing == []
    with pytest.raises(FederationError, match=f"{name}.*{damage}.*start the run anew"):
        again[0]


@pytest.mark.parametrize("method", ["fedit", "fedex-lora", "fedsa-lora", "local", "fed-sb"])
def test_a_federation_with_states_on_disk_is_the_same(method: str, tmp_path: Path) -> None:
    """To the bit, with int8 on the wire too, whose error every client carries."""
    options = {"method": method, "rounds": 3, "uplink": "int8"}
    plain = federate(**options)  # type: ignore[arg-type]
    on_disk = federate(
        grid_type=lambda app, clients: LocalGrid(app, clients, states=ClientStates(tmp_path)),
        **options,  # type: ignore[arg-type]
    )
    assert_same_states(on_disk, [outcome.state for outcome in plain])


def test_a_grid_goes_on_with_states_and_copies_a_mapping(tmp_path: Path) -> None:
    """The caller's mapping is not written to; states on disk are."""
    given, states = dict[int, RecordDict](), ClientStates(tmp_path)
    app = build_client_app(make_adapter(), toy_client)
    assert list(LocalGrid(app, 2, states=given).states) == [0, 1]
    assert given == {}
    assert LocalGrid(app, 2, states=states).states is states
    assert list(states) == [0, 1]
