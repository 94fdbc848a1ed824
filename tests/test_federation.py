"""Rounds on Flower: adapters as records, the strategy, and clients in this process."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
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
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import aggregate, cards
from florana.errors import AdapterError, ConfigError, FederationError
from florana.federation.client_app import LocalResult, TrainClient, build_client_app
from florana.federation.local_grid import FIRST_NODE_ID, LocalGrid
from florana.federation.records import ADAPTER, RESIDUAL, count_bytes, pack, unpack
from florana.federation.strategy import LoraStrategy, RoundOutcome
from florana.lowrank import Product
from florana.seeding import generator
from strategies import EXTRAS, MODULES, client_updates, few, randn, seeds

METHODS = list(cards())
every_method = pytest.mark.parametrize("method", METHODS)

Change = Callable[[Any], object]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Flower's log of every round is not wanted here."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def make_adapter(seed: int = 0, rank: int = 2, alpha: float = 5.0, rslora: bool = False) -> Adapter:
    """A float32 adapter on rectangular modules, with a head."""
    g = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(randn(g, rank, d_in).float(), randn(g, d_out, rank).float(), alpha, rslora)
        for name, (d_out, d_in) in MODULES.items()
    }
    extras = {name: randn(g, *shape).float() for name, shape in EXTRAS.items()}
    return Adapter(pairs, extras, base_model="base", base_hash="1234")


def make_residual(seed: int = 0, width: int = 3) -> dict[str, Product]:
    """A float32 residual of every module."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: Product(randn(g, d_out, width).float(), randn(g, width, d_in).float())
        for name, (d_out, d_in) in MODULES.items()
    }


def assert_same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Every tensor has the same name, shape, dtype and bits."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        other = second[name]
        assert tensor.dtype == other.dtype == torch.float32, name
        assert tensor.shape == other.shape, name
        assert torch.equal(tensor.view(torch.int32), other.view(torch.int32)), name


def products(residual: Mapping[str, Product]) -> dict[str, Tensor]:
    """A residual as named tensors."""
    return {f"{name}.{part}": getattr(p, part) for name, p in residual.items() for part in "BA"}


# Adapters as records


@few
@given(updates=client_updates(dtype=torch.float32), width=st.integers(0, 3), seed=seeds)
def test_records_bring_back_every_bit(updates: list[ClientUpdate], width: int, seed: int) -> None:
    """Factors, heads, ranks, alphas, rslora and residual come out as they went in."""
    residual = make_residual(seed, width) if width else {}
    template = updates[0].adapter
    for update in updates:
        came, frozen = unpack(pack(update.adapter, residual), template)
        assert_same_bits(came.tensors(), update.adapter.tensors())
        assert_same_bits(products(frozen), products(residual))
        for name, pair in update.adapter.pairs.items():
            other = came.pairs[name]
            assert (pair.rank, pair.alpha, pair.rslora) == (other.rank, other.alpha, other.rslora)
        assert (came.base_model, came.base_hash) == ("base", "1234")


def test_records_keep_numbers_that_are_hard_to_keep() -> None:
    """NaN, infinity, minus zero and subnormals have the same bits on the other side."""
    adapter = make_adapter()
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4e38, 0.1])
    tensors = adapter.tensors() | {"classifier.weight": odd.repeat(3, 1)}
    adapter = adapter.with_tensors(tensors)
    assert_same_bits(unpack(pack(adapter), adapter)[0].tensors(), adapter.tensors())


def test_records_share_no_memory_with_the_adapter() -> None:
    """Writing into what came out changes neither the records nor what went in."""
    adapter = make_adapter()
    content = pack(adapter)
    unpack(content, adapter)[0].extras["classifier.bias"].fill_(9.0)
    assert_same_bits(unpack(content, adapter)[0].tensors(), adapter.tensors())
    assert_same_bits(adapter.tensors(), make_adapter().tensors())


def test_the_order_of_names_does_not_matter() -> None:
    """A sender that lists modules and parameters in another order is read by name."""
    adapter = make_adapter()
    reversed_adapter = replace(
        adapter,
        pairs={name: adapter.pairs[name] for name in reversed(list(adapter.pairs))},
        extras={name: adapter.extras[name] for name in reversed(list(adapter.extras))},
    )
    came, _ = unpack(pack(reversed_adapter), adapter)
    assert_same_bits(came.tensors(), adapter.tensors())
    assert list(came.tensors()) == list(adapter.tensors())


