"""Partitions: old splits to the bit, skew by column, quantity skew, both at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from florana.errors import DataError
from florana.tasks.partition import (
    MIN_EXAMPLES,
    SCHEMES,
    Indices,
    Quantity,
    Scheme,
    SizeLaw,
    partition,
    split_clients,
)
from florana.tasks.partition.mixtures import mixtures
from florana.tasks.partition.sizes import whole_parts
from strategies import few, seeds

LAWS: tuple[Quantity, ...] = ("dirichlet", "lognormal")
spreads = st.floats(1e-3, 1e3)
every_law = pytest.mark.parametrize("law", LAWS)


def rng(seed: int = 0) -> np.random.Generator:
    """A generator for one call."""
    return np.random.default_rng(seed)


def sizes(parts: Sequence[Indices]) -> list[int]:
    """Number of examples of every part."""
    return [len(part) for part in parts]


def covers(parts: Sequence[Indices], count: int) -> bool:
    """Whether every index from 0 is in exactly one part."""
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


# Old splits


def digest(parts: Sequence[Indices]) -> str:
    """A short hash of the parts and their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.astype("<i8").tobytes() + b"|")
    return digest.hexdigest()[:16]


OLD: dict[tuple[Scheme, int], tuple[str, str, int]] = {
    ("iid", 0): ("6a091fb66e2d7477", "076ce0878dd5a1b5", 1980419326),
    ("iid", 1): ("e3fcca2506283e49", "0a9dafa54514ba03", 1092915550),
    ("iid", 2): ("f08224b1a7808884", "f53a39fda9227715", 1814654219),
    ("dirichlet", 0): ("49f0081f5c5e6994", "9b81a01d5e6ef3f6", 397927511),
    ("dirichlet", 1): ("613018d62aa0a2f6", "ddf64234b1d53c28", 209252819),
    ("dirichlet", 2): ("e14d2bb852892ab2", "b688a63102da250b", 706393390),
    ("label", 0): ("df1a2b737a766b75", "dbf2ce83da270f73", 1562866300),
    ("label", 1): ("1b56090902dd39e0", "52b7ad0561e12f8e", 1545142783),
    ("label", 2): ("b828503623754d34", "a9cb487b16de34fd", 816400986),
    ("column", 0): ("5ee7af9b4d62c169", "9eab3ad6211fceda", 1826701615),
    ("column", 1): ("34dbfc84ea4bd0b4", "d9481a50bb3daff4", 1016164991),
    ("column", 2): ("287fb15dc6e6fa6d", "46bda5654e7dfd3d", 1798679648),
}
"""Hashes of parts and of what clients hold out of them, and the generator's next number, as the first version had them."""


@pytest.mark.parametrize(("scheme", "seed"), OLD)
def test_a_split_of_old_is_the_same_to_the_bit(scheme: Scheme, seed: int) -> None:
    """Results that were published came from these splits; the generator is left where it was, too."""
    count, clients, classes = [(1000, 10, 4), (5671, 10, 10), (997, 7, 77)][seed]
    drawn = rng(seed + 1000)
    labels = drawn.integers(classes, size=count)
    groups = [f"group {g}" for g in drawn.integers(3 * clients, size=count)]
    generator = rng(seed)
    parts = partition(
        labels,
        clients,
        scheme,
        generator,
        dirichlet_alpha=0.5 if classes == 77 else 0.3,
        min_labels=1,
        groups=groups if scheme == "column" else None,
    )
    splits = split_clients(parts, 0.1, rng(seed + 1))
    held = digest([half for split in splits for half in (split.train, split.test)])
    assert (digest(parts), held, int(generator.integers(2**31))) == OLD[scheme, seed]


# By column


@few
@given(seed=seeds, clients=st.integers(2, 6), values=st.integers(5, 30), alpha=st.floats(2, 50))
def test_dirichlet_by_column_gives_every_example_to_one_client(
    seed: int, clients: int, values: int, alpha: float
) -> None:
    """Parts are disjoint and cover everything, whatever the column and however many values it has."""
    count = 60 * clients
    groups = [f"speaker {v}" for v in rng(seed).integers(values, size=count)]
    labels = np.zeros(count, dtype=np.int64)
    parts = partition(labels, clients, "dirichlet", rng(seed), dirichlet_alpha=alpha, groups=groups)
    assert covers(parts, count)
    assert min(sizes(parts)) >= MIN_EXAMPLES


def test_dirichlet_by_column_skews_the_column_and_not_the_labels() -> None:
    """With a column, its values are unevenly spread and labels that do not depend on it are not."""
    groups = [f"topic {i % 5}" for i in range(5000)]
    labels = rng(1).integers(5, size=5000)
    topics = np.array([int(g.split()[1]) for g in groups])
    parts = partition(labels, 4, "dirichlet", rng(), dirichlet_alpha=0.3, groups=groups)

    def top(kinds: Indices) -> float:
        return float(np.mean([np.bincount(kinds[p]).max() / len(p) for p in parts]))

    assert top(topics) > 0.45
    assert top(labels) < 0.25


