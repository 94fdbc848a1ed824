"""How uneven a split is: what each client holds and holds out, and how far it is from everybody's mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS_SHOWN = 20
"""With more clients than this, a summary shows quantiles over the clients in place of a row for each."""

QUANTILES = (("smallest", 0.0), ("a quarter", 0.25), ("median", 0.5), ("three quarters", 0.75), ("largest", 1.0))  # fmt: skip
"""Rows in place of the clients where those are many: name, share of the clients that have no more."""


@dataclass(frozen=True, slots=True)
class ClientSummary:
    """What one client holds.

    Args:
        client: its number.
        train: training examples.
        held_out: examples that test its own model; None where that is not known.
        labels: different labels among its training examples.
        top: its most frequent label; empty if it has no examples.
        top_share: share of its training examples that have that label.
        distance: total variation between its labels and everybody's, 0 to 1; see :func:`total_variation`.
    """

    client: int
    train: int
    held_out: int | None
    labels: int
    top: str
    top_share: float
    distance: float


@dataclass(frozen=True, slots=True)
class PartitionSummary:
    """What all clients hold.

    Args:
        clients: one summary each.
        labels: different labels over all clients.
        mean_distance: mean of the clients' total variation, the measure of label skew: 0 if all have one mix.
        mean_top_share: mean share of a client's most frequent label.
        imbalance: training examples of the largest client over the mean, the measure of quantity skew: 1 if even.
    """

    clients: tuple[ClientSummary, ...]
    labels: int
    mean_distance: float
    mean_top_share: float
    imbalance: float


def total_variation(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    r"""How far each client's mix of labels is from that of all clients together.

    .. math:: d_u = \tfrac{1}{2} \sum_k \left| \frac{n_{uk}}{\sum_j n_{uj}} - \frac{\sum_v n_{vk}}{\sum_{v,j} n_{vj}} \right|

    the share of client u's examples that would have to change their label for it to have the common mix: 0 if it has
    that already, near 1 if it holds one rare label alone. A client without examples has 0.

    Args:
        counts: (U, K) number of examples of each label k that each client u has.

    Returns:
        (U,) distances.

    Example:
        >>> total_variation(np.array([[5, 5], [10, 0], [0, 10]])).tolist()
        [0.0, 0.5, 0.5]
    """
    sizes = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)
    common = counts.sum(axis=0) / max(int(counts.sum()), 1)
    distances: NDArray[np.float64] = 0.5 * np.abs(shares - common).sum(axis=1)
    return np.where(sizes[:, 0] > 0, distances, 0.0)


def summarise(
    counts: Sequence[Sequence[int]] | NDArray[np.int64],
    names: Sequence[str],
    held_out: Sequence[int] | None = None,
) -> PartitionSummary:
    """What each client holds and how uneven that is.

    Args:
        counts: (U, K) training examples of each label that each client has, as ``provenance.json`` keeps them
            under ``partition``.
        names: K labels.
        held_out: U numbers of examples that clients keep for testing, if known.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> found = summarise([[8, 2], [0, 10]], ["no", "yes"], [1, 2])
        >>> found.clients[0]
        ClientSummary(client=0, train=10, held_out=1, labels=2, top='no', top_share=0.8, distance=0.4)
        >>> found.mean_distance, found.imbalance
        (0.4, 1.0)
    """
    table = np.asarray(counts, dtype=np.int64).reshape(len(counts), -1)
    if table.shape[1] != len(names) or (held_out is not None and len(held_out) != len(table)):
        raise ValueError(
            f"counts are {table.shape}, but there are {len(names)} names and held-out numbers of "
            f"{None if held_out is None else len(held_out)} clients"
        )
    sizes, distances = table.sum(axis=1), total_variation(table)
    clients = []
    for client, row in enumerate(table):
        size, top = int(sizes[client]), int(row.argmax())
        clients.append(
            ClientSummary(
                client,
                size,
                None if held_out is None else int(held_out[client]),
                int(np.count_nonzero(row)),
                names[top] if size else "",
                float(row[top]) / size if size else 0.0,
                float(distances[client]),
            )
        )
    return PartitionSummary(
        tuple(clients),
        int(np.count_nonzero(table.sum(axis=0))),
        float(distances.mean()),
        float(np.mean([c.top_share for c in clients])),
        float(sizes.max() / sizes.mean()) if sizes.any() else 1.0,
    )


def summary_rows(
    summary: PartitionSummary, most: int = ROWS_SHOWN
) -> tuple[list[str], list[list[str]]]:
    """The summary as a head and rows of text: a row for every client or, of many, quantiles column by column.

    Args:
        summary: from :func:`summarise`.
        most: number of clients up to which each has its row.

    Returns:
        The head, and the rows. A column that says nothing is left out: labels where there is one only, the held-out
        examples where they are not known.

    Example:
        >>> head, rows = summary_rows(summarise([[8, 2], [0, 10]], ["no", "yes"], [1, 2]))
        >>> head
        ['client', 'train', 'held out', 'labels', 'largest label', 'its share', 'distance']
        >>> rows[1]
        ['1', '10', '2', '1', 'yes', '100 %', '0.40']
    """
    if len(summary.clients) > most:
        head = ["clients", "train", "held out", "labels", "largest label", "distance"]
        rows = [[name, *_quantile(summary, q)] for name, q in QUANTILES]
    else:
        head = ["client", "train", "held out", "labels", "largest label", "its share", "distance"]
        rows = [_row(client) for client in summary.clients]
    unknown = any(c.held_out is None for c in summary.clients)
    hidden = {"held out"} if unknown else set()
    if summary.labels < 2:
        hidden |= {"labels", "largest label", "its share", "distance"}
    kept = [at for at, name in enumerate(head) if name not in hidden]
    return [head[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _row(c: ClientSummary) -> list[str]:
    held_out = "" if c.held_out is None else str(c.held_out)
    share, distance = _percent(c.top_share), f"{c.distance:.2f}"
    return [str(c.client), str(c.train), held_out, str(c.labels), c.top, share, distance]


def _quantile(summary: PartitionSummary, q: float) -> list[str]:
    """That quantile of every column, each on its own; values that occur, not means of two."""

    def at(values: list[float]) -> float:
        return float(np.quantile(values, q, method="nearest"))

    clients = summary.clients
    held_out = [float(c.held_out) for c in clients if c.held_out is not None]
    return [
        f"{at([c.train for c in clients]):.0f}",
        f"{at(held_out):.0f}" if held_out else "",
        f"{at([c.labels for c in clients]):.0f}",
        _percent(at([c.top_share for c in clients])),
        f"{at([c.distance for c in clients]):.2f}",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
