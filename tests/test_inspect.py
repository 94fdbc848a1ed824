"""Inspection of adapters: every number against a dense float64 oracle, and what must not change it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import aggregate, card, cards
from florana.errors import AggregationError, ConfigError
from florana.folders import inspect_measures as measures
from florana.folders.inspect_advice import notes
from florana.folders.inspect_losses import chooses, chosen, offline
from florana.folders.inspect_module import Measured, Task, View, measure
from florana.folders.inspect_values import Inspection
from florana.folders.inspect_whole import assemble
from florana.folders.missing import Missing
from florana.lowrank import Product
from strategies import (
    client_updates,
    dense,
    dense_average,
    dense_best,
    dense_delta,
    dense_error,
    dense_target,
    example,
    few,
    products,
    seeds,
    shares,
    with_pairs,
)

RANKS = (1, 2, 3, 5)


def inspected(
    updates: Sequence[ClientUpdate],
    methods: Sequence[str] | None = None,
    ranks: tuple[int, ...] = RANKS,
    missing: Missing = "refuse",
) -> Inspection:
    """The inspection of adapters in memory."""
    names = dict.fromkeys(name for u in updates for name in u.adapter.pairs)
    mixed = any(
        len({u.adapter.pairs[n].rank for u in updates if n in u.adapter.pairs}) > 1 for n in names
    )
    means = chosen(methods, "lora", mixed)
    task = Task(tuple(shares(updates).tolist()), ranks, means.cards, missing)
    measured: list[Measured] = []
    for name in names:
        pairs = tuple(u.adapter.pairs.get(name) for u in updates)
        measured.append(measure(View(name, pairs), task))
    labels = [u.client_id for u in updates]
    return assemble(labels, measured, task.weights, "lora", "base", means.left_out)


def flat(update: ClientUpdate) -> Tensor:
    """ΔW of all modules as one vector."""
    return torch.cat([dense_delta(pair).flatten() for pair in update.adapter.pairs.values()])


def near(value: float | None, expected: float, tolerance: float = 1e-9) -> bool:
    """Whether there is a number, and the one expected."""
    return value is not None and math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)


@few
@given(st.data())
def test_compression_keeps_every_inner_product(data: st.DataObject) -> None:
    """In the small coordinates all inner products, and the spectrum of any mixture, are those of the large ones."""
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    drawn = data.draw(st.lists(products(shape), min_size=1, max_size=4))
    small = measures.compressed(drawn)
    width = sum(product.width for product in drawn)
    matrices = torch.stack([dense(product) for product in drawn])
    expected = torch.einsum("uij,vij->uv", matrices, matrices)
    torch.testing.assert_close(measures.inner_products(drawn), expected)
    torch.testing.assert_close(measures.inner_products(small), expected)
    assert dense(small[0]).shape == (min(width, shape[0]), min(width, shape[1]))
    mixed = torch.stack([dense(product) for product in small]).sum(dim=0)
    S, expected_S = torch.linalg.svdvals(mixed), torch.linalg.svdvals(matrices.sum(dim=0))
    torch.testing.assert_close(S, expected_S[: len(S)])
    assert expected_S[len(S) :].lt(1e-9).all()


@few
@given(client_updates())
def test_cosines_and_norms_are_those_of_the_dense_updates(updates: list[ClientUpdate]) -> None:
    """Cosines, norms, cosine to the others and what survives, over all modules, equal the dense ones."""
    found = inspected(updates, ["florana-opt"])
    X, w = torch.stack([flat(u) for u in updates]), shares(updates)
    for u, client in enumerate(found.clients):
        assert near(client.norm, float(X[u].norm()))
        rest = (w[:, None] * X).sum(dim=0) - w[u] * X[u]
        if len(updates) == 1 or float(w.sum() - w[u]) < 1e-12:
            assert client.cosine_to_others is None
        else:
            assert near(client.cosine_to_others, float(rest @ X[u] / rest.norm() / X[u].norm()))
        for v in range(len(updates)):
            assert near(found.cosines[u][v], float(X[u] @ X[v] / X[u].norm() / X[v].norm()))
    mean = w @ X
    assert near(found.norm, float(mean.norm()))
    assert near(found.survives, float(mean.norm() / (w @ X.norm(dim=1))))


@few
@given(client_updates(min_clients=2))
def test_principal_angles_are_those_of_the_dense_updates(updates: list[ClientUpdate]) -> None:
    """Angles of column and row spaces equal those that SciPy finds between the dense ΔW, for unlike ranks too."""
    found = inspected(updates, ["florana-opt"])
    for couple in found.couples:
        pair = [u for u in updates if u.client_id in (couple.first, couple.second)]
        for overlap, transposed in ((couple.columns, False), (couple.rows, True)):
            means, largest = [], []
            for name in pair[0].adapter.pairs:
                one, other = (dense_delta(u.adapter.pairs[name]).numpy() for u in pair)
                if transposed:
                    one, other = one.T, other.T
                angles = scipy.linalg.subspace_angles(
                    scipy.linalg.orth(one, 1e-10), scipy.linalg.orth(other, 1e-10)
                )
                means.append(np.cos(angles).mean())
                largest.append(np.rad2deg(angles.max()))
            assert near(overlap.mean_cosine, float(np.mean(means)), 1e-7)
            assert near(overlap.largest, float(max(largest)), 1e-4)


def test_chance_is_what_random_spaces_have() -> None:
    """The root mean square cosine of many random couples of spaces is what ``chance`` says."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.linalg.qr(torch.randn(40, k, generator=generator, dtype=torch.float64)).Q
        for k in [3, 5] * 30
    ]
    squares = [(a.T @ b).square().sum() / 3 for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    found = measures.principal_angles(drawn[:2], dimension=40)
    assert math.isclose(
        float(torch.stack(squares).mean().sqrt()), float(found.chance[0, 1]), rel_tol=0.08
    )


@few
@given(client_updates())
def test_losses_are_the_dense_errors(updates: list[ClientUpdate]) -> None:
    """Optimum, plain averaging and what survives at each rank, over all modules, equal the dense oracle's."""
    found = inspected(updates, ["florana-opt", "hetlora"])
    targets = {name: dense_target(updates, name) for name in updates[0].adapter.pairs}
    total = math.hypot(*(float(T.norm()) for T in targets.values()))
    for rank in RANKS:
        gap = math.hypot(*(float((T - dense_best(T, rank)).norm()) for T in targets.values()))
        assert near(found.losses.optimum[rank], gap / total, 1e-7)
        assert near(found.losses.methods[0].by_rank[rank], gap / total, 1e-7)
        if rank <= len(found.spectrum.energy):
            assert near(found.spectrum.energy[rank - 1], 1 - (gap / total) ** 2)
    gap = math.hypot(*(float((T - dense_average(updates, n)).norm()) for n, T in targets.items()))
    assert near(found.losses.average, gap / total, 1e-7)
    for module in found.modules:
        average = dense_error(dense_average(updates, module.name), targets[module.name])
        assert near(module.losses.average, average, 1e-7)


@pytest.mark.parametrize("method", [n for n, c in cards().items() if not offline(c)])
def test_methods_do_not_notice_the_compression(method: str) -> None:
    """Every method's loss is the error that ``aggregate`` reports on the adapters themselves, at every rank."""
    updates = example()
    found = inspected(updates, [method]).losses.methods[0]
    if chooses(card(method)):
        for rank in RANKS:
            expected = aggregate(updates, method, rank=rank).error
            assert expected is not None
            assert near(found.by_rank[rank], expected.used, 1e-6)
        assert found.own is None
    else:
        result = aggregate(updates, method)
        assert result.error is not None
        assert found.own is not None
        assert near(found.own, result.error.used, 1e-6)
        assert found.own_rank == max(pair.rank for pair in result.adapter.pairs.values())


def test_methods_that_need_a_federation_are_left_out_with_a_reason() -> None:
    """A method with a plan of its own is not asked, and asking for it is refused, with those that can."""
    found = inspected(example())
    planned = {"ffa-lora", "rolora", "fedsa-lora", "local", "centralised", "fed-sb", "frlora"}
    assert planned <= found.left_out.keys()
    assert {loss.method for loss in found.losses.methods} == cards().keys() - found.left_out.keys()
    with pytest.raises(ConfigError, match=r"rolora: clients must train by its plan.*florana-opt"):
        inspected(example(), ["rolora"])
    with pytest.raises(ConfigError, match="did you mean 'fedit'"):
        inspected(example(), ["fedt"])


def test_methods_of_one_rank_are_left_out_where_ranks_differ() -> None:
    """Unlike ranks leave out what needs one rank for all, and nothing else of what is left."""
    same, mixed = inspected(example()), inspected(example(2, 3))
    gone = mixed.left_out.keys() - same.left_out.keys()
    assert gone == {n for n, c in cards().items() if not offline(c) and not c.mixed_ranks}
    assert all("one rank" in mixed.left_out[name] for name in gone)


@few
@given(seeds, st.integers(1, 8))
def test_spectrum_is_that_of_the_singular_values(seed: int, count: int) -> None:
    """Shares of energy ascend to 1, the rank for a share is the first that holds it, effective rank is within 1 and k."""
    S = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    S = S.sort(descending=True).values + 1e-3
    energy = measures.energy_by_rank(S)
    torch.testing.assert_close(torch.tensor(energy).double(), S.square().cumsum(0) / (S @ S))
    rank = measures.rank_for(energy, 0.9)
    assert energy[rank - 1] >= 0.9 - 1e-9
    assert rank == 1 or energy[rank - 2] < 0.9
    assert 1 - 1e-9 <= measures.effective_rank(S) <= count + 1e-9


@few
@given(client_updates(min_clients=2), st.randoms())
def test_the_order_of_clients_changes_nothing(updates: list[ClientUpdate], random: object) -> None:
    """Clients in another order are told the same of themselves and of the whole."""
    order = list(range(len(updates)))
    random.shuffle(order)  # type: ignore[attr-defined]
    found = inspected(updates, ["florana-opt"])
    other = inspected([updates[u] for u in order], ["florana-opt"])
    by_name = {client.name: client for client in other.clients}
    for client in found.clients:
        assert near(by_name[client.name].norm, client.norm)
        assert by_name[client.name].unlike == client.unlike
        assert (by_name[client.name].cosine_to_others is None) == (client.cosine_to_others is None)
    assert near(other.agreement, found.agreement, 1e-7)
    assert all(near(other.losses.optimum[r], found.losses.optimum[r], 1e-7) for r in RANKS)
    assert other.recommendation.rank == found.recommendation.rank


@few
@given(client_updates(min_clients=2), st.sampled_from([1e-3, 0.5, 1e3]))
def test_a_common_scale_changes_no_share(updates: list[ClientUpdate], scale: float) -> None:
    """All updates c times as long: norms grow by c; cosines, errors, shares and advice stay."""

    def scaled(pair: LoraPair) -> LoraPair:
        return replace(pair, alpha=pair.alpha * scale)

    found = inspected(updates, ["florana-opt"])
    other = inspected([with_pairs(u, scaled) for u in updates], ["florana-opt"])
    assert near(other.norm, scale * found.norm)
    assert near(other.losses.average, found.losses.average, 1e-6)
    assert near(other.agreement, found.agreement, 1e-7)
    for mine, its in zip(found.cosines, other.cosines, strict=True):
        assert all(near(a, b, 1e-7) for a, b in zip(mine, its, strict=True) if b is not None)
    assert [c.unlike for c in other.clients] == [c.unlike for c in found.clients]
    assert other.recommendation.rank == found.recommendation.rank


def test_agreement_is_one_for_equal_clients_and_none_for_orthogonal_ones() -> None:
    """λ is 1 where all are equal, 0 where they are orthogonal or opposed, whatever their weights."""
    one = Product(torch.eye(4, 1), torch.eye(1, 4))
    other = Product(torch.eye(4, 2)[:, 1:], torch.eye(2, 4)[1:])
    opposed = Product(-one.B, one.A)
    w = torch.tensor([0.7, 0.3], dtype=torch.float64)
    for couple, expected in (([one, one], 1.0), ([one, other], 0.0), ([one, opposed], 0.0)):
        assert near(measures.agreement(measures.inner_products(couple), w), expected)


def federation(count: int, generator: torch.Generator) -> list[ClientUpdate]:
    """Clients near one update, far from the noise: nobody is unlike the others."""
    A, B = (
        torch.randn(4, 30, generator=generator).double(),
        torch.randn(20, 4, generator=generator).double(),
    )
    return [
        ClientUpdate(
            f"client-{u}",
            10,
            Adapter({"q": LoraPair(A, B + 0.3 * torch.randn(20, 4, generator=generator), alpha=4)}),
        )
        for u in range(count)
    ]


@pytest.mark.parametrize("count", [3, 4, 9])
def test_the_odd_client_is_found(count: int) -> None:
    """One client of another task is flagged, and nobody else; without it nobody is."""
    generator = torch.Generator().manual_seed(count)
    clients = federation(count, generator)
    assert not any(client.unlike for client in inspected(clients, ["florana-opt"]).clients)
    odd = LoraPair(
        torch.randn(4, 30, generator=generator).double(),
        torch.randn(20, 4, generator=generator).double(),
        alpha=4,
    )
    clients[1] = replace(clients[1], adapter=Adapter({"q": odd}))
    found = inspected(clients, ["florana-opt"])
    assert [client.name for client in found.clients if client.unlike] == ["client-1"]
    assert "points elsewhere" in found.clients[1].note


def test_norms_that_differ_tenfold_are_told() -> None:
    """A client ten times as long is named with its ratio; of two clients it is told, but neither is the odd one."""
    clients = federation(4, torch.Generator().manual_seed(0))
    clients[2] = with_pairs(clients[2], lambda pair: replace(pair, alpha=12 * pair.alpha))
    found = inspected(clients, ["florana-opt"])
    assert [client.unlike for client in found.clients] == [False, False, True, False]
    assert "times as long" in found.clients[2].note
    two = inspected(clients[1:3], ["florana-opt"])
    assert all(client.note and not client.unlike for client in two.clients)


def test_notes_need_three_clients_to_call_one_odd() -> None:
    """Of two clients, however unlike, nobody can say which is odd."""
    assert not any(note.unlike for note in notes([-0.9, -0.9], [1.0, 1.0]))
    assert notes([None], [1.0]) == [(False, "")]


def test_a_client_of_another_start_is_told() -> None:
    """The same update in another gauge: nothing about ΔW is odd, and averaging factors does not fit; it is named."""
    generator = torch.Generator().manual_seed(0)
    clients = federation(4, generator)
    found = inspected(clients, ["florana-opt"])
    assert not any(client.note for client in found.clients)
    clients[3] = with_pairs(clients[3], lambda pair: replace(pair, A=-pair.A, B=-pair.B))
    other = inspected(clients, ["florana-opt"])
    assert [client.unlike for client in other.clients] == [False, False, False, True]
    assert "began elsewhere" in other.clients[3].note
    assert near(other.clients[3].cosine_to_others, found.clients[3].cosine_to_others or 0.0)
    assert near(other.couples[2].factor_cosine, -1.0)


def test_an_update_of_zero_is_told_and_disturbs_nobody() -> None:
    """A zero adapter has no cosine, is flagged, and the others' cosines stay what they were."""
    clients = federation(4, torch.Generator().manual_seed(0))
    before = inspected(clients[1:], ["florana-opt"])
    clients[0] = with_pairs(clients[0], lambda pair: replace(pair, B=torch.zeros_like(pair.B)))
    found = inspected(clients)
    assert found.clients[0].unlike
    assert found.clients[0].cosine_to_others is None
    assert found.cosines[0] == (None,) * 4
    assert found.couples[0].columns.mean_cosine is None
    for client, expected in zip(found.clients[1:], before.clients, strict=True):
        assert near(client.cosine_to_others, expected.cosine_to_others or 0.0)
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_but_zero() -> None:
    """Zero adapters have no spectrum, no cosine, no error, and advice that says so."""
    clients = [
        with_pairs(c, lambda pair: replace(pair, B=torch.zeros_like(pair.B)))
        for c in federation(3, torch.Generator().manual_seed(0))
    ]
    found = inspected(clients)
    assert found.norm == 0
    assert found.spectrum.energy == ()
    assert found.spectrum.rank_95 == 0
    assert set(found.losses.optimum.values()) == {0.0}
    assert "is zero" in found.recommendation.rank_reason
    assert found.survives is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_updates_that_cancel() -> None:
    """A client and its opposite: the mean is nothing, and no direction is read off its rounding."""
    client = federation(1, torch.Generator().manual_seed(0))[0]
    opposed = replace(
        with_pairs(client, lambda pair: replace(pair, B=-pair.B)), client_id="opposed"
    )
    found = inspected([client, opposed, replace(client, client_id="again")], ["florana-opt"])
    assert found.clients[2].cosine_to_others is None
    assert near(found.cosines[0][1], -1.0)


def test_one_client_and_equal_clients_lose_nothing_at_their_rank() -> None:
    """One adapter, or the same one three times: no error at its rank, and the recommended rank is within it."""
    clients = federation(1, torch.Generator().manual_seed(0))
    same = [replace(clients[0], client_id=f"client-{u}") for u in range(3)]
    for updates in (clients, same):
        found = inspected(updates, ["florana-opt"], (4,))
        assert near(found.losses.optimum[4], 0.0)
        assert near(found.losses.average, 0.0)
        assert found.recommendation.rank <= 4
        assert found.recommendation.method == "florana-opt"
        assert not any(client.unlike for client in found.clients)


@few
@given(client_updates(min_clients=2))
def test_the_recommended_rank_is_the_first_that_holds_its_share(
    updates: list[ClientUpdate],
) -> None:
    """The dense mean truncated at the recommended rank has 95 % of the energy, at one rank less it has not."""
    targets = [dense_target(updates, name) for name in updates[0].adapter.pairs]
    total = sum(float(T.square().sum()) for T in targets)

    def held(rank: int) -> float:
        return sum(float(dense_best(T, rank).square().sum()) for T in targets) / total

    rank = inspected(updates, ["florana-opt"]).recommendation.rank
    assert held(rank) >= 0.95 - 1e-9
    assert rank == 1 or held(rank - 1) < 0.95


def test_method_follows_from_agreement_and_start() -> None:
    """Clients that agree: the nearest pair. A shared start without agreement: the blend. No shared start: the nearest."""
    generator = torch.Generator().manual_seed(0)

    def client(u: int, A: Tensor) -> ClientUpdate:
        B = torch.randn(30, 4, generator=generator).double()
        return ClientUpdate(f"client-{u}", 1, Adapter({"q": LoraPair(A, B, alpha=4)}))

    def drawn() -> Tensor:
        return torch.randn(4, 400, generator=generator).double()

    A = drawn()
    agreed = inspected(federation(3, generator), ["florana-opt"])
    shared = inspected([client(u, A) for u in range(3)], ["florana-opt"])
    apart = inspected([client(u, drawn()) for u in range(3)], ["florana-opt"])
    assert near(shared.factor_cosine, 1.0)
    assert apart.factor_cosine is not None
    assert apart.factor_cosine < 0.1
    methods = [found.recommendation.method for found in (agreed, shared, apart)]
    assert methods == ["florana-opt", "florana-blend", "florana-opt"]
    assert set(methods) <= cards().keys()


@few
@given(client_updates(min_clients=2))
def test_a_missing_module_is_zero_or_the_others_mean(updates: list[ClientUpdate]) -> None:
    """Against the dense target: w_u ΔW_u over those that have it, the weights kept (zero) or renormalised (mean)."""
    lost, w = "encoder.value", shares(updates)
    assume(float(w[1:].sum()) > 0)
    pairs = {n: p for n, p in updates[0].adapter.pairs.items() if n != lost}
    updates = [replace(updates[0], adapter=replace(updates[0].adapter, pairs=pairs)), *updates[1:]]
    T = torch.stack(
        [c * dense_delta(u.adapter.pairs[lost]) for c, u in zip(w[1:], updates[1:], strict=True)]
    ).sum(dim=0)
    for missing, expected in (("zero", T), ("mean", T / w[1:].sum())):
        found = inspected(updates, ["florana-opt"], missing=missing)  # type: ignore[arg-type]
        module = next(m for m in found.modules if m.name == lost)
        assert near(module.norm, float(expected.norm()))
        assert near(module.losses.optimum[2], dense_error(dense_best(expected, 2), expected), 1e-7)
        assert module.ranks[0] is None
        assert module.norms[0] == 0
        assert found.clients[0].missing == (lost,)


def test_a_module_of_clients_without_weight_is_refused_by_name() -> None:
    """The mean over those that have a module needs a weight among them."""
    updates = example()
    pairs = dict(updates[1].adapter.pairs)
    updates = [
        replace(updates[0], num_examples=0),
        replace(updates[1], adapter=Adapter({"encoder.query": pairs["encoder.query"]})),
    ]
    with pytest.raises(AggregationError, match=r"encoder\.value.*weight 0.*--missing zero"):
        inspected(updates, ["florana-opt"], missing="mean")
