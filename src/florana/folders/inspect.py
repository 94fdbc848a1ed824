"""Look at adapter folders before making one of them: what it would cost, and who is unlike the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from florana.config import Variant
from florana.errors import ConfigError
from florana.folders._threads import one_thread
from florana.folders.agreement import Wanted, agree
from florana.folders.base import open_base
from florana.folders.clients import Client as Folder
from florana.folders.clients import PathLike, open_clients
from florana.folders.inspect_losses import NEAREST, chosen
from florana.folders.inspect_module import Task, View, measure
from florana.folders.inspect_values import Inspection
from florana.folders.inspect_whole import assemble
from florana.folders.missing import CHOICES, Missing
from florana.peft_io.form import StoredModule
from florana.peft_io.limits import Limits

MOST_RANKS = 12
"""Ranks at which losses are told, at most."""

Progress = Callable[[int, int, str], None]
"""Called with the number of modules done, of all, and the name of the next."""


def inspect_folders(
    paths: Sequence[PathLike],
    ranks: Sequence[int] | None = None,
    *,
    weights: Sequence[float] | None = None,
    methods: Sequence[str] | None = None,
    base: PathLike | None = None,
    missing: Missing = "refuse",
    base_name: str | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Inspection:
    r"""Tell, without training, what N PEFT adapters have in common and what one adapter in their place would lose.

    Against the weighted mean of the updates, for every module m,

    .. math:: T_m = \sum_u w_u \Delta W_{u,m}, \qquad
              \text{error} = \sqrt{\sum_m \lVert T_m - X_m \rVert_F^2} \Big/ \sqrt{\sum_m \lVert T_m \rVert_F^2}

    for the result X of every method that can merge finished adapters, at every rank; the energy spectrum of T; the
    clients' cosines :math:`\langle \Delta W_u, \Delta W_v \rangle / (\lVert \Delta W_u \rVert \lVert \Delta W_v \rVert)`
    and norms, all modules taken as one vector; the principal angles between their column and row spaces; who is
    unlike the others; and a rank and a method to take (:func:`florana.folders.inspect_advice.recommend`). No ΔW is
    formed; modules are read one at a time. Errors are those before rounding to the dtype of a file.

    For DoRA and HiRA errors are of the change of the whole weight, as :class:`florana.Errors` has them, and the
    spectrum is of what the low-rank pair has to carry; cosines, norms of clients and angles are of the products B A.

    Args:
        paths: adapter folders, one per client.
        ranks: ranks of the result, by default 1, 2, 4, … to past the clients' own, see :func:`default_ranks`.
        weights: one per folder, a number of examples or a share; equal by default, since a folder does not say.
        methods: names; by default all that can merge these adapters.
        base: folder of the base model, needed for DoRA and HiRA.
        missing: what to do about a module that a client lacks: ``"refuse"``, ``"zero"`` (it has no change there) or
            ``"mean"`` (of those that have it).
        base_name: name of the base model, where folders call one model by several names.
        limits: how large files may be.
        progress: called before each module.

    Raises:
        AdapterError: if a folder cannot be used.
        AggregationError: if the adapters do not fit together.
        ConfigError: if a rank or a method cannot be used, or the base model is needed and not given.

    Example:
        >>> import florana, tempfile, torch
        >>> from pathlib import Path
        >>> def folder(root, seed):
        ...     g = torch.Generator().manual_seed(seed)
        ...     pair = florana.LoraPair(torch.randn(2, 8, generator=g), torch.randn(6, 2, generator=g), alpha=4)
        ...     return florana.save_adapter(florana.Adapter({"layer": pair}), Path(root) / f"site_{seed}")
        >>> with tempfile.TemporaryDirectory() as root:
        ...     found = inspect_folders([folder(root, seed) for seed in (0, 1, 2)])
        >>> [client.name for client in found.clients], found.losses.ranks, round(found.losses.optimum[6], 6)
        (['site_0', 'site_1', 'site_2'], (1, 2, 4, 6), 0.0)
    """
    if missing not in CHOICES:
        raise ConfigError(f"missing is {missing!r}; expected one of {', '.join(CHOICES)}")
    wanted = Wanted(NEAREST, dtype=torch.float64, missing=missing, base_name=base_name)
    with one_thread(), open_clients(paths, weights, limits or Limits()) as folders:
        agreed = agree(folders, wanted)
        stored = [[f.folder.form.modules.get(name) for f in folders] for name in agreed.modules]
        known = [[m for m in modules if m is not None] for modules in stored]
        variant: Variant = known[0][0].variant
        mixed = any(len({m.rank for m in modules}) > 1 for modules in known)
        means = chosen(methods, variant, mixed)
        task = Task(
            _shares(folders),
            default_ranks(known) if ranks is None else _checked(ranks),
            means.cards,
            missing,
        )
        if variant != "lora" and base is None:
            raise ConfigError(
                f"these adapters are {variant}, and what they change follows from the frozen weights; give the base "
                "model's folder with --base"
            )
        with _weights(base if variant != "lora" else None, [*agreed.modules.values()]) as read:
            names = sorted(agreed.modules, key=natural)
            measured = [measure(view, task) for view in _views(folders, names, read, progress)]
        labels = [folder.name for folder in folders]
        return assemble(labels, measured, task.weights, variant, agreed.base_model, means.left_out)


def _shares(folders: Sequence[Folder]) -> tuple[float, ...]:
    total = sum(folder.num_examples for folder in folders)
    return tuple(folder.num_examples / total for folder in folders)


def _checked(ranks: Sequence[int]) -> tuple[int, ...]:
    odd = [rank for rank in ranks if type(rank) is not int or rank < 1]
    if odd or not ranks:
        raise ConfigError(
            f"ranks must be whole numbers of 1 or more, got {odd[0] if odd else 'none'}"
        )
    if len({*ranks}) > MOST_RANKS:
        raise ConfigError(f"{len({*ranks})} ranks are asked for; expected {MOST_RANKS} at most")
    return tuple(sorted({*ranks}))


def default_ranks(modules: Sequence[Sequence[StoredModule]]) -> tuple[int, ...]:
    """1, 2, 4, … up to four times the clients' largest rank, that rank itself, and the one at which nothing is lost.

    The last is R = min(Σ r_u, d_out, d_in), of the module where it is largest, and is told only where it is no
    more than four times the clients' rank.

    Args:
        modules: for every module the clients' stored ones.
    """
    largest = max(m.rank for clients in modules for m in clients)
    whole = max(min(sum(m.rank for m in clients), *clients[0].shape) for clients in modules)
    most = min(4 * largest, whole)
    powers = [2**k for k in range(most.bit_length()) if 2**k <= most]
    own = min(largest, whole)
    found = sorted({*powers, own, *([whole] if whole <= 4 * largest else [])})
    return tuple(found[-MOST_RANKS:])


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts layer 10 after layer 9.

    Example:
        >>> sorted(["h.10.q", "h.9.v", "h.9.q"], key=natural)
        ['h.9.q', 'h.9.v', 'h.10.q']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part[:18]), part) if part.isdecimal() else (-1, part) for part in parts]


@contextmanager
def _weights(
    base: PathLike | None, modules: Sequence[StoredModule]
) -> Iterator[Callable[[StoredModule], Tensor | None]]:
    """The frozen weight of a module, read when asked for; None for all where there is no base model."""
    if base is None:
        yield lambda _: None
        return
    with open_base(base, modules) as opened:
        yield opened.weight


def _views(
    folders: Sequence[Folder],
    names: Sequence[str],
    weight: Callable[[StoredModule], Tensor | None],
    progress: Progress | None,
) -> Iterator[View]:
    """The modules, one at a time: the clients' pairs, and the frozen weight where it is needed."""
    for done, name in enumerate(names):
        if progress:
            progress(done, len(names), name)
        stored = [folder.folder.form.modules.get(name) for folder in folders]
        frozen = weight(next(module for module in stored if module is not None))
        found = [
            None if module is None else folder.folder.pairs(name)
            for folder, module in zip(folders, stored, strict=True)
        ]
        first = next(pairs for pairs in found if pairs is not None)
        for pair_name in first:
            pairs = tuple(None if p is None else p[pair_name] for p in found)
            yield View(pair_name, pairs, frozen)
