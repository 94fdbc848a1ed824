"""Every example to one client: at random, skewed by label or column, in shards, or by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from florana.errors import DataError
from florana.tasks.partition.held_out import Indices
from florana.tasks.partition.mixtures import mixtures
from florana.tasks.partition.sizes import SizeLaw

Scheme = Literal["iid", "dirichlet", "label", "column"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

MAX_DRAWS = 100
"""Dirichlet splits are drawn again while a client is too poor, at most this often."""

MIN_EXAMPLES = 10
"""Fewest examples that a client may have, before it holds some of them out."""


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
    sizes: SizeLaw | None = None,
) -> list[Indices]:
    r"""Give every example to one client.

    - ``iid``: at random, in parts of equal size, or of ``sizes``: quantity skew alone.
    - ``dirichlet``: skew by kind. A kind is a label or, with ``groups``, a value of the column. Without ``sizes``, the
      shares of the clients in kind k are drawn from Dir(α, …, α) over the clients, as NIID-Bench does (Li et al., arXiv
      2102.02079, after Yurochkin et al., arXiv 1905.12022); sizes follow. With ``sizes``, client u draws its mixture
      of kinds from Dir(α K p) over the K kinds, p being their frequencies, and then so many examples without
      replacement, after Hsu et al. (arXiv 1909.06335); see :func:`florana.tasks.partition.mixtures.mixtures`. Drawn
      again while a client has fewer than 10 examples or too few labels.
    - ``label``: every client gets ``labels_per_client`` shards of the examples sorted by kind, after
      McMahan et al. (arXiv 1602.05629).
    - ``column``: examples with one value of a column stay together; with more values than clients the
      next largest group goes to the client with the fewest examples.

    Args:
        labels: n class indices. Regression: bins of the target; language models: a category, or all zeros.
        clients: number U of clients.
        scheme: one of the four above.
        rng: the only source of randomness.
        dirichlet_alpha: α > 0; small is skewed, large is even.
        labels_per_client: shards per client for ``label``.
        min_labels: fewest different labels that a client may have, of those there are; 1 allows clients of a
            single class. It matters to classifiers only.
        groups: n values of the column; needed for ``column``.
        sizes: law of the clients' sizes for ``iid`` and ``dirichlet``; by default what the scheme gives.

    Returns:
        U ascending arrays of indices, disjoint, that cover everything.

    Raises:
        DataError: if a client would be empty or too poor, naming it and what to change; if ``groups`` has another
            length than ``labels``; if ``sizes`` is given to a scheme that has sizes of its own.

    Example:
        >>> parts = partition(np.arange(100) % 4, 5, "iid", np.random.default_rng(0))
        >>> [len(p) for p in parts]
        [20, 20, 20, 20, 20]
        >>> law = SizeLaw("dirichlet", 0.5)
        >>> parts = partition(np.arange(100) % 4, 5, "iid", np.random.default_rng(0), sizes=law)
        >>> [len(p) for p in parts]
        [10, 30, 36, 12, 12]
    """
    if groups is not None and len(groups) != len(labels):
        raise DataError(f"the partition column has {len(groups)} values for {len(labels)} examples")
    if sizes is not None:
        _check_sizes(len(labels), clients, scheme)
    wanted = min(min_labels, len(np.unique(labels)))
    if scheme == "iid":
        parts = _iid(len(labels), clients, rng, sizes)
    elif scheme == "dirichlet":
        parts = _dirichlet(labels, clients, dirichlet_alpha, wanted, rng, groups, sizes)
    elif scheme == "label":
        kinds = labels if groups is None else _kinds(groups)[1]
        parts = _shards(kinds, clients, labels_per_client, rng)
    else:
        parts = _by_group(groups, clients)
    parts = [np.sort(part) for part in parts]
    _check(parts, labels, wanted)
    return parts


def _check_sizes(count: int, clients: int, scheme: Scheme) -> None:
    if scheme not in ("iid", "dirichlet"):
        raise DataError(
            f"partition = {scheme!r} decides how many examples a client gets; leave federation.quantity out, or set "
            "federation.partition to 'iid' or 'dirichlet'"
        )
    if count < clients * MIN_EXAMPLES:
        raise DataError(
            f"{count} examples do not go round {clients} clients with {MIN_EXAMPLES} or more each: use fewer clients "
            "or more data"
        )


def _check(parts: Sequence[Indices], labels: NDArray[np.int64], min_labels: int) -> None:
    for client, part in enumerate(parts):
        if len(part) < MIN_EXAMPLES:
            raise DataError(
                f"client {client} would have {len(part)} training examples, fewer than {MIN_EXAMPLES}; "
                f"{len(labels)} examples do not go round {len(parts)} clients: use fewer clients or more data"
            )
        found = len(np.unique(labels[part]))
        if found < min_labels:
            raise DataError(
                f"client {client} would have {found} label(s), fewer than federation.min_labels = {min_labels}; "
                "use fewer clients or another partition, or lower federation.min_labels to allow it"
            )


def _iid(
    count: int, clients: int, rng: np.random.Generator, sizes: SizeLaw | None
) -> list[Indices]:
    order = rng.permutation(count)
    if sizes is None:
        return np.array_split(order, clients)
    return np.split(order, np.cumsum(sizes.draw(count, clients, MIN_EXAMPLES, rng))[:-1])


def _dirichlet(
    labels: NDArray[np.int64],
    clients: int,
    alpha: float,
    min_labels: int,
    rng: np.random.Generator,
    groups: Sequence[str] | None,
    sizes: SizeLaw | None,
) -> list[Indices]:
    members = _members(labels if groups is None else _kinds(groups)[1])
    for _ in range(MAX_DRAWS):
        if sizes is None:
            parts = _shares(members, clients, alpha, rng, unbiased=groups is not None)
        else:
            drawn = sizes.draw(len(labels), clients, MIN_EXAMPLES, rng)
            parts = mixtures(members, drawn, alpha, rng)
        if all(len(p) >= MIN_EXAMPLES and len(np.unique(labels[p])) >= min_labels for p in parts):
            return parts
    client, worst = min(enumerate(parts), key=lambda part: len(part[1]))
    raise DataError(
        f"in {MAX_DRAWS} draws of Dirichlet({alpha:g}) over {clients} clients some client always had fewer "
        f"than {MIN_EXAMPLES} examples or {min_labels} labels (in the last one: client {client} with {len(worst)} "
        "examples was the smallest); raise federation.dirichlet_alpha, use fewer clients, or partition = 'label'"
    )


def _shares(
    members: Sequence[Indices],
    clients: int,
    alpha: float,
    rng: np.random.Generator,
    *,
    unbiased: bool,
) -> list[Indices]:
    """One draw of the shares of every kind.

    Cuts are rounded down, as in NIID-Bench, which leaves the odd examples of every label with the last client. Labels are
    few, so that is little, and old splits stay what they were. Values of a column may be as many as the examples, and the
    last client would get them all; with ``unbiased`` a random offset makes each client's number right on average.
    """
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for kind in members:
        mixed = rng.permutation(kind)
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.cumsum(shares)[:-1] * len(mixed)
        if unbiased:
            cuts = np.minimum(cuts + rng.random(), len(mixed))
        for part, piece in zip(parts, np.split(mixed, cuts.astype(np.int64)), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _shards(
    kinds: NDArray[np.int64], clients: int, per_client: int, rng: np.random.Generator
) -> list[Indices]:
    shuffled = rng.permutation(len(kinds))
    by_kind = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    shards = np.array_split(by_kind, clients * per_client)
    dealt = rng.permutation(len(shards)).reshape(clients, per_client)
    return [np.concatenate([shards[s] for s in mine]) for mine in dealt]


def _by_group(groups: Sequence[str] | None, clients: int) -> list[Indices]:
    if groups is None:
        raise DataError("partition = 'column' needs federation.column, the column to split by")
    names, kinds = _kinds(groups)
    if len(names) < clients:
        raise DataError(
            f"the partition column has {len(names)} values, fewer than {clients} clients; "
            f"set federation.clients to {len(names)} or less"
        )
    members = _members(kinds)
    owned: list[list[Indices]] = [[] for _ in range(clients)]
    loads = np.zeros(clients, dtype=np.int64)
    for i in np.argsort([-len(m) for m in members], kind="stable"):
        poorest = int(np.argmin(loads))
        owned[poorest].append(members[i])
        loads[poorest] += len(members[i])
    return [np.concatenate(mine) for mine in owned]


def _kinds(groups: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different values, sorted, and the index of each example's."""
    names = sorted(set(groups))
    index = {name: i for i, name in enumerate(names)}
    return names, np.fromiter((index[g] for g in groups), np.int64, len(groups))


def _members(kinds: NDArray[np.int64]) -> list[Indices]:
    """The examples of every kind that occurs, ascending; kinds ascending."""
    _, counts = np.unique(kinds, return_counts=True)
    return np.split(np.argsort(kinds, kind="stable"), np.cumsum(counts)[:-1])
