"""Whether modules are stored alike by all adapters, and a result can have the rank that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from florana.aggregators import card
from florana.aggregators._checks import NAMES
from florana.aggregators._registry import able
from florana.folders._text import listed, plain
from florana.folders.clients import Client
from florana.peft_io.form import StoredModule

T = TypeVar("T")


def unlike_forms(clients: Sequence[Client], method: str, dtype: torch.dtype | None) -> list[str]:
    """A line for every adapter and respect in which its modules and parameters are not stored as the others'."""
    chosen = card(method)
    aspects: dict[str, Callable[[Any], object]] = {
        "variant": lambda m: NAMES[m.variant],
        "shape": lambda m: m.shape,
        "layout": lambda m: m.layout,
        "matrices": lambda m: len(m.pair_names),
    }
    if not chosen.mixed_ranks:
        aspects[f"rank (methods that take unlike ranks: {able(lambda c: c.mixed_ranks)})"] = (
            lambda m: m.rank
        )
    if dtype is None:
        aspects["dtype (--dtype gives the result one)"] = lambda m: m.dtype
    stored = {client.name: client.folder.form.modules for client in clients}
    problems = _unlike(stored, aspects, "module")
    if (
        not problems
    ):  # one line says it: a method that cannot do the variant cannot do it for any adapter
        variants = {m.variant for modules in stored.values() for m in modules.values()}
        problems += [
            f"they are {NAMES[v]}, which {method} cannot aggregate; methods that can: "
            f"{able(lambda c, v=v: v in c.variants)}"  # type: ignore[misc]
            for v in sorted(variants - {*chosen.variants})
        ]
    of_extras: dict[str, Callable[[Any], object]] = {"shape": lambda e: e.info.shape}
    if dtype is None:
        of_extras["dtype (--dtype gives the result one)"] = lambda e: e.info.dtype
    extras = {client.name: client.folder.form.extras for client in clients}
    return problems + _unlike(extras, of_extras, "parameter")


def unfit_rank(clients: Sequence[Client], method: str, rank: int | None) -> list[str]:
    """The rank that is asked for, where a module or the method cannot have it."""
    chosen = card(method)
    modules = [m for client in clients for m in client.folder.form.modules.values()]
    largest: dict[str, StoredModule] = {}
    for module in sorted(modules, key=lambda m: m.rank):
        largest[module.name] = module
    problems = []
    high = [n for n, m in largest.items() if (rank or m.rank) > min(m.shape)]
    if high:
        came = f"rank {rank or largest[high[0]].rank}"
        problems.append(
            f"{came} is above min(d_out, d_in) = {min(largest[high[0]].shape)} in {counted('module', high)}; use a "
            "smaller --rank"
        )
    kept = [n for n, m in largest.items() if rank not in (None, m.rank)]
    if kept and not chosen.chooses_rank:
        problems.append(
            f"rank {rank} cannot be had, since {method} keeps the adapters' rank {largest[kept[0]].rank} in "
            f"{counted('module', kept)}; methods that choose the rank: {able(lambda c: c.chooses_rank)}"
        )
    return problems


def _unlike(
    stored: Mapping[str, Mapping[str, Any]],
    aspects: Mapping[str, Callable[[Any], object]],
    kind: str,
) -> list[str]:
    """A line for every adapter and aspect in which some of its modules are unlike most others'."""
    problems = []
    names = union(stored.values())
    for aspect, of in aspects.items():
        found: dict[tuple[str, object, object], list[str]] = {}
        for name in names:
            told = {client: of(s[name]) for client, s in stored.items() if name in s}
            usual = next(iter(told.values()))
            if all(value == usual for value in told.values()):
                continue
            usual = Counter(told.values()).most_common(1)[0][0]
            for client, value in told.items():
                if value != usual:
                    found.setdefault((client, value, usual), []).append(name)
        label, bracket, hint = aspect.partition(" (")
        problems += [
            f"{plain(client)} has {label} {_said(value)} in {counted(kind, where)}; expected {_said(usual)}, as most "
            f"others have{'; ' + hint.removesuffix(')') if bracket else ''}"
            for (client, value, usual), where in found.items()
        ]
    return problems


def union(mappings: Iterable[Mapping[str, T]]) -> dict[str, T]:
    """All entries of some mappings, the first of every name."""
    found: dict[str, T] = {}
    for mapping in mappings:
        found |= {name: value for name, value in mapping.items() if name not in found}
    return found


def counted(kind: str, names: Sequence[str]) -> str:
    """``module a.b``, or how many and which the first are.

    Example:
        >>> counted("module", ["a", "b"])
        '2 modules (a, b)'
    """
    if len(names) == 1:
        return f"{kind} {plain(names[0])}"
    return f"{len(names):,} {kind}s ({listed(names, 3)})"


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " × ".join(map(str, value))
    return plain(str(value).removeprefix("torch."))