def test_other_dtypes_travel_as_float32() -> None:
    """A bfloat16 adapter is sent and received as the same numbers in float32."""
    adapter = make_adapter()
    half = adapter.with_tensors({n: t.bfloat16() for n, t in adapter.tensors().items()})
    came, _ = unpack(pack(half), half)
    assert_same_bits(came.tensors(), {n: t.float() for n, t in half.tensors().items()})


def test_an_adapter_is_one_array() -> None:
    """Flower moves arrays one by one: an adapter is one flat array, a residual one more."""
    assert list(pack(make_adapter()).array_records["arrays"]) == [ADAPTER]
    both = pack(make_adapter(), make_residual()).array_records["arrays"]
    assert list(both) == [ADAPTER, RESIDUAL]
    assert all(len(array.shape) == 1 for array in both.values())


def test_bytes_are_the_payload_the_manifest_and_little_else() -> None:
    """On an adapter of a real size, everything beside numbers and manifest is below 2 %."""
    pair = LoraPair(torch.zeros(8, 384), torch.zeros(384, 8), 16)
    adapter = Adapter({f"layer.{i}": pair for i in range(12)}, {"head": torch.zeros(10, 384)})
    residual = {"layer.0": Product(torch.zeros(384, 4), torch.zeros(4, 384))}
    for content, numbers in (
        (pack(adapter), 12 * 2 * 8 * 384 + 10 * 384),
        (pack(adapter, residual), 12 * 2 * 8 * 384 + 10 * 384 + 2 * 4 * 384),
    ):
        manifest = len(str(content.config_records["manifest"]["json"]))
        assert 4 * numbers + manifest <= count_bytes(content) <= 4 * numbers * 1.02 + manifest


def query(manifest: Any) -> dict[str, Any]:
    """What a manifest says of one module."""
    said = manifest["adapter"]["modules"]["encoder.query"]
    assert isinstance(said, dict)
    return said


def put(name: str, value: object) -> Change:
    """Set a key of one module in the manifest."""
    return lambda manifest: query(manifest).update({name: value})


