"""The table of a partition in a terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from florana.cli._partition_text import partition_of, partition_table


def shown(provenance: dict[str, Any], width: int = 80) -> list[str]:
    """What a terminal of that width shows, without spaces at the ends of lines."""
    console = Console(file=StringIO(), width=width, highlight=False)
    summary = partition_of(provenance)
    assert summary is not None
    console.print(partition_table(summary), soft_wrap=False)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_row_for_each_client_and_the_skew() -> None:
    """Numbers to the right, names to the left, as they are, square brackets and all."""
    provenance = {
        "partition": [[80, 20], [0, 100]],
        "labels": ["no", "[red]yes"],
        "held_out": [9, 11],
    }
    assert shown(provenance) == [
        "client  train  held out  labels  largest label  its share  distance",
        "     0    100         9       2  no                  80 %      0.40",
        "     1    100        11       1  [red]yes           100 %      0.40",
        "label skew 0.40 (mean distance between a client's labels and everybody's,",
        "0 to 1); quantity skew 1.0 (largest client over the mean)",
    ]


@pytest.mark.parametrize("clients", [20, 1000])
def test_it_fits_a_terminal(clients: int) -> None:
    """Long names are cut, many clients are quantiles: no line is wider than 80, and all numbers are there."""
    counts = [[k + 1, 2 * k] for k in range(clients)]
    lines = shown(
        {"partition": counts, "labels": ["a label " * 20, "b" * 300], "held_out": [1] * clients}
    )
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 23
    assert any(str(3 * clients - 2) in line for line in lines)


def test_texts_without_labels_have_sizes_alone() -> None:
    """One label: what each client has, and how uneven that is."""
    assert shown({"partition": [[10], [30]], "labels": ["text"], "held_out": [1, 3]}) == [
        "client  train  held out",
        "     0     10         1",
        "     1     30         3",
        "quantity skew 1.5 (largest client over the mean)",
    ]


@pytest.mark.parametrize("provenance", [{}, {"partition": [], "labels": ["a", "b"]}])
def test_nodes_with_data_of_their_own_are_not_counted(provenance: dict[str, Any]) -> None:
    """Nothing to show where the server knows no counts."""
    assert partition_of(provenance) is None


def test_a_run_of_an_older_version_has_no_held_out_numbers() -> None:
    """Its table lacks that column and is otherwise the same."""
    assert shown({"partition": [[5, 5]], "labels": ["a", "b"]})[0].split() == [
        "client", "train", "labels", "largest", "label", "its", "share", "distance"
    ]  # fmt: skip