def test_the_names_of_a_columns_values_do_not_matter_but_their_order() -> None:
    """Other names that sort the same give the same parts; the long and the foreign are values like any other."""
    groups = [f"{i % 6}" for i in range(600)]
    long = [f"{'α' * 500}\x00{g}" for g in groups]
    for scheme in SCHEMES:
        one, other = (
            partition(np.zeros(600, dtype=np.int64), 3, scheme, rng(), groups=g, dirichlet_alpha=2.0)
            for g in (groups, long)
        )  # fmt: skip
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True)), scheme


def test_no_client_is_favoured_where_every_example_has_a_value_of_its_own() -> None:
    """Odd examples of a column's values go to anybody; rounding shares down would give all to the last client."""
    groups = [f"speaker {i}" for i in range(4000)]
    parts = partition(
        np.zeros(4000, dtype=np.int64), 4, "dirichlet", rng(), dirichlet_alpha=1.0, groups=groups
    )
    assert max(abs(size - 1000) for size in sizes(parts)) < 150  # 5 standard deviations of 27


def test_shards_by_column_limit_the_values_of_a_client() -> None:
    """With as many equal values as shards, a client has ``labels_per_client`` values."""
    groups = [f"topic {i % 8}" for i in range(800)]
    labels = rng(0).integers(3, size=800)
    parts = partition(labels, 4, "label", rng(), groups=groups, labels_per_client=2)
    assert [len({groups[i] for i in part}) for part in parts] == [2] * 4


def test_a_column_of_another_length_is_refused() -> None:
    """A value for every example, or an error that counts both."""
    with pytest.raises(DataError, match="column has 3 values for 40 examples"):
        partition(np.arange(40) % 2, 2, "dirichlet", rng(), groups=["a", "b", "c"])


# Few labels


@pytest.mark.parametrize("scheme", SCHEMES)
def test_data_of_one_label_need_no_second(scheme: Scheme) -> None:
    """Language models have texts of one label, or none: min_labels asks for no more than there are."""
    groups = [f"{i % 9}" for i in range(300)]
    parts = partition(
        np.zeros(300, dtype=np.int64), 3, scheme, rng(), groups=groups, dirichlet_alpha=5.0
    )
    assert covers(parts, 300)


def test_dirichlet_keeps_min_labels_by_column_too() -> None:
    """A draw that leaves a client with one class is drawn again, whatever it is skewed by."""
    labels = np.repeat([0, 1], 200)
    groups = [f"{label}{i % 3}" for i, label in enumerate(labels)]
    for seed in range(20):
        parts = partition(labels, 4, "dirichlet", rng(seed), dirichlet_alpha=0.2, groups=groups)
        assert min(len(np.unique(labels[p])) for p in parts) == 2


def test_a_dirichlet_that_fails_names_the_poorest_client() -> None:
    """The message says which client was the smallest in the last draw and which keys to change."""
    with pytest.raises(
        DataError, match=r"client \d+ with \d+ examples .*federation\.dirichlet_alpha"
    ):
        partition(np.arange(60) % 3, 5, "dirichlet", rng(), dirichlet_alpha=0.01)


# Quantity skew


@every_law
@few
@given(seed=seeds, clients=st.integers(2, 9), spare=st.integers(0, 900), spread=spreads)
def test_quantity_skew_gives_every_example_to_one_client(
    law: Quantity, seed: int, clients: int, spare: int, spread: float
) -> None:
    """Disjoint, complete, nobody below the least, the same again: for any law, spread and number of examples that suffices."""
    count = clients * MIN_EXAMPLES + spare
    labels = rng(seed).integers(3, size=count)
    drawn = SizeLaw(law, spread)
    first, again = (
        partition(labels, clients, "iid", rng(seed), min_labels=1, sizes=drawn) for _ in range(2)
    )
    assert covers(first, count)
    assert min(sizes(first)) >= MIN_EXAMPLES
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@few
@given(seed=seeds, total=st.integers(0, 10**6), shares=st.lists(st.floats(0, 1e9), min_size=1))
def test_whole_parts_sum_and_are_near(seed: int, total: int, shares: list[float]) -> None:
    """Largest remainders: the parts sum to the total, and none is one or more away from its share."""
    given_ = np.array(shares)
    parts = whole_parts(total, given_)
    exact = total * (given_ / given_.sum() if given_.sum() > 0 else np.full(len(shares), 1 / len(shares)))  # fmt: skip
    assert int(parts.sum()) == total
    assert parts.min() >= 0
    assert np.abs(parts - exact).max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("law", "even", "uneven"), [("dirichlet", 1000.0, 0.2), ("lognormal", 0.01, 1.5)]
)
def test_the_spread_of_a_law_orders_its_imbalance(
    law: Quantity, even: float, uneven: float
) -> None:
    """Even and uneven spreads differ as documented, which is the other way round for the two laws."""

    def largest(spread: float) -> float:
        draws = [SizeLaw(law, spread).draw(5000, 10, MIN_EXAMPLES, rng(s)) for s in range(50)]
        return float(np.mean([d.max() / 500 for d in draws]))

    assert largest(even) < 1.2
    assert largest(uneven) > 2.5