BAD_MANIFESTS: dict[str, tuple[Change, str]] = {
    "other base": (lambda m: m["adapter"].update(base_model="gpt"), "base_model is 'gpt', expected 'base'"),
    "no base": (lambda m: m["adapter"].pop("base_model"), "base_model is None, expected 'base'"),
    "other hash": (lambda m: m["adapter"].update(base_hash="99"), "base_hash is '99', expected '1234'"),
    "a module less": (lambda m: m["adapter"]["modules"].pop("encoder.query"), "modules differ from the server's at encoder.query"),
    "a module more": (lambda m: m["adapter"]["modules"].update(extra=query(m)), "modules differ from the server's at extra"),
    "no modules": (lambda m: m["adapter"].pop("modules"), "manifest's modules are None, expected a table"),
    "modules a list": (lambda m: m["adapter"].update(modules=["encoder.query"]), r"modules are \['encoder.query'\], expected a table"),
    "module a number": (lambda m: m["adapter"]["modules"].update({"encoder.query": 3}), "module encoder.query is 3 in the manifest, expected a table"),
    "a parameter more": (lambda m: m["adapter"]["parameters"].update(bias=[3]), "parameters differ from the server's at bias"),
    "parameter shape": (lambda m: m["adapter"]["parameters"].update({"classifier.bias": [1, 3]}), r"parameter classifier.bias has shape \[1, 3\], expected \[3\]"),
    "parameter no shape": (lambda m: m["adapter"]["parameters"].update({"classifier.bias": 3}), r"parameter classifier.bias has shape 3, expected \[3\]"),
    "transposed": (put("shape", [12, 7]), r"module encoder.query has shape \[12, 7\], expected \[7, 12\]"),
    "no shape": (lambda m: query(m).pop("shape"), r"module encoder.query has shape None, expected \[7, 12\]"),
    "shape a number": (put("shape", 7), r"has shape 7, expected \[7, 12\]"),
    "rank 0": (put("r", 0), "module encoder.query has rank 0, expected 1 to 7"),
    "rank negative": (put("r", -2), "has rank -2, expected 1 to 7"),
    "rank too large": (put("r", 8), "has rank 8, expected 1 to 7"),
    "rank enormous": (put("r", 10**30), "has rank 1000.*, expected 1 to 7"),
    "rank a boolean": (put("r", True), "has rank True, expected 1 to 7"),
    "rank a fraction": (put("r", 2.0), "has rank 2.0, expected 1 to 7"),
    "rank missing": (lambda m: query(m).pop("r"), "has rank None, expected 1 to 7"),
    "alpha missing": (lambda m: query(m).pop("alpha"), "module encoder.query has alpha None, expected a finite number above 0"),
    "alpha NaN": (put("alpha", float("nan")), "has alpha nan"),
    "alpha infinite": (put("alpha", float("inf")), "has alpha inf"),
    "alpha enormous": (put("alpha", 10**400), "has alpha 1000"),
    "alpha 0": (put("alpha", 0), "has alpha 0"),
    "alpha negative": (put("alpha", -5.0), r"has alpha -5\.0"),
    "alpha a boolean": (put("alpha", True), "has alpha True"),
    "alpha a text": (put("alpha", "5"), "has alpha '5'"),
    "rslora missing": (lambda m: query(m).pop("rslora"), "has rslora None, expected true or false"),
    "rslora a number": (put("rslora", 1), "has rslora 1, expected true or false"),
    "residual a list": (lambda m: m.update(residual=[3]), r"manifest's residual is \[3\]"),
    "residual elsewhere": (lambda m: m.update(residual={"nowhere": 3}), "residual is of module 'nowhere'"),
    "residual width 0": (lambda m: m["residual"].update({"encoder.query": 0}), "residual of module encoder.query has width 0, expected 1 to 7"),
    "residual width boolean": (lambda m: m["residual"].update({"encoder.query": True}), "width True"),
    "residual width enormous": (lambda m: m["residual"].update({"encoder.query": 10**30}), "width 1000"),
    "residual width null": (lambda m: m["residual"].update({"encoder.query": None}), "width None"),
    "other rank than sent": (put("r", 3), r"array 'adapter' is float32 of shape \(\d+,\), the manifest asks for float32 of shape"),
    "other width than sent": (lambda m: m["residual"].update({"encoder.query": 2}), r"array 'residual' is float32 of shape \(\d+,\), the manifest asks for"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_manifest_that_does_not_fit_is_refused(change: Change, message: str) -> None:
    """What came and what was expected, by module; nothing is allocated by what a client claims."""
    content = pack(make_adapter(), make_residual())
    record = content.config_records["manifest"]
    manifest = json.loads(str(record["json"]))
    change(manifest)
    record["json"] = json.dumps(manifest)
    with pytest.raises(AdapterError, match=message):
        unpack(content, make_adapter())


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[]", "{}", '{"adapter": 3}', "[" * 100_000, "9" * 5000]
)
def test_a_manifest_that_is_no_manifest_is_refused(text: str) -> None:
    """Not JSON, not an object, or without an adapter."""
    content = pack(make_adapter())
    content["manifest"] = ConfigRecord({"json": text})
    with pytest.raises(AdapterError, match="manifest"):
        unpack(content, make_adapter())


def flat() -> NDArray[Any]:
    """The flat array of the adapter, as it should be."""
    return pack(make_adapter()).array_records["arrays"][ADAPTER].numpy()


def stated(body: bytes, stype: str = "numpy.ndarray") -> Array:
    """An array with the right header and any body."""
    return Array("float32", flat().shape, stype, body)


def body_of(array: NDArray[Any]) -> bytes:
    """The bytes of an array as Flower sends them."""
    return Array(array).data


BAD_ARRAYS: dict[str, tuple[Callable[[], Array], str]] = {
    "too long": (lambda: Array(np.append(flat(), np.float32(0))), "the manifest asks for float32 of shape"),
    "too short": (lambda: Array(flat()[:-1]), "the manifest asks for float32 of shape"),
    "empty": (lambda: Array(flat()[:0]), r"float32 of shape \(0,\)"),
    "float64": (lambda: Array(flat().astype(np.float64)), "float64 of shape"),
    "int32": (lambda: Array(flat().view(np.int32)), "is int32 of shape"),
    "two dimensions": (lambda: Array(flat()[None]), r"of shape \(1, "),
    "body float64": (lambda: stated(body_of(flat().astype(np.float64))), "other data than its header"),
    "body int32": (lambda: stated(body_of(flat().view(np.int32))), "other data than its header"),
    "body shorter": (lambda: stated(body_of(flat()[:-1])), "other data than its header"),
    "body big-endian": (lambda: stated(body_of(flat().astype(">f4"))), "cannot be read"),
    "body complex text": (lambda: stated(body_of(np.array(["a", "b"]))), "cannot be read"),
    "body cut": (lambda: stated(body_of(flat())[:-4]), "cannot be read"),
    "body nothing": (lambda: stated(b""), "cannot be read"),
    "body noise": (lambda: stated(b"\x93NUMPY\x01\x00" + bytes(range(256))), "cannot be read"),
    "body broken header": (lambda: stated(body_of(flat()).replace(b"'shape'", b"'shape(")), "cannot be read"),
    "body claims petabytes": (lambda: stated(body_of(flat()).replace(b"(%d,)" % len(flat()), b"(%d,)" % 10**15)[:200]), "cannot be read"),
    "body broken zip": (lambda: stated(b"PK\x03\x04" + b"\x00" * 99), "cannot be read"),
    "body pickle": (lambda: stated(b"\x80\x04K\x03."), "cannot be read"),
    "other serialisation": (lambda: stated(body_of(flat()), "pickle"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_an_array_that_does_not_fit_is_refused(make: Callable[[], Array], message: str) -> None:
    """Length, dtype, and a body that is not what its header says: an AdapterError names the array."""
    content = pack(make_adapter())
    content.array_records["arrays"][ADAPTER] = make()
    with pytest.raises(AdapterError, match=f"array 'adapter' .*{message}"):
        unpack(content, make_adapter())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: Array(array.numpy()[:-1]), "manifest asks for float32 of shape"),
        (lambda array: Array(array.numpy().astype(np.float64)), "is float64 of shape"),
        (lambda array: Array("float32", array.shape, array.stype, b"noise"), "cannot be read"),
    ],
)
def test_a_residual_that_does_not_fit_is_refused(change: Change, message: str) -> None:
    """The same holds for the residual's array."""
    content = pack(make_adapter(), make_residual())
    arrays = content.array_records["arrays"]
    arrays[RESIDUAL] = change(arrays[RESIDUAL])  # type: ignore[assignment]
    with pytest.raises(AdapterError, match=f"array 'residual' .*{message}"):
        unpack(content, make_adapter())


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (lambda c: c.pop("manifest"), "holds no manifest"),
        (lambda c: c["manifest"].pop("json"), "manifest cannot be read"),
        (lambda c: c.pop("arrays"), "holds no array 'adapter'"),
        (lambda c: c["arrays"].pop("adapter"), "holds no array 'adapter'"),
        (lambda c: c["arrays"].pop("residual"), "holds no array 'residual', which its manifest"),
        (lambda c: c.clear(), "holds no manifest"),
    ],
)
def test_a_missing_record_is_told(remove: Change, message: str) -> None:
    """Any part of the message that is not there is named."""
    content = pack(make_adapter(), make_residual())
    remove(content)
    with pytest.raises(AdapterError, match=message):
        unpack(content, make_adapter())


