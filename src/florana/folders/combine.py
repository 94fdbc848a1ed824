"""One module, or one parameter, of all adapters at a time: read, combined, and handed on to be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import Aggregate, aggregate
from florana.errors import AggregationError
from florana.folders._text import plain
from florana.folders.clients import Client
from florana.folders.job import Job
from florana.folders.missing import unchanged
from florana.folders.result import ModuleReport
from florana.folders.streaming import FEW, MANY, Shape, can_stream, shares, stream
from florana.peft_io.form import StoredModule
from florana.peft_io.scales import alike


class Combined(NamedTuple):
    """What became of one stored module.

    ``pairs`` are its pairs by name, ``reports`` how far they are from the ideal.
    """

    pairs: Mapping[str, LoraPair]
    reports: Sequence[ModuleReport]


def combine(job: Job, clients: Sequence[Client], name: str, weight: Tensor | None) -> Combined:
    """One stored module of all adapters, by the job's method.

    Memory is taken for this module of every adapter, or, where it is streamed, for a block of them.

    Args:
        job: what is asked.
        clients: the adapters, in the order of their weights.
        name: the module.
        weight: its frozen weight W (d_out, d_in), for DoRA and HiRA.

    Raises:
        AdapterError: if values cannot be read, or hold NaN or infinity.
        AggregationError: if the method cannot combine them; the message names adapter and module.
    """
    having = [client for client in clients if name in client.folder.form.modules]
    stored = [client.folder.form.modules[name] for client in having]
    if _is_streamed(job, stored):
        made = [
            _streamed(job, clients, name, stored, at) for at in range(len(stored[0].pair_names))
        ]
        return Combined(
            {k: v for m in made for k, v in m.pairs.items()}, [m.reports[0] for m in made]
        )
    updates = _updates(job, clients, name, weight)
    try:
        result = aggregate(
            updates,
            job.method,
            job.rank,
            job.alpha,
            server=job.server,
            base_weights=None if weight is None else {name: weight},
            **job.options,
        )
    except AggregationError as error:
        raise AggregationError(f"module {plain(name)}: {error}") from error
    whole = result if job.dtype is None else _rounded(result, job.dtype)
    pairs = whole.adapter.pairs
    # the optimum is that of the trained rank, which a residual is beside
    errors = {n: e._replace(optimum=result.errors[n].optimum) for n, e in whole.errors.items()}
    reports = [ModuleReport(n, p.shape, p.rank, errors[n]) for n, p in pairs.items()]
    return Combined(pairs, reports)


def alike_modules(made: Sequence[Combined]) -> Combined:
    """Modules that are to have one rank and alpha, with the same products: smaller ranks are padded with zeros.

    Experts of one module are such, and a method that chooses ranks may have chosen unlike ones.
    """
    pairs = {name: pair for one in made for name, pair in one.pairs.items()}
    if len(pairs) > 1:
        pairs = dict(zip(pairs, alike(list(pairs.values())), strict=True))
    reports = [replace(r, rank=pairs[r.name].rank) for one in made for r in one.reports]
    return Combined(pairs, reports)


def mean_extra(
    clients: Sequence[Client], parameter: str, dtype: torch.dtype | None
) -> tuple[Tensor, torch.dtype]:
    """The weighted mean of a parameter over the adapters that have it, in float64, and the dtype to write it in.

    One tensor is held beside the running sum.

    Raises:
        AdapterError: if values cannot be read, or hold NaN or infinity.
        AggregationError: if those adapters' weights are all 0.
    """
    having = [client for client in clients if parameter in client.folder.form.extras]
    total = sum(client.num_examples for client in having)
    if total == 0:
        raise AggregationError(
            f"parameter {plain(parameter)}: the adapters that have it have weight 0; give them more"
        )
    mean: Tensor | None = None
    for client in having:
        part = client.folder.extra(parameter).double().mul_(client.num_examples / total)
        mean = part if mean is None else mean.add_(part)
    assert mean is not None
    return mean, dtype or having[0].folder.form.extras[parameter].info.dtype


def _is_streamed(job: Job, stored: Sequence[StoredModule]) -> bool:
    possible = can_stream(job.made, job.server) and stored[0].variant == "lora"
    if job.streaming is not None:
        return job.streaming and possible
    return possible and sum(module.rank for module in stored) > max(
        FEW, min(MANY, *stored[0].shape)
    )


def _updates(
    job: Job, clients: Sequence[Client], name: str, weight: Tensor | None
) -> list[ClientUpdate]:
    """The adapters' pairs of a module; what stands in for those that lack it is made from the others."""
    read = [
        client.folder.pairs(name) if name in client.folder.form.modules else None
        for client in clients
    ]
    dtypes = [pair.A.dtype for pairs in read if pairs for pair in pairs.values()]
    working = reduce(torch.promote_types, dtypes, job.dtype or dtypes[0])
    held = [
        {n: _cast(pair, working) for n, pair in pairs.items()} if pairs else None for pairs in read
    ]
    if job.missing == "zero" and None in read:
        there = [(c.num_examples, p) for c, p in zip(clients, held, strict=True) if p is not None]
        sizes = [size for size, _ in there]
        zero = {n: unchanged([p[n] for _, p in there], sizes, weight) for n in there[0][1]}
        held = [pairs or zero for pairs in held]
    return [
        ClientUpdate(client.name, client.num_examples, Adapter(pairs))
        for client, pairs in zip(clients, held, strict=True)
        if pairs is not None
    ]


def _cast(pair: LoraPair, dtype: torch.dtype) -> LoraPair:
    m = None if pair.magnitude is None else pair.magnitude.to(dtype)
    return replace(pair, A=pair.A.to(dtype), B=pair.B.to(dtype), magnitude=m)


def _rounded(result: Aggregate, dtype: torch.dtype) -> Aggregate:
    """The whole result in another dtype, rounded once, so that its errors are those of what is written."""
    pairs = {name: _cast(pair, dtype) for name, pair in result.adapter.pairs.items()}
    for name, pair in pairs.items():
        parts = [t for t in (pair.A, pair.B, pair.magnitude) if t is not None]
        if not all(torch.isfinite(t).all() for t in parts):
            raise AggregationError(
                f"module {plain(name)}: the result does not fit into {dtype} at alpha {pair.alpha:g}; ask for a larger "
                "alpha, or for float32 or bfloat16"
            )
    return replace(result, trained=replace(result.trained, pairs=pairs), increment={}, residual={})


def _streamed(
    job: Job, clients: Sequence[Client], name: str, stored: Sequence[StoredModule], at: int
) -> Combined:
    """One pair of a module, the ``at``-th, without holding all adapters' at once."""
    widest = max(stored, key=lambda module: (module.rank, module.scaling))
    dtypes = [module.dtype for module in stored]
    module = Shape(
        widest.pair_names[at],
        widest.shape,
        job.rank or widest.rank,
        job.alpha if job.alpha is not None else widest.alpha,
        widest.rslora,
        job.dtype or reduce(torch.promote_types, dtypes),
    )
    there = [name in client.folder.form.modules for client in clients]
    sizes = [client.num_examples for client in clients]
    coefficients = shares(sizes, there, renormalise=job.missing == "mean")
    having = [client for client, has in zip(clients, there, strict=True) if has]

    def source() -> Iterator[tuple[float, LoraPair]]:
        for client, coefficient in zip(having, coefficients, strict=True):
            yield coefficient, client.folder.pairs(name)[module.name]

    pair, estimate = stream(job.made, module, source)
    report = ModuleReport(module.name, module.shape, pair.rank, None, estimate)
    return Combined({module.name: pair}, [report])
