"""Every kind of thing that PEFT adapts: three clients trained by PEFT, aggregated here, loaded and merged by PEFT again.

The test ids are the rows of :data:`peft_rows.ROWS`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import HiraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

import florana
import peft_clients
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.errors import AdapterError
from florana.peft_io import (
    adapter_from_state_dict,
    adapter_to_config,
    adapter_to_state_dict,
    load_adapter,
    save_adapter,
)
from florana.peft_io.form import TensorInfo, read_form
from florana.peft_io.settings import read_settings
from florana.peft_io.state_dict import stored_modules
from peft_clients import SHARES, Row, mean, off, updates
from peft_models import LINEAR, fixed, of
from peft_rows import ROWS

# PEFT warns of missing configs and of what it sets by itself
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=ROWS.values(), ids=ROWS.keys())
def row(request: pytest.FixtureRequest) -> Row:
    """One row of the table."""
    return request.param


def frozen(row: Row, adapter: Adapter) -> dict[str, Tensor]:
    """W (d_out, d_in) of every pair of DoRA or HiRA, from the base model's own parameters."""
    base = row.base()
    return {
        name: layout.weight(base.get_submodule(name).get_parameter(layout.parameter).detach())
        for name, layout in stored_modules(adapter.pairs, adapter.layouts)
        if adapter.variant != "lora"
    }


def exact_rank(clients: list[ClientUpdate]) -> int:
    """A rank that loses nothing: Σ r, or that of a full matrix where Σ r is more."""
    pairs = [client.adapter.pairs for client in clients]
    return max(min(sum(p[name].rank for p in pairs), *pairs[0][name].shape) for name in pairs[0])


def test_aggregate_merges_to_the_mean_of_the_clients_merged_weights(
    row: Row, tmp_path: Path
) -> None:
    """Every weight and bias that PEFT makes of the aggregate is the dense mean of those that it makes of the clients."""
    folders = peft_clients.saved(row, tmp_path)
    expected = mean([peft_clients.merged(row.base(), folder) for folder in folders])
    base = {name: tensor.double() for name, tensor in row.base().state_dict().items()}
    assert any(not torch.equal(expected[name], base[name]) for name in base)
    clients = updates(folders)
    weights = frozen(row, clients[0].adapter) or None
    for method, options in (("ideal", {}), ("florana-opt", {"rank": exact_rank(clients)})):
        made = florana.aggregate(clients, method, base_weights=weights, **options)
        folder = save_adapter(made.adapter, tmp_path / method)
        assert off(peft_clients.merged(row.base(), folder), expected) == {}, method


def test_peft_concatenates_to_the_same_or_cannot(row: Row, tmp_path: Path) -> None:
    """PEFT's own "cat" is that mean too; where it refuses, or forgets magnitudes, biases, rows or √r, it is said here."""
    folders = peft_clients.saved(row, tmp_path)
    if row.cat not in ("exact", "inexact"):
        with pytest.raises((AttributeError, ValueError), match=row.cat):
            peft_clients.concatenated(row.base(), folders, SHARES)
        return
    expected = mean([peft_clients.merged(row.base(), folder) for folder in folders])
    came = dict(peft_clients.concatenated(row.base(), folders, SHARES).state_dict())
    gaps = off(came, expected)
    assert (gaps == {}) if row.cat == "exact" else (max(gaps.values()) > 1e-2)


def test_saving_keeps_every_bit(row: Row, tmp_path: Path) -> None:
    """Load, save, load, and what PEFT holds in memory, give one adapter: tensors, scalings, layouts, settings."""
    model = peft_clients.trained(row, 1)
    model.save_pretrained(tmp_path / "peft", **row.save)
    first = load_adapter(tmp_path / "peft")
    second = load_adapter(save_adapter(first, tmp_path / "ours"))
    state = get_peft_model_state_dict(model, **row.save)
    third = adapter_from_state_dict(state, model.peft_config["default"].to_dict())
    for other in (second, third):
        assert other.layouts == first.layouts
        assert other.peft_config == first.peft_config
        tensors = other.tensors()
        assert tensors.keys() == first.tensors().keys()
        for name, tensor in first.tensors().items():
            if name.endswith(".lora_bias"):  # times s, and divided by it again
                torch.testing.assert_close(tensors[name], tensor, rtol=1e-6, atol=0)
            else:
                assert torch.equal(tensors[name], tensor), name
        for name, pair in first.pairs.items():
            assert other.pairs[name].scaling == pytest.approx(pair.scaling, rel=1e-15)


def test_a_module_is_read_from_its_own_keys(row: Row, tmp_path: Path) -> None:
    """Shapes alone say what is there; reading one module touches no other key, and all modules and extras every key."""
    model = peft_clients.trained(row, 0)
    state = get_peft_model_state_dict(model, **row.save)
    infos = {key: TensorInfo(t.dtype, tuple(t.shape)) for key, t in state.items()}
    form = read_form(infos, read_settings(model.peft_config["default"].to_dict()))
    asked: list[str] = []

    def fetch(key: str) -> Tensor:
        asked.append(key)
        return state[key]

    for module in form.modules.values():
        asked.clear()
        pairs = module.read(fetch)
        assert sorted(asked) == sorted(module.keys.values())
        assert tuple(pairs) == module.pair_names
        for pair in pairs.values():
            assert (pair.shape, pair.rank, pair.A.dtype) == (
                module.shape,
                module.rank,
                module.dtype,
            )
            assert (pair.variant, pair.scaling) == (module.variant, module.scaling)
        written = module.write(pairs)
        assert {key: tuple(t.shape) for key, t in written.items()} == {
            key: infos[key].shape for key in asked
        }
        assert all(torch.equal(tensor, state[key]) for key, tensor in written.items())
    used = [key for m in form.modules.values() for key in m.keys.values()]
    used += [extra.key for extra in form.extras.values()]
    assert len(used) == len({*used})
    copies = {"modules_to_save", "original_module"}  # of what PEFT saves under a plain name too
    assert {*used} == {key for key in state if copies.isdisjoint(key.split("."))}


