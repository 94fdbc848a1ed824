"""One line for one mistake, with the nearest key that exists."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pydantic import BaseModel

from florana.config.run import RunConfig


def explain(loc: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    """One line for one mistake."""
    key = ".".join(map(str, loc))
    if kind != "extra_forbidden":
        came = "" if isinstance(value, Mapping) else f", got {value!r}"
        return f"{key}: {message.removeprefix('Value error, ')}{came}"
    section: type[BaseModel] = RunConfig
    for part in loc[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        section = annotation
    close = difflib.get_close_matches(str(loc[-1]), list(section.model_fields), n=1, cutoff=0.5)
    meant = [*_elsewhere(str(loc[-1])), *close]
    hint = (
        f", did you mean {meant[0]!r}?" if meant else f"; known: {', '.join(section.model_fields)}"
    )
    return f"unknown key {key!r}{hint}"


def _elsewhere(key: str) -> list[str]:
    """Full names of the keys of that name in any section."""
    sections = {name: type(value) for name, value in RunConfig() if isinstance(value, BaseModel)}
    return [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
