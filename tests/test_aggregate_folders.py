"""Folders made into one: as in memory, as PEFT merges it, and refused with every reason where they do not fit."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import florana
from adapter_folders import TARGETS, clients, merged, tower, updates, write, write_base
from florana import aggregate_folders, load_adapter
from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import aggregate, cards
from florana.config import ServerConfig
from florana.errors import (
    AdapterError,
    AggregationError,
    ConfigError,
    FloranaError,
    ModelError,
    RunError,
)
from florana.folders import combine
from florana.folders.base import matched
from florana.folders.inspect_losses import offline
from florana.peft_io.folder import AdapterFolder
from strategies import assert_near, client_updates, dense_delta

OFFLINE = [name for name, card in cards().items() if not offline(card)]
HEAD = {"modules_to_save": ["head"], "bias": "lora_only"}

pytestmark = pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")


def deltas(folder: Path) -> dict[str, Tensor]:
    """What PEFT's merge adds to every weight of the base model."""
    base = tower().double().state_dict()
    return {name: tensor - base[name] for name, tensor in merged(folder).items()}


def assert_same(made: Adapter, expected: Adapter) -> None:
    """Every tensor has the same bits, every pair the same scaling."""
    assert made.tensors().keys() == expected.tensors().keys()
    for name, tensor in expected.tensors().items():
        assert torch.equal(made.tensors()[name], tensor), name
    assert {n: p.scaling for n, p in made.pairs.items()} == pytest.approx(
        {n: p.scaling for n, p in expected.pairs.items()}
    )


# ---- the same as in memory, and as PEFT has it --------------------------------------------------


@pytest.mark.parametrize("method", OFFLINE)
def test_folders_become_what_aggregate_makes_in_memory(method: str, tmp_path: Path) -> None:
    """For every method: the same bits and errors as in memory, and PEFT's merge adds the method's delta."""
    paths, weights = clients(tmp_path, **HEAD), [30, 10, 5]
    expected = aggregate(updates(paths, [30, 10, 5]), method)
    result = aggregate_folders(paths, tmp_path / "out", method, weights, streaming=False)
    assert_same(load_adapter(result.out), expected.adapter)
    assert {m.name: m.errors for m in result.modules} == dict(expected.errors)
    assert result.error == expected.error
    assert dict(result.weights) == dict(expected.weights)
    assert result.ranks == tuple(sorted({p.rank for p in expected.adapter.pairs.values()}))
    changed = deltas(result.out)
    for name, pair in expected.adapter.pairs.items():
        assert_near(changed[f"{name}.weight"], dense_delta(pair), 1e-6)
    whole = merged(result.out)
    for name, tensor in expected.adapter.extras.items():
        assert_near(whole[name], tensor, 1e-6)


