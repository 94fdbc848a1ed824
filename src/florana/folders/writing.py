"""Module by module and parameter by parameter: combined, written, and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

from florana.folders.agreement import Agreed
from florana.folders.base import BaseWeights
from florana.folders.clients import Client
from florana.folders.combine import Combined, alike_modules, combine, mean_extra
from florana.folders.job import Job
from florana.folders.result import ModuleReport
from florana.peft_io.extras import stored_name
from florana.peft_io.folder_writer import FolderWriter
from florana.peft_io.layouts import LINEAR
from florana.peft_io.names import PREFIX
from florana.peft_io.scales import Scale, one_entry
from florana.peft_io.state_dict import written_config

Watch = Callable[[int, int, str], None]
"""Called with the number of modules and parameters done, of all, and the name of the next."""


def write_modules(
    job: Job,
    clients: Sequence[Client],
    agreed: Agreed,
    frozen: BaseWeights | None,
    writer: FolderWriter,
    watch: Watch | None,
) -> tuple[list[ModuleReport], dict[str, Scale]]:
    """Combine and write every module; what is kept is a report and the rank and alpha of each.

    Modules of which PEFT's config can say one rank only are written together, once the last is known: the projections
    of an attention, the parameters of one block of experts, and with HiRA all.
    """
    reports: list[ModuleReport] = []
    scales: dict[str, Scale] = {}
    groups = _groups(agreed)
    held: dict[Hashable, list[Combined]] = {}
    count = len(agreed.modules) + len(agreed.extras)
    for done, (name, stored) in enumerate(agreed.modules.items()):
        if watch is not None:
            watch(done, count, name)
        weight = frozen.weight(stored) if frozen is not None else None
        group, names = groups[name]
        held.setdefault(group, []).append(combine(job, clients, name, weight))
        if len(held[group]) < len(names):
            continue
        made = alike_modules(held.pop(group))
        for each in names:
            stored = agreed.modules[each]
            for key, tensor in stored.write(made.pairs).items():
                writer.add(key, tensor)
            pair = made.pairs[stored.pair_names[0]]
            scales[each] = Scale(pair.rank, pair.alpha, pair.rslora)
        reports += made.reports
    return reports, scales


def _groups(agreed: Agreed) -> dict[str, tuple[Hashable, list[str]]]:
    """Module -> what it shares a rank with, and all modules that do, in their order."""
    given: Mapping[str, Any] = agreed.peft_config
    parameters, variant = tuple(given.get("target_parameters") or ()), agreed.variant
    members: dict[Hashable, list[str]] = {}
    for name, stored in agreed.modules.items():
        entry = one_entry(name, stored.layout, parameters, variant)
        members.setdefault(entry, []).append(name)
    return {name: (entry, names) for entry, names in members.items() for name in names}


def write_extras(
    job: Job,
    clients: Sequence[Client],
    agreed: Agreed,
    scales: Mapping[str, Scale],
    writer: FolderWriter,
    watch: Watch | None,
) -> set[str]:
    """Average and write every other parameter; names of the dtypes of all that was written."""
    stems = {stored.layout.stem(name) for name, stored in agreed.modules.items()}
    count = len(agreed.modules) + len(agreed.extras)
    for done, (name, stored) in enumerate(agreed.extras.items(), len(agreed.modules)):
        if watch is not None:
            watch(done, count, name)
        mean, dtype = mean_extra(clients, name, job.dtype)
        if stored.module is not None:
            made: Mapping[str, Tensor] = stored.write(mean, scales[stored.module].scaling)
        else:
            made = {PREFIX + stored_name(name, stems): mean}
        for key, tensor in made.items():
            writer.add(key, tensor.to(dtype))
    written = {m.dtype for c in clients for m in c.folder.form.modules.values()}
    written |= {e.info.dtype for c in clients for e in c.folder.form.extras.values()}
    return {str(d).removeprefix("torch.") for d in ({job.dtype} if job.dtype else written) if d}


def settings_of(agreed: Agreed, scales: Mapping[str, Scale]) -> dict[str, object]:
    """PEFT's settings for what was written."""
    layouts = {n: m.layout for n, m in agreed.modules.items() if m.layout != LINEAR}
    extras, base_model = agreed.extras.keys(), agreed.base_model
    return written_config(scales, layouts, agreed.variant, extras, base_model, agreed.peft_config)
