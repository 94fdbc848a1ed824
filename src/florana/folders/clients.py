"""The adapter folders of a job: opened together, named, weighted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from florana.errors import AdapterError, AggregationError
from florana.folders._text import plain
from florana.peft_io.folder import AdapterFolder, open_adapter
from florana.peft_io.limits import Limits

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One adapter folder of a job.

    Args:
        name: the end of its path, as long as is needed to tell it from the others.
        num_examples: its weight, before weights are made to sum to 1.
        folder: open; its tensors are read when asked for.
    """

    name: str
    num_examples: float
    folder: AdapterFolder


def check_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """The adapters' weights, all 1 where none are given: a folder does not say how many examples it saw.

    Raises:
        AggregationError: if there are more or fewer than adapters, or one is negative, or all are 0.

    Example:
        >>> check_weights(None, 2), check_weights([1200, 300], 2)
        ((1.0, 1.0), (1200.0, 300.0))
    """
    if weights is None:
        return (1.0,) * count
    if len(weights) != count:
        raise AggregationError(
            f"there are {len(weights)} weights for {count} adapters; expected one for each, in their order: a "
            "number of examples or a share"
        )
    odd = [w for w in weights if not (math.isfinite(w) and w >= 0)]
    if odd or not 0 < sum(weights) < math.inf:
        came = f"{odd[0]:g}" if odd else f"a sum of {sum(weights):g}"
        raise AggregationError(
            f"weights must be finite numbers of 0 or more that are not all 0, got {came}"
        )
    return tuple(float(w) for w in weights)


def short_names(paths: Sequence[PathLike]) -> list[str]:
    """The ends of the paths, as long as is needed for no two to be the same.

    Raises:
        AggregationError: if there are no paths, or one comes twice.

    Example:
        >>> short_names(["/data/site_a/", "/data/site_b"]), short_names(["x/a/final", "x/b/final"])
        (['site_a', 'site_b'], ['a/final', 'b/final'])
    """
    if not paths:
        raise AggregationError("there are no adapter folders; expected one or more")
    parts = [Path(path).resolve().parts for path in paths]
    if len({*parts}) < len(parts):
        twice = next(p for p in parts if parts.count(p) > 1)
        raise AggregationError(
            f"{plain(str(Path(*twice)))} is given twice; expected every adapter once; give it more weight instead"
        )
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) if depth <= len(p) else str(Path(*p)) for p in parts]


@contextmanager
def open_clients(
    paths: Sequence[PathLike], weights: Sequence[float] | None, limits: Limits
) -> Iterator[list[Client]]:
    """The folders, open for reading until the block ends. Headers alone are read here.

    Args:
        paths: adapter folders.
        weights: one per folder, or None for equal weights.
        limits: how large a file may be.

    Raises:
        AdapterError: naming every folder that cannot be used, and why.
        AggregationError: if the weights or the list of folders cannot be used.
    """
    names, sizes = short_names(paths), check_weights(weights, len(paths))
    faults, clients = [], []
    with ExitStack() as stack:
        for name, path, size in zip(names, paths, sizes, strict=True):
            try:
                folder = stack.enter_context(open_adapter(path, limits))
                clients.append(Client(name, size, folder))
            except AdapterError as error:
                faults.append(str(error))
        if len(faults) == 1:
            raise AdapterError(faults[0])
        if faults:
            raise AdapterError(
                f"{len(faults)} of {len(paths)} folders cannot be used:\n  " + "\n  ".join(faults)
            )
        yield clients