@given(given_updates=client_updates(max_clients=3), rank=st.sampled_from([None, 2]))
@settings(max_examples=8)
def test_any_adapters_become_what_aggregate_makes(
    given_updates: list[ClientUpdate], rank: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Unlike ranks, alphas and rsLoRA, weights of 0, other ranks of the result: as in memory."""
    root = tmp_path_factory.mktemp("any")
    paths = [florana.save_adapter(u.adapter, root / u.client_id) for u in given_updates]
    sizes = [u.num_examples for u in given_updates]
    expected = aggregate(updates(paths, sizes), rank=rank)
    result = aggregate_folders(paths, root / "out", weights=sizes, rank=rank, streaming=False)
    made = load_adapter(result.out)
    for name, pair in expected.adapter.pairs.items():
        assert_near(dense_delta(made.pairs[name]), dense_delta(pair), 1e-12)
        assert made.pairs[name].rank == pair.rank
    for name, tensor in expected.adapter.extras.items():
        assert torch.equal(made.extras[name], tensor)


def test_options_and_add_ons_reach_the_method(tmp_path: Path) -> None:
    """``gauge`` and ``server.shrinkage`` give what they give in memory, and the result says so."""
    paths, server = clients(tmp_path), ServerConfig(shrinkage="norm")
    expected = aggregate(updates(paths), server=server, alpha=3, gauge="balanced")
    result = aggregate_folders(
        paths, tmp_path / "out", alpha=3, server=server, gauge="balanced", streaming=False
    )
    assert_same(load_adapter(result.out), expected.adapter)
    assert result.options == {"gauge": "balanced", "server.shrinkage": "norm"}


def test_lora_bias_is_averaged_by_its_effect(tmp_path: Path) -> None:
    """PEFT's merged biases are the mean of the clients' merged biases, though alphas differ."""
    paths = [
        write(tmp_path, f"site_{a}", a, lora_alpha=a, lora_bias=True, target_modules=["up"])
        for a in (2, 5)
    ]
    result = aggregate_folders(paths, tmp_path / "out", rank=4)
    mean = torch.stack([merged(path)["layers.0.up.bias"] for path in paths]).mean(dim=0)
    assert_near(merged(result.out)["layers.0.up.bias"], mean, 1e-6)


def test_one_adapter_is_made_into_one_of_smaller_rank(tmp_path: Path) -> None:
    """A lone folder comes out as its best approximation, and at its own rank as itself."""
    path = write(tmp_path, "one", r=4)
    same = aggregate_folders([path], tmp_path / "same")
    less = aggregate_folders([path], tmp_path / "less", rank=2)
    assert same.error is not None
    assert less.error is not None
    assert same.error.used < 1e-6
    assert less.ranks == (2,)
    assert less.error.used == pytest.approx(less.error.optimum, rel=1e-5)


# ---- streaming ----------------------------------------------------------------------------------


def test_many_adapters_are_streamed_and_the_bound_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Σ r exceeds a side of the weight, modules are streamed; every true error is within its bound."""
    paths = clients(tmp_path, 4)
    whole = aggregate_folders(paths, tmp_path / "whole")
    assert whole.error is not None  # small modules are held at once, for exact errors
    monkeypatch.setattr(combine, "FEW", 0)
    result = aggregate_folders(paths, tmp_path / "out")
    ideal = {
        name: sum(dense_delta(u.adapter.pairs[name]) for u in updates(paths)) / 4
        for name in load_adapter(paths[0]).pairs
    }
    made = load_adapter(result.out).pairs
    gaps, sizes = [], []
    for module in result.modules:
        assert module.errors is None
        assert module.estimate is not None
        T = ideal[module.name]
        gap, size = T - dense_delta(made[module.name]), torch.linalg.matrix_norm(T)
        assert module.estimate.least <= torch.linalg.matrix_norm(gap) / size + 1e-6
        assert torch.linalg.matrix_norm(gap) / size <= module.estimate.bound
        assert module.estimate.target_norm == pytest.approx(float(size), rel=0.2)
        gaps.append(gap.flatten())
        sizes.append(size)
    overall = torch.linalg.vector_norm(torch.cat(gaps)) / torch.linalg.vector_norm(
        torch.stack(sizes)
    )
    assert result.error is None
    assert result.estimate is not None
    assert overall <= result.estimate.bound


def test_streamed_plain_averaging_is_plain_averaging(tmp_path: Path) -> None:
    """The same product as fedit makes in memory, with an estimate near its true error."""
    paths = clients(tmp_path)
    exact = aggregate(updates(paths, [1, 2, 3]), "fedit")
    result = aggregate_folders(paths, tmp_path / "out", "fedit", [1, 2, 3], streaming=True)
    made = load_adapter(result.out).pairs
    for name, pair in exact.adapter.pairs.items():
        assert_near(dense_delta(made[name]), dense_delta(pair), 1e-6)
    assert result.estimate is not None
    assert exact.error is not None
    assert result.estimate.used == pytest.approx(exact.error.used, rel=0.1)
    assert result.estimate.bound >= exact.error.used


@pytest.mark.parametrize("missing", ["zero", "mean"])
@pytest.mark.parametrize("method", ["fedit", "florana-opt"])
def test_streaming_treats_missing_modules_as_memory_does(
    method: str, missing: Any, tmp_path: Path
) -> None:
    """Streamed or not, at full rank the same product."""
    paths = [*clients(tmp_path, 2), write(tmp_path, "less", 7, target_modules=TARGETS[:2])]
    rank = 6 if method == "florana-opt" else None
    both = [
        aggregate_folders(
            paths, tmp_path / str(s), method, [1, 2, 3], rank=rank, missing=missing, streaming=s
        )
        for s in (True, False)
    ]
    streamed, exact = (load_adapter(result.out).pairs for result in both)
    for name, pair in exact.items():
        assert_near(dense_delta(streamed[name]), dense_delta(pair), 1e-6)


def test_a_method_that_cannot_be_streamed_says_so(tmp_path: Path) -> None:
    """No silent fallback to another way."""
    with pytest.raises(ConfigError, match=r"flora cannot be streamed.*fedit, florana-opt"):
        aggregate_folders(clients(tmp_path), tmp_path / "out", "flora", streaming=True)
    with pytest.raises(AggregationError, match=r"dora.*streaming"):
        aggregate_folders(
            clients(tmp_path / "dora", use_dora=True),
            tmp_path / "out",
            streaming=True,
            base=write_base(tmp_path / "base"),
        )


# ---- modules that some lack ---------------------------------------------------------------------


def uneven(root: Path, **settings: Any) -> list[Path]:
    """Two adapters of all layers, and one without ``side``."""
    less = write(root, "less", 7, **{**settings, "target_modules": TARGETS[:2]})
    return [*clients(root, 2, **settings), less]


def test_missing_modules_are_refused_unless_something_is_chosen(tmp_path: Path) -> None:
    """The message names the adapter, the modules, and both ways out."""
    with pytest.raises(AggregationError, match=r"less lacks 2 modules \(layers.0.side.*zero.*mean"):
        aggregate_folders(uneven(tmp_path), tmp_path / "out")


def test_missing_as_zero_is_the_dense_mean_with_zero(tmp_path: Path) -> None:
    """The exact mean counts ΔW = 0; plain averaging keeps the others' mean A."""
    paths, weights = uneven(tmp_path), [3, 1, 4]
    result = aggregate_folders(paths, tmp_path / "ideal", "ideal", weights, missing="zero")
    first, second, _ = (u.adapter.pairs for u in updates(paths))
    made = load_adapter(result.out).pairs
    side = "layers.0.side"
    assert_near(
        dense_delta(made[side]),
        (3 * dense_delta(first[side]) + 1 * dense_delta(second[side])) / 8,
        1e-6,
    )
    assert result.absent == {"less": ("layers.0.side", "layers.1.side")}
    plain = aggregate_folders(paths, tmp_path / "fedit", "fedit", weights, missing="zero")
    pair = load_adapter(plain.out).pairs[side]
    assert_near(pair.A, (3 * first[side].A + 1 * second[side].A) / 4, 1e-6)
    assert_near(pair.B, (3 * first[side].B + 1 * second[side].B) / 8, 1e-6)


def test_missing_as_mean_renormalises_the_weights(tmp_path: Path) -> None:
    """The mean over those that have the module; where they weigh nothing there is none."""
    paths = uneven(tmp_path)
    result = aggregate_folders(paths, tmp_path / "out", "ideal", [3, 1, 4], missing="mean")
    first, second, _ = (
        u.adapter.pairs["layers.1.side"] for u in [*updates(paths[:2]), updates(paths[:1])[0]]
    )
    made = load_adapter(result.out).pairs["layers.1.side"]
    assert_near(dense_delta(made), (3 * dense_delta(first) + dense_delta(second)) / 4, 1e-6)
    with pytest.raises(AggregationError, match=r"layers\.0\.side"):
        aggregate_folders(paths, tmp_path / "none", "ideal", [0, 0, 4], missing="mean")


def test_heads_have_no_zero(tmp_path: Path) -> None:
    """A head that one lacks is refused with zero, and averaged over the others with mean."""
    paths = [*clients(tmp_path, 2, modules_to_save=["head"]), write(tmp_path, "headless", 9)]
    with pytest.raises(AggregationError, match=r"headless lacks 2 parameters.*no zero"):
        aggregate_folders(paths, tmp_path / "out", missing="zero")
    result = aggregate_folders(paths, tmp_path / "out", missing="mean")
    heads = [load_adapter(path).extras["head.weight"] for path in paths[:2]]
    assert_near(load_adapter(result.out).extras["head.weight"], sum(heads) / 2, 1e-6)


# ---- dtypes -------------------------------------------------------------------------------------


def test_the_result_has_the_inputs_dtype(tmp_path: Path) -> None:
    """bfloat16 in, bfloat16 out."""
    result = aggregate_folders(clients(tmp_path, dtype=torch.bfloat16, **HEAD), tmp_path / "out")
    state = load_file(result.out / "adapter_model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    assert result.dtypes == ("bfloat16",)


def test_another_dtype_is_rounded_to_once_and_the_error_says_so(tmp_path: Path) -> None:
    """Inputs are not rounded before they are combined; the error told is that of what was written."""
    paths = clients(tmp_path, **HEAD)
    exact = aggregate(updates(paths), "ideal").adapter
    result = aggregate_folders(paths, tmp_path / "out", "ideal", dtype="bfloat16")
    made = load_adapter(result.out)
    assert {t.dtype for t in made.tensors().values()} == {torch.bfloat16}
    for name, tensor in exact.tensors().items():
        assert torch.equal(made.tensors()[name], tensor.bfloat16()), name
    assert result.error is not None
    assert 1e-4 < result.error.used < 1e-2


def test_unlike_dtypes_need_a_choice(tmp_path: Path) -> None:
    """Refused with the way out; with a dtype, the mean of what the files hold."""
    paths = [write(tmp_path, "wide", 1), write(tmp_path, "narrow", 2, dtype=torch.bfloat16)]
    with pytest.raises(AggregationError, match=r"narrow has dtype bfloat16.*--dtype"):
        aggregate_folders(paths, tmp_path / "out")
    result = aggregate_folders(paths, tmp_path / "out", "ideal", dtype="float32")
    name = "layers.0.up"
    mean = sum(dense_delta(load_adapter(path).pairs[name]) for path in paths) / 2
    assert_near(dense_delta(load_adapter(result.out).pairs[name]), mean, 1e-6)


def test_what_does_not_fit_into_float16_is_refused(tmp_path: Path) -> None:
    """Infinity is never written."""
    pair = LoraPair(torch.ones(1, 3), torch.full((2, 1), 1e6), alpha=1)
    path = florana.save_adapter(Adapter({"layer": pair}), tmp_path / "large")
    with pytest.raises(AggregationError, match=r"layer.*float16"):
        aggregate_folders([path], tmp_path / "out", "fedit", dtype="float16")
    assert not (tmp_path / "out").exists()


# ---- what does not fit --------------------------------------------------------------------------


REFUSED: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "rank": (
        {"r": 3},
        {"method": "fedit"},
        r"odd has rank 3 in 6 modules.*unlike ranks: .*florana-opt",
    ),
    "variant": ({"use_dora": True}, {}, r"odd has variant DoRA in 6 modules"),
    "extra": ({"modules_to_save": ["head"]}, {}, r"site_0 lacks 2 parameters \(head.bias"),
    "setting": ({"bias": "lora_only"}, {"missing": "mean"}, r"odd has setting bias"),
    "higher rank": ({}, {"rank": 7}, r"rank 7 is above min\(d_out, d_in\) = 6 in 6 modules"),
    "kept rank": ({}, {"rank": 1, "method": "fedit"}, r"rank 1 cannot be had.*choose the rank: "),
    "rank 0": ({}, {"rank": 0}, r"rank must be 1 or more"),
    "alpha": ({}, {"alpha": -1.0}, r"alpha must be a positive"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    """Each with its reason, before anything is written."""
    odd, asked, message = REFUSED[case]
    paths = [*clients(tmp_path, 2), write(tmp_path, "odd", 9, **odd)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FloranaError, match=message):
        aggregate_folders(paths, tmp_path / "out", **asked)
    assert sorted(tmp_path.iterdir()) == before


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """One message with every adapter that does not fit, and every folder that cannot be read."""
    paths = [
        *clients(tmp_path, 2),
        write(tmp_path, "wide", 3, r=3),
        write(tmp_path, "part", 4, target_modules=["up"]),
        write(tmp_path, "half", 5, dtype=torch.float16),
    ]
    with pytest.raises(AggregationError) as refusal:
        aggregate_folders(paths, tmp_path / "out", "fedit")
    for part in ("wide has rank 3", "part lacks 4 modules", "half has dtype float16"):
        assert part in str(refusal.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError) as refusal2:
        aggregate_folders([*paths, tmp_path / "empty", tmp_path / "none"], tmp_path / "out")
    assert "2 of 7 folders" in str(refusal2.value)
    assert "none is not a folder" in str(refusal2.value)


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    """Adapters of another architecture with the same module names."""
    pairs = [LoraPair(torch.ones(1, d), torch.ones(2, 1), alpha=1) for d in (4, 4, 5)]
    paths = [
        florana.save_adapter(Adapter({"layer": p}), tmp_path / f"c{u}") for u, p in enumerate(pairs)
    ]
    with pytest.raises(
        AggregationError, match=r"c2 has shape 2 × 5 in module layer; expected 2 × 4"
    ):
        aggregate_folders(paths, tmp_path / "out")


def rename(path: Path, name: str) -> Path:
    """The adapter says that it belongs to another base model."""
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": name})
    )
    return path


def test_a_hub_name_and_a_path_need_a_word(tmp_path: Path) -> None:
    """Unlike names are refused with both; ``base_name`` is the word that they are one model."""
    paths = clients(tmp_path)
    for path, name in zip(paths, ["org/m", "org/m", "/models/m"], strict=True):
        rename(path, name)
    with pytest.raises(
        AggregationError, match=r"'org/m' \(site_0, site_1\), '/models/m' \(site_2\)"
    ):
        aggregate_folders(paths, tmp_path / "out")
    result = aggregate_folders(paths, tmp_path / "out", base_name="org/m")
    assert load_adapter(result.out).base_model == "org/m" == result.base_model


@pytest.mark.parametrize("method", sorted(cards().keys() - {*OFFLINE}))
def test_methods_that_train_by_a_plan_are_refused(method: str, tmp_path: Path) -> None:
    """The message lists the methods that merge finished adapters, and no others."""
    with pytest.raises(ConfigError, match="cannot merge finished adapters") as refusal:
        aggregate_folders([tmp_path / "not read"], tmp_path / "out", method)
    assert str(refusal.value).rpartition("methods that can: ")[2].split(", ") == OFFLINE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": [1, 2]}, "2 weights for 3 adapters"),
        ({"weights": [1, -2, 1]}, "got -2"),
        ({"weights": [0, 0, 0]}, "sum of 0"),
        ({"weights": [1, float("nan"), 1]}, "got nan"),
        ({"dtype": "int8"}, "dtype is int8; expected one of float32"),
        ({"missing": "ignore"}, "expected one of refuse, zero, mean"),
        ({"method": "florana-op"}, "did you mean 'florana-opt'"),
        ({"gague": "balanced"}, "did you mean 'gauge'"),
    ],
)
def test_what_is_asked_is_checked(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Mistakes are told without a folder having been made."""
    with pytest.raises(FloranaError, match=message):
        aggregate_folders(clients(tmp_path), tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_one_folder_twice_is_a_mistake(tmp_path: Path) -> None:
    """It would count twice without a word; also under another spelling of its path."""
    (path,) = clients(tmp_path, 1)
    with pytest.raises(AggregationError, match="given twice"):
        aggregate_folders([path, path / ".." / path.name], tmp_path / "out")


# ---- the output folder --------------------------------------------------------------------------


def test_what_is_there_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    """Neither another folder, nor an input."""
    paths = clients(tmp_path)
    aggregate_folders(paths, tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RunError, match="exists"):
        aggregate_folders(paths, tmp_path / "out", "fedit")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    aggregate_folders(paths, tmp_path / "out", "fedit", overwrite=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != before
    with pytest.raises(AggregationError, match="an input and the output"):
        aggregate_folders(paths, paths[0], overwrite=True)


@pytest.mark.parametrize("cause", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_what_was_there(cause: type[BaseException], tmp_path: Path) -> None:
    """Stopped between two modules: the old folder, bit for bit, and nothing beside it."""
    paths = clients(tmp_path)
    aggregate_folders(paths, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    listing = sorted(tmp_path.iterdir())

    def stop(done: int, count: int, name: str) -> None:
        if done == 3:
            raise cause

    with pytest.raises(cause):
        aggregate_folders(paths, tmp_path / "out", "fedit", overwrite=True, watch=stop)
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert sorted(tmp_path.iterdir()) == listing


@pytest.mark.parametrize("streaming", [False, True])
def test_memory_does_not_grow_with_the_number_of_modules(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of inputs alive at once are those of one module; streamed, those of two adapters."""
    read, alive, peak = AdapterFolder.pairs, 0, 0

    def release(size: int) -> None:
        nonlocal alive
        alive -= size

    def counted(folder: AdapterFolder, module: str) -> dict[str, LoraPair]:
        nonlocal alive, peak
        pairs = read(folder, module)
        for pair in pairs.values():
            for tensor in (pair.A, pair.B):
                alive += tensor.nbytes
                weakref.finalize(tensor, release, tensor.nbytes)
        peak = max(peak, alive)
        return pairs

    monkeypatch.setattr(AdapterFolder, "pairs", counted)
    of_one = 2 * (9 + 6) * 4  # rank 2, 9 × 6, float32: the largest module
    for layers, count in ((1, 3), (4, 3), (4, 6)):
        root, peak = tmp_path / f"{layers} {count}", 0
        paths = clients(root, count, layers=layers)
        aggregate_folders(paths, root / "out", streaming=streaming)
        assert alive == 0
        assert peak <= of_one * (2 if streaming else count)
        assert peak >= of_one


# ---- DoRA, HiRA and the base model --------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("shards", [1, 3])
def test_dora_is_the_mean_of_the_merged_weights(prefix: str, shards: int, tmp_path: Path) -> None:
    """At full rank PEFT's merged weights are the weighted mean of the clients' merged weights."""
    paths = clients(tmp_path, use_dora=True)
    base = write_base(tmp_path / "base", prefix, shards)
    result = aggregate_folders(paths, tmp_path / "out", weights=[3, 1, 1], rank=6, base=base)
    states = [merged(path) for path in paths]
    made = merged(result.out)
    for name in made:
        mean = (3 * states[0][name] + states[1][name] + states[2][name]) / 5
        assert_near(made[name], mean, 1e-5)


def test_dora_without_a_module_counts_as_the_base_model(tmp_path: Path) -> None:
    """A zero of DoRA has the lengths of W's rows as magnitudes, so that its merged weight is W."""
    paths, base = uneven(tmp_path, use_dora=True), write_base(tmp_path / "base")
    result = aggregate_folders(paths, tmp_path / "out", rank=6, base=base, missing="zero")
    states = [merged(path)["layers.0.side.weight"] for path in paths]
    assert_near(merged(result.out)["layers.0.side.weight"], sum(states) / 3, 1e-5)


def test_dora_needs_the_base_model(tmp_path: Path) -> None:
    """The message says which option, and a folder without weights or with others is refused."""
    paths = clients(tmp_path, 2, use_dora=True)
    run = partial(aggregate_folders, paths, tmp_path / "out")
    with pytest.raises(AggregationError, match=r"dora adapters.*--base"):
        run()
    with pytest.raises(ModelError, match=r"neither model.safetensors nor"):
        run(base=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    save_file({"up.weight": torch.ones(9, 6)}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no layers.0.down.weight"):
        run(base=other)
    index = other / "model.safetensors.index.json"
    (other / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(ModelError, match=r"names of files in that folder"):
        run(base=other)
    assert not (tmp_path / "out").exists()


def test_a_prefix_is_found_and_an_ambiguous_one_refused() -> None:
    """One prefix put on or taken off for all modules; two that fit are no answer."""
    wanted = {"l.0.q": "l.0.q.weight", "l.1.q": "l.1.q.weight"}
    known = [f"{side}.{name}" for side in ("encoder", "decoder") for name in wanted.values()]
    assert matched(wanted, dict.fromkeys(known[:2]))["l.1.q"] == "encoder.l.1.q.weight"
    assert matched(wanted, dict.fromkeys([*known[:2], known[3]]))["l.0.q"] == "encoder.l.0.q.weight"
    with pytest.raises(ModelError, match=r"under 2 names.*encoder.*decoder"):
        matched(wanted, dict.fromkeys(known))
    inside = {f"bert.{m}": f"bert.{name}" for m, name in wanted.items()}
    assert matched(inside, dict.fromkeys(wanted.values()))["bert.l.0.q"] == "l.0.q.weight"


# ---- the model card -----------------------------------------------------------------------------


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter, and the rest as HTML."""
    yaml = pytest.importorskip("yaml")
    from markdown_it import MarkdownIt

    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(body)


def test_the_card_says_what_went_in_and_came_out(tmp_path: Path) -> None:
    """Inputs, weights, method and paper, every module's error, and front matter as the hub has it."""
    paths = [rename(path, "org/base-7b") for path in clients(tmp_path)]
    result = aggregate_folders(paths, tmp_path / "out", "fedit", [3, 1, 1])
    front, html = card_of(result.out)
    assert front["base_model"] == "org/base-7b"
    assert front["library_name"] == "peft"
    assert {"lora", "federated", "base_model:adapter:org/base-7b"} <= {*front["tags"]}
    assert "https://arxiv.org/abs/2305.05644" in html
    assert "--weights 3,1,1" in html
    assert str(tmp_path) not in (result.out / "README.md").read_text()
    for module in result.modules:
        assert module.errors is not None
        assert f"<code>{module.name}</code>" in html
        assert f"<td>{module.errors.used:.4g}</td>" in html


def test_long_tables_are_folded(tmp_path: Path) -> None:
    """Above twenty modules the table is behind a summary, and still a table."""
    paths = clients(tmp_path, 2, layers=7)
    _, html = card_of(aggregate_folders(paths, tmp_path / "out", "fedit").out)
    assert "<summary>21 modules</summary>" in html
    assert html.count("<tr>") == 1 + 2 + 1 + 21


HOSTILE = [
    "<script>alert(1)</script>",
    "a`b``` c",
    "x | y | z",
    "line\n\n# Heading\n---",
    "[click](http:evil)",
    "*bold* _it_ &amp;",
    "\x1b[2J$(rm -rf ~)'",
]


def test_names_that_others_chose_do_no_harm(tmp_path: Path) -> None:
    """Folder, module and base names full of HTML, Markdown, YAML and shell are text in the card and the command."""
    import subprocess

    paths = []
    for u, name in enumerate(HOSTILE):
        safe = name.replace("/", "∕")
        pairs = {
            f"m.{n.replace('.', '')}": LoraPair(torch.ones(1, 3), u + torch.ones(2, 1), alpha=1)
            for n in HOSTILE
        }
        adapter = Adapter(pairs, base_model='x"\ntags: [evil]\n---\n# y')
        paths.append(florana.save_adapter(adapter, tmp_path / safe))
    result = aggregate_folders(paths, tmp_path / "out", "fedit")
    front, html = card_of(result.out)
    assert front["tags"] == ["lora", "federated", "florana"]
    assert "base_model" not in front
    for harm in ("<script", "<em>it", "<strong>bold", 'http:evil"', "<h1>Heading"):
        assert harm not in html, harm
    assert html.count("<tr>") == 1 + len(HOSTILE) + 1 + len(HOSTILE)
    assert "\x1b" not in (result.out / "README.md").read_text()
    from florana.folders._text import command_line

    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command_line(result.command)}"],
        capture_output=True,
        check=True,
    )
    assert echoed.stdout.decode().split("\0")[:-1] == list(result.command)
    assert "\n" not in command_line(result.command)


def test_progress_is_told(tmp_path: Path) -> None:
    """Every module and parameter once, in order, with the total."""
    seen: list[tuple[int, int, str]] = []
    watch: Callable[[int, int, str], None] = lambda *now: seen.append(now)  # noqa: E731
    result = aggregate_folders(clients(tmp_path, **HEAD), tmp_path / "out", watch=watch)
    names: Sequence[str] = [*(m.name for m in result.modules), *result.parameters]
    assert seen == [(done, len(names), name) for done, name in enumerate(names)]
