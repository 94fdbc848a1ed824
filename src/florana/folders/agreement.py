"""Whether adapters fit together, told from their headers before a single value is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from florana.config import Variant
from florana.errors import AggregationError
from florana.folders._text import listed, plain
from florana.folders.clients import Client
from florana.folders.forms import counted, unfit_rank, union, unlike_forms
from florana.folders.missing import Missing
from florana.peft_io.extras import StoredExtra
from florana.peft_io.form import StoredModule

MOST_PROBLEMS = 20
"""Lines in a message; what is beyond is counted."""

OF_TRAINING = frozenset({"lora_dropout", "hira_dropout"})
"""Settings that say nothing of the result; left out of it where the adapters differ."""
FROM_TENSORS = frozenset({"target_modules", "modules_to_save"})
"""Settings that the names of the tensors tell as well, and that are told from those where the adapters differ."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the checks have to know of a job.

    Args:
        method: name of the method.
        rank: rank of the result, or None.
        dtype: dtype of the result, or None for that of the adapters.
        missing: what is done about a module that some lack.
        base_name: name of the one base model of all, or None if the adapters are to agree on it.
    """

    method: str
    rank: int | None = None
    dtype: torch.dtype | None = None
    missing: Missing = "refuse"
    base_name: str | None = None


@dataclass(frozen=True, slots=True)
class Agreed:
    """What adapters that fit together have in common.

    Args:
        modules: name -> the first adapter's form of it.
        extras: parameter -> the first adapter's form of it.
        base_model: name of the base model.
        peft_config: PEFT's settings that are carried along.
        absent: adapter -> modules that it lacks, for those that lack any.
    """

    modules: Mapping[str, StoredModule]
    extras: Mapping[str, StoredExtra]
    base_model: str
    peft_config: Mapping[str, object]
    absent: Mapping[str, tuple[str, ...]]

    @property
    def variant(self) -> Variant:
        """The variant of all pairs."""
        return next((module.variant for module in self.modules.values()), "lora")


def agree(clients: Sequence[Client], wanted: Wanted) -> Agreed:
    """What the adapters have in common, if they can be combined as wanted.

    Raises:
        AggregationError: with a line for every problem there is, naming adapter and module.
    """
    modules = union(client.folder.form.modules for client in clients)
    extras = union(client.folder.form.extras for client in clients)
    absent = _absent(clients, modules, lambda c: c.folder.form.modules)
    settings, problems = _settings(clients)
    problems = [
        *_base_models(clients, wanted.base_name),
        *problems,
        *_missing(absent, "module", len(clients), wanted.missing),
        *_missing(
            _absent(clients, extras, lambda c: c.folder.form.extras),
            "parameter",
            len(clients),
            wanted.missing,
        ),
        *unlike_forms(clients, wanted.method, wanted.dtype),
        *unfit_rank(clients, wanted.method, wanted.rank),
    ]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        tail = [f"and {more:,} more"] if more > 0 else []
        raise AggregationError(
            "these adapters do not fit together:\n  "
            + "\n  ".join([*problems[:MOST_PROBLEMS], *tail])
        )
    first = clients[0].folder.form
    base_model = first.base_model if wanted.base_name is None else wanted.base_name
    return Agreed(modules, extras, base_model, settings, absent)


def _absent(
    clients: Sequence[Client],
    known: Mapping[str, object],
    of: Callable[[Client], Mapping[str, object]],
) -> dict[str, tuple[str, ...]]:
    """Adapter -> those of the known names that it lacks, where there are any."""
    lacking = {c.name: tuple(name for name in known if name not in of(c)) for c in clients}
    return {client: names for client, names in lacking.items() if names}


def _missing(
    absent: Mapping[str, Sequence[str]], kind: str, count: int, missing: Missing
) -> list[str]:
    if missing == "mean" or (missing == "zero" and kind == "module"):
        return []
    what = (
        "--missing zero counts a module that an adapter lacks as no change, --missing mean averages it over those "
        "that have it"
        if kind == "module"
        else "there is no zero for a head or a bias: --missing mean averages it over those that have it"
    )
    return [
        f"{plain(client)} lacks {counted(kind, names)} that {'the other has' if count == 2 else 'others have'}; {what}"
        for client, names in absent.items()
    ]


def _base_models(clients: Sequence[Client], base_name: str | None) -> list[str]:
    """Hub name and local path of one model are an honest difference, and nothing here can tell it from another."""
    if base_name is not None:
        return []
    holders: dict[str, list[str]] = {}
    for client in clients:
        holders.setdefault(client.folder.form.base_model, []).append(client.name)
    if len(holders) == 1:
        return []
    said = ", ".join(f"{plain(name)!r} ({listed(who, 3)})" for name, who in holders.items())
    return [
        f"base models differ by name: {said}; if they are one model, say which name it is to have: --base-name NAME"
    ]


def _settings(clients: Sequence[Client]) -> tuple[dict[str, object], list[str]]:
    """PEFT's settings that all share, and a line for each that differs where it must not."""
    configs = [client.folder.form.peft_config for client in clients]
    shared, problems = {}, []
    for name in union(configs):
        told = [json.dumps(config.get(name), sort_keys=True, default=str) for config in configs]
        if len({*told}) == 1:
            shared[name] = configs[0][name]
        elif name not in OF_TRAINING | FROM_TENSORS:
            who = [client.name for client in clients]
            problems += _odd(f"setting {plain(name)}", dict(zip(who, told, strict=True)))
    return shared, problems


def _odd(what: str, told: Mapping[str, str]) -> list[str]:
    """A line for every adapter that is not told what most are."""
    usual = Counter(told.values()).most_common(1)[0][0]
    return [
        f"{plain(client)} has {what} = {plain(value)}; expected {plain(usual)}, as most others have"
        for client, value in told.items()
        if value != usual
    ]