# Rounds


def toy_client(
    adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
) -> LocalResult:
    """Training without a model: a step that depends on round, client, adapter and residual."""
    rng = generator(0, "toy", server_round, partition)
    frozen = sum(float(product.B.sum()) for product in residual.values())
    trained = {
        name: 0.9 * t + torch.from_numpy(rng.normal(0.01 * frozen, 0.3, t.shape)).float()
        for name, t in adapter.tensors().items()
    }
    accuracy = float(server_round) + 0.1 * partition
    return LocalResult(adapter.with_tensors(trained), 10 * (partition + 1), {"accuracy": accuracy})


def federate(
    app: ClientApp | TrainClient = toy_client,
    rounds: int = 2,
    clients: int = 4,
    initial: Adapter | None = None,
    grid_type: type[LocalGrid] = LocalGrid,
    **options: Any,
) -> list[RoundOutcome]:
    """The outcomes of some rounds."""
    outcomes: list[RoundOutcome] = []
    initial = make_adapter() if initial is None else initial
    if not isinstance(app, ClientApp):
        app = build_client_app(initial, app)
    strategy = LoraStrategy(initial, on_round=outcomes.append, **options)
    strategy.start(grid_type(app, clients), strategy.initial_arrays(), num_rounds=rounds)
    return outcomes


