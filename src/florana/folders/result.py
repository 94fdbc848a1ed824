"""What became of a job on adapter folders, as frozen values that a script can read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from florana.aggregators._errors import Errors, together
from florana.config import Variant


class Estimate(NamedTuple):
    """How far a streamed result is from the ideal, ‖T − X‖_F / ‖T‖_F, as far as random probes can tell.

    ``used`` is the estimate and ``bound`` what the distance does not exceed with 99 % certainty, of one module as of
    all together, since their probes are independent. ``least``: no pair of this rank comes nearer. ``target_norm``
    is the estimate of ‖T‖_F, ``floor`` what it is at least, and ``gap`` what ‖T − X‖_F is at most.
    """

    used: float
    bound: float
    least: float
    target_norm: float
    gap: float
    floor: float


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One pair of the result.

    Args:
        name: the module, or ``module[3]`` for the fourth expert of one.
        shape: (d_out, d_in) of the weight that it updates.
        rank: rank of the pair written, a method's residual included.
        errors: distances to the ideal update; None where the module was streamed.
        estimate: the same of a streamed module; None elsewhere.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    errors: Errors | None
    estimate: Estimate | None = None

    @property
    def used(self) -> float:
        """Relative distance of what was written to the ideal update, estimated where it was streamed."""
        return self.told.used

    @property
    def told(self) -> Estimate:
        """What is known of the distance, as an estimate: where errors are known, one that is sure of itself."""
        if self.estimate is not None:
            return self.estimate
        if self.errors is None:
            raise ValueError(f"module {self.name} has neither errors nor an estimate")
        used, _, optimum, norm = self.errors
        return Estimate(used, used, optimum, norm, used * norm if norm > 0 else 0.0, norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderResult:
    """What :func:`florana.aggregate_folders` made.

    Args:
        out: the folder, a PEFT adapter.
        method: name of the method.
        options: the method's options and the server's add-ons that were set.
        weights: adapter -> its share w_u, summing to 1. Adapters are named by the end of their path.
        equal: whether the weights are equal because none were given.
        base_model: the base model's name, as the result has it.
        modules: one report per pair, in the order of the files.
        absent: adapter -> modules that it lacks.
        missing: what was done about those: ``"zero"`` or ``"mean"``; ``"refuse"`` if there were none to allow.
        dtypes: dtypes of the tensors written.
        rank: the rank asked for, or None for each module's largest.
        alpha: the alpha asked for, or None for that of the adapter with the largest rank.
        parameters: names of what was averaged as it is: heads, biases, token rows.
        variant: ``"lora"``, ``"dora"`` or ``"hira"``.
        task_type: PEFT's task type of the adapters, or "".
        command: the command line that does the same where the inputs are at hand, without their full paths.
        seconds: from the first byte read to the last one written.

    """

    out: Path
    method: str
    options: Mapping[str, object]
    weights: Mapping[str, float]
    equal: bool
    base_model: str
    modules: Sequence[ModuleReport]
    absent: Mapping[str, Sequence[str]]
    missing: str
    dtypes: Sequence[str]
    rank: int | None
    alpha: float | None
    parameters: Sequence[str]
    variant: Variant
    task_type: str
    command: Sequence[str]
    seconds: float

    @property
    def error(self) -> Errors | None:
        """Distances over all modules at once, √Σ‖T − X‖² / √Σ‖T‖²; None where any module was streamed, or none is."""
        known = [m.errors for m in self.modules if m.errors is not None]
        return together(known) if known and len(known) == len(self.modules) else None

    @property
    def estimate(self) -> Estimate | None:
        """The same where modules were streamed: estimate and bound; None where none was."""
        if all(m.estimate is None for m in self.modules):
            return None
        return _joined([m.told for m in self.modules])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of the pairs written, each once, ascending."""
        return tuple(sorted({m.rank for m in self.modules}))

    def worst(self, count: int = 5) -> list[ModuleReport]:
        """The modules that are farthest from the ideal update, the farthest first."""
        return sorted(self.modules, key=lambda m: -m.used)[:count]

    def as_dict(self) -> dict[str, Any]:
        """All of it in what JSON knows; numbers that JSON lacks are None."""
        overall, streamed = self.error, self.estimate
        return {
            "out": str(self.out),
            "variant": self.variant,
            "method": self.method,
            "options": dict(self.options),
            "weights": dict(self.weights),
            "equal_weights": self.equal,
            "base_model": self.base_model,
            "rank": self.rank,
            "alpha": self.alpha,
            "ranks": list(self.ranks),
            "dtypes": list(self.dtypes),
            "missing": self.missing,
            "absent": {name: list(modules) for name, modules in self.absent.items()},
            "error": _finite(overall._asdict()) if overall else None,
            "estimate": _finite(streamed._asdict()) if streamed else None,
            "modules": [_report(module) for module in self.modules],
            "parameters": list(self.parameters),
            "command": list(self.command),
            "seconds": self.seconds,
        }


def _report(module: ModuleReport) -> dict[str, Any]:
    return {
        **asdict(module),
        "shape": list(module.shape),
        "errors": _finite(module.errors._asdict()) if module.errors else None,
        "estimate": _finite(module.estimate._asdict()) if module.estimate else None,
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: n if math.isfinite(n) else None for name, n in numbers.items()}


def _joined(modules: Sequence[Estimate]) -> Estimate:
    """Over all modules: √Σ‖T − X‖² / √Σ‖T‖²."""
    there = [m for m in modules if m.target_norm > 0]
    total, floor = _root(m.target_norm for m in there), _root(m.floor for m in there)
    if not there or floor == 0:
        return Estimate(max(m.used for m in modules), math.inf, 0.0, total, math.inf, floor)
    gap = _root(m.gap for m in there)
    return Estimate(
        _root(m.used * m.target_norm for m in there) / total,
        gap / floor,
        _root(m.least * m.target_norm for m in there) / total,
        total,
        gap,
        floor,
    )


def _root(numbers: Iterable[float]) -> float:
    return math.hypot(*numbers)