def test_lognormal_sizes_have_the_law_that_is_documented() -> None:
    """Logarithms of the sizes above the least have standard deviation σ."""
    drawn = SizeLaw("lognormal", 0.7).draw(10_000_000, 4000, MIN_EXAMPLES, rng())
    assert float(np.log(drawn - MIN_EXAMPLES).std()) == pytest.approx(0.7, abs=0.03)


def test_dirichlet_sizes_have_the_law_that_is_documented() -> None:
    """A share of Dir(β, …, β) over U clients has variance (U − 1) / (U² (U β + 1))."""
    clients, beta = 5, 0.5
    draws = [SizeLaw("dirichlet", beta).draw(10**6, clients, 0, rng(s)) for s in range(2000)]
    expected = (clients - 1) / (clients**2 * (clients * beta + 1))
    assert float(np.var(np.array(draws) / 10**6)) == pytest.approx(expected, rel=0.05)


# Label skew and quantity skew at once


@every_law
@few
@given(
    seed=seeds,
    clients=st.integers(2, 6),
    classes=st.integers(1, 8),
    alpha=st.floats(1e-3, 1e3),
    spread=spreads,
)
def test_clients_of_drawn_sizes_share_every_example(
    law: Quantity, seed: int, clients: int, classes: int, alpha: float, spread: float
) -> None:
    """Whatever the mixtures ask for: the sizes are kept, and every example has one owner."""
    labels = rng(seed).integers(classes, size=60 * clients)
    members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    asked = SizeLaw(law, spread).draw(len(labels), clients, MIN_EXAMPLES, rng(seed))
    parts = mixtures(members, asked, alpha, rng(seed))
    assert sizes(parts) == asked.tolist()
    assert covers(parts, len(labels))


def test_with_sizes_alpha_still_means_skew() -> None:
    """A tiny alpha gives a client one label, a large one everybody's mix; Dir(1, …, 1) over K has a largest share of H_K / K."""
    labels = np.arange(4000) % 5
    law = SizeLaw("lognormal", 0.5)

    def skew(alpha: float) -> float:
        drawn = [
            partition(
                labels, 8, "dirichlet", rng(s), dirichlet_alpha=alpha, sizes=law, min_labels=1
            )
            for s in range(20)
        ]
        tops = [np.bincount(labels[p]).max() / len(p) for parts in drawn for p in parts]
        return float(np.mean(tops))

    assert skew(0.01) > 0.8
    assert skew(1.0) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5, abs=0.06)
    assert skew(1e4) < 0.22


def test_a_mixture_of_unequal_kinds_is_right_on_average() -> None:
    """Dir(α K p) has mean p: over many draws the first client's share of a rare kind is its frequency."""
    members = [np.arange(900), np.arange(900, 1000)]
    asked = np.array([100] * 10)
    rare = [
        int((mixtures(members, asked, 1.0, rng(s))[0] >= 900).sum()) for s in range(400)
    ]  # of the client's 100
    assert float(np.mean(rare)) == pytest.approx(10.0, abs=2.0)


@pytest.mark.parametrize("scheme", ["label", "column"])
def test_sizes_are_refused_where_the_scheme_has_its_own(scheme: Scheme) -> None:
    """Shards are equal and a column's values stay whole: the message says which key to leave out."""
    with pytest.raises(DataError, match=r"leave federation\.quantity out"):
        partition(
            np.arange(80) % 4, 2, scheme, rng(), groups=["a"] * 80, sizes=SizeLaw("dirichlet", 1.0)
        )


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_too_few_examples_for_the_clients_are_counted(scheme: Scheme) -> None:
    """Fewer than ten examples a client cannot be dealt: the message has both numbers."""
    law = SizeLaw("lognormal", 1.0)
    with pytest.raises(DataError, match=r"79 examples do not go round 8 clients"):
        partition(np.arange(79) % 2, 8, scheme, rng(), sizes=law)


@pytest.mark.parametrize("spread", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spread_that_is_no_positive_number_is_refused(spread: float) -> None:
    """β and σ are positive and finite."""
    with pytest.raises(DataError, match="spread of lognormal"):
        SizeLaw("lognormal", spread)


# What clients hold out


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("column", {}),
        ("dirichlet", {"dirichlet_alpha": 0.5}),
        ("iid", {"sizes": SizeLaw("dirichlet", 0.1)}),
    ],
)
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.9])
def test_every_client_trains_and_tests_on_something(
    scheme: Scheme, options: dict[str, Any], fraction: float
) -> None:
    """The smallest client that a partition may make keeps an example and holds one out.

    So its own score, the gap and the worst client exist for every partition.
    """
    groups = ["common"] * 150 + ["rare"] * MIN_EXAMPLES + ["other"] * 140
    parts = partition(np.zeros(300, dtype=np.int64), 3, scheme, rng(), groups=groups, **options)
    splits = split_clients(parts, fraction, rng())
    assert min(min(len(s.train), len(s.test)) for s in splits) >= 1
    assert covers([half for s in splits for half in (s.train, s.test)], 300)