def by_hand(
    method: str, rounds: int, clients: Iterable[int], train: TrainClient = toy_client
) -> list[tuple[Adapter, dict[str, Product]]]:
    """The same rounds without Flower: only :func:`florana.aggregate`."""
    states = []
    adapter, residual = make_adapter(), dict[str, Product]()
    for server_round in range(1, rounds + 1):
        updates = []
        for client in clients:
            result = train(adapter, residual, server_round, client)
            updates.append(ClientUpdate(str(client), result.num_examples, result.adapter))
        made = aggregate(updates, method, residual=residual)
        adapter, residual = made.trained, dict(made.residual)
        states.append((adapter, residual))
    return states


def assert_same_states(
    outcomes: Iterable[RoundOutcome], states: Iterable[tuple[Adapter, Mapping[str, Product]]]
) -> None:
    """Trained adapter and residual of every round have the same bits."""
    for outcome, (adapter, residual) in zip(outcomes, states, strict=True):
        assert_same_bits(outcome.aggregate.trained.tensors(), adapter.tensors())
        assert_same_bits(products(outcome.aggregate.residual), products(residual))


def state(outcome: RoundOutcome) -> tuple[Adapter, Mapping[str, Product]]:
    """What the next round starts from."""
    return outcome.aggregate.trained, outcome.aggregate.residual


@every_method
def test_rounds_on_flower_are_aggregate_and_nothing_else(method: str) -> None:
    """Three rounds have the bits of florana.aggregate called by hand, residual included."""
    outcomes = federate(rounds=3, method=method)
    assert_same_states(outcomes, by_hand(method, 3, range(4)))
    assert [outcome.server_round for outcome in outcomes] == [1, 2, 3]
    assert [u.client_id for u in outcomes[0].updates] == ["0", "1", "2", "3"]
    assert [u.num_examples for u in outcomes[0].updates] == [10, 20, 30, 40]
    assert outcomes[1].metrics["3"] == {"num-examples": 40, "accuracy": 2.3}
    assert all(not outcome.left_out for outcome in outcomes)


def test_the_residual_of_ideal_reaches_the_clients() -> None:
    """From round 2 on, clients train beside what the round before left frozen."""
    seen: list[dict[str, Tensor]] = []

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        seen.append(products(residual))
        return toy_client(adapter, residual, server_round, partition)

    outcomes = federate(client, rounds=3, clients=2, method="ideal")
    assert seen[:2] == [{}, {}]
    for outcome, received in zip(outcomes, [seen[2:4], seen[4:6]], strict=False):
        assert outcome.aggregate.residual.keys() == MODULES.keys()
        for one in received:
            assert_same_bits(one, products(outcome.aggregate.residual))
    assert [bool(outcome.residual) for outcome in outcomes] == [False, True, True]


@pytest.mark.parametrize("method", [name for name in METHODS if cards()[name].mixed_ranks])
def test_clients_may_have_unlike_ranks_where_the_method_takes_them(method: str) -> None:
    """Ranks, alphas and rslora travel with each client's own manifest."""

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        other = make_adapter(partition, rank=1 + partition % 2, alpha=3.0, rslora=partition == 1)
        return LocalResult(other, 10 * (partition + 1), {})

    outcomes = federate(client, rounds=1, clients=3, method=method)
    assert [u.adapter.pairs["encoder.query"].rank for u in outcomes[0].updates] == [1, 2, 1]
    assert_same_states(outcomes, by_hand(method, 1, range(3), client))


