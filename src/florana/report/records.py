"""A run folder, read back for a report: checked at the door into frozen values.

Only finished rounds count: a round whose line is missing from ``metrics.jsonl`` was cut short, and a last line
without its end was being written when the run was killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from florana.errors import RunError
from florana.harness.record import read_scores
from florana.harness.scores import Score
from florana.tasks.metrics import Metric

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModuleErrors:
    """Relative aggregation error of one module in one round; None where a method defines none.

    Args:
        used: of what was used.
        average: what plain averaging would have had.
        optimum: the least that any pair of that rank has.
        target_norm: ‖T‖_F of the ideal update.
    """

    used: float | None = None
    average: float | None = None
    optimum: float | None = None
    target_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a module's ideal update, descending, and the rank that was kept of it."""

    rank: int
    singular_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round's line in ``metrics.jsonl``; its fields are those of ``florana.experiments.events.RoundRow``."""

    server_round: Annotated[int, Field(alias="round")]
    score: float
    loss: float
    client_score: float | None = None
    worst_client: float | None = None
    gap: float | None = None
    error_used: float | None = None
    error_average: float | None = None
    error_optimum: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    client_metrics: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, ModuleErrors] = field(default_factory=dict)
    spectra: Mapping[str, Spectrum] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client's line in ``metrics.jsonl``: its own model before aggregation, on its own held-out data.

    ``global_score``, after the last round alone, is its own model's on the global test set.
    """

    server_round: Annotated[int, Field(alias="round")]
    client: int
    weight: float | None = None
    num_examples: Annotated[int | None, Field(alias="num-examples")] = None
    train_loss: Annotated[float | None, Field(alias="train-loss")] = None
    score: float | None = None
    loss: float | None = None
    global_score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SummaryRecord:
    """``summary.json``: how a finished run ended."""

    rounds: int
    score: float
    loss: float
    best_round: int
    best_score: float
    best_client: str | None = None
    best_client_score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BaseModelRecord:
    """The frozen base model and the hash of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DataRecord:
    """The data: its name, sizes and fingerprints."""

    name: str
    examples: int
    fingerprint: str
    test_examples: int
    test_fingerprint: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """``provenance.json``: what the run was made of.

    ``metric`` judges its rounds; ``partition`` is, per client, the count of each label in
    training, ``held_out`` the number of examples that test its own model.
    """

    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    base_model: BaseModelRecord
    data: DataRecord
    metric: Metric
    labels: tuple[str, ...] = ()
    partition: tuple[tuple[int, ...], ...] = ()
    held_out: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that a report says about a run.

    Args:
        name: of the folder.
        provenance: what the run was made of.
        config_toml: its configuration, as written.
        rounds: its finished rounds, in order.
        clients: the clients' lines of these rounds.
        timings: wall seconds by part, one mapping per round.
        summary: how it ended, or None if it has not.
        evaluation: what ``florana eval`` has said of its adapters.
    """

    name: str
    provenance: Provenance
    config_toml: str
    rounds: tuple[RoundRecord, ...]
    clients: tuple[ClientRecord, ...]
    timings: tuple[Mapping[str, float], ...]
    summary: SummaryRecord | None
    evaluation: tuple[Score, ...] = ()

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the configuration, empty if it has none of that name."""
        found = self.provenance.config.get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def begun(self) -> bool:
        """Whether a round with clients is finished; round 0 is the untrained start."""
        return self.rounds[-1].server_round > 0

    @property
    def metric(self) -> Metric:
        """What judges its rounds."""
        return self.provenance.metric

    @property
    def method(self) -> str:
        """Name of the aggregation method."""
        return str(self.section("method").get("name", "?"))


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        RunError: if there is no run in it, no finished round yet, or a file that cannot be read; says which.
    """
    if not (folder / "provenance.json").is_file():
        raise RunError(
            f"{folder} holds no run (there is no provenance.json in it); start one with: florana run"
        )
    rounds, clients = read_metrics(folder / "metrics.jsonl")
    timings = folder / "timings.jsonl"
    summary = folder / "summary.json"
    return RunRecord(
        folder.resolve().name,
        checked(Provenance, read_json(folder / "provenance.json"), folder / "provenance.json"),
        _read(folder / "config.toml"),
        rounds,
        clients,
        tuple(checked(dict[str, float], v, timings, n) for n, v in read_lines(timings))
        if timings.exists()
        else (),
        checked(SummaryRecord, read_json(summary), summary) if summary.exists() else None,
        tuple(read_scores(folder)),
    )


def read_metrics(path: Path) -> tuple[tuple[RoundRecord, ...], tuple[ClientRecord, ...]]:
    """The rounds that are finished, and their clients' lines."""
    rounds: list[RoundRecord] = []
    clients: list[ClientRecord] = []
    for line, value in read_lines(path):
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind == "round":
            rounds.append(checked(RoundRecord, value, path, line))
        elif kind == "client":
            clients.append(checked(ClientRecord, value, path, line))
        else:
            raise RunError(
                f"{path}, line {line}: expected a line of kind 'round' or 'client', got {kind!r}"
            )
    if not rounds:
        raise RunError(f"{path} has no finished round to report on; let the run go on")
    done = {r.server_round for r in rounds}
    return tuple(rounds), tuple(c for c in clients if c.server_round in done)


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a jsonl file with their line numbers, without a last line that has no end."""
    *lines, _unfinished = _read(path).split("\n")
    for count, text in enumerate(lines, start=1):
        yield count, _parse(text, path, count)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """The value in a JSON file."""
    return _parse(_read(path), path)


def checked(kind: type[T], value: object, path: Path, line: int | None = None) -> T:
    """``value`` as a ``kind``.

    Raises:
        RunError: naming the file, the line and every key that does not fit.
    """
    try:
        found: T = _adapter(cast(Any, kind)).validate_python(value)
        return found
    except ValidationError as error:
        where = f"{path}, line {line}" if line is not None else f"{path}"
        faults = [
            f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}, got {str(e['input'])[:80]!r}"
            for e in error.errors()
        ]
        raise RunError(
            f"{where} is no {kind.__name__} that florana wrote: {'; '.join(faults)}; "
            "the file is damaged or of another version of florana"
        ) from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401
    return TypeAdapter(kind)


def _parse(text: str, path: Path, line: int | None = None) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except ValueError as error:
        where = f"{path}, line {line}" if line is not None else f"{path}"
        raise RunError(f"{where} cannot be read as JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
