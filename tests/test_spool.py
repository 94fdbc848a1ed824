"""Updates that lie on disk while they are aggregated are the same updates, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florana import aggregate
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.errors import FederationError
from florana.federation.local_grid import LocalGrid
from florana.federation.spool import Spool
from florana.federation.streamed_grid import StreamedGrid
from strategies import client_updates, few
from toys import METHODS, assert_same_states, federate, make_adapter, make_core

pytestmark = pytest.mark.usefixtures("quiet_flower")


@given(
    updates=client_updates(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
)
@few
def test_what_is_kept_is_read_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, updates: list[ClientUpdate], dtype: torch.dtype
) -> None:
    """Every tensor, dtype and setting, in any order, of several adapters in one file."""
    spool = Spool(tmp_path_factory.getbasetemp())
    adapters = [
        u.adapter.with_tensors({n: t.to(dtype) for n, t in u.adapter.tensors().items()})
        for u in updates
    ]
    kept = [spool.keep(adapter) for adapter in adapters]
    for before, after in reversed(list(zip(adapters, kept, strict=True))):
        assert after.tensors().keys() == before.tensors().keys()
        for name, tensor in before.tensors().items():
            assert after.tensors()[name].dtype == tensor.dtype
            assert torch.equal(after.tensors()[name], tensor)
        for name, pair in before.pairs.items():
            assert (after.pairs[name].alpha, after.pairs[name].rslora) == (pair.alpha, pair.rslora)


def test_parts_beside_the_factors_are_kept(tmp_path: Path) -> None:
    """A basis, DoRA's magnitude, a transposed tensor and one without numbers."""
    core = make_core()
    dora = LoraPair(torch.ones(2, 3), torch.ones(2, 4).T, alpha=2, magnitude=torch.arange(4.0))
    spool = Spool(tmp_path)
    for adapter in (core, Adapter({"layer": dora}, {"none": torch.zeros(0, 3)})):
        kept = spool.keep(adapter)
        for name, tensor in adapter.tensors().items():
            assert torch.equal(kept.tensors()[name], tensor)
            assert kept.tensors()[name].shape == tensor.shape


@pytest.mark.parametrize("method", METHODS)
def test_a_federation_with_a_spool_is_the_same(method: str, tmp_path: Path) -> None:
    """With every method: the same bits after every round, asked one by one, and nothing left on disk."""
    plain = federate(method=method, rounds=3)
    spooled = federate(
        method=method, rounds=3, spool=tmp_path,
        grid_type=lambda app, clients: StreamedGrid(LocalGrid(app, clients), 3),  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    assert_same_states(spooled, [outcome.state for outcome in plain])
    assert [o.aggregate.errors for o in spooled] == [o.aggregate.errors for o in plain]
    assert [o.aggregate.spectra for o in spooled] == [o.aggregate.spectra for o in plain]
    del spooled
    assert list(tmp_path.iterdir()) == []


def test_errors_are_worked_out_one_module_at_a_time() -> None:
    """Clients' pairs are asked for again, module by module, since a result does not hold them."""
    asked: list[str] = []

    class Watched(dict[str, LoraPair]):
        def __getitem__(self, name: str) -> LoraPair:
            asked.append(name)
            return super().__getitem__(name)

    adapters = [make_adapter(seed) for seed in range(3)]
    updates = [
        ClientUpdate(str(i), 1, replace(adapter, pairs=MappingProxyType(Watched(adapter.pairs))))
        for i, adapter in enumerate(adapters)
    ]
    result = aggregate(updates, "florana-blend")
    asked.clear()
    expected = aggregate(
        [ClientUpdate(str(i), 1, a) for i, a in enumerate(adapters)], "florana-blend"
    )
    assert result.errors == expected.errors
    assert asked == [name for name in adapters[0].pairs for _ in updates]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The message says where, and what to do."""
    with pytest.raises(FederationError, match=r"cannot write to .*missing.*free some space"):
        Spool(tmp_path / "missing")


def test_a_read_only_mapping_is_not_copied() -> None:
    """So that pairs which are read from disk are not read for a copy of something else."""
    adapter = make_adapter()
    assert replace(adapter, base_model="other").pairs is adapter.pairs
