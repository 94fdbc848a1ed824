"""``evaluation.json`` beside a model: every number that the harness has said of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from florana.atomic import write_atomically
from florana.errors import RunError
from florana.harness.scores import Score

FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class _File:
    harness: str
    scores: list[Score]


def read_scores(folder: Path) -> list[Score]:
    """The scores of a run folder or adapter folder; none where nothing was evaluated.

    Raises:
        RunError: if the file cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return TypeAdapter(_File).validate_json(path.read_bytes(), strict=True).scores
    except OSError as error:
        why = error.strerror or str(error)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    raise RunError(f"{path} cannot be read ({why}); remove it and evaluate again")


def write_scores(folder: Path, new: Iterable[Score], harness: str) -> list[Score]:
    """Add scores to those that are there; one that was measured before is replaced.

    Args:
        folder: of a run or an adapter.
        new: what was measured now.
        harness: name and version of what measured.

    Returns:
        All that the file holds now.

    Raises:
        RunError: if the file cannot be read or written.
    """
    found = {(score.model, score.measure): score for score in read_scores(folder)}
    found.update({(score.model, score.measure): score for score in new})
    told = asdict(_File(harness, list(found.values())))
    try:
        write_atomically(
            folder / FILE, json.dumps(told, indent=2, allow_nan=False).encode() + b"\n"
        )
    except OSError as error:
        raise RunError(f"cannot write {folder / FILE}: {error.strerror or error}") from error
    return list(found.values())
