"""How uneven the clients are, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from florana.tasks.partition import PartitionSummary, summarise, summary_rows

WORDS = {"largest label"}
"""Columns that are not numbers."""
LONGEST = 24
"""Characters of a label's name that are shown."""


def partition_of(provenance: Mapping[str, Any]) -> PartitionSummary | None:
    """The summary of a run's partition; None where the nodes bring their own data and nobody counts them.

    Args:
        provenance: of the run; ``held_out`` may be missing in old ones.
    """
    counts, names = provenance.get("partition"), provenance.get("labels")
    return summarise(counts, names, provenance.get("held_out")) if counts and names else None


def partition_table(summary: PartitionSummary) -> Group:
    """A row for each client, or quantiles over many, and what it comes to in a sentence."""
    head, rows = summary_rows(summary)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in head:
        words = name in WORDS and not rows[0][head.index(name)].endswith("%")
        table.add_column(
            name, justify="left" if words else "right", no_wrap=True, max_width=LONGEST
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return Group(table, partition_sentence(summary))


def partition_sentence(summary: PartitionSummary) -> str:
    """The measures of skew in words.

    Example:
        >>> print(partition_sentence(summarise([[8, 2], [0, 10]], ["no", "yes"])))
        label skew 0.40 (mean distance between a client's labels and everybody's,
        0 to 1); quantity skew 1.0 (largest client over the mean)
    """
    quantity = f"quantity skew {summary.imbalance:.1f} (largest client over the mean)"
    if summary.labels < 2:
        return quantity
    return (
        f"label skew {summary.mean_distance:.2f} (mean distance between a client's labels and everybody's,\n"
        f"0 to 1); {quantity}"
    )
