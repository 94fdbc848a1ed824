"""The summary of a partition: what each client holds, and how far it is from everybody's mix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from florana.tasks.partition import summarise, summary_rows, total_variation
from strategies import few

tables = st.tuples(st.integers(1, 7), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 50))
)


def names(count: int) -> list[str]:
    """Names of labels."""
    return [f"label {k}" for k in range(count)]


@few
@given(counts=tables)
def test_a_distance_is_the_share_that_has_to_change(counts: np.ndarray) -> None:
    """Total variation by the definition over every set of labels: the largest difference of probability."""
    found = total_variation(counts)
    everybody = counts.sum(axis=0) / max(1, counts.sum())
    for row, distance in zip(counts, found, strict=True):
        if row.sum() == 0:
            assert distance == 0
            continue
        mine = row / row.sum()
        sets = np.array(list(np.ndindex(*(2,) * len(mine))))
        assert distance == pytest.approx((sets @ (mine - everybody)).max(), abs=1e-12)


@few
@given(counts=tables, factor=st.integers(1, 9))
def test_distances_know_neither_order_nor_size(counts: np.ndarray, factor: int) -> None:
    """Labels in another order, or every example several times, change nothing; clients in another order permute."""
    found = total_variation(counts)
    assert total_variation(counts[:, ::-1]) == pytest.approx(found)
    assert total_variation(counts * factor) == pytest.approx(found)
    assert total_variation(counts[::-1]) == pytest.approx(found[::-1])


@few
@given(counts=tables)
def test_a_summary_counts_what_there_is(counts: np.ndarray) -> None:
    """Sizes add up, a share belongs to the label that is named, and every measure is within its bounds."""
    held_out = list(range(len(counts)))
    found = summarise(counts, names(counts.shape[1]), held_out)
    assert sum(c.train for c in found.clients) == counts.sum()
    assert [c.held_out for c in found.clients] == held_out
    for client, row in zip(found.clients, counts, strict=True):
        assert client.labels == np.count_nonzero(row)
        if client.train:
            top = int(client.top.split()[1])
            assert row[top] == row.max()
            assert client.top_share == pytest.approx(row.max() / row.sum())
        else:
            assert (client.top, client.top_share) == ("", 0.0)
        assert 0 <= client.distance <= 1
    assert 1 - 1e-12 <= found.imbalance <= len(counts) * (1 + 1e-12)


def test_a_row_for_every_client() -> None:
    """Few clients: their numbers as they are."""
    head, rows = summary_rows(summarise([[9, 1, 0], [0, 0, 10]], names(3), [2, 3]))
    assert head == ["client", "train", "held out", "labels", "largest label", "its share", "distance"]  # fmt: skip
    assert rows == [
        ["0", "10", "2", "2", "label 0", "90 %", "0.50"],
        ["1", "10", "3", "1", "label 2", "100 %", "0.50"],
    ]


def test_quantiles_of_many_clients() -> None:
    """Many clients: five rows whose numbers are some client's, each column ordered by itself."""
    counts = [[k + 1, 100 - k] for k in range(101)]
    head, rows = summary_rows(summarise(counts, names(2), list(range(101))))
    assert head == ["clients", "train", "held out", "labels", "largest label", "distance"]
    assert [row[0] for row in rows] == ["smallest", "a quarter", "median", "three quarters", "largest"]  # fmt: skip
    assert [row[2] for row in rows] == ["0", "25", "50", "75", "100"]
    assert rows[0][4] == "50 %"
    assert rows[-1][4] == "100 %"


def test_columns_that_say_nothing_are_left_out() -> None:
    """One label: nothing about labels. Held-out numbers unknown: no such column."""
    assert summary_rows(summarise([[4], [5]], ["text"], [1, 1])) == (
        ["client", "train", "held out"],
        [["0", "4", "1"], ["1", "5", "1"]],
    )
    assert "held out" not in summary_rows(summarise([[4, 5]], names(2)))[0]


@pytest.mark.parametrize(("kinds", "held_out"), [(3, None), (2, [1])])
def test_numbers_that_do_not_fit_are_refused(kinds: int, held_out: list[int] | None) -> None:
    """A name for every column and a held-out number for every row."""
    with pytest.raises(ValueError, match=r"counts are \(2, 2\)"):
        summarise([[1, 2], [3, 4]], names(kinds), held_out)
