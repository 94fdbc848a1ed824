"""What is asked of an aggregation of folders, checked before any folder is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from florana.aggregators import Method, card, cards
from florana.config import ServerConfig
from florana.errors import ConfigError
from florana.folders.inspect_losses import offline
from florana.folders.missing import CHOICES, Missing
from florana.folders.streaming import can_stream

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Names of the dtypes that a result can have beside its inputs' own."""


@dataclass(frozen=True, slots=True)
class Job:
    """How adapters are to be made into one.

    Args:
        method: name of the method.
        made: the method with its options.
        options: the method's options, as given.
        server: add-ons to the target.
        rank: rank of the result, or None for the largest of the adapters in each module.
        alpha: alpha of the result, or None for that of the adapter with the largest rank.
        dtype: dtype of the result, or None for that of the adapters.
        missing: what is done about a module that some lack.
        streaming: whether modules are streamed; None for those where that takes less memory.
    """

    method: str
    made: Method
    options: Mapping[str, Any]
    server: ServerConfig
    rank: int | None
    alpha: float | None
    dtype: torch.dtype | None
    missing: Missing
    streaming: bool | None

    @property
    def settings(self) -> dict[str, object]:
        """Options and add-ons that were set, as ``--set`` takes them."""
        given = self.server.model_dump(exclude_defaults=True)
        return {**self.options, **{f"server.{key}": value for key, value in given.items()}}


def command_of(
    job: Job,
    names: Sequence[str],
    weights: Sequence[float] | None,
    out: str,
    base: str | None,
    base_name: str | None,
) -> tuple[str, ...]:
    """The command line of a job, for someone who has the inputs beside one another.

    Args:
        job: what was asked.
        names: the inputs' names.
        weights: as given.
        out: name of the output folder.
        base: name of the base model's folder, if one was given.
        base_name: as given.
    """
    given: Mapping[str, object] = {
        "--method": job.method,
        "--weights": weights and ",".join(f"{w:.17g}" for w in weights),
        "--rank": job.rank,
        "--alpha": job.alpha and f"{job.alpha:.17g}",
        "--dtype": job.dtype and str(job.dtype).removeprefix("torch."),
        "--base": base,
        "--base-name": base_name,
        "--missing": None if job.missing == "refuse" else job.missing,
    }
    line = ["florana", "aggregate", *names, "--out", out]
    for option, value in given.items():
        line += [option, str(value)] if value is not None else []
    for key, value in job.settings.items():
        line += ["--set", f"{key}={value}"]
    return (*line, *{True: ["--streaming"], False: ["--no-streaming"], None: []}[job.streaming])


def check_job(job: Job) -> None:
    """Refuse what no adapters could make possible.

    Raises:
        ConfigError: if the method, an option or a choice is not known, the method does not merge finished adapters, or
            it is to be streamed and cannot be.
    """
    able = [c for c in cards().values() if not offline(c)]
    if reason := offline(card(job.method)):
        raise ConfigError(
            f"{job.method} cannot merge finished adapters: {reason}; methods that can: "
            f"{', '.join(c.name for c in able)}"
        )
    if job.missing not in CHOICES:
        raise ConfigError(f"missing is {job.missing!r}; expected one of {', '.join(CHOICES)}")
    if job.streaming and not can_stream(job.made, job.server):
        streamed = [c.name for c in able if can_stream(c.build(), ServerConfig())]
        raise ConfigError(
            f"{job.method} cannot be streamed as asked, since it needs the factors of all adapters at once; methods "
            f"that can be, without server add-ons: {', '.join(streamed)}"
        )


def dtype_of(name: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by its name.

    Raises:
        ConfigError: if a result cannot have it.

    Example:
        >>> dtype_of("bfloat16"), dtype_of(None)
        (torch.bfloat16, None)
    """
    if name is None or name in DTYPES.values():
        return name if isinstance(name, torch.dtype) else None
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise ConfigError(f"dtype is {name}; expected one of {', '.join(DTYPES)}")