def test_an_initial_adapter_of_another_dtype_is_taken() -> None:
    """On the wire all is float32, so a bfloat16 start is the same numbers in float32."""
    adapter = make_adapter()
    half = adapter.with_tensors({n: t.bfloat16() for n, t in adapter.tensors().items()})
    full = adapter.with_tensors({n: t.float() for n, t in half.tensors().items()})
    first, second = federate(initial=half), federate(initial=full)
    assert_same_states(first, map(state, second))


def sampled(outcomes: Iterable[RoundOutcome]) -> list[list[int]]:
    """The clients of every round."""
    return [[int(update.client_id) for update in outcome.updates] for outcome in outcomes]


@pytest.mark.parametrize(("participation", "size"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_a_share_of_the_clients_is_drawn(participation: float, size: int) -> None:
    """``participation`` of them, at least one, each once; the others do not train."""
    outcomes = federate(clients=8, participation=participation, min_clients=1)
    for drawn in sampled(outcomes):
        assert len(drawn) == len(set(drawn)) == size
        assert drawn == sorted(drawn)


def test_client_sampling_depends_on_seed_and_round_only() -> None:
    """Method, start, history and the global generators do not matter; seed and round do."""

    def draw(seed: int, **options: Any) -> list[list[int]]:
        return sampled(federate(clients=8, rounds=4, participation=0.5, seed=seed, **options))

    first = draw(0)
    torch.manual_seed(99)
    assert draw(0, method="fedit", initial=make_adapter(7)) == first
    assert draw(1) != first
    assert len({tuple(drawn) for drawn in first}) > 1


@every_method
def test_a_resumed_strategy_goes_on_as_if_unbroken(method: str) -> None:
    """From the state after two rounds, rounds 3 and 4 draw the same clients and end in the same bits."""
    options: dict[str, Any] = {"method": method, "clients": 6, "participation": 0.5, "seed": 3}
    whole = federate(rounds=4, **options)
    adapter, residual = state(whole[1])
    rest = federate(rounds=2, initial=adapter, residual=residual, rounds_done=2, **options)
    assert [outcome.server_round for outcome in rest] == [3, 4]
    assert sampled(rest) == sampled(whole[2:])
    assert_same_states(rest, map(state, whole[2:]))
    assert [o.metrics for o in rest] == [o.metrics for o in whole[2:]]


def test_bytes_of_a_round_are_counted_on_the_records() -> None:
    """Down: the message times its receivers. Up: the replies that were used."""
    outcomes = federate(clients=6, participation=0.5, min_clients=1, method="fedit")
    payload = 4 * sum(t.numel() for t in make_adapter().tensors().values())
    for outcome in outcomes:
        assert outcome.bytes_down % 3 == 0
        assert 3 * payload < outcome.bytes_down < 3 * (payload + 1000)
        assert 3 * payload < outcome.bytes_up < 3 * (payload + 1000)


def test_an_unknown_method_or_option_is_told_before_the_first_round() -> None:
    """The strategy refuses it when it is made."""
    with pytest.raises(ConfigError, match="unknown method 'fedavg', did you mean"):
        LoraStrategy(make_adapter(), "fedavg")
    with pytest.raises(ConfigError, match="has no option 'gauge'"):
        LoraStrategy(make_adapter(), "fedit", {"gauge": "balanced"})


# What clients do wrong


def tampered(partition: int, change: Change, train: TrainClient = toy_client) -> ClientApp:
    """An app whose client ``partition`` changes its reply before it goes out."""
    honest, app = build_client_app(make_adapter(), train), ClientApp()

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["partition-id"] == partition:
            change(reply.content)
        return reply

    return app


def metric(name: str, value: Any) -> Change:
    """Set a metric of the reply."""
    return lambda content: content["metrics"].update({name: value})


def send(adapter: Adapter) -> Change:
    """Send another adapter."""
    return lambda content: content.update(pack(adapter))


def without(name: str) -> Change:
    """Leave a metric out."""
    return lambda content: content["metrics"].pop(name)


def fail(_content: RecordDict) -> None:
    """Raise as a client might."""
    raise RuntimeError("the disk is gone")


def with_value(name: str, value: float) -> Adapter:
    """An adapter with one number changed."""
    tensors = {n: t.clone() for n, t in make_adapter().tensors().items()}
    tensors[name].view(-1)[-1] = value
    return make_adapter().with_tensors(tensors)


def resized() -> Adapter:
    """An adapter for another weight."""
    pair = LoraPair(torch.zeros(2, 11), torch.zeros(7, 2), 5)
    adapter = make_adapter()
    return replace(adapter, pairs={**adapter.pairs, "encoder.query": pair})


FAULTS: dict[str, tuple[Change, str, str]] = {
    "raises": (fail, "node 1001", "client 1 raised RuntimeError: the disk is gone"),
    "NaN": (send(with_value("encoder.value.lora_B", float("nan"))), "client 1", "encoder.value.lora_B holds NaN or infinity"),
    "infinity": (send(with_value("classifier.bias", float("inf"))), "client 1", "classifier.bias holds NaN or infinity"),
    "other shape": (send(resized()), "client 1", r"module encoder.query has shape \[7, 11\], expected \[7, 12\]"),
    "other base": (send(replace(make_adapter(), base_model="gpt")), "client 1", "base_model is 'gpt', expected 'base'"),
    "other weights": (send(replace(make_adapter(), base_hash="9")), "client 1", "base_hash is '9', expected '1234'"),
    "fewer modules": (send(replace(make_adapter(), pairs={"encoder.query": make_adapter().pairs["encoder.query"]})), "client 1", "modules differ from the server's at encoder.value"),
    "other rank": (send(make_adapter(rank=3)), "client 1", "module encoder.query has rank 3, expected 2"),
    "no manifest": (lambda c: c.pop("manifest"), "client 1", "holds no manifest"),
    "nothing": (lambda c: c.clear(), "node 1001", "lacks the metrics partition-id and num-examples"),
    "no num-examples": (without("num-examples"), "node 1001", "lacks the metrics"),
    "no partition-id": (without("partition-id"), "node 1001", "lacks the metrics"),
    "num-examples negative": (metric("num-examples", -5), "node 1001", "num-examples is -5, expected a number above 0"),
    "num-examples zero": (metric("num-examples", 0), "node 1001", "num-examples is 0"),
    "num-examples NaN": (metric("num-examples", float("nan")), "node 1001", "num-examples is nan"),
    "num-examples infinite": (metric("num-examples", float("inf")), "node 1001", "num-examples is inf"),
    "num-examples huge": (metric("num-examples", 1e308), "node 1001", r"num-examples is 1e\+308, expected a number above 0, at most 1e\+15"),
    "num-examples no float": (metric("num-examples", 10**400), "node 1001", "num-examples is 1000"),
    "num-examples a list": (metric("num-examples", [10]), "node 1001", "metric 'num-examples' is no single number"),
    "other metric a list": (metric("accuracy", [0.5] * 10_000), "node 1001", "metric 'accuracy' is no single number"),
    "partition a fraction": (metric("partition-id", 1.5), "node 1001", r"partition-id is 1\.5, expected a whole number"),
    "partition a list": (metric("partition-id", [1]), "node 1001", r"partition-id is \[1\], expected a whole number"),
    "partition of another": (metric("partition-id", 0), "client 0", "it replied twice"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "name", "reason"), FAULTS.values(), ids=FAULTS.keys())
def test_a_faulty_client_is_left_out_by_name_and_the_round_goes_on(
    change: Change, name: str, reason: str
) -> None:
    """It is told in every round with its reason, and the others are aggregated as if it were not there."""
    told: list[tuple[int, str, str]] = []
    outcomes = federate(
        tampered(1, change), method="fedit", min_clients=3, on_left_out=lambda *a: told.append(a)
    )
    assert sampled(outcomes) == [[0, 2, 3]] * 2
    for server_round, outcome in enumerate(outcomes, start=1):
        assert list(outcome.left_out) == [name]
        assert outcome.metrics.keys() == {"0", "2", "3"}
        assert (server_round, name, outcome.left_out[name]) in told
        assert re.search(reason, outcome.left_out[name])
    assert len(told) == 2
    assert_same_states(outcomes, by_hand("fedit", 2, [0, 2, 3]))


def test_too_few_usable_replies_stop_the_run_with_every_reason() -> None:
    """The error says which round, how many remain, how many are needed, and why each was left out."""
    outcomes: list[RoundOutcome] = []

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        if server_round == 2 and partition == 0:
            raise ValueError("no data today")
        if server_round == 2 and partition == 2:
            return LocalResult(with_value("classifier.bias", float("nan")), 30, {})
        return toy_client(adapter, residual, server_round, partition)

    app = build_client_app(make_adapter(), client)
    strategy = LoraStrategy(make_adapter(), min_clients=2, on_round=outcomes.append)
    with pytest.raises(FederationError) as caught:
        strategy.start(LocalGrid(app, 3), strategy.initial_arrays(), num_rounds=3)
    assert str(caught.value).splitlines() == [
        "round 2: 1 usable replies, and federation.min_clients = 2",
        "  node 1000: it failed: client 0 raised ValueError: no data today",
        "  client 2: classifier.bias holds NaN or infinity; leave this client out or train it again",
    ]
    assert [outcome.server_round for outcome in outcomes] == [1]


def test_clients_without_examples_stop_the_run() -> None:
    """Weights cannot be made of zeros; all clients are named."""

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        return LocalResult(adapter, 0, {})

    with pytest.raises(FederationError, match=r"(?s)0 usable.*node 1000: its num-ex.*node 1001: "):
        federate(client, clients=2)


def test_a_failed_client_is_back_in_the_next_round() -> None:
    """What was left out of one round trains again in the next, from the new global adapter."""

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        if (server_round, partition) == (1, 1):
            raise OSError("for a moment")
        return toy_client(adapter, residual, server_round, partition)

    assert sampled(federate(client, rounds=3)) == [[0, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]


# Clients in this process


def test_a_client_that_changes_its_message_changes_no_other() -> None:
    """Records are the client's own: arrays replaced, manifests deleted, tensors overwritten."""
    honest, app = build_client_app(make_adapter(), toy_client), ClientApp()
    received: list[Adapter] = []

    @app.train()
    def vandal(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        received.append(unpack(message.content, make_adapter())[0])
        content = message.content
        unpack(content, make_adapter())[0].extras["classifier.bias"].fill_(99.0)
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


class Backwards(LocalGrid):
    """A grid whose replies arrive in the opposite order."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """As the parent, backwards."""
        return super().send_and_receive(messages, timeout=timeout)[::-1]


class Stuttering(LocalGrid):
    """A grid on which every reply arrives twice."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """As the parent, and all of it again."""
        return 2 * super().send_and_receive(messages, timeout=timeout)


@every_method
def test_the_order_of_replies_does_not_matter(method: str) -> None:
    """Replies are sorted by client, so that sums have the same last bits."""
    backwards = federate(grid_type=Backwards, method=method)
    assert_same_states(backwards, by_hand(method, 2, range(4)))
    assert sampled(backwards) == [[0, 1, 2, 3]] * 2


def test_whose_reply_is_used_does_not_depend_on_their_order() -> None:
    """Of two that claim one partition, that of the first node is used, however late it comes."""
    app = tampered(3, metric("partition-id", 0))
    for grid_type in (LocalGrid, Backwards):
        outcomes = federate(app, grid_type=grid_type)
        assert sampled(outcomes) == [[0, 1, 2]] * 2
        assert_same_states(outcomes, by_hand("florana", 2, range(3)))


def test_a_reply_that_comes_twice_counts_once() -> None:
    """The second is left out by name."""
    outcomes = federate(grid_type=Stuttering)
    assert_same_states(outcomes, by_hand("florana", 2, range(4)))
    for outcome in outcomes:
        assert outcome.left_out == {f"client {i}": "it replied twice" for i in range(4)}


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


def test_the_client_app_passes_on_round_and_partition() -> None:
    """The work gets the adapter that was sent, the round of the run, and its own number."""
    calls: list[tuple[int, int]] = []

    def client(
        adapter: Adapter, residual: Mapping[str, Product], server_round: int, partition: int
    ) -> LocalResult:
        calls.append((server_round, partition))
        return toy_client(adapter, residual, server_round, partition)

    federate(client, rounds=2, clients=2, rounds_done=5)
    assert calls == [(6, 0), (6, 1), (7, 0), (7, 1)]
