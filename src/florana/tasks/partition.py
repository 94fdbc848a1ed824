"""How examples are spread over clients, and what each client and the server hold out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from florana.errors import DataError

Indices = NDArray[np.int64]

Scheme = Literal["iid", "dirichlet", "label", "column"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

MAX_DRAWS = 100
"""Dirichlet splits are drawn again while a client is too poor, at most this often."""

MIN_EXAMPLES = 10
"""Fewest training examples that a client may have."""


@dataclass(frozen=True, slots=True, eq=False)
class ClientSplit:
    """What one client trains on, and what it keeps to test its own model."""

    train: Indices
    test: Indices


def hold_out(count: int, fraction: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split 0..count−1 at random into (kept, held out); at least one is held out if any can be."""
    order = rng.permutation(count)
    size = min(max(1, round(count * fraction)), count - 1) if count > 1 else 0
    return np.sort(order[size:]), np.sort(order[:size])


def split_clients(
    parts: Sequence[Indices], fraction: float, rng: np.random.Generator
) -> list[ClientSplit]:
    """Hold out a share of every client's own examples."""
    splits = []
    for part in parts:
        kept, held = hold_out(len(part), fraction, rng)
        splits.append(ClientSplit(part[kept], part[held]))
    return splits


def partition(
    labels: NDArray[np.int64],
    clients: int,
    scheme: Scheme,
    rng: np.random.Generator,
    *,
    dirichlet_alpha: float = 0.3,
    labels_per_client: int = 2,
    min_labels: int = 2,
    groups: Sequence[str] | None = None,
) -> list[Indices]:
    r"""Give every example to one client.

    - ``iid``: at random, in parts of equal size.
    - ``dirichlet``: label skew; the share of client u in class k is drawn from Dir(α), after
      Hsu et al. (arXiv 1909.06335). Drawn again while a client has fewer than 10 examples or too few labels.
    - ``label``: every client gets ``labels_per_client`` shards of the examples sorted by label, after
      McMahan et al. (arXiv 1602.05629).
    - ``column``: examples with one value of a column stay together; with more values than clients the
      next largest group goes to the client with the fewest examples.

    Args:
        labels: n class indices.
        clients: number U of clients.
        scheme: one of the four above.
        rng: the only source of randomness.
        dirichlet_alpha: α > 0; small is skewed, large is iid.
        labels_per_client: shards per client for ``label``.
        min_labels: fewest different labels that a client may have; 1 allows clients of a single class.
        groups: n values of the column for ``column``.

    Returns:
        U arrays of indices, disjoint, that cover everything.

    Raises:
        DataError: if a client would be empty or too poor, naming it and what to change.

    Example:
        >>> parts = partition(np.arange(100) % 4, 5, "iid", np.random.default_rng(0))
        >>> [len(p) for p in parts]
        [20, 20, 20, 20, 20]
    """
    if scheme == "iid":
        parts = np.array_split(rng.permutation(len(labels)), clients)
    elif scheme == "dirichlet":
        parts = _dirichlet(labels, clients, dirichlet_alpha, min_labels, rng)
    elif scheme == "label":
        parts = _shards(labels, clients, labels_per_client, rng)
    else:
        parts = _by_group(groups, clients)
    parts = [np.sort(part) for part in parts]
    for client, part in enumerate(parts):
        if len(part) < MIN_EXAMPLES:
            raise DataError(
                f"client {client} would have {len(part)} training examples, fewer than {MIN_EXAMPLES}; "
                f"{len(labels)} examples do not go round {clients} clients: use fewer clients or more data"
            )
        found = len(np.unique(labels[part]))
        if found < min_labels:
            raise DataError(
                f"client {client} would have {found} label(s), fewer than federation.min_labels = {min_labels}; "
                "use fewer clients or another partition, or lower federation.min_labels to allow it"
            )
    return parts


def _dirichlet(
    labels: NDArray[np.int64],
    clients: int,
    alpha: float,
    min_labels: int,
    rng: np.random.Generator,
) -> list[Indices]:
    for _ in range(MAX_DRAWS):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, piece in zip(parts, np.split(members, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if all(len(p) >= MIN_EXAMPLES and len(np.unique(labels[p])) >= min_labels for p in joined):
            return joined
    worst = min(joined, key=len)
    raise DataError(
        f"in {MAX_DRAWS} draws of Dirichlet({alpha:g}) over {clients} clients some client always had fewer "
        f"than {MIN_EXAMPLES} examples or {min_labels} labels (in the last one: {len(worst)} examples); "
        "raise federation.dirichlet_alpha, use fewer clients, or partition = 'label'"
    )


def _shards(
    labels: NDArray[np.int64], clients: int, per_client: int, rng: np.random.Generator
) -> list[Indices]:
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, clients * per_client)
    dealt = rng.permutation(len(shards)).reshape(clients, per_client)
    return [np.concatenate([shards[s] for s in mine]) for mine in dealt]


def _by_group(groups: Sequence[str] | None, clients: int) -> list[Indices]:
    if groups is None:
        raise DataError("partition = 'column' needs federation.column, the column to split by")
    values = np.array(groups)
    names, sizes = np.unique(values, return_counts=True)
    if len(names) < clients:
        raise DataError(
            f"the partition column has {len(names)} values, fewer than {clients} clients; "
            f"set federation.clients to {len(names)} or less"
        )
    owned: list[list[Indices]] = [[] for _ in range(clients)]
    loads = np.zeros(clients, dtype=np.int64)
    for i in np.argsort(-sizes, kind="stable"):
        poorest = int(np.argmin(loads))
        owned[poorest].append(np.flatnonzero(values == names[i]))
        loads[poorest] += sizes[i]
    return [np.concatenate(mine) for mine in owned]