def test_eva_clients_have_unlike_ranks(tmp_path: Path) -> None:
    """The row "eva" is what it says: PEFT writes other ranks for other clients, in patterns, with the base as it was."""
    row = ROWS["eva"]
    ranks = [
        {name: pair.rank for name, pair in load_adapter(folder).pairs.items()}
        for folder in peft_clients.saved(row, tmp_path)
    ]
    assert ranks[0] != ranks[1]
    base, model = row.base(), peft_clients.trained(row, 0).unload()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, base.get_parameter(name)), name


# ---- what PEFT itself cannot do, or does wrong ---------------------------------------------------


def test_grouped_convolution_is_refused(tmp_path: Path) -> None:
    """PEFT trains and saves it and cannot merge it; it is known by its shapes and refused."""
    base = fixed(lambda: of(c=nn.Conv2d(4, 8, 3, groups=2)))
    model = peft_clients.trained(Row(base, {"target_modules": ["c"]}), 0)
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"block\.c.*grouped convolution"):
        load_adapter(tmp_path)
    with pytest.raises(NotImplementedError, match="groups > 1"):
        model.merge_and_unload()


def test_peft_ignores_the_rank_pattern_of_hira() -> None:
    """PEFT makes every HiRA module with config.r. So one rank is written for all, padded, and either is read."""
    config = HiraConfig(r=2, target_modules=["q", "v"], rank_pattern={"v": 3})
    model = get_peft_model(LINEAR(), config)
    assert model.base_model.model.block.v.hira_A["default"].shape[0] == 2
    adapter = adapter_from_state_dict(get_peft_model_state_dict(model), config.to_dict())
    assert {pair.rank for pair in adapter.pairs.values()} == {2}
    wide = LoraPair(torch.ones(3, 12), torch.ones(9, 3), 3.0, hadamard=True)
    mixed = Adapter({**adapter.pairs, "block.v": wide})
    config = adapter_to_config(mixed)
    assert (config["r"], config["rank_pattern"]) == (3, {})
    again = adapter_from_state_dict(adapter_to_state_dict(mixed), config)
    for name, pair in mixed.pairs.items():
        weight = torch.randn(pair.shape).double()
        torch.testing.assert_close(again.pairs[name].delta_w(weight), pair.delta_w(weight))


def test_peft_merges_replicated_layers_into_one_weight(tmp_path: Path) -> None:
    """PEFT's layers share a weight and merge into it one after the other. Unmerged, the aggregate is right, layer by layer."""
    row = ROWS["layer-replication"]
    folders = peft_clients.saved(row, tmp_path)
    made = florana.aggregate(updates(folders), "ideal").adapter
    folder = save_adapter(made, tmp_path / "made")

    def deltas(path: Path) -> dict[str, Tensor]:
        model = PeftModel.from_pretrained(row.base(), path)
        layers = model.base_model.model.model.layers
        return {
            str(i): layer.self_attn.q_proj.get_delta_weight("default").detach().double()
            for i, layer in enumerate(layers)
        }

    assert len(deltas(folder)) == 3
    assert off(deltas(folder), mean([deltas(path) for path in folders])) == {}
    model = PeftModel.from_pretrained(row.base(), folder)
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        unmerged = model(input_ids=tokens).logits
        merged = model.merge_and_unload()(input_ids=tokens).logits
    assert not torch.allclose(unmerged, merged, atol=1e-4)


def test_peft_cannot_merge_a_kernel_of_one_by_one_in_three_dimensions(tmp_path: Path) -> None:
    """PEFT takes Conv3d (1, 1, k) for a 1 × 1 Conv2d and fails to merge it; its outputs are the mean of the clients'."""
    row = Row(fixed(lambda: of(c=nn.Conv3d(2, 6, (1, 1, 2)))), {"target_modules": ["c"]})
    folders = peft_clients.saved(row, tmp_path)
    folders.append(
        save_adapter(florana.aggregate(updates(folders), "ideal").adapter, tmp_path / "made")
    )
    volumes = torch.randn(1, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    models = [PeftModel.from_pretrained(row.base(), folder) for folder in folders]
    with torch.no_grad():
        *clients, made = (m.base_model.model.block.c(volumes).double() for m in models)
    expected = mean([{"c": output} for output in clients])
    assert off({"c": made}, expected) == {}
    with pytest.raises(RuntimeError):
        models[-1].merge_and_unload()


def test_the_table_of_rows_in_the_documents_is_whole() -> None:
    """docs/folders.md names every row, and none that is not tested."""
    text = (Path(__file__).parents[1] / "docs" / "folders.md").read_text()
    table = text.partition("| what PEFT adapts | rows |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`([\w-]+)`", table)) == sorted(ROWS)
